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
    """States of a bidirectional GRU and one vector of the whole sequence; padding is never read.

    ``context``: each direction's last state ("last"), the output at the last valid step ("last_step"), or the
    ``max`` or ``mean`` of the states. The two directions are averaged or concatenated. Shapes: sequence (B, L, D),
    prefix mask (B, L), already checked -> (B, L, H), or None when no ``states`` are asked for, and (B, H).
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
    else:
        vector = (masked_max if context == "max" else masked_mean)(output, mask)
    return output, vector
