"""Bidirectional GRUs over padded sequences, without a wait for the device."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from vse.sets import fill_masked


@torch.compiler.disable  # type: ignore[untyped-decorator]  # cuDNN gains nothing, and a CPU would compile each step
def read_both_ways(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a bidirectional GRU over padded sequences; what is in the padding does not matter.

    A CPU computes each step only for the sequences that have it. This needs their lengths on the CPU, for which a GPU
    would have to be waited for. A GPU therefore reads the padding, too. It reads each sequence in reverse order in the
    backward direction, so that padding comes last both ways. It does so in float32: under autocast, cuDNN computes in
    half precision, also where bfloat16 is asked for.

    Args:
        gru: A bidirectional GRU of one layer that takes the batch first.
        sequence: What it reads (B, L, D).
        mask: (B, L), True on real steps, each row a prefix, already checked; None when all are real.

    Returns:
        The states (B, L, H) of the forward and of the backward direction, zero behind the real steps.

    >>> read_both_ways(nn.GRU(4, 6, batch_first=True, bidirectional=True), torch.randn(2, 5, 4), None)[0].shape
    torch.Size([2, 5, 6])
    """
    return (_read_in_steps if sequence.device.type == "cpu" else _read_padded)(gru, sequence, mask)


def _read_padded(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states of both directions, without the lengths: the backward one reads each sequence in reverse order."""
    with torch.autocast(sequence.device.type, enabled=False):
        sequence = fill_masked(sequence.to(gru.all_weights[0][0].dtype), mask)
        reverse = _reversed_places(sequence, mask)
        forward = _read_forwards(gru, sequence, "")
        backward = _read_forwards(gru, _take(sequence, reverse), "_reverse")
        return fill_masked(forward, mask), fill_masked(_take(backward, reverse), mask)


def _read_in_steps(gru: nn.GRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states of both directions, computed in each step for the sequences that have it, and not for padding."""
    real = sequence.new_ones(sequence.shape[:2], dtype=torch.bool) if mask is None else mask
    lengths, order = real.sum(1).sort(descending=True)
    sizes = real.sum(0).tolist()  # sequences that have each step
    step, row = real[order].T.nonzero(as_tuple=True)  # step by step, the longest sequence first
    first = order[row] * real.shape[1]
    directions = []
    for name, place in (("", first + step), ("_reverse", first + lengths[row] - 1 - step)):
        states = _read_steps(gru, sequence.flatten(0, 1)[place], sizes, name)
        padded = states.new_zeros(real.numel(), states.shape[1]).index_copy(0, place, states)
        directions.append(padded.unflatten(0, real.shape))
    return directions[0], directions[1]


def _read_steps(gru: nn.GRU, inputs: Tensor, sizes: list[int], direction: str) -> Tensor:
    """States (steps of all sequences, H) of one direction's weights; ``sizes`` tells how many sequences a step has.

    The input's products are taken once for all steps. torch's own GRU does so, too, but in each step its backward pass
    fills and adds a gradient of all of them.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _weights(gru, direction)
    parts = [2 * gru.hidden_size, gru.hidden_size]
    gates, candidates = functional.linear(inputs, weight_ih, bias_ih).split(parts, 1)
    state = gates.new_zeros(sizes[0], gru.hidden_size)
    states = []
    for gate, candidate in zip(gates.split(sizes), candidates.split(sizes), strict=True):
        state = state[: len(gate)]
        own_gate, own_candidate = functional.linear(state, weight_hh, bias_hh).split(parts, 1)
        reset, update = (gate + own_gate).sigmoid().chunk(2, 1)
        state = torch.lerp(torch.addcmul(candidate, reset, own_candidate).tanh(), state, update)
        states.append(state)
    return torch.cat(states)


def _weights(gru: nn.GRU, direction: str) -> list[Tensor]:
    """The weights and biases of one direction, of the input and of the state."""
    return [getattr(gru, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _read_forwards(gru: nn.GRU, sequence: Tensor, direction: str) -> Tensor:
    """States (B, L, H) of one direction's weights, which read a padded sequence from its first to its last step."""
    weights = _weights(gru, direction)
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
