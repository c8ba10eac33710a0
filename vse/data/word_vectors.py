"""Word vectors from GloVe's and fastText's text files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vse import cache
from vse.console import progress_bar
from vse.errors import InputError


def read_vectors(path: str | Path, words: Sequence[str], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the vectors of some words from a text file.

    Each line is a word and its numbers. The first line of fastText's files, which holds two numbers, is skipped. A word
    that is not found is looked up again without hyphens, full stops and apostrophes, and without a slash and what
    follows it (PVSE's released code). The result is kept in the user's cache folder, since the files have millions of
    lines.

    A word that is not found should keep its initial vector. In the codes of PVSE and DivE that vector is drawn from
    N(0, 1) when vectors are read from a file.

    Args:
        path: The file, such as GloVe's glove.840B.300d.txt.
        words: The words.
        dim: Width of the vectors.

    Returns:
        The vectors (words, dim) float32, with zeros for words that were not found, and (words,) bool, True for words
        that were found.

    Raises:
        InputError: The file is missing, a vector has another width, or a line holds something that is not a number.

    >>> vectors, found = read_vectors("glove.840B.300d.txt", vocabulary.words, 300)
    >>> vectors.shape, found.mean()
    ((8482, 300), 0.97)
    """
    path = Path(path)
    try:
        about = path.stat()
    except OSError:
        raise InputError(
            f"{path}: no such file; get GloVe's word vectors (such as glove.840B.300d.zip, and unpack it) from "
            f"nlp.stanford.edu/projects/glove, or set data.vocabulary.vectors=null to train without them"
        ) from None
    key = repr((str(path.resolve()), about.st_size, about.st_mtime_ns, dim, list(words)))
    kept = cache.load("vectors", key)
    if kept is None:
        vectors, found = _read(path, words, dim, about.st_size)
        kept = {"vectors": vectors, "found": found}
        cache.save("vectors", key, kept)
    return kept["vectors"], kept["found"]


def _read(path: Path, words: Sequence[str], dim: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`read_vectors` returns, from the file."""
    places: dict[bytes, list[int]] = {}  # each spelling that helps, and the words that it helps
    for place, word in enumerate(words):
        for spelling in {word, simplified(word)} - {""}:
            places.setdefault(spelling.encode(), []).append(place)
    vectors = np.zeros((len(words), dim), dtype=np.float32)
    exact = np.zeros(len(words), dtype=bool)
    found = np.zeros(len(words), dtype=bool)
    title = f"reading {path.name}"
    with open(path, "rb") as file, progress_bar(title, "B", size, delay=1) as bar:
        for number, line in enumerate(file, start=1):
            bar.update(len(line))
            parts = line.rstrip().split(b" ")
            if number == 1 and len(parts) == 2 and dim != 1:
                continue
            if number <= 2 and len(parts) != dim + 1:  # further down, a word may hold spaces
                raise InputError(f"{path}: line {number} has a word and {len(parts) - 1} numbers, expected {dim}")
            for place in places.get(b" ".join(parts[:-dim]), ()):
                same = words[place].encode() == b" ".join(parts[:-dim])
                if exact[place] or (found[place] and not same):
                    continue
                try:
                    vectors[place] = np.array(parts[-dim:], dtype=np.float32)
                except ValueError:
                    raise InputError(f"{path}: line {number}: expected a word and {dim} numbers") from None
                if not np.isfinite(vectors[place]).all():
                    raise InputError(f"{path}: line {number}: NaN or Inf in the vector of a word")
                found[place], exact[place] = True, same
    return vectors, found


def simplified(word: str) -> str:
    """Return the spelling to look up when a word itself has no vector.

    >>> simplified("t-shirt/top")
    'tshirt'
    """
    for sign in "-.'":
        word = word.replace(sign, "")
    return word.split("/")[0]
