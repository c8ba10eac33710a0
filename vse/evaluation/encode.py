"""Encode a corpus: every image and every caption once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vse.console import progress_bar
from vse.contracts import checked_towers
from vse.data.corpus import Corpus
from vse.data.vocabulary import MissingVocabulary
from vse.distributed import agree, share, world_size
from vse.encoders.base import traits_of
from vse.errors import InputError
from vse.model import VSEModel
from vse.ragged import Collector, Sets, gather_sets, padded
from vse.runtime import autocast, in_one_line


class CorpusEmbeddings(NamedTuple):
    """The embeddings of a corpus, and the similarity of the model that made them.

    Attributes:
        similarity: The model's similarity, a function of two batches of embedding sets.
        images: Embeddings (images, K, H), or sets of different sizes.
        captions: Embeddings (captions, L, H), or sets of different sizes.
    """

    similarity: Callable[..., Tensor]
    images: Sets
    captions: Sets


def check_corpus(model: VSEModel, corpus: Corpus) -> None:
    """Check that a model can read a corpus, before anything is encoded.

    Args:
        model: A trained model.
        corpus: The images and captions that it is to encode.

    Raises:
        InputError: The model came without its vocabulary, or the corpus has features of another width than the model
            reads.
    """
    if isinstance(model.vocabulary, MissingVocabulary):
        model.vocabulary.encode("")  # raises the error that names the missing file
    expected, found = traits_of(model.image.encoder).in_dim, corpus.images.width
    if expected is not None and found is not None and expected != found:
        raise InputError(f"{corpus.name}: its features are {found} wide, but the model reads {expected}")


def encode_corpus(
    model: VSEModel, corpus: Corpus, batch_size: int, precision: str = "fp32", progress: bool = True
) -> CorpusEmbeddings:
    """Encode all images and all captions of a corpus, in the order of the corpus.

    Several processes encode a share each and gather the rest, so nothing is encoded twice.

    Args:
        model: A trained model.
        corpus: The images and captions to encode.
        batch_size: The number of images, and of captions, that are encoded at a time.
        precision: "fp32", or "bf16" or "fp16" for mixed precision.
        progress: Whether to show a progress bar.

    Returns:
        The embeddings, on the model's device.

    Raises:
        ValueError: The corpus does not fit the model.
    """
    own_images, own_captions = _own_rows(len(corpus.images)), _own_rows(len(corpus.captions))
    images_found = Collector()
    total = len(own_images) + len(own_captions)
    showing = progress_bar("encoding", " items", total, shown=progress)
    enough = in_one_line(model.device, f"an evaluation in batches of {batch_size}", "what may help: eval.batch_size")
    with enough, showing as bar, autocast(model.device, precision), checked_towers(model):
        for start in range(0, len(own_images), batch_size):
            rows = np.asarray(own_images[start : start + batch_size])
            images = [torch.from_numpy(image) for image in corpus.images.read(rows)]
            images_found.add(padded(model.image_sets(images, batch_size)))
            bar.update(len(rows))
        captions = model.text_sets([corpus.captions[row] for row in own_captions], batch_size, bar.update)
    own = images_found.sets(range(len(own_images)))
    all_images = _gather(own, len(corpus.images))
    return CorpusEmbeddings(model.similarity, all_images, _gather(captions, len(corpus.captions)))


def _own_rows(total: int) -> range:
    """Which of a corpus's rows this process encodes: all of them when they are fewer than the processes."""
    return range(total)[share(total)] if total >= world_size() else range(total)


@torch.no_grad()
def _gather(own: Sets, total: int) -> Sets:
    """Every process's sets."""
    agree(False)  # on a GPU, gathering from a process that has ended would take long
    return gather_sets(own, total) if total >= world_size() else own
