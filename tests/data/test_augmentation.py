import numpy as np
import pytest

from vse.data.augmentation import augment, uniforms

MASK, PLAIN = 4, np.arange(100, 1100)
MODULUS = 2**64


def mixed(*counters: int) -> float:
    """The same chain in whole numbers of Python, which have no limit."""
    state = 0
    for counter in counters:
        state = (state + (counter + 1) * 0x9E3779B97F4A7C15) % MODULUS
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % MODULUS
        state ^= state >> 31
    return (state >> 11) / 2**53


def one_by_one(
    ids: list[int], words: list[int], caption: int, probability: float, seed: tuple[int, ...], plain: np.ndarray
) -> list[int]:
    """One caption, token by token."""
    out = []
    for position, (token, word) in enumerate(zip(ids, words, strict=True)):
        draw = mixed(*seed, 0, caption, word) / probability
        if word < 0 or draw >= 1:
            out.append(token)
        elif draw < 0.5:
            out.append(MASK)
        elif draw < 0.6:
            out.append(int(plain[int(mixed(*seed, 1, caption, position) * len(plain))]) if len(plain) else token)
    return out or [ids[int(mixed(*seed, 2, caption) * len(ids))]]


def batch(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Captions of 1 to 8 tokens; some words have several tokens, some tokens belong to none."""
    lengths = rng.integers(1, 9, size)
    words = np.concatenate([rng.integers(-1, length, length) for length in lengths])
    return rng.integers(5, 90, lengths.sum()), words, lengths, rng.integers(0, 600_000, size)


@pytest.mark.parametrize("plain", [PLAIN, PLAIN[:0]], ids=["words", "no words"])
def test_a_batch_is_changed_as_its_captions_one_by_one(plain: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for probability in (0.2, 0.9, 0.999):
        ids, words, lengths, captions = batch(rng, 300)
        copies = [array.copy() for array in (ids, words, lengths, captions)]
        out, counts = augment(ids, words, lengths, captions, probability, (3, 7), MASK, plain)
        expected = [
            one_by_one(row.tolist(), word.tolist(), int(caption), probability, (3, 7), plain)
            for row, word, caption in zip(
                *(np.split(array, np.cumsum(lengths)[:-1]) for array in (ids, words)), captions, strict=True
            )
        ]
        assert out.tolist() == [token for row in expected for token in row]
        assert counts.tolist() == [len(row) for row in expected] and counts.min() > 0
        for array, copy in zip((ids, words, lengths, captions), copies, strict=True):
            assert np.array_equal(array, copy)


def test_batch_mates_and_order_change_nothing() -> None:
    ids, words, lengths, captions = batch(np.random.default_rng(1), 50)
    captions = np.arange(50) * 1000
    rows = [slice(end - n, end) for n, end in zip(lengths, np.cumsum(lengths), strict=True)]

    def change(chosen: list[int]) -> list[list[int]]:
        own_ids, own_words = (np.concatenate([array[rows[i]] for i in chosen]) for array in (ids, words))
        out, counts = augment(own_ids, own_words, lengths[chosen], captions[chosen], 0.5, (1, 2), MASK, PLAIN)
        return [row.tolist() for row in np.split(out, np.cumsum(counts)[:-1])]

    whole = change(list(range(50)))
    order = np.random.default_rng(2).permutation(50).tolist()
    assert change(order) == [whole[i] for i in order]
    assert [change([i])[0] for i in range(50)] == whole


def test_frequencies() -> None:
    """Half of the changed words are masked, a tenth replaced, the rest removed."""
    n = 200_000
    ids, lengths = np.full(n, 7), np.full(n // 20, 20)
    out, counts = augment(ids, np.tile(np.arange(20), n // 20), lengths, np.arange(n // 20), 0.2, (5, 0), MASK, PLAIN)
    replaced = out[(out != 7) & (out != MASK)]
    share = {"mask": (out == MASK).sum() / n, "removed": 1 - len(out) / n, "other": len(replaced) / n}
    assert share == pytest.approx({"mask": 0.1, "removed": 0.08, "other": 0.02}, abs=0.003)
    assert counts.sum() == len(out)
    assert replaced.min() < 110 and replaced.max() > 1090 and np.isin(replaced, PLAIN).all()
    assert abs(replaced.mean() - PLAIN.mean()) < 5 * PLAIN.std() / np.sqrt(len(replaced))


def test_draws_are_uniform_and_independent() -> None:
    """Over seeds, epochs, captions and positions: moments, and correlations between neighbours in each of them."""
    seeds, epochs, captions, positions = np.ix_(range(4), range(30), range(100), range(20))
    draws = uniforms(seeds, epochs, 0, captions, positions)
    assert draws.shape == (4, 30, 100, 20) and draws.min() >= 0 and draws.max() < 1
    n = draws.size
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * n)
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 99 + 5 * np.sqrt(2 * 99)  # chi squared
    for axis in range(4):
        a, b = np.split(draws, [-1], axis)[0], np.split(draws, [1], axis)[1]
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size), axis
    assert len(np.unique(draws)) == n
    other = uniforms(seeds, epochs, 1, captions, positions)  # another stream
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)


def test_draws_are_those_of_whole_numbers_in_python() -> None:
    places = [(0, 0, 0), (1, 2, 3), (2**63 - 1, 24, 566_434), (7, 0, -1)]
    assert [float(uniforms(*place)[0]) for place in places] == [mixed(*place) for place in places]


def test_a_words_tokens_share_its_fate() -> None:
    """The random words that replace them are drawn one by one."""
    n = 2000
    ids, words = np.tile([100, 101, 102, 103, 104], n), np.tile([-1, 0, 0, 0, -1], n)
    out, counts = augment(ids, words, np.full(n, 5), np.arange(n), 0.5, (0,), 9, np.arange(10, 90))
    rows = [row.tolist() for row in np.split(out, np.cumsum(counts)[:-1])]
    assert all((row[0], row[-1]) == (100, 104) for row in rows)
    fates = [row[1:-1] for row in rows]
    replaced = [fate for fate in fates if fate not in ([101, 102, 103], [9, 9, 9], [])]
    assert all(len(fate) == 3 and all(10 <= piece < 90 for piece in fate) for fate in replaced)
    assert len({tuple(fate) for fate in replaced}) > 50 and any(len(set(fate)) == 3 for fate in replaced)
    share = [fates.count(fate) / n for fate in ([101, 102, 103], [9, 9, 9], [])]
    assert share == pytest.approx([0.5, 0.25, 0.2], abs=0.04)
