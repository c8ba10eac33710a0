"""COCO's 5K test as people judged it beyond its own pairs: Crisscrossed Captions (CxC) and ECCV Caption."""

import contextlib
import csv
import gzip
import importlib
import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vse.errors import InputError, first_line
from vse.metrics import query_ranks, summarise_ranks

_ROWS = 512  # queries ranked at a time
_KS = (1, 5, 10)


class Judgements(NamedTuple):
    """Pairs of images, and of captions, that CxC's raters found alike."""

    images: np.ndarray  # (pairs, 2) COCO's image ids
    captions: np.ndarray  # (pairs, 2) COCO's caption ids


def eccv_metrics(
    scores: Tensor, image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray
) -> dict[str, Any]:
    """ECCV Caption's mAP@R, R-Precision and R@1 (Chun et al., ECCV 2022), by the ``eccv_caption`` package.

    ``scores`` (images, captions) of COCO's 5K test, with COCO's own ids of both. Returns ``{"i2t": {"map_at_r",
    "rprecision", "r1"}, "t2i": {...}}`` in percent. A tie counts against the model. Raises InputError when the package
    is missing, and naming the first id that is not the test's.
    """
    metrics, ids = check_ids(image_ids, caption_ids, image_of_caption)
    ranked = _retrieved(scores, ids, metrics.eccv_gts)
    names = {"map_at_r": "eccv_map_at_r", "rprecision": "eccv_rprecision", "r1": "eccv_r1"}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        found = metrics.compute_all_metrics(*ranked, target_metrics=tuple(names.values()))
    return {side: {key: 100 * float(found[name][side]) for key, name in names.items()} for side in ("i2t", "t2i")}


def cxc_metrics(
    scores: Tensor, image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray
) -> dict[str, Any]:
    """R@1, R@5 and R@10 between images and captions with CxC's positives (Parekh et al., EACL 2021).

    By the ``eccv_caption`` package; arguments, ties and errors as for :func:`eccv_metrics`. Returns ``{"i2t": {"r1",
    "r5", "r10"}, "t2i": {...}}`` in percent.
    """
    metrics, ids = check_ids(image_ids, caption_ids, image_of_caption)
    ranked = _retrieved(scores, ids, metrics.cxc_gts)
    found = metrics.compute_all_metrics(*ranked, target_metrics=("cxc_recalls",), Ks=_KS)
    return {side: {f"r{k}": 100 * float(found[f"cxc_r{k}"][side]) for k in _KS} for side in ("i2t", "t2i")}


