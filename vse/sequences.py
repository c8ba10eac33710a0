"""GRUs over padded sequences, without a wait for the device."""

import warnings
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from vse.sets import fill_masked

AnyGRU: TypeAlias = "nn.GRU | GRUWeights"


class GRUWeights(nn.Module):
    """The weights of a GRU of one layer, with the names and the initialisation of ``torch.nn.GRU``.

    ``torch.compile`` and ``torch.export`` refuse ``torch.nn.GRU`` itself. They take these weights in
    :func:`read_padded` and :func:`read_forwards`.

    Args:
        input_size: Width D of what is read.
        hidden_size: Width H of the states.
        bidirectional: Whether there are weights for the backward direction, too.

    >>> read_forwards(GRUWeights(4, 6), torch.randn(2, 5, 4)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        gru = nn.GRU(input_size, hidden_size, bidirectional=bidirectional)
        for name, weight in gru.named_parameters():
            self.register_parameter(name, weight)


def read_both_ways(gru: AnyGRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a bidirectional GRU over padded sequences; what is in the padding does not matter.

    A CPU computes each step only for the sequences that have it. This needs their lengths on the CPU, for which a GPU
    would have to be waited for. A GPU therefore reads the padding, too. It reads each sequence in reverse order in the
    backward direction, so that padding comes last both ways. It does so in float32: under autocast, cuDNN computes in
    half precision, also where bfloat16 is asked for.

    Args:
        gru: The weights of a bidirectional GRU of one layer.
        sequence: What it reads (B, L, D).
        mask: (B, L), True on real steps, each row a prefix, already checked; None when all are real.

    Returns:
        The states (B, L, H) of the forward and of the backward direction, zero behind the real steps.

    >>> read_both_ways(nn.GRU(4, 6, batch_first=True, bidirectional=True), torch.randn(2, 5, 4), None)[0].shape
    torch.Size([2, 5, 6])
    """
    read = _read_in_steps if sequence.device.type == "cpu" else read_padded
    if torch.compiler.is_compiling():  # cuDNN gains nothing, and a CPU would compile each step
        read = torch.compiler.disable(read)  # a decorator would import the compiler into every program, for seconds
    return read(gru, sequence, mask)


