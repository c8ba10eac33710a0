"""The page of a search: each query with what was found for it."""

from collections.abc import Sequence
from pathlib import Path

from vse.pages.html import Markup, check_page, page, tag, write_page
from vse.pages.pictures import LARGE, SMALL, Gallery, read_picture, show
from vse.search.results import Hit, Result


def search_page(results: Sequence[Result], path: Path) -> None:
    """Write the results of a search as one HTML file that needs no other file.

    Args:
        results: The queries, each with what was found for it.
        path: The file. A page of that name is replaced.

    Raises:
        vse.errors.InputError: The file cannot be written, or it holds something other than a page.
    """
    check_page(path)
    gallery = Gallery()
    cards = [_card(gallery, found) for found in results]
    count = "1 query" if len(results) == 1 else f"{len(results):,} queries"
    write_page(path, page("Search results", tag("h1", "Search results"), tag("p", count), *cards, gallery.content()))


def _card(gallery: Gallery, found: Result) -> Markup:
    """A query and its hits; hits with pictures stand side by side, others in a list."""
    if found.image is not None:
        asked = tag("figure", _picture(gallery, found.image, LARGE), tag("figcaption", found.query), class_="look")
    else:
        asked = tag("p", f"“{found.query}”", class_="caption")
    if any(hit.path is not None for hit in found.hits):
        hits = tag("div", *(_pictured(gallery, hit) for hit in found.hits), class_="pictures")
    else:
        hits = tag("ol", *map(_listed, found.hits), class_="hits")
    if found.image is not None:
        return tag("article", tag("div", asked, hits, class_="found"), class_="query")
    return tag("article", asked, hits, class_="query")


def _picture(gallery: Gallery, path: Path, size: int) -> Markup:
    """A picture, or a field with its name."""
    thumbnail = gallery.add(str(path), lambda: read_picture(path), size)
    if thumbnail is None:
        return tag("div", f"{path.name}: cannot be shown", class_="missing")
    return show(thumbnail, path.name)


def _score(score: float) -> Markup:
    return tag("span", f"{score:.3f}", class_="score")


def _pictured(gallery: Gallery, hit: Hit) -> Markup:
    shown = _picture(gallery, hit.path, SMALL) if hit.path is not None else tag("div", hit.id, class_="missing")
    text = hit.id if hit.caption is None else hit.caption
    return tag("figure", shown, tag("figcaption", f"{hit.rank:,}. {text} ", _score(hit.score)), class_="hit")


def _listed(hit: Hit) -> Markup:
    place = tag("span", f"{hit.rank:,}.", class_="score")
    return tag("li", place, tag("span", hit.id if hit.caption is None else hit.caption), _score(hit.score))
