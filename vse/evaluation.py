"""Encode a corpus once, score it in chunks, report."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vse.checkpoint import write_file
from vse.data.corpora import Corpus
from vse.errors import InputError, first_line
from vse.health import set_health
from vse.model import VSEModel
from vse.protocols import evaluate_scores
from vse.runtime import autocast

_BLOCK = 1 << 25  # products of embeddings held at a time while scoring


class Member(NamedTuple):
    """Scores of one model, or of an ensemble, on a corpus."""

    name: str
    scores: Tensor  # (images, captions)
    sets: dict[str, float]  # the embedding sets' health, for a single model that has sets


def evaluate(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> dict[str, Any]:
    """Plain retrieval among all of a corpus's images and captions: :func:`vse.metrics.retrieval_metrics`' dict.

    For embedding sets also "sets", their health (:func:`vse.health.set_health`); for clips also "nmr", see
    :func:`vse.protocols.evaluate_scores`. Raises what :func:`score_corpus` raises.
    """
    member = score_corpus(model, corpus, batch_size, precision, progress)
    return report(member, corpus, "retrieval")


def report(member: Member, corpus: Corpus, protocol: str) -> dict[str, Any]:
    """Metrics under a protocol (:func:`vse.protocols.evaluate_scores`), and the health of embedding sets as "sets"."""
    metrics = evaluate_scores(member.scores, corpus.image_of_caption, protocol, corpus.video)
    return {**metrics, "sets": member.sets} if member.sets else metrics


def score_corpus(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True, name: str = ""
) -> Member:
    """Scores of all images and captions of a corpus, each encoded once.

    Raises InputError for features of another width than the model's, for NaN or Inf in them, and when the model itself
    gives NaN.
    """
    width, found = getattr(model.image.encoder, "in_dim", None), getattr(corpus.images, "width", None)
    if None not in (width, found) and width != found:
        raise InputError(f"{corpus.name}: its features are {found} wide, but the model reads {width}")
    try:
        with autocast(model.device, precision):
            images, captions = encode_corpus(model, corpus, batch_size, progress)
        scores = score(model.similarity, images, captions, progress)
    except InputError:
        raise
    except ValueError as error:  # the corpus does not fit the model, or its embeddings the similarity
        raise InputError(f"{corpus.name}: {error}") from None
    if scores.isnan().any():
        raise InputError(f"{corpus.name}: the model gives NaN; its weights have diverged")
    health = set_health(images.float(), captions.float(), torch.from_numpy(corpus.image_of_caption).to(images.device))
    return Member(name, scores, {key: float(value) for key, value in health.items()})


def ensemble(members: Sequence[Member]) -> Member:
    """Mean of the members' scores, as the papers' ensembles are made. Raises InputError for another shape."""
    for member in members:
        if member.scores.shape != members[0].scores.shape:
            ours, theirs = (tuple(m.scores.shape) for m in (members[0], member))
            raise InputError(f"{members[0].name} has scores {ours}, {member.name} {theirs}; expected the same corpus")
    mean = sum((member.scores for member in members[1:]), members[0].scores.clone()) / len(members)
    return Member(f"ensemble of {len(members)}", mean, {})


def save_scores(path: Path, member: Member, corpus: Corpus) -> None:
    """Write a score matrix with the ids of its rows and columns, for :func:`read_scores`."""
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected a file name that ends in .npz")
    scores, ids = member.scores.numpy(), _ids(corpus)
    write_file(path, lambda file: np.savez(file, allow_pickle=False, scores=scores, **ids))


def _ids(corpus: Corpus) -> dict[str, np.ndarray]:
    """What tells a corpus's rows and columns from another's."""
    captions = hashlib.sha256("\n".join(corpus.captions).encode()).hexdigest()
    ids = {key: np.array([str(i) for i in getattr(corpus, key)]) for key in ("image_ids", "caption_ids")}
    return {**ids, "captions": np.array([captions])}


def read_scores(path: Path, corpus: Corpus) -> Member:
    """Scores that :func:`save_scores` wrote. Raises InputError when their ids are not the corpus's."""
    try:
        with np.load(path, allow_pickle=False) as content:
            scores, ids = content["scores"], {key: content[key] for key in _ids(corpus)}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of scores") from None
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
        raise InputError(f"{path}: not a file of scores, as --save-scores writes them ({first_line(error)})") from None
    for key, expected in _ids(corpus).items():
        if ids[key].tolist() != expected.tolist():
            raise InputError(f"{path}: its {key} are not those of {corpus.name}")
    if scores.shape != (len(corpus.images), len(corpus.captions)) or not np.isfinite(scores).all():
        raise InputError(f"{path}: its scores are {scores.shape} or not finite")
    return Member(str(path), torch.from_numpy(scores.astype(np.float32)), {})


