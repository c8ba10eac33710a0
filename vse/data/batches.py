"""Training batches: some captions, the images that they describe (each once), and which of them belong together."""

import copy
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vse.data.augmentation import augment
from vse.data.captions import pad_flat
from vse.data.corpus import Corpus
from vse.data.subwords import Subwords
from vse.data.vocabulary import Vocabulary
from vse.data.workers import leave_signals_to_the_parent
from vse.distributed import share
from vse.errors import InputError, check_at_least, check_choice, check_probability
from vse.sets import pad

_ORDER, _AUGMENT = 1, 2  # numbers of independent random streams
_AHEAD = 2  # batches that each process or thread makes in advance


class Batch(NamedTuple):
    """The data of one training step.

    When several processes share a batch of A images and C captions, each has some of the images and some of the
    captions, cut independently (:func:`vse.distributed.share`), and all of the positives.

    Attributes:
        images: Features (A, elements, width), pictures (A, 3, height, width) or clips (A, frames, 3, height, width); or
            the images' indices (A,), to be looked up where the features are kept on the device.
        image_mask: (A, elements) bool, True for real elements; None when all are real.
        tokens: (C, length) ids of the captions' words or subwords.
        token_mask: (C, length) bool, True for real tokens.
        positives: (A, C) bool, True where the caption describes the image.
        pairs: Rows and columns (2, P) of the positives, which the losses need; None when they are not known.
        image_of_row: (A,) the corpus's index of each image, of all processes; None when it is not known.
        image_of_column: (C,) the corpus's index of each caption's image, of all processes; None when it is not known.
    """

    images: Tensor
    image_mask: Tensor | None
    tokens: Tensor
    token_mask: Tensor
    positives: Tensor
    pairs: Tensor | None = None
    image_of_row: Tensor | None = None
    image_of_column: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device.

        Returns:
            The copy. It may still be under way if the batch is in page-locked memory and the device is a GPU.
        """
        return Batch._make(None if t is None else t.to(device, non_blocking=True) for t in self)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (the loader calls this).

        Returns:
            The copy.
        """
        return Batch._make(None if t is None else t.pin_memory() for t in self)


