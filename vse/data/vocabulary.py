"""Words and their ids."""

import io
import json
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vse.data.captions import FlatCaptions, flat_captions
from vse.data.words import tokenise, tokeniser_version
from vse.errors import InputError, first_line

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>", "<mask>")


def split_words(caption: str) -> tuple[list[str], range]:
    """Split a caption into ``<start>``, its words and ``<end>``, and number them: here, each token is a word."""
    words = ["<start>", *tokenise(caption), "<end>"]
    return words, range(len(words))


def _flat(captions: Iterable[str]) -> FlatCaptions:
    return flat_captions(list(captions), split_words, tokeniser_version())


def _frequent_words(captions: Iterable[str], min_count: int) -> list[str]:
    """The words seen at least ``min_count`` times, specials excepted: the most frequent first, ties by spelling."""
    flat = _flat(captions)
    counts = dict(zip(flat.kinds, np.bincount(flat.tokens, minlength=len(flat.kinds)).tolist(), strict=True))
    kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIALS]
    return sorted(kept, key=lambda word: (-counts[word], word))


class Vocabulary:
    """The known words; the id of a word is its place in the list.

    ``appended`` is True if ``<mask>`` was missing, as in published vocabularies, and has been appended.

    Args:
        words: The words, in the order of their ids, with ``<pad>`` first and ``<start>``, ``<end>`` and ``<unk>``
            anywhere.

    Raises:
        ValueError: A word is repeated, or a special token is missing.

    >>> vocabulary = Vocabulary.build(["a dog", "a cat"])
    >>> vocabulary.encode("a bird").tolist()  # <start> a <unk> <end>
    [1, 5, 3, 2]
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            repeated = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"the vocabulary holds {repeated!r} more than once")
        missing = [special for special in SPECIALS[:-1] if special not in self.ids]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        if self.words[0] != "<pad>":
            raise ValueError(f"the vocabulary's id 0 must be <pad>, found {self.words[0]!r}")
        self.appended = "<mask>" not in self.ids
        if self.appended:
            self.ids["<mask>"] = len(self.words)
            self.words.append("<mask>")
        self.start, self.end, self.unk, self.mask = (self.ids[special] for special in SPECIALS[1:])
        self.plain = np.array([i for i, word in enumerate(self.words) if word not in SPECIALS], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of words, specials included."""
        return len(self.words)

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Build the vocabulary of some captions: the most frequent words first, ties by spelling.

        Args:
            captions: The captions, usually those of the training split.
            min_count: How often a word must occur to be known.

        Returns:
            The vocabulary.
        """
        return cls([*SPECIALS, *_frequent_words(captions, min_count)])

    def extended(self, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Add the words of more captions, so that a trained model can be trained further on other data.

        Known words keep their ids, and so does ``<mask>``. New words follow, the most frequent first, ties by spelling.
        The new vocabulary has a ``<mask>`` of its own, so its ``appended`` is False.

        Args:
            captions: The captions.
            min_count: How often a word must occur in them to be added.

        Returns:
            The new vocabulary.

        >>> Vocabulary.build(["a dog"]).extended(["a cat", "a cat", "a bird"], min_count=2).words[5:]
        ['a', 'dog', 'cat']
        """
        new = [word for word in _frequent_words(captions, min_count) if word not in self.ids]
        return Vocabulary([*self.words, *new])

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Read the field's files: JSON ({"word2idx": {word: id}, ...}), or a pickled object with ``word2idx``.

        No code in a pickle is run.

        Args:
            path: The file.

        Returns:
            The vocabulary.

        Raises:
            InputError: The file is missing or damaged, or it is of another kind; the message names it.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            found = _unpickle(content, path) if content[:1] == b"\x80" else json.loads(content.decode("utf-8-sig"))
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; expected a vocabulary in JSON with a 'word2idx' mapping") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read as a JSON vocabulary ({first_line(error)})") from None
        ids = found.get("word2idx") if isinstance(found, dict) else None
        if not isinstance(ids, dict) or not all(type(i) is int and isinstance(word, str) for word, i in ids.items()):
            raise InputError(f"{path}: expected 'word2idx', a mapping from words to ids, in a JSON object or a pickle")
        words = sorted(ids, key=lambda word: ids[word])
        if [ids[word] for word in words] != list(range(len(words))):
            raise InputError(f"{path}: the ids of its {len(words)} words are not 0..{len(words) - 1}, each once")
        try:
            return cls(words)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def encode(self, caption: str) -> np.ndarray:
        """Return the ids (L,) int64 of ``<start>``, the caption's words (``<unk>`` if unknown) and ``<end>``."""
        words = [self.ids.get(word, self.unk) for word in tokenise(caption)]
        return np.array([self.start, *words, self.end], dtype=np.int64)

    def words_of_tokens(self, caption: str) -> tuple[list[str], list[int]]:
        """Tell which word each token of :meth:`encode` belongs to.

        Args:
            caption: The caption.

        Returns:
            The words, and for each token the number of its word, -1 for ``<start>`` and ``<end>``.

        >>> Vocabulary.build(["a dog"]).words_of_tokens("A dog")
        (['a', 'dog'], [-1, 0, 1, -1])
        """
        words = tokenise(caption)
        return words, [-1, *range(len(words)), -1]

    def encode_all(self, captions: Sequence[str]) -> tuple[FlatCaptions, np.ndarray]:
        """Encode many captions at once, on all cores or from the cache.

        Args:
            captions: The captions.

        Returns:
            Their tokens as flat arrays, and the id (kinds,) int64 of each distinct token.
        """
        flat = _flat(captions)
        return flat, np.array([self.ids.get(word, self.unk) for word in flat.kinds], dtype=np.int64)

    @property
    def state(self) -> list[str]:
        """Plain values from which it can be made again: ``Vocabulary(state)``."""
        return self.words


