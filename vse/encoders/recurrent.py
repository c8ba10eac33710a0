"""One bidirectional GRU over a padded sequence."""

from typing import Literal

import torch
from torch import Tensor, nn

from vse.sequences import read_both_ways
from vse.sets import count_elements, masked_max, masked_mean

Context = Literal["last", "last_step", "max", "mean"]


def read_sequence(
    gru: nn.GRU, sequence: Tensor, mask: Tensor | None, context: Context, average: bool
) -> tuple[Tensor, Tensor]:
    """Run a bidirectional GRU; padding is never read.

    Args:
        gru: A bidirectional GRU of one layer that takes the batch first.
        sequence: What it reads (B, L, D).
        mask: Which steps are real (B, L), bool, each row a prefix, already checked. None means that all are.
        context: The vector of the whole sequence: "last", the last state of each direction; "last_step", the output at
            the last real step, where the backward direction has read one step only; "max" or "mean" of the states.
        average: Whether the two directions are averaged; otherwise they are concatenated.

    Returns:
        The states (B, L, H), and the vector of the whole sequence (B, H).
    """

    def join(forward: Tensor, backward: Tensor) -> Tensor:
        return (forward + backward) / 2 if average else torch.cat([forward, backward], dim=-1)

    forward, backward = read_both_ways(gru, sequence, mask)
    states = join(forward, backward)
    if context in ("max", "mean"):
        return states, masked_max(states, mask) if context == "max" else masked_mean(states, mask)
    rows = torch.arange(len(states), device=states.device)
    last = count_elements(states, mask) - 1
    if context == "last":
        return states, join(forward[rows, last], backward[:, 0])
    return states, states[rows, last]
