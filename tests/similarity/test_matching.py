"""The best one-to-one matching, against all permutations."""

import itertools

import pytest
import torch
from torch import Tensor

from vse.similarity import assignment
from vse.similarity.matching import match


def best_sum(worth: Tensor) -> float:
    """The largest sum of a one-to-one matching of the rows (at most as many as columns), by trying all of them."""
    rows, columns = worth.shape
    return max(
        sum(float(worth[row, column]) for row, column in enumerate(order))
        for order in itertools.permutations(range(columns), rows)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_the_matching_is_the_best_one(size: int) -> None:
    worth = torch.randn(3, size, 2, size, generator=torch.Generator().manual_seed(size))
    partners = match(worth)
    for a, c in itertools.product(range(3), range(2)):
        own = partners[a, :, c]
        assert sorted(own.tolist()) == list(range(size))
        found = float(worth[a, torch.arange(size), c, own].sum())
        assert found == pytest.approx(best_sum(worth[a, :, c]), abs=1e-5)


def test_eight_elements_are_exact() -> None:
    worth = torch.randn(1, 8, 1, 8, generator=torch.Generator().manual_seed(0))
    own = match(worth)[0, :, 0]
    assert float(worth[0, torch.arange(8), 0, own].sum()) == pytest.approx(best_sum(worth[0, :, 0]), abs=1e-5)


@pytest.mark.parametrize(("left", "right"), [(2, 5), (5, 2)])
def test_every_element_of_the_smaller_set_gets_a_partner_even_a_bad_one(left: int, right: int) -> None:
    worth = -torch.rand(3, left, 4, right, generator=torch.Generator().manual_seed(1)) - 0.5
    partners = match(worth)
    assert ((partners >= 0).sum(1) == 2).all() and int(partners.max()) < right
    for a, c in itertools.product(range(3), range(4)):
        rows = [row for row in range(left) if partners[a, row, c] >= 0]
        found = sum(float(worth[a, row, c, partners[a, row, c]]) for row in rows)
        own = worth[a, :, c]
        assert found == pytest.approx(best_sum(own if left <= right else own.T), abs=1e-5)


def test_it_is_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(7, 4, 6), torch.randn(5, 3, 6)
    whole = assignment(a, b)
    monkeypatch.setattr("vse.similarity.matching._BLOCK", 5 * 16 * 2)
    torch.testing.assert_close(assignment(a, b), whole)


def test_equal_cosines_still_match_one_to_one() -> None:
    same = torch.ones(1, 4, 6)
    assert sorted(match(torch.ones(1, 4, 1, 4)).flatten().tolist()) == [0, 1, 2, 3]
    assert assignment(same, same).item() == pytest.approx(1)


def test_the_gradient_reaches_the_matched_pairs_alone() -> None:
    """Each embedding has one partner, so its gradient is that of one cosine."""
    a = torch.nn.functional.normalize(torch.randn(1, 3, 6), dim=-1).requires_grad_()
    b = torch.nn.functional.normalize(torch.randn(1, 3, 6), dim=-1)
    assignment(a, b).sum().backward()
    partners = match((a[0] @ b[0].T)[None, :, None].detach())[0, :, 0]
    assert a.grad is not None
    torch.testing.assert_close(a.grad[0], b[0, partners] / 3)


def test_bad_arguments() -> None:
    a = torch.randn(2, 9, 4)
    with pytest.raises(ValueError, match="assignment matches sets of at most 8, got K = 9 and L = 2"):
        assignment(a, a[:, :2])
    with pytest.raises(ValueError, match="value must be one of 'cosine' or 'exponential', got 'exp'"):
        assignment(a, a, value="exp")  # type: ignore[arg-type]