def encode_corpus(model: VSEModel, corpus: Corpus, batch_size: int, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Embeddings of all images (n, K, H) and all captions (m, L, H)."""
    parts = []
    total = len(corpus.images) + len(corpus.captions)
    with tqdm(total=total, desc="encoding", unit=" items", unit_scale=True, leave=False, disable=not progress) as bar:
        for start in range(0, len(corpus.images), batch_size):
            rows = np.arange(start, min(start + batch_size, len(corpus.images)))
            images = [torch.from_numpy(image) for image in corpus.images.read(rows)]
            parts.append(model.encode_images(images, batch_size))
            bar.update(len(rows))
        captions = model.encode_texts(corpus.captions, batch_size, bar.update)
    return torch.cat(parts), captions


@torch.no_grad()
def score(
    similarity: Callable[[Tensor, Tensor], Tensor], images: Tensor, captions: Tensor, progress: bool = True
) -> Tensor:
    """Scores (images, captions), float32 on the CPU, computed in square blocks of bounded memory."""
    side = max(1, math.isqrt(_BLOCK // (images.shape[1] * captions.shape[1])))
    scores = torch.empty(len(images), len(captions))
    corners = [(i, j) for i in range(0, len(images), side) for j in range(0, len(captions), side)]
    for i, j in tqdm(corners, desc="scoring", unit=" blocks", leave=False, delay=2, disable=not progress):
        rows, columns = slice(i, i + side), slice(j, j + side)
        scores[rows, columns] = similarity(images[rows].float(), captions[columns].float())
    return scores


def format_table(metrics: dict[str, Any], title: str) -> str:
    """Metrics as the papers print them: for clips with two digits and the normalised median rank."""
    if "rsum" not in metrics:  # a protocol of several
        parts = [(name, part) for name, part in metrics.items() if name not in ("sets", "bootstrap")]
        return "\n".join(format_table(part, f"{title}, {name}") for name, part in parts)
    video = "nmr" in metrics["i2t"]
    kind, digits = ("Video", 2) if video else ("Image", 1)
    header = f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>8}{'MeanR':>9}"
    folds = f", mean of {metrics['folds']} folds" if "folds" in metrics else ""
    lines = [title + folds, header + f"{'nMR':>7}" * video]
    for side, name in (("i2t", f"{kind} to text"), ("t2i", f"Text to {kind.lower()}")):
        m = metrics[side]
        recalls = "".join(f"{m[k]:7.{digits}f}" for k in ("r1", "r5", "r10"))
        lines.append(f"{name:14}{recalls}{m['medr']:8.1f}{m['meanr']:9.1f}" + (f"{m['nmr']:7.2f}" if video else ""))
    lines.append(f"{'RSUM':14}{metrics['rsum']:7.1f}")
    if interval := metrics.get("bootstrap"):
        low, high = interval["rsum"]
        lines.append(f"{'95 %':14}{low:7.1f} to {high:.1f} ({interval['samples']} samples of the images)")
        if "difference" in interval:
            low, high = interval["difference"]
            lines.append(f"{'':14}{low:+7.1f} to {high:+.1f} against the first")
    sets = metrics.get("sets", {})
    for side in ("image", "text"):
        if f"{side}_slots_used" in sets:
            used, variance = sets[f"{side}_slots_used"], sets[f"{side}_log_variance"]
            name = f"{side.capitalize()} sets"
            lines.append(f"{name:14}log within-set variance {variance:.2f}, {used:.1f} embeddings used")
    return "\n".join(lines)


def format_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Results by name as one Markdown table."""
    lines = ["| | I2T R@1 | R@5 | R@10 | T2I R@1 | R@5 | R@10 | RSUM |", "|---" * 8 + "|"]
    for name, metrics in results.items():
        parts = {"": metrics} if "rsum" in metrics else {f", {k}": v for k, v in metrics.items() if "rsum" in v}
        for suffix, part in parts.items():
            recalls = [f"{part[side][k]:.1f}" for side in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
            folds = f" ({part['folds']} folds)" if "folds" in part else ""
            lines.append(f"| {name}{suffix}{folds} | {' | '.join(recalls)} | {part['rsum']:.1f} |")
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises InputError when the place cannot be written, or is a checkpoint."""
    if zipfile.is_zipfile(path):
        raise InputError(f"{path}: is a checkpoint; expected another file for the metrics")
    write_file(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
