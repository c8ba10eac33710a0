"""Bidirectional GRUs over padded sequences."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vse import sequences
from vse.sequences import read_both_ways

Read = Callable[[nn.GRU, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def one_by_one(gru: nn.GRU, sequence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each sequence alone, without its padding; zeros behind it."""
    states = sequence.new_zeros(*mask.shape, 2 * gru.hidden_size)
    for row, real in enumerate(mask):
        states[row, : int(real.sum())] = gru(sequence[row : row + 1, real])[0][0]
    forward, backward = states.chunk(2, dim=-1)
    return forward, backward


def gradients(gru: nn.GRU, sequence: Tensor, states: tuple[Tensor, Tensor]) -> list[Tensor]:
    total = sum(state.square().sum() + state.sin().sum() for state in states)
    return list(torch.autograd.grad(total, [sequence, *gru.parameters()]))  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [sequences.read_padded, sequences._read_in_steps, read_both_ways])
@pytest.mark.parametrize("padded", [True, False])
def test_both_ways_equal_one_sequence_after_another(read: Read, padded: bool) -> None:
    """States and gradients, by the way of a CPU and by that of a GPU; what is in the padding does not matter."""
    torch.manual_seed(0)
    gru = nn.GRU(3, 5, batch_first=True, bidirectional=True).double()
    lengths = torch.tensor([2, 7, 1, 4] if padded else [7, 7, 7, 7])
    mask = torch.arange(7) < lengths[:, None]
    sequence = torch.randn(4, 7, 3, dtype=torch.float64).masked_fill(~mask[..., None], torch.nan).requires_grad_()
    expected = one_by_one(gru, sequence, mask)
    found = read(gru, sequence, mask if padded else None)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(gru, sequence, found), gradients(gru, sequence, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_a_gpu_reads_in_float32(precision: torch.dtype | None) -> None:
    """Whatever the mixed precision around it, states equal those of the CPU."""
    torch.manual_seed(0)
    gru = nn.GRU(6, 8, batch_first=True, bidirectional=True)
    sequence, mask = torch.randn(4, 7, 6), torch.arange(7) < torch.tensor([2, 7, 1, 4])[:, None]
    expected = read_both_ways(gru, sequence, mask)
    on_gpu = copy.deepcopy(gru).cuda()
    with torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        found = read_both_ways(on_gpu, sequence.cuda(), mask.cuda())
    torch.testing.assert_close(tuple(f.cpu() for f in found), expected, atol=2e-3, rtol=0)
