"""Encode a corpus once, score it in chunks, report."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vse.checkpoint import write_file
from vse.data.corpora import Corpus
from vse.errors import InputError
from vse.health import set_health
from vse.metrics import retrieval_metrics
from vse.model import VSEModel
from vse.runtime import autocast

_BLOCK = 1 << 25  # products of embeddings held at a time while scoring


def evaluate(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> dict[str, Any]:
    """Plain retrieval among all of a corpus's images and captions: :func:`vse.metrics.retrieval_metrics`' dict.

    For embedding sets also "sets", their health (:func:`vse.health.set_health`); for clips also "nmr", the median rank
    divided by the number of candidates (PVSE, Song & Soleymani 2019).
    Every image and caption is encoded once. Raises InputError for features of another width than the model's, for
    NaN or Inf in them, and when the model itself gives NaN.
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
    metrics: dict[str, Any] = retrieval_metrics(scores, corpus.positives)
    if corpus.video:
        for side, candidates in (("i2t", len(corpus.captions)), ("t2i", len(corpus.images))):
            metrics[side]["nmr"] = metrics[side]["medr"] / candidates
    health = set_health(images.float(), captions.float(), torch.from_numpy(corpus.image_of_caption).to(images.device))
    return {**metrics, "sets": {name: float(value) for name, value in health.items()}} if health else metrics


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
    video = "nmr" in metrics["i2t"]
    kind, digits = ("Video", 2) if video else ("Image", 1)
    header = f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>8}{'MeanR':>9}"
    lines = [title, header + f"{'nMR':>7}" * video]
    for side, name in (("i2t", f"{kind} to text"), ("t2i", f"Text to {kind.lower()}")):
        m = metrics[side]
        recalls = "".join(f"{m[k]:7.{digits}f}" for k in ("r1", "r5", "r10"))
        lines.append(f"{name:14}{recalls}{m['medr']:8.1f}{m['meanr']:9.1f}" + (f"{m['nmr']:7.2f}" if video else ""))
    lines.append(f"{'RSUM':14}{metrics['rsum']:7.1f}")
    sets = metrics.get("sets", {})
    for side in ("image", "text"):
        if f"{side}_slots_used" in sets:
            used, variance = sets[f"{side}_slots_used"], sets[f"{side}_log_variance"]
            name = f"{side.capitalize()} sets"
            lines.append(f"{name:14}log within-set variance {variance:.2f}, {used:.1f} embeddings used")
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises InputError when the place cannot be written, or is a checkpoint."""
    if zipfile.is_zipfile(path):
        raise InputError(f"{path}: is a checkpoint; expected another file for the metrics")
    write_file(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