def read_padded(gru: AnyGRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a bidirectional GRU over padded sequences without knowing their lengths, as a GPU does.

    Unlike :func:`read_both_ways` it can be compiled and exported, for batches and sequences of any size.

    Args:
        gru: The weights of a bidirectional GRU of one layer.
        sequence: What it reads (B, L, D).
        mask: (B, L), True on real steps, each row a prefix; None when all are real.

    Returns:
        The states (B, L, H) of the forward and of the backward direction, zero behind the real steps.

    >>> read_padded(nn.GRU(4, 6, batch_first=True, bidirectional=True), torch.randn(2, 5, 4), None)[0].shape
    torch.Size([2, 5, 6])
    """
    with torch.autocast(sequence.device.type, enabled=False):
        sequence = fill_masked(sequence.to(_weights(gru, "")[0].dtype), mask)
        reverse = _reversed_places(sequence, mask)
        forward = read_forwards(gru, sequence)
        backward = read_forwards(gru, _take(sequence, reverse), "_reverse")
        return fill_masked(forward, mask), fill_masked(_take(backward, reverse), mask)


def _read_in_steps(gru: AnyGRU, sequence: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
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


def _read_steps(gru: AnyGRU, inputs: Tensor, sizes: list[int], direction: str) -> Tensor:
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


def _weights(gru: AnyGRU, direction: str) -> list[Tensor]:
    """The weights and biases of one direction, of the input and of the state."""
    return [getattr(gru, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def read_forwards(gru: AnyGRU, sequence: Tensor, direction: str = "") -> Tensor:
    """Read padded sequences from their first to their last step with the weights of one direction.

    Args:
        gru: The weights of a GRU of one layer.
        sequence: What it reads (B, L, D).
        direction: "" for the weights of the forward direction, "_reverse" for those of the backward one.

    Returns:
        The states (B, L, H).

    >>> read_forwards(nn.GRU(4, 6, batch_first=True), torch.randn(2, 5, 4)).shape
    torch.Size([2, 5, 6])
    """
    weights = _weights(gru, direction)
    return _states_as_one(sequence, weights) if torch.compiler.is_compiling() else _states(sequence, weights)


def _states(sequence: Tensor, weights: list[Tensor]) -> Tensor:
    """The states (B, L, H) of a GRU with these weights."""
    start = sequence.new_zeros(1, len(sequence), weights[1].shape[1])
    with warnings.catch_warnings():
        # Half of a bidirectional GRU's weights is no block of memory of its own. cuDNN gets a copy, which costs little.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
        states, _ = torch.gru(sequence, start, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return states


# torch.compile refuses a GRU and torch.export unrolls it to a fixed length. Both take it as one operation, though.
@torch.library.custom_op("vse::gru_states", mutates_args=())
def _states_as_one(sequence: Tensor, weights: list[Tensor]) -> Tensor:
    return _states(sequence, weights).contiguous()


@_states_as_one.register_fake
def _(sequence: Tensor, weights: list[Tensor]) -> Tensor:
    return sequence.new_empty(*sequence.shape[:2], weights[1].shape[1])


@torch.library.custom_op("vse::gru_states_backward", mutates_args=())
def _gradients(gradient: Tensor, states: Tensor, sequence: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of the sequence and the weights, back through time; torch's own are out of reach inside an operation.

    With gates r and z and candidate n = tanh(i_n + r h_n), where i and h are the products of input and last state, a
    state is (1 - z) n + z times the last one.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    before = functional.pad(states, (0, 0, 1, 0))[:, :-1]  # the state before each step
    of_input, of_state = functional.linear(sequence, weight_ih, bias_ih), functional.linear(before, weight_hh, bias_hh)
    input_r, input_z, input_n = of_input.chunk(3, -1)
    state_r, state_z, state_n = of_state.chunk(3, -1)
    r, z = (input_r + state_r).sigmoid(), (input_z + state_z).sigmoid()
    n = (input_n + r * state_n).tanh()
    for_input, for_state = torch.empty_like(of_input), torch.empty_like(of_state)
    later = torch.zeros_like(gradient[:, 0])
    for step in reversed(range(sequence.shape[1])):
        total = gradient[:, step] + later
        r_now, z_now, n_now = r[:, step], z[:, step], n[:, step]
        for_n = total * (1 - z_now) * (1 - n_now.square())
        for_z = total * (before[:, step] - n_now) * z_now * (1 - z_now)
        for_r = for_n * state_n[:, step] * r_now * (1 - r_now)
        for_input[:, step] = torch.cat([for_r, for_z, for_n], -1)
        for_state[:, step] = torch.cat([for_r, for_z, for_n * r_now], -1)
        later = total * z_now + for_state[:, step] @ weight_hh
    return [
        for_input @ weight_ih,
        for_input.flatten(0, 1).T @ sequence.flatten(0, 1),
        for_state.flatten(0, 1).T @ before.flatten(0, 1),
        for_input.sum((0, 1)),
        for_state.sum((0, 1)),
    ]


@_gradients.register_fake
def _(gradient: Tensor, states: Tensor, sequence: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (sequence, *weights)]


def _keep(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: Tensor) -> None:
    sequence, weights = inputs
    ctx.save_for_backward(output, sequence, *weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    states, sequence, *weights = ctx.saved_tensors
    found = _gradients(gradient, states, sequence, weights)
    return found[0], found[1:]


_states_as_one.register_autograd(_backward, setup_context=_keep)


def _reversed_places(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """For each place (B, L), the place of its step when the real steps are read backwards; padding stays in place."""
    places = torch.arange(sequence.shape[1], device=sequence.device).expand(sequence.shape[:2])
    if mask is None:
        return places.flip(1)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - places, places)


def _take(sequence: Tensor, places: Tensor) -> Tensor:
    """The steps (B, L, D) of a sequence at the given places (B, L)."""
    return sequence.gather(1, places.unsqueeze(-1).expand_as(sequence))
