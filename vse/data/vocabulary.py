"""Words and their ids."""

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vse.errors import InputError

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>", "<mask>")

# Words whose full stop ends no sentence. NLTK's English Punkt model is a download; these are the abbreviations that
# its users' published vocabularies (SCAN's Flickr30K and COCO files) show to have kept their stop, and close kin.
_ABBREVIATIONS = {"a", "mr", "mrs", "ms", "dr", "st", "jr", "sr", "u.s", "j.p", "a.m", "p.m", "d.c", "u.k", "vs"}


@lru_cache(maxsize=1)
def _tokenisers() -> tuple[Any, Any]:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters), NLTKWordTokenizer()


def tokenise(caption: str) -> list[str]:
    """Lower-cased words of a caption, as NLTK's ``word_tokenize`` splits them, without any download.

    >>> tokenise("Two dogs don't play.")
    ['two', 'dogs', 'do', "n't", 'play', '.']
    """
    sentences, words = _tokenisers()
    return [word for sentence in sentences.tokenize(caption.lower()) for word in words.tokenize(sentence)]


class Vocabulary:
    """The known words; a word's id is its place in the list.

    Raises ValueError for a repeated word or a missing special; ``<mask>`` is appended when missing.

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
        if "<mask>" not in self.ids:
            self.ids["<mask>"] = len(self.words)
            self.words.append("<mask>")
        self.start, self.end, self.unk, self.mask = (self.ids[special] for special in SPECIALS[1:])
        self.plain = np.array([i for i, word in enumerate(self.words) if word not in SPECIALS], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of words, specials included."""
        return len(self.words)

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Vocabulary of the words seen at least ``min_count`` times: the most frequent first, ties by spelling."""
        bar = tqdm(captions, desc="building the vocabulary", unit=" captions", unit_scale=True, leave=False, delay=2)
        counts = Counter(word for caption in bar for word in tokenise(caption))
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIALS]
        return cls([*SPECIALS, *sorted(kept, key=lambda word: (-counts[word], word))])

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Read the field's JSON files ({"word2idx": {word: id}, ...}). Raises InputError for anything else."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; expected a vocabulary in JSON with a 'word2idx' mapping") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: cannot be read as a JSON vocabulary ({error})") from None
        ids = content.get("word2idx") if isinstance(content, dict) else None
        if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
            raise InputError(f"{path}: expected a JSON object with 'word2idx', a mapping from words to ids")
        words = sorted(ids, key=lambda word: ids[word])
        if [ids[word] for word in words] != list(range(len(words))):
            raise InputError(f"{path}: the ids of its {len(words)} words are not 0..{len(words) - 1}, each once")
        try:
            return cls(words)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def encode(self, caption: str) -> np.ndarray:
        """Ids (L,) int64 of ``<start>``, the caption's words, ``<end>``; unknown words become ``<unk>``."""
        words = [self.ids.get(word, self.unk) for word in tokenise(caption)]
        return np.array([self.start, *words, self.end], dtype=np.int64)

    def encode_words(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids (L,) int64, and the number of the word that each belongs to: here, each token is a word."""
        ids = self.encode(caption)
        return ids, np.arange(len(ids))

    @property
    def state(self) -> list[str]:
        """Plain values to make it from again: ``Vocabulary(state)``."""
        return self.words


def augment(
    ids: np.ndarray, words: np.ndarray, probability: float, rng: np.random.Generator, mask: int, plain: np.ndarray
) -> np.ndarray:
    """Caption augmentation of VSE∞ (its section 4.1): each word, with ``probability``, is changed.

    A changed word becomes ``mask`` (50 %), random ones of ``plain`` (10 %) or is removed (40 %), all its tokens alike;
    ``words`` numbers the word that each of the ``ids`` belongs to, and those numbered -1 stay as they are. One token
    always stays.
    """
    draw = np.append(rng.random(words.max() + 1) / probability, 1.0)[words]  # in [0, 1) where the word is changed
    out = np.where(draw < 0.5, mask, ids)
    random_word = (draw >= 0.5) & (draw < 0.6)
    if random_word.any() and len(plain):
        out[random_word] = rng.choice(plain, int(random_word.sum()))
    kept = (draw < 0.6) | (draw >= 1)
    if not kept.any():
        kept[rng.integers(len(ids))] = True
    return out[kept]
