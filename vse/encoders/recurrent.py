"""One bidirectional GRU over a padded sequence."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vse.sets import masked_max, masked_mean

Context = Literal["last", "last_step", "max", "mean"]


def read_sequence(
    gru: nn.GRU, sequence: Tensor, mask: Tensor | None, context: Context, average: bool, states: bool
) -> tuple[Tensor | None, Tensor]:
    """Run a bidirectional GRU; padding is never read.

    Args:
        gru: A bidirectional GRU of one layer that takes the batch first.
        sequence: What it reads (B, L, D).
        mask: Which steps are real (B, L), bool, each row a prefix, already checked. None means that all are.
        context: The vector of the whole sequence: "last", the last state of each direction; "last_step", the output at
            the last real step, where the backward direction has read one step only; "max" or "mean" of the states.
        average: Whether the two directions are averaged; otherwise they are concatenated.
        states: Whether the states are needed. Without them there is less to do when ``context`` is "last".

    Returns:
        The states (B, L, H), or None if they were not computed, and the vector of the whole sequence (B, H).
    """
    if mask is None:
        lengths = torch.full((len(sequence),), sequence.shape[1])
    else:
        lengths = mask.sum(1).cpu()

    def join(forward: Tensor, backward: Tensor) -> Tensor:
        return (forward + backward) / 2 if average else torch.cat([forward, backward], dim=-1)

    packed, last = gru(pack_padded_sequence(sequence, lengths, batch_first=True, enforce_sorted=False))
    if context == "last" and not states:
        return None, join(*last)
    output, _ = pad_packed_sequence(packed, batch_first=True, total_length=sequence.shape[1])
    output = join(*output.chunk(2, dim=-1))
    if context == "last":
        vector = join(*last)
    elif context == "last_step":
        vector = output[torch.arange(len(output)), lengths - 1]
    elif context == "max":
        vector = masked_max(output, mask)
    else:
        vector = masked_mean(output, mask)
    return output, vector
