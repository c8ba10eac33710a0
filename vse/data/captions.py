"""Captions as flat arrays of tokens: split once, on all cores, and kept in the cache for later runs.

Flat arrays hold one caption after another. Batches are cut from them without a Python loop, and the loader's workers
share their memory.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vse import cache
from vse.console import progress_bar
from vse.data.workers import leave_signals_to_the_parent, usable_cores

_MANY = 20_000  # from how many captions on it is worth while to start processes and to write a file
_CHUNK = 4096  # captions that a process splits at a time

# From a caption to its tokens, each a word or a number, and the number of the word that each belongs to, or -1.
Split = Callable[[str], tuple[Sequence[Hashable], Sequence[int]]]


class FlatCaptions(NamedTuple):
    """The tokens of many captions, one caption after another.

    Attributes:
        kinds: The distinct tokens, which are words or numbers, in the order in which they appear.
        tokens: (tokens,) int32, the place of each token among ``kinds``.
        words: (tokens,) int32, the number of the word of its caption that each token belongs to; -1 for none.
        ends: (captions,) int64, where each caption ends.
    """

    kinds: list[Any]
    tokens: np.ndarray
    words: np.ndarray
    ends: np.ndarray

    def places(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the tokens of some captions are.

        Args:
            captions: The indices (n,) of the captions.

        Returns:
            The places (m,) of all their tokens, caption by caption, and the number of tokens (n,) of each.

        >>> flat_captions(["a dog", "a"], split_words, "words").places(np.array([1, 0]))
        (array([4, 5, 6, 0, 1, 2, 3]), array([3, 4]))
        """
        ends = self.ends[captions]
        lengths = ends - np.where(captions > 0, self.ends[captions - 1], 0)
        return np.arange(lengths.sum()) + np.repeat(ends - np.cumsum(lengths), lengths), lengths


def pad_flat(ids: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Stack captions of different lengths, with zeros behind the shorter ones.

    Args:
        ids: (m,) the tokens of n captions, one caption after another.
        lengths: (n,) the number of tokens of each.

    Returns:
        The tokens (n, longest) and their mask, True on real tokens.

    >>> pad_flat(np.array([5, 6, 7]), np.array([1, 2]))[0].tolist()
    [[5, 0], [6, 7]]
    """
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, dtype=ids.dtype)
    tokens[mask] = ids
    return torch.from_numpy(tokens), torch.from_numpy(mask)


_LATEST: dict[str, FlatCaptions] = {}  # building the vocabulary and making batches ask for the same captions


def flat_captions(captions: Sequence[str], split: Split, version: str) -> FlatCaptions:
    """Split captions into tokens, or find them in the cache.

    Many captions are split on all cores, with a progress bar.

    Args:
        captions: The captions.
        split: Splits one of them.
        version: What the result of ``split`` depends on, besides the caption.

    Returns:
        The tokens of all captions.

    >>> flat_captions(["a dog", "a"], split_words, "words").kinds
    ['<start>', 'a', 'dog', '<end>']
    """
    key = f"1 {version} {captions_digest(captions)}"
    if key not in _LATEST:
        found = _load(key) if len(captions) >= _MANY else None
        if found is None:
            found = _split_all(captions, split)
            if len(captions) >= _MANY:
                _save(key, found)
        _LATEST.clear()
        _LATEST[key] = found
    return _LATEST[key]


def captions_digest(captions: Sequence[str]) -> str:
    """The SHA-256 digest, in hexadecimal, of captions and of the places where one ends and the next begins."""
    lengths = np.fromiter(map(len, captions), dtype="<i8", count=len(captions))
    digest = hashlib.sha256(lengths.tobytes())
    digest.update("".join(captions).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _load(key: str) -> FlatCaptions | None:
    kept = cache.load("captions", key)
    return None if kept is None else FlatCaptions(json.loads(kept.pop("kinds").tobytes()), **kept)


def _save(key: str, flat: FlatCaptions) -> None:
    kinds = np.frombuffer(json.dumps(flat.kinds).encode(), dtype=np.uint8)
    cache.save("captions", key, {**flat._asdict(), "kinds": kinds})


class _Chunks(Dataset[FlatCaptions]):
    """Captions in chunks, each split when it is asked for."""

    def __init__(self, captions: Sequence[str], split: Split) -> None:
        self.captions, self.split, self.size = captions, split, _CHUNK

    def __len__(self) -> int:
        return max(1, -(-len(self.captions) // self.size))

    def __getitem__(self, number: int) -> FlatCaptions:
        numbers: dict[Hashable, int] = {}  # of the distinct tokens
        tokens: list[int] = []
        words: list[int] = []
        ends: list[int] = []
        for caption in self.captions[number * self.size : (number + 1) * self.size]:
            found, words_of_tokens = self.split(caption)
            tokens += [numbers.setdefault(token, len(numbers)) for token in found]
            words += words_of_tokens
            ends.append(len(tokens))
        return FlatCaptions(
            list(numbers), np.array(tokens, np.int32), np.array(words, np.int32), np.array(ends, np.int64)
        )


def _split_all(captions: Sequence[str], split: Split) -> FlatCaptions:
    """Split captions, many of them on all cores."""
    chunks = DataLoader(
        _Chunks(captions, split),
        batch_size=None,
        num_workers=usable_cores() if len(captions) >= _MANY else 0,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),
    )
    numbers: dict[Hashable, int] = {}
    parts: list[FlatCaptions] = []
    with progress_bar("tokenising captions", " captions", len(captions), delay=2) as bar:
        for chunk in chunks:
            place = np.array([numbers.setdefault(token, len(numbers)) for token in chunk.kinds], dtype=np.int32)
            start = parts[-1].ends[-1] if parts else 0
            parts.append(FlatCaptions([], place[chunk.tokens], chunk.words, start + chunk.ends))
            bar.update(len(chunk.ends))
    return FlatCaptions(list(numbers), *(np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[1:]))


def _as_it_is(chunk: Any) -> Any:
    """Keep the loader from making tensors, which would travel through shared memory."""
    return chunk