class BatchSampler(Sampler[tuple[int, np.ndarray]]):
    """The caption indices of each batch of an epoch, which depend only on the seed and the epoch.

    An incomplete last batch is left out unless it is the only one. Set ``epoch`` and ``first``, the number of the first
    batch, before iterating. With a table ``confused`` each caption (or image) of the shuffled order is followed by
    those that the model confuses with it and that have not yet come up in this epoch. Each still comes once an epoch.

    Args:
        image_of_caption: (captions,) the index of each caption's image.
        images: Number of images.
        batch_size: Number of captions in a batch; with ``sampling="image"``, number of images.
        sampling: "pair" shuffles captions; "image" shuffles images and takes all captions of each.
        seed: The seed of the shuffling.

    Attributes:
        confused: (images, n) captions of other images that the model takes for an image's own, the hardest first, -1
            for none (:func:`vse.training.mining.hardest_captions`); None for plain shuffling.

    Raises:
        ValueError: ``sampling`` is unknown.

    >>> [captions.tolist() for _, captions in BatchSampler(np.array([0, 0, 1, 1]), 2, 1, "image", seed=0)]
    [[0, 1], [2, 3]]
    """

    def __init__(self, image_of_caption: np.ndarray, images: int, batch_size: int, sampling: str, seed: int) -> None:
        check_choice("sampling", sampling, ("pair", "image"))
        self.captions_of_image: list[np.ndarray] | None = None
        self.count = len(image_of_caption)
        self.image_of_item, self.item_of_caption = image_of_caption, np.arange(self.count)
        if sampling == "image":
            order = np.argsort(image_of_caption, kind="stable")
            ends = np.cumsum(np.bincount(image_of_caption, minlength=images))
            self.captions_of_image = [part for part in np.split(order, ends[:-1]) if len(part)]
            self.count = len(self.captions_of_image)
            self.image_of_item, self.item_of_caption = np.unique(image_of_caption, return_inverse=True)
        self.confused: np.ndarray | None = None
        self.batch_size = min(batch_size, self.count)
        self.seed = seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the epoch and caption indices of each batch from number ``first`` on."""
        order = np.random.default_rng((_ORDER, self.seed, self.epoch, 0)).permutation(self.count)
        if self.confused is not None:
            order = self._grouped(order, self.confused)
        for number in range(self.first, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            if self.captions_of_image is not None:
                chosen = np.concatenate([self.captions_of_image[i] for i in chosen])
            yield self.epoch, chosen

    def _grouped(self, order: np.ndarray, confused: np.ndarray) -> np.ndarray:
        """The same captions, or images, with those that the model confuses one after another."""
        used = np.zeros(self.count, dtype=bool)
        found: list[int] = []
        for item in order.tolist():
            if used[item]:
                continue
            captions = confused[self.image_of_item[item]]
            for member in (item, *self.item_of_caption[captions[captions >= 0]].tolist()):
                if not used[member]:
                    used[member] = True
                    found.append(member)
        return np.array(found)


class TrainingData(Dataset[Batch | InputError]):
    """Turns the sampler's (epoch, caption indices) into a batch.

    The augmentation depends only on seed, epoch and caption index, and so not on the number of workers. An InputError
    is returned and not raised, because an exception in a worker becomes a page of text.

    Args:
        corpus: Images and captions.
        vocabulary: Turns captions into ids.
        drop: Probability with which each word of a caption is changed, see :func:`vse.data.augmentation.augment`.
        seed: The seed of these changes.
        keep_ends: Whether a caption's first and last token are never changed.
        part: The number of the process whose share of each batch is read, from 0.
        parts: Number of processes.
        read: Reads the images of some indices and an epoch; by default, the corpus's images do.
        views: How often a batch has each of its images and captions, one after another: image 1, image 1 again, image
            2, and so on (ESA, Zhu et al. 2023). Each view of a caption is changed on its own, and an encoder that drops
            elements drops others in each view of an image. The views of a picture share its random crop.

    Raises:
        ValueError: ``drop`` is outside [0, 1), it is above 0 and the vocabulary has no mask token, or ``views`` is
            below 1.

    >>> TrainingData(corpus, vocabulary, drop=0.2, seed=1)[0, np.array([3, 7])].positives.shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary | Subwords,
        drop: float,
        seed: int,
        keep_ends: bool = False,
        part: int = 0,
        parts: int = 1,
        read: Callable[[np.ndarray, int], np.ndarray | list[np.ndarray]] | None = None,
        views: int = 1,
    ) -> None:
        check_probability("drop", drop)
        check_at_least("views", views, 1)
        if drop and vocabulary.mask is None:
            raise ValueError(f"drop must be 0 for a vocabulary without a mask token, got {drop}")
        self.corpus = corpus
        self.read = corpus.images.read if read is None else read
        self.vocabulary = vocabulary
        self.drop = drop
        self.keep_ends = keep_ends
        self.seed = seed
        self.part, self.parts = part, parts
        self.views = views
        self.flat, self.ids = vocabulary.encode_all(corpus.captions)

    def __getitem__(self, key: tuple[int, np.ndarray]) -> Batch | InputError:
        """Return the batch of some captions, or this process's share of it."""
        epoch, captions = key
        images, row = np.unique(self.corpus.image_of_caption[captions], return_inverse=True)
        positives = torch.from_numpy(np.arange(len(images))[:, None] == row[None, :])
        if len(images) < self.parts:
            return InputError(
                f"{self.corpus.name}: a batch describes {len(images)} images, fewer than the {self.parts} processes; "
                f"raise train.batch_size or start fewer processes"
            )
        positives = positives.repeat_interleave(self.views, 0).repeat_interleave(self.views, 1)
        images, captions = np.repeat(images, self.views), np.repeat(captions, self.views)
        places = torch.from_numpy(images), torch.from_numpy(self.corpus.image_of_caption[captions])
        view = np.arange(len(captions)) % self.views
        images = images[share(len(images), self.part, self.parts)]
        own = share(len(captions), self.part, self.parts)
        try:
            read = self.read(images, epoch)
            tokens, mask = self._tokens(epoch, captions[own], view[own])
        except InputError as error:
            return error
        if isinstance(read, np.ndarray):
            features, image_mask = torch.from_numpy(read), None
        else:  # clips of different lengths
            features, image_mask = pad([torch.from_numpy(clip) for clip in read])
        return Batch(features, image_mask, tokens, mask, positives, positives.nonzero().T.contiguous(), *places)

    def sample(self) -> Batch:
        """Return a small whole batch, always the same one.

        Returns:
            The batch of the corpus's first two captions in epoch 0. It is whole even when several processes share
            batches.

        Raises:
            InputError: The data is damaged.
        """
        whole = copy.copy(self)
        whole.part, whole.parts = 0, 1
        batch = whole[0, np.arange(min(2, len(self.corpus.captions)))]
        if isinstance(batch, InputError):
            raise batch
        return batch

    def _tokens(self, epoch: int, captions: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """The ids (n, longest) of views of captions, changed as in training, and their mask."""
        places, lengths = self.flat.places(captions)
        if not lengths.all():
            index = int(captions[lengths.argmin()])
            raise InputError(f"{self.corpus.name}: caption {self.corpus.caption_ids[index]} has no tokens")
        ids = self.ids[self.flat.tokens[places]]
        if self.drop:
            assert self.vocabulary.mask is not None  # the constructor has checked it
            words = self.flat.words[places]
            if self.keep_ends:
                ends = np.cumsum(lengths)
                words[ends - lengths] = words[ends - 1] = -1
            seed = (_AUGMENT, self.seed, epoch)
            mask, plain = self.vocabulary.mask, self.vocabulary.plain
            draws = captions + views * len(self.corpus.captions)  # each view has draws of its own
            ids, lengths = augment(ids, words, lengths, draws, self.drop, seed, mask, plain)
        return pad_flat(ids, lengths)


class ThreadedLoader:
    """Makes batches in threads of this process, in the order of the sampler.

    Features only have to be copied, which threads do side by side; between processes they would be copied once more.

    Args:
        data: Makes the batches.
        sampler: Chooses the captions of each batch.
        threads: Number of threads; each is up to two batches ahead.
        pin_memory: Whether to put batches into page-locked memory, from which a GPU copies faster.
    """

    def __init__(self, data: TrainingData, sampler: BatchSampler, threads: int, pin_memory: bool) -> None:
        self.dataset, self.sampler, self.threads, self.pin_memory = data, sampler, threads, pin_memory

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch, or the error that a batch met."""
        pool = ThreadPoolExecutor(self.threads)
        ahead: deque[Future[Batch | InputError]] = deque()
        try:
            for key in self.sampler:
                ahead.append(pool.submit(self._make, key))
                if len(ahead) > _AHEAD * self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, key: tuple[int, np.ndarray]) -> Batch | InputError:
        batch = self.dataset[key]
        return batch.pin_memory() if self.pin_memory and isinstance(batch, Batch) else batch


def make_loader(
    data: TrainingData, sampler: BatchSampler, workers: int, pin_memory: bool, in_threads: bool = False
) -> DataLoader[Any] | ThreadedLoader:
    """Make the loader of batches. It does not change the global random generators.

    Args:
        data: Makes the batches.
        sampler: Chooses the captions of each batch.
        workers: Number of processes, or threads, that make batches; with 0 none beside the one that trains.
        pin_memory: Whether to put batches into page-locked memory, from which a GPU copies faster.
        in_threads: Whether threads of this process make the batches.

    Returns:
        The loader.
    """
    if in_threads and workers:
        return ThreadedLoader(data, sampler, workers, pin_memory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        return DataLoader(
            data,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),
        )


def check_shared_memory(sample: Batch, images: int, workers: int, folder: str = "/dev/shm") -> None:
    """Check that there is room for the batches that worker processes hand over; without it, a bus error ends them.

    Args:
        sample: A small batch.
        images: The largest number of images in a batch, of all processes on this machine.
        workers: Number of worker processes of each.
        folder: The folder that holds shared memory; systems other than Linux have none.

    Raises:
        InputError: The batches may need more room than there is.
    """
    if not workers or not os.path.isdir(folder):
        return
    about = os.statvfs(folder)
    free = about.f_bavail * about.f_frsize
    needed = _AHEAD * workers * images * sample.images.nbytes // len(sample.images)
    if needed > free:
        raise InputError(
            f"data.workers: {workers} processes put up to {needed / 1e9:.2f} GB of batches into {folder}, which has "
            f"{free / 1e9:.2f} GB free; give it more (docker run --shm-size=...), or set data.workers=0"
        )