class MissingVocabulary:
    """Takes the place of the vocabulary that a checkpoint lacks.

    Args:
        rows: Number of rows of the checkpoint's table of words.
        file: The name that the authors gave to the vocabulary's file or folder.
        checkpoint: The checkpoint, for messages.

    >>> MissingVocabulary(8482, "f30k_precomp_vocab.json").encode("a dog")
    Traceback (most recent call last):
    vse.errors.InputError: the checkpoint: came without its vocabulary, f30k_precomp_vocab.json (8,482 rows); ...
    """

    def __init__(self, rows: int, file: str, checkpoint: str | Path = "the checkpoint") -> None:
        self.rows, self.file, self.checkpoint = rows, file, checkpoint

    def __len__(self) -> int:
        """Return the number of rows that the vocabulary has."""
        return self.rows

    def encode(self, caption: str) -> np.ndarray:
        """Refuse to encode a caption.

        Raises:
            InputError: Every caption raises it; the message names the checkpoint and the vocabulary that it lacks.
        """
        raise self._refusal()

    def words_of_tokens(self, caption: str) -> tuple[list[str], list[int]]:
        """Refuse to split a caption, as :meth:`encode` does.

        Raises:
            InputError: Every caption raises it.
        """
        raise self._refusal()

    def _refusal(self) -> InputError:
        """The error that names the checkpoint and the vocabulary that it lacks."""
        what = self.file if "." in self.file else f"the folder {self.file} of its tokenizer"
        return InputError(
            f"{self.checkpoint}: came without its vocabulary, {what} ({self.rows:,} rows); pass it to "
            f"vse.load(path, vocabulary=...) or with --vocabulary FILE, or put it beside the checkpoint"
        )

    @property
    def state(self) -> dict[str, Any]:
        """Plain values from which it can be made again: ``MissingVocabulary(**state)``."""
        return {"rows": self.rows, "file": self.file}


class _Unpickler(pickle._Unpickler):  # the one in Python: its memory is bounded by the file's size
    """Makes plain values, and an empty object in place of any class that is called Vocabulary."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }  # it would reserve memory for whatever length the file claims

    def find_class(self, module: str, name: str) -> type:
        if name != "Vocabulary":
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which is not allowed")
        return type(name, (), {})


def _unpickle(content: bytes, path: Path) -> Any:
    """What a pickled vocabulary holds. Raises InputError for a pickle that asks for more than that."""
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # whatever an unpickler raises
        raise InputError(f"{path}: cannot be read as a pickled vocabulary ({first_line(error)})") from None
    return getattr(found, "__dict__", found)
