"""Captions as the subwords that a pretrained text model knows."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from vse.data.captions import FlatCaptions, flat_captions
from vse.encoders.pretrained import read_tokenizer
from vse.errors import InputError, first_line


class Subwords:
    """A fast tokenizer of ``transformers``, which can be stored in a checkpoint.

    Args:
        content: The JSON of the ``tokenizers`` library.
        mask: The id that stands for a hidden subword, if there is one.
        max_length: Number of subwords, specials included, after which a caption is cut off.

    Raises:
        InputError: The content is not that of a tokenizer.

    >>> Subwords.read("bert-base-uncased").encode("two dogs").tolist()
    [101, 2048, 6077, 102]
    """

    def __init__(self, content: str, mask: int | None, max_length: int | None = None) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_str(content)
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            self.tokenizer.encode_special_tokens = True  # "[SEP]" in a caption is text
            if max_length is not None:
                self.tokenizer.enable_truncation(max_length)
        except Exception as error:  # the library raises plain Exceptions
            raise InputError(f"not a tokenizer's JSON ({first_line(error)})") from None
        self.content, self.mask, self.max_length = content, mask, max_length
        special = {token["id"] for token in json.loads(content).get("added_tokens", []) if token["special"]}
        self.ids = self.tokenizer.get_vocab()
        self._ids = {*self.ids.values(), *self.tokenizer.encode("").ids, *([] if mask is None else [mask])}
        self.plain = np.array(sorted(self._ids - special), dtype=np.int64)

    @classmethod
    def read(cls, model: str) -> "Subwords":
        """Read the tokenizer of a folder, or of a model on the hub.

        Args:
            model: The folder, or the model's name on the hub.

        Returns:
            The tokenizer.

        Raises:
            InputError: The model, which the message names, has no fast tokenizer.
        """
        return cls(*read_tokenizer(model))

    @property
    def state(self) -> dict[str, Any]:
        """Plain values from which it can be made again: ``Subwords(**state)``."""
        return {"content": self.content, "mask": self.mask, "max_length": self.max_length}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle it as it is made: a copy of the library's tokenizer would take "[SEP]" for a special."""
        return type(self), tuple(self.state.values())

    def __len__(self) -> int:
        """Return the size of a table that has a row for every id."""
        return max(self._ids) + 1

    def cut(self, max_length: int | None) -> None:
        """Also cut captions off after this many subwords, because the model has no positions for more."""
        lengths = [length for length in (self.max_length, max_length) if length is not None]
        if lengths:
            self.max_length = min(lengths)
            self.tokenizer.enable_truncation(self.max_length)

    def encode(self, caption: str) -> np.ndarray:
        """Return the ids (L,) int64 of a caption's subwords, with the model's special tokens around them."""
        return np.array(self.tokenizer.encode(caption).ids, dtype=np.int64)

    def split(self, caption: str) -> tuple[list[int], list[int]]:
        """Return the ids of a caption's subwords and the number of the word that each belongs to, -1 for specials."""
        encoding = self.tokenizer.encode(caption)
        return encoding.ids, [-1 if word is None else word for word in encoding.word_ids]

    def words_of_tokens(self, caption: str) -> tuple[list[str], list[int]]:
        """Tell which word each subword of :meth:`encode` belongs to.

        Args:
            caption: The caption.

        Returns:
            The words as they stand in the caption, and for each subword the number of its word, -1 for specials.

        >>> Subwords.read("bert-base-uncased").words_of_tokens("Two dogs")
        (['Two', 'dogs'], [-1, 0, 1, -1])
        """
        encoding = self.tokenizer.encode(caption)
        numbers = [-1 if word is None else word for word in encoding.word_ids]
        spans: dict[int, tuple[int, int]] = {}
        for number, (first, end) in zip(numbers, encoding.offsets, strict=True):
            if number >= 0:
                spans[number] = (spans.get(number, (first, end))[0], end)
        known = {number: place for place, number in enumerate(spans)}
        return [caption[first:end] for first, end in spans.values()], [known.get(number, -1) for number in numbers]

    def encode_all(self, captions: Sequence[str]) -> tuple[FlatCaptions, np.ndarray]:
        """Encode many captions at once, on all cores or from the cache.

        Args:
            captions: The captions.

        Returns:
            Their subwords as flat arrays, and the id (kinds,) int64 of each distinct one.
        """
        rules = hashlib.sha256(f"{self.max_length} {self.content}".encode()).hexdigest()
        flat = flat_captions(captions, self.split, f"subwords 1, tokenizers {version('tokenizers')}, {rules}")
        return flat, np.array(flat.kinds, dtype=np.int64)
