"""Bidirectional GRUs over padded sequences, without a wait for the device."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vse.sets import fill_masked


@torch.compiler.disable  # type: ignore[untyped-decorator]  # cuDNN gains nothing, and a CPU would compile each step
def read_both_ways(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a bidirectional GRU over padded sequences; padding is never read.

    A packed sequence needs the lengths on the CPU, and a GPU would have to be waited for. There, each direction reads
    the padded sequences instead, the backward one in reverse order, so that padding comes last in both. It runs in
    float32 on a GPU: under autocast, cuDNN computes in half precision, also where bfloat16 is asked for.

    Args:
        gru: A bidirectional GRU of one layer that takes the batch first.
        sequence: What it reads (B, L, D).
        mask: (B, L), True on real steps, each row a prefix, already checked; None when all are real.

    Returns:
        The states (B, L, H) of the forward and of the backward direction, zero behind the real steps.

    >>> read_both_ways(nn.GRU(4, 6, batch_first=True, bidirectional=True), torch.randn(2, 5, 4), None)[0].shape
    torch.Size([2, 5, 6])
    """
    return (_read_packed if sequence.device.type == "cpu" else _read_padded)(gru, sequence, mask)


def _read_padded(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states of both directions, without the lengths: the backward one reads each sequence in reverse order."""
    with torch.autocast(sequence.device.type, enabled=False):
        sequence = fill_masked(sequence.to(gru.all_weights[0][0].dtype), mask)
        reverse = _reversed_places(sequence, mask)
        forward = _read_forwards(gru, sequence, "")
        backward = _read_forwards(gru, _take(sequence, reverse), "_reverse")
        return fill_masked(forward, mask), fill_masked(_take(backward, reverse), mask)


def _read_packed(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states of both directions, by a packed sequence: no padding is computed.

    The states are put back into their places all at once. ``pad_packed_sequence`` does it step by step, and its
    backward pass copies the whole gradient in each step.
    """
    real = sequence.new_ones(sequence.shape[:2], dtype=torch.bool) if mask is None else mask
    packed = pack_padded_sequence(sequence, real.sum(1), batch_first=True, enforce_sorted=False)
    states = gru(packed)[0].data
    order = packed.sorted_indices
    step, row = real[order].T.nonzero(as_tuple=True)  # a packed sequence goes step by step, the longest sample first
    place = order[row] * real.shape[1] + step
    padded = states.new_zeros(real.numel(), states.shape[1]).index_copy(0, place, states)
    forward, backward = padded.unflatten(0, real.shape).chunk(2, dim=-1)
    return forward, backward


def _read_forwards(gru: nn.GRU, sequence: Tensor, direction: str) -> Tensor:
    """States (B, L, H) of one direction's weights, which read a padded sequence from its first to its last step."""
    names = (f"{name}_l0{direction}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    weights = [getattr(gru, name) for name in names]
    start = sequence.new_zeros(1, len(sequence), gru.hidden_size)
    with warnings.catch_warnings():
        # Half of a bidirectional GRU's weights is no block of memory of its own. cuDNN gets a copy, which costs little.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
        states, _ = torch.gru(sequence, start, weights, True, 1, 0.0, gru.training, False, True)
    return states


def _reversed_places(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """For each place (B, L), the place of its step when the real steps are read backwards; padding stays in place."""
    places = torch.arange(sequence.shape[1], device=sequence.device).expand(sequence.shape[:2])
    if mask is None:
        return places.flip(1)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - places, places)


def _take(sequence: Tensor, places: Tensor) -> Tensor:
    """The steps (B, L, D) of a sequence at the given places (B, L)."""
    return sequence.gather(1, places.unsqueeze(-1).expand_as(sequence))
