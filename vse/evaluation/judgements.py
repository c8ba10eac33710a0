"""Human judgements of COCO's 5K test beyond its own pairs: Crisscrossed Captions (CxC) and ECCV Caption."""

import contextlib
import csv
import gzip
import importlib
import io
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError, first_line
from vse.evaluation.blocks import ScoreBlocks, blocks_of_embeddings, mean_of_blocks, score_rows, transpose
from vse.evaluation.ranks import rank, rank_within
from vse.evaluation.score import CorpusScores
from vse.metrics import summarise_ranks

_ROWS = 512  # queries sorted at a time
_KS = (1, 5, 10)
_HINT = "; precomp and id_mapping read the captions' ids from {split}_capids.txt"


class Judgements(NamedTuple):
    """Pairs of images, and pairs of captions, that CxC's raters found alike."""

    images: np.ndarray  # (pairs, 2) COCO's image ids
    captions: np.ndarray  # (pairs, 2) COCO's caption ids


class _JudgementFile(NamedTuple):
    """One of CxC's two files."""

    name: str
    columns: tuple[str, str]  # where the ids of a pair stand
    number: str  # pattern of the number in an id
    least: float  # score from which a pair counts as positive
    published: int  # positive pairs in the published file


_IMAGES = _JudgementFile("sis_test.csv", ("image1", "image2"), r"(\d{1,18})\.jpg$", 2.5, 21_816)
_CAPTIONS = _JudgementFile("sts_test.csv", ("caption1", "caption2"), r":(\d{1,18})$", 3.0, 16_184)


def eccv_metrics(
    scores: ScoreBlocks, image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray
) -> dict[str, Any]:
    """ECCV Caption's mAP@R, R-Precision and R@1 (Chun et al., ECCV 2022), by the ``eccv_caption`` package.

    A tie counts against the model. Only the judged images and captions are scored, 2,593 of the 30,000.

    Args:
        scores: Scores (5,000 images, 25,000 captions) of COCO's 5K test.
        image_ids: COCO's id of each image.
        caption_ids: COCO's id of each caption.
        image_of_caption: Index (captions,) of each caption's image.

    Returns:
        ``{"i2t": {"map_at_r", "rprecision", "r1"}, "t2i": {...}}`` in percent.

    Raises:
        InputError: The package is missing, or an id is not the test's; the first such id is named.
    """
    metrics, ids = check_ids(image_ids, caption_ids, image_of_caption)
    ranked = (
        _best(scores, ids.images, ids.captions, metrics.eccv_gts["i2t"]),
        _best(transpose(scores), ids.captions, ids.images, metrics.eccv_gts["t2i"]),
    )
    names = {"map_at_r": "eccv_map_at_r", "rprecision": "eccv_rprecision", "r1": "eccv_r1"}
    with contextlib.redirect_stderr(io.StringIO()):  # the package's progress bars
        found = metrics.compute_all_metrics(*ranked, target_metrics=tuple(names.values()))
    return {side: {key: 100 * float(found[name][side]) for key, name in names.items()} for side in ("i2t", "t2i")}


def cxc_metrics(
    scores: ScoreBlocks, image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray
) -> dict[str, Any]:
    """R@1, R@5 and R@10 between images and captions with CxC's positives (Parekh et al., EACL 2021).

    The positives are those of the ``eccv_caption`` package; a tie counts against the model.

    Args:
        scores: Scores (5,000 images, 25,000 captions) of COCO's 5K test.
        image_ids: COCO's id of each image.
        caption_ids: COCO's id of each caption.
        image_of_caption: Index (captions,) of each caption's image.

    Returns:
        ``{"i2t": {"r1", "r5", "r10"}, "t2i": {...}}`` in percent.

    Raises:
        InputError: The package is missing, or an id is not the test's; the first such id is named.
    """
    metrics, ids = check_ids(image_ids, caption_ids, image_of_caption)
    images, captions = ({label: i for i, label in enumerate(side)} for side in ids)
    truth = metrics.cxc_gts["i2t"].items()  # the pairs of "t2i" are the same ones
    ranks = rank(scores, np.array([(images[image], captions[label]) for image, found in truth for label in found]))
    return {"i2t": _recalls(ranks.i2t), "t2i": _recalls(ranks.t2i)}


