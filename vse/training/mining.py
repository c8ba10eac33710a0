"""Hard negatives of the whole training corpus: which captions the model confuses with those of an image."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vse.config import MiningConfig
from vse.data.corpus import Corpus
from vse.distributed import broadcast, is_main
from vse.errors import InputError
from vse.evaluation.blocks import NaNScores, ScoreBlocks, blocks_of_embeddings, bounds, check_not_nan
from vse.evaluation.encode import encode_corpus
from vse.model import VSEModel


def is_due(mining: MiningConfig | None, epoch: int) -> bool:
    """Tell whether an epoch begins with a search of the corpus.

    Args:
        mining: The setting ``train.mining``; None for no mining.
        epoch: The epoch, counted from 0.

    Returns:
        Whether ``epoch`` is ``start_epoch`` or a multiple of ``every`` after it.

    >>> is_due(MiningConfig(every=2, start_epoch=1), 3)
    True
    """
    return mining is not None and epoch >= mining.start_epoch and (epoch - mining.start_epoch) % mining.every == 0


def mine(model: VSEModel, corpus: Corpus, count: int, batch_size: int, precision: str) -> np.ndarray:
    """Encode a corpus and find each image's hardest negative captions.

    The corpus is searched again every few epochs with the model of that moment, as in ANCE (Xiong et al. 2021).

    Args:
        model: The model.
        corpus: The training corpus.
        count: How many captions to find for each image.
        batch_size: Number of images, and of captions, that are encoded at a time.
        precision: The precision of the encoding, as :func:`vse.evaluation.encode.encode_corpus` takes it.

    Returns:
        Indices (images, count) of captions, as :func:`hardest_captions` gives them; the same in every process.

    Raises:
        InputError: The model gives NaN.
    """
    found = encode_corpus(model, corpus, batch_size, precision)
    table, problem = None, ""
    if is_main():
        scores = blocks_of_embeddings(found.similarity, found.images, found.captions)
        try:
            table = hardest_captions(scores, corpus.image_of_caption, count)
        except NaNScores as error:
            problem = f"train.mining: {corpus.name}: {error}"
    table, problem = broadcast((table, problem))
    if problem:  # every process raises it
        raise InputError(problem)
    assert isinstance(table, np.ndarray)
    return table


@torch.no_grad()
def hardest_captions(scores: ScoreBlocks, image_of_caption: np.ndarray, count: int) -> np.ndarray:
    """Find the captions of other images that score highest with each image, without the matrix of all scores.

    Args:
        scores: The scores (images, captions).
        image_of_caption: (captions,) the index of each caption's image. An image's own captions are never found.
        count: How many captions to find.

    Returns:
        Indices (images, count) of captions, the hardest first; -1 where an image has fewer negatives.

    Raises:
        vse.evaluation.blocks.NaNScores: A score is NaN.

    >>> hardest_captions(blocks_of_matrix(torch.eye(2)), np.array([0, 1]), count=1).tolist()
    [[1], [0]]
    """
    owner = torch.from_numpy(image_of_caption).to(scores.device)
    rows = pairwise(bounds(scores.images, scores.side).tolist())
    return np.concatenate([_hardest_of(scores, owner, slice(first, end), count).cpu().numpy() for first, end in rows])


def _hardest_of(scores: ScoreBlocks, owner: Tensor, rows: slice, count: int) -> Tensor:
    """Indices (rows, count) of the hardest captions of some images."""
    images = torch.arange(rows.start, rows.stop, device=scores.device)
    best = torch.full((len(images), count), float("-inf"), device=scores.device)
    place = torch.full((len(images), count), -1, device=scores.device)
    for first, end in pairwise(bounds(scores.captions, scores.side).tolist()):
        block = scores.block(rows, slice(first, end))
        check_not_nan(block.amax())
        block = block.masked_fill(images.unsqueeze(1) == owner[first:end], float("-inf"))
        columns = torch.arange(first, end, device=scores.device).expand(len(images), -1)
        best, chosen = torch.cat([best, block], 1).topk(count, 1)
        place = torch.cat([place, columns], 1).gather(1, chosen)
    return place.masked_fill(best == float("-inf"), -1)
