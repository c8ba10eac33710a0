"""Change captions at random, a whole batch at once, with draws that depend on nothing but the caption's place."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FATE, _WORD, _KEPT = 0, 1, 2  # numbers of independent streams of draws


def uniforms(*counters: int | np.ndarray) -> np.ndarray:
    """Draw numbers from counters alone, in any order and any process: a chain of SplitMix64's mixers.

    The mixer is that of Steele, Lea and Flood (2014), "Fast Splittable Pseudorandom Number Generators", figure 14: each
    of its outputs is a bijection of the counter and of the state before.

    Args:
        counters: Whole numbers, or arrays of them that fit one another's shapes; negative ones count modulo 2^64.

    Returns:
        One number in [0, 1) for each set of counters, always an array.

    >>> uniforms(1, 2, np.array([3, 4])).round(3)
    array([0.156, 0.236])
    """
    state = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        state = _mix(state + (np.atleast_1d(np.asarray(counter)).astype(np.uint64) + np.uint64(1)) * _STEP)
    return (state >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def augment(
    ids: np.ndarray,
    words: np.ndarray,
    lengths: np.ndarray,
    captions: np.ndarray,
    probability: float,
    seed: tuple[int, ...],
    mask: int,
    plain: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Change some words of captions: the augmentation of VSE∞ (Chen et al. 2021, section 4.1).

    A changed word becomes ``mask`` (50 %), becomes random words (10 %), or is removed (40 %); all its tokens are
    treated alike. At least one token of each caption is kept. What happens to a caption depends on ``seed`` and on the
    caption's index, not on the others in the batch.

    Args:
        ids: (m,) the tokens of n captions, one caption after another.
        words: (m,) the number of the word of its caption that each token belongs to; tokens numbered -1 are never
            changed.
        lengths: (n,) the number of tokens of each caption, at least 1.
        captions: (n,) the captions' indices in the corpus.
        probability: The probability that a word is changed.
        seed: Whole numbers from which all draws follow, such as the run's seed and the epoch.
        mask: The id of the mask.
        plain: The ids that random words are drawn from.

    Returns:
        The tokens (k,) of the changed captions and the number of tokens (n,) of each; the inputs are not changed.

    >>> ids, words = np.array([1, 7, 8, 2]), np.array([-1, 0, 1, -1])
    >>> augment(ids, words, np.array([4]), np.array([0]), 0.5, (6,), mask=4, plain=np.arange(5, 9))
    (array([1, 7, 4, 2]), array([4]))
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    caption = captions[row]
    draw = np.where(words < 0, 1.0, uniforms(*seed, _FATE, caption, words) / probability)  # < 1: the word is changed
    out = np.where(draw < 0.5, mask, ids)
    starts = np.cumsum(lengths) - lengths
    random_word = np.flatnonzero((draw >= 0.5) & (draw < 0.6))
    if len(random_word) and len(plain):
        position = random_word - starts[row[random_word]]
        choice = uniforms(*seed, _WORD, caption[random_word], position)
        out[random_word] = plain[(choice * len(plain)).astype(np.int64)]
    kept = (draw < 0.6) | (draw >= 1)
    counts = np.bincount(row[kept], minlength=len(lengths))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        choice = uniforms(*seed, _KEPT, captions[empty])
        kept[starts[empty] + (choice * lengths[empty]).astype(np.int64)] = True
        counts[empty] = 1
    return out[kept], counts