def cxc_within(
    score: Callable[[slice], Tensor], ids: Sequence[Any], pairs: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """R@1, R@5 and R@10 among images, or among captions, with CxC's positives: {"r1", "r5", "r10"} in percent.

    ``score(rows)`` gives the scores (n, N) of some of the N items against all. ``pairs``: the ids of positives, each
    pair both ways. ``group`` (N,): items of one group, the captions of an image, are positives of each other as well.
    An item is never its own answer; those without a positive are left out. Raises InputError for an id in ``pairs``
    that is not among ``ids``.
    """
    place = {int(label): i for i, label in enumerate(ids)}
    if lost := [label for label in pairs.ravel().tolist() if label not in place]:
        raise InputError(f"CxC judges item {lost[0]}, which is not in this corpus")
    first, second = (np.array([place[label] for label in column.tolist()], dtype=np.int64) for column in pairs.T)
    rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
    ranks = []
    for start in tqdm(range(0, len(ids), _ROWS), desc="ranking", leave=False, delay=2):
        own = torch.arange(start, min(start + _ROWS, len(ids)))
        here = (rows >= start) & (rows < start + _ROWS)
        positives = torch.zeros(len(own), len(ids), dtype=torch.bool)
        positives[rows[here] - start, columns[here]] = True
        if group is not None:
            groups = torch.from_numpy(group)
            positives |= groups[own][:, None] == groups
        positives[torch.arange(len(own)), own] = False
        asked = positives.any(1)
        if asked.any():
            found = score(slice(start, start + len(own))).clone()
            found[torch.arange(len(own)), own] = float("-inf")
            ranks.append(query_ranks(found[asked], positives[asked]))
    if not ranks:
        raise InputError("CxC judges no two items of this corpus alike")
    summary = summarise_ranks(torch.cat(ranks))
    return {f"r{k}": summary[f"r{k}"] for k in _KS}


def read_judgements(folder: Path) -> Judgements:
    """CxC's published ``sis_test.csv`` and ``sts_test.csv``, perhaps gzipped; positive: 2.5 for images, 3 for captions.

    Raises InputError that names the file.
    """
    return Judgements(
        _read_pairs(folder, "sis_test.csv", ("image1", "image2"), 2.5, r"(\d{1,18})\.jpg$", 21_816),
        _read_pairs(folder, "sts_test.csv", ("caption1", "caption2"), 3.0, r":(\d{1,18})$", 16_184),
    )


def _read_pairs(folder: Path, name: str, columns: tuple[str, str], least: float, number: str, count: int) -> np.ndarray:
    """Ids (pairs, 2) of the pairs that score at least as high; the whole file has ``count`` of them."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise InputError(f"{folder / name}: no such file, nor {name}.gz; expected Crisscrossed Captions' test split")
    pairs, line = [], 1
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if lost := {*columns, "agg_score"} - {*(reader.fieldnames or ())}:
                raise InputError(f"{path}: lacks the column {', '.join(sorted(lost))}")
            for row in reader:
                line = reader.line_num
                found = [re.search(number, row[column] or "") for column in columns]
                value = float(row["agg_score"] or "nan")
                if None in found or not 0 <= value <= 5:
                    raise ValueError
                if value >= least:
                    pairs.append([int(match[1]) for match in found if match])
    except InputError:
        raise
    except ValueError:
        expected = f"expected {' and '.join(columns)} with COCO's ids and an agg_score of 0 to 5"
        raise InputError(f"{path}: line {line}: {expected}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read after line {line} ({first_line(error)})") from None
    if len(pairs) != count:
        raise InputError(
            f"{path}: holds {len(pairs):,} pairs with agg_score of at least {least}; the published {count:,}"
        )
    return np.array(pairs, dtype=np.int64)


def coco_ids(ids: Sequence[Any], what: str, hint: str = "") -> list[int]:
    """COCO's ids as numbers. Raises InputError that names the first that is none."""
    if wrong := [label for label in ids if not str(label).isdecimal() or len(str(label)) > 18]:
        raise InputError(f"{what} id {wrong[0]!r} is no COCO id, a number{hint}")
    return [int(label) for label in ids]


Ranked = dict[int, list[int]]  # the ids of the items found for each query's id, best first


class _Ids(NamedTuple):
    images: list[int]
    captions: list[int]


def check_ids(image_ids: Sequence[Any], caption_ids: Sequence[Any], image_of_caption: np.ndarray) -> tuple[Any, _Ids]:
    """``eccv_caption.Metrics``, and the ids as numbers. Raises InputError for others than COCO's 5K test has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it would like another JSON library
            package = importlib.import_module("eccv_caption")
    except ModuleNotFoundError:
        need = "the package eccv_caption: pip install eccv_caption, or this package with its extra [eccv]"
        raise InputError(f"CxC and ECCV Caption need {need}") from None
    metrics = package.Metrics()
    image_of = {caption: images[0] for caption, images in metrics.coco_gts["t2i"].items()}
    hint = "; precomp and id_mapping read the captions' ids from {split}_capids.txt"
    ids = _Ids(coco_ids(image_ids, "image"), coco_ids(caption_ids, "caption", hint))
    for what, found, expected, more in (
        ("image", ids.images, set(metrics.coco_gts["i2t"]), ""),
        ("caption", ids.captions, set(image_of), hint),
    ):
        if strange := [label for label in found if label not in expected]:
            raise InputError(f"{what} id {strange[0]} is not of COCO's 5K test ({len(strange):,} are not){more}")
        if lost := sorted(expected - set(found)):
            raise InputError(f"{what} id {lost[0]} of COCO's 5K test is not in this corpus ({len(lost):,} are not)")
    for caption, image in zip(ids.captions, image_of_caption.tolist(), strict=True):
        if image_of[caption] != ids.images[image]:
            raise InputError(f"caption id {caption} describes image {image_of[caption]}, here {ids.images[image]}")
    return metrics, ids


def _retrieved(scores: Tensor, ids: _Ids, truth: dict[str, dict[int, list[int]]]) -> tuple[Ranked, Ranked]:
    """For both directions, what is found for each query that ``truth`` asks for, as far down as it matters."""
    return (
        _best(scores, ids.images, ids.captions, truth["i2t"]),
        _best(scores.T, ids.captions, ids.images, truth["t2i"]),
    )


def _best(scores: Tensor, queries: list[int], items: list[int], truth: Ranked) -> Ranked:
    count = min(len(items), max(10, *(len(set(positives)) for positives in truth.values())))
    place, labels = {label: i for i, label in enumerate(items)}, np.array(items)
    rows = [row for row, label in enumerate(queries) if label in truth]
    result: Ranked = {}
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        found = scores[part].double()
        pairs = [(i, place[label]) for i, row in enumerate(part) for label in truth[queries[row]] if label in place]
        i, j = torch.tensor(pairs).T
        found[i, j] = found[i, j].nextafter(torch.tensor(float("-inf"), dtype=torch.float64))  # a tie's loser
        order = found.topk(count, dim=1).indices.numpy()
        result |= {queries[row]: labels[best].tolist() for row, best in zip(part, order, strict=True)}
    return result
