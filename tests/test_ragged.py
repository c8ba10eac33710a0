"""Embedding sets of different sizes, beside plain lists of them."""

from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import Tensor

from vse import distributed
from vse.ragged import Collector, RaggedSets, gather_sets, padded, places_of, take
from vse.sets import Aggregated, lengths_to_mask

SIZES = [3, 1, 4, 2, 2, 5, 1]


def lists(sizes: list[int] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, generator=generator) for size in sizes]


def ragged(sets: list[Tensor]) -> RaggedSets:
    return RaggedSets(torch.cat(sets), torch.tensor([len(one) for one in sets]))


def check(found: Aggregated, expected: list[Tensor]) -> None:
    assert found.mask is not None and len(found.embeddings) == len(expected)
    for row, mask, own in zip(found.embeddings, found.mask, expected, strict=True):
        assert torch.equal(row[mask], own) and not row[~mask].any()
    assert found.mask.any(0).all()  # no more padding than is needed


@pytest.mark.parametrize("rows", [slice(None), slice(2, 5), torch.tensor([6, 0, 0, 2]), slice(1, 2)])
def test_some_sets_are_padded_to_the_largest_of_them(rows: slice | Tensor) -> None:
    sets = lists()
    own = sets[rows] if isinstance(rows, slice) else [sets[i] for i in rows]
    check(ragged(sets)[rows], own)
    check(take(ragged(sets), rows), own)
    assert len(ragged(sets)) == 7 and places_of(ragged(sets)) == 5 and ragged(sets).device.type == "cpu"


def test_batches_are_joined_in_another_order() -> None:
    sets, order = lists(), [4, 2, 0, 6, 1, 3, 5]  # the sets as they were encoded, and the place of each
    collector = Collector()
    for part in (order[:3], order[3:6], order[6:]):
        mask = lengths_to_mask(torch.tensor([len(sets[i]) for i in part]))
        rows = torch.full((*mask.shape, 3), torch.nan)
        rows[mask] = torch.cat([sets[i] for i in part])
        collector.add(Aggregated(rows, mask=mask))
    found = collector.sets(order)
    assert isinstance(found, RaggedSets)
    check(padded(found), sets)
    check(found[torch.tensor([5, 0])], [sets[5], sets[0]])


def test_sets_of_one_size_are_a_tensor() -> None:
    """Even when each batch has a mask."""
    sets = torch.randn(5, 2, 3)
    collector = Collector()
    collector.add(Aggregated(sets[[3, 0]], mask=torch.ones(2, 2, dtype=torch.bool)))
    collector.add(Aggregated(sets[[1, 4, 2]]))
    found = collector.sets([3, 0, 1, 4, 2])
    assert isinstance(found, Tensor) and torch.equal(found, sets)
    assert padded(found).mask is None and places_of(found) == 2
    assert torch.equal(take(found, slice(2)).embeddings, sets[:2]) and take(found, slice(2)).mask is None


@pytest.mark.parametrize("sizes", [SIZES, [2, 2, 2, 2, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 3, 1, 2]])
def test_processes_gather_their_sets(sizes: list[int], tmp_path: Path) -> None:
    """Also where one process's sets have one size and another's have not."""
    sets = lists(sizes)

    def check_process() -> None:
        mine = sets[distributed.share(len(sets))]
        alike = len({len(one) for one in mine}) == 1
        found = gather_sets(torch.stack(mine) if alike else ragged(mine), len(sets))
        assert isinstance(found, Tensor) == (len(set(sizes)) == 1)
        if isinstance(found, Tensor):
            assert torch.equal(found, torch.stack(sets))
        else:
            check(found[:], sets)
            check(found[torch.tensor([6, 3])], [sets[6], sets[3]])

    in_processes(2, tmp_path, check_process)


def test_one_process_gathers_nothing() -> None:
    own = ragged(lists())
    assert gather_sets(own, 7) is own
