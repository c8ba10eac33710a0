"""What a search finds, and how it is printed and saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vse.evaluation.json_file import check_replaces
from vse.files import write_json

_WIDEST = 60  # columns that an id may take


class Hit(NamedTuple):
    """One item that a search found.

    Attributes:
        rank: Its place in the ranking, from 1.
        score: Its similarity to the query.
        id: Its id; of a picture in a folder, the path below the folder.
        path: Its picture or clip, where there is one.
        caption: Its caption; of a picture, the first one that its data set has, if any.
    """

    rank: int
    score: float
    id: str
    path: Path | None
    caption: str | None


class Result(NamedTuple):
    """What was found for one query.

    Attributes:
        query: The text, or the name of the picture.
        image: The file of a picture; None for a text, or for a picture without a file.
        hits: The items, the best first.
    """

    query: str
    image: Path | None
    hits: tuple[Hit, ...]


def format_results(results: Sequence[Result]) -> str:
    """Format results as tables for a terminal.

    Args:
        results: The results.

    Returns:
        For each query a line with the query, and a line for each hit.

    >>> print(format_results([Result("a dog", None, (Hit(1, 0.5, "17.jpg", None, None),))]))
    a dog
       1   0.5000  17.jpg
    """
    return "\n\n".join("\n".join(_lines(result)) for result in results)


def _lines(result: Result) -> list[str]:
    width = min(_WIDEST, max((len(hit.id) for hit in result.hits), default=0))
    rows = [f"{hit.rank:4} {hit.score:8.4f}  {hit.id:{width}}  {hit.caption or ''}".rstrip() for hit in result.hits]
    return [result.query, *rows]


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return results as plain values.

    Args:
        results: The results.

    Returns:
        ``{"results": [{"query", "image", "hits": [{"rank", "score", "id", "path", "caption"}]}]}``.

    >>> as_json([Result("a dog", None, ())])
    {'results': [{'query': 'a dog', 'image': None, 'hits': []}]}
    """
    return {
        "results": [
            {
                "query": result.query,
                "image": _text(result.image),
                "hits": [{**hit._asdict(), "path": _text(hit.path)} for hit in result.hits],
            }
            for result in results
        ]
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def check_results_file(path: Path) -> None:
    """Check that results can be written to a file, before anything is searched.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be written, or it holds something other than results.
    """
    check_replaces(path, "search results", lambda content: "results" in content)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results to a JSON file, completely or not at all.

    Args:
        path: The file; see :func:`check_results_file` for what it may hold already.
        results: The results.

    Raises:
        InputError: The file cannot be written.
    """
    check_results_file(path)
    write_json(path, as_json(results))