def cxc_within(
    scores: ScoreBlocks, ids: Sequence[Any], pairs: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """R@1, R@5 and R@10 among images, or among captions, with CxC's positives.

    An item is never its own answer, and an item without a positive is no query.

    Args:
        scores: Scores (N, N) of the N items among themselves; the row is the query.
        ids: The ids (N,) of the items.
        pairs: The ids (pairs, 2) of positives; each pair counts both ways.
        group: The group (N,) of each item, when items of one group (the captions of an image) are positives of each
            other as well.

    Returns:
        ``{"r1", "r5", "r10"}`` in percent.

    Raises:
        InputError: An id in ``pairs`` is not among ``ids``, or no item has a positive.
    """
    place = {int(label): i for i, label in enumerate(ids)}
    if lost := [label for label in pairs.ravel().tolist() if label not in place]:
        raise InputError(f"CxC judges item {lost[0]}, which is not in this corpus")
    positives = np.array([place[label] for label in pairs.ravel().tolist()], dtype=np.int64).reshape(-1, 2)
    if group is not None:
        positives = np.concatenate([positives, _pairs_in_groups(group)])
    if not (positives[:, 0] != positives[:, 1]).any():
        raise InputError("CxC judges no two items of this corpus alike")
    return _recalls(rank_within(scores, np.concatenate([positives, positives[:, ::-1]])))


def _pairs_in_groups(group: np.ndarray) -> np.ndarray:
    """The places (pairs, 2) of any two items of one group, in one order of the two."""
    order = np.argsort(group, kind="stable")
    found = [np.empty((0, 2), dtype=np.int64)]
    for distance in range(1, len(group)):
        first, second = order[:-distance], order[distance:]
        same = group[first] == group[second]
        if not same.any():
            break
        found.append(np.stack([first[same], second[same]], 1))
    return np.concatenate(found)


def _recalls(ranks: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent of the items that are queries."""
    summary = summarise_ranks(ranks[ranks >= 0])
    return {f"r{k}": summary[f"r{k}"] for k in _KS}


def within_metrics(scored: CorpusScores, corpus: Corpus, judgements: Judgements) -> dict[str, Any]:
    """CxC's recalls among images ("i2i") and among captions ("t2t").

    An ensemble's scores are the mean of its models' scores.

    Args:
        scored: A model or an ensemble, with its embeddings.
        corpus: The corpus that was encoded.
        judgements: CxC's positives.

    Returns:
        ``{"i2i": {"r1", "r5", "r10"}, "t2t": {...}}`` in percent.

    Raises:
        InputError: CxC judges an item that is not in the corpus.
    """
    images = [blocks_of_embeddings(model.similarity, model.images, model.images) for model in scored.embeddings]
    captions = [blocks_of_embeddings(model.similarity, model.captions, model.captions) for model in scored.embeddings]
    groups = corpus.image_of_caption
    with errors_name(corpus):
        return {
            "i2i": cxc_within(mean_of_blocks(images), corpus.image_ids, judgements.images),
            "t2t": cxc_within(mean_of_blocks(captions), corpus.caption_ids, judgements.captions, groups),
        }


@contextlib.contextmanager
def errors_name(corpus: Corpus) -> Iterator[None]:
    """Put the corpus's name before the message of any InputError that the block raises.

    Args:
        corpus: The corpus.

    Raises:
        InputError: The block raised one.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{corpus.name}: {error}") from None


def read_judgements(folder: Path) -> Judgements:
    """Read CxC's positives from its published ``sis_test.csv`` and ``sts_test.csv``, either of which may be gzipped.

    A pair of images is positive from a score of 2.5 on, a pair of captions from 3.0 on. A file with another number of
    positives than the published one gets a warning on stderr.

    Args:
        folder: Where the two files are.

    Returns:
        The positives.

    Raises:
        InputError: A file is missing, damaged, cut off or without positives; the file is named.
    """
    return Judgements(_read_pairs(folder, _IMAGES), _read_pairs(folder, _CAPTIONS))


def _read_pairs(folder: Path, kind: _JudgementFile) -> np.ndarray:
    """Read the ids (pairs, 2) of one file's positives."""
    path = next((path for path in (folder / kind.name, folder / f"{kind.name}.gz") if path.is_file()), None)
    if path is None:
        missing = f"{folder / kind.name}: no such file, nor {kind.name}.gz"
        raise InputError(f"{missing}; expected Crisscrossed Captions' test split")
    pairs: list[list[int]] = []
    line = 1
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if lost := {*kind.columns, "agg_score"} - {*(reader.fieldnames or ())}:
                raise InputError(f"{path}: lacks the column {', '.join(sorted(lost))}")
            for row in reader:
                line = reader.line_num
                pair, value = _read_row(row, kind)
                if value >= kind.least:
                    pairs.append(pair)
    except InputError:
        raise
    except ValueError:
        expected = f"expected {' and '.join(kind.columns)} with COCO's ids and an agg_score of 0 to 5"
        raise InputError(f"{path}: line {line}: {expected}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read after line {line} ({first_line(error)})") from None
    if not pairs:
        raise InputError(f"{path}: holds no pair with an agg_score of at least {kind.least}")
    if len(pairs) != kind.published:
        found = f"{path}: {len(pairs):,} pairs have an agg_score of at least {kind.least}"
        print(f"warning: {found}; in the published file {kind.published:,} have", file=sys.stderr)
    return np.array(pairs, dtype=np.int64)


def _read_row(row: dict[str, Any], kind: _JudgementFile) -> tuple[list[int], float]:
    """Return a pair's two ids and its score. Raises ValueError for a line that has none."""
    matches = [re.search(kind.number, row[column] or "") for column in kind.columns]
    ids = [int(match[1]) for match in matches if match is not None]
    value = float(row["agg_score"] or "nan")
    if len(ids) < 2 or not 0 <= value <= 5:
        raise ValueError
    return ids, value


def coco_ids(ids: Sequence[Any], what: str, hint: str = "") -> list[int]:
    """Convert COCO's ids to numbers.

    Args:
        ids: Numbers, or strings of digits.
        what: What the ids are of, for the error.
        hint: What the error should add.

    Returns:
        The numbers.

    Raises:
        InputError: An id is not a number; the first such id is named.

    >>> coco_ids(["000391895", 522418], "image")
    [391895, 522418]
    """
    if wrong := [label for label in ids if not str(label).isdecimal() or len(str(label)) > 18]:
        raise InputError(f"{what} id {wrong[0]!r} is no COCO id; expected a number{hint}")
    return [int(label) for label in ids]


Ranked = dict[int, list[int]]  # the ids of the items found for each query's id, best first


class _Ids(NamedTuple):
    images: list[int]
    captions: list[int]


def check_ids(image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray) -> tuple[Any, _Ids]:
    """Check that a corpus is COCO's 5K test, by its ids.

    Args:
        image_ids: The id of each image.
        caption_ids: The id of each caption.
        image_of_caption: Index (captions,) of each caption's image.

    Returns:
        An ``eccv_caption.Metrics``, and the ids as numbers.

    Raises:
        InputError: The package ``eccv_caption`` is missing, an id is not the test's, an id of the test is missing, or a
            caption describes another image than in COCO.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package warns that it would prefer another JSON library
            package = importlib.import_module("eccv_caption")
    except ModuleNotFoundError:
        need = "the package eccv_caption: pip install eccv_caption, or this package with its extra [eccv]"
        raise InputError(f"CxC and ECCV Caption need {need}") from None
    metrics = package.Metrics()
    image_of = {caption: images[0] for caption, images in metrics.coco_gts["t2i"].items()}
    ids = _Ids(coco_ids(image_ids, "image"), coco_ids(caption_ids, "caption", _HINT))
    for what, found, expected, more in (
        ("image", ids.images, set(metrics.coco_gts["i2t"]), ""),
        ("caption", ids.captions, set(image_of), _HINT),
    ):
        if strange := [label for label in found if label not in expected]:
            number = f"{len(strange):,} of {len(found):,} are not"
            raise InputError(f"{what} id {strange[0]} is not in COCO's 5K test ({number}){more}")
        if lost := sorted(expected - set(found)):
            raise InputError(f"this corpus lacks {what} id {lost[0]} of COCO's 5K test ({len(lost):,} are missing)")
    for caption, image in zip(ids.captions, image_of_caption.tolist(), strict=True):
        if image_of[caption] != ids.images[image]:
            there, here = image_of[caption], ids.images[image]
            raise InputError(f"caption id {caption} describes image {there} in COCO, but image {here} in this corpus")
    return metrics, ids


def _best(scores: ScoreBlocks, queries: list[int], items: list[int], truth: Ranked) -> Ranked:
    """The best items for each query in ``truth``; among equal scores, a positive comes last."""
    count = min(len(items), max(10, *(len(set(positives)) for positives in truth.values())))
    place, labels = {label: i for i, label in enumerate(items)}, np.array(items)
    rows = [row for row, label in enumerate(queries) if label in truth]
    result: Ranked = {}
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        found = score_rows(scores, torch.tensor(part, device=scores.device)).cpu().double()
        pairs = [(i, place[label]) for i, row in enumerate(part) for label in truth[queries[row]] if label in place]
        i, j = torch.tensor(pairs).T
        # A positive's score becomes the next smaller float64, so that it loses every tie and nothing else.
        found[i, j] = found[i, j].nextafter(torch.tensor(float("-inf"), dtype=torch.float64))
        order = found.topk(count, dim=1).indices.numpy()
        result |= {queries[row]: labels[best].tolist() for row, best in zip(part, order, strict=True)}
    return result
