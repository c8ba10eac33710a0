"""A GRU that reads the elements as a sequence."""

import torch
from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sequences import GRUWeights, read_forwards
from vse.sets import Aggregated, check_set, close_gaps, count_elements


class Seq2Seq(nn.Module):
    """A GRU reads the elements one after another; its last state is the embedding: Seq2Seq in VSE∞'s comparison.

    VSE∞ (Chen et al. 2021, table 1) compares simple pooling with aggregators that relate the elements first. The code
    of these baselines is not released, so their form is our interpretation: one GRU layer in one direction, over
    regions in the order of the detector, grid cells row by row, or words; h_i = GRU(x_i, h_(i-1)) and e = h_n. The
    result depends on the order of the elements. Masked elements take no step, wherever they are.

    Args:
        in_dim: Width of the features.
        out_dim: Width of the GRU's state, and so of the embedding.

    Raises:
        ValueError: ``in_dim`` or ``out_dim`` is below 1.

    >>> Seq2Seq(in_dim=8, out_dim=16)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 16])
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        check_at_least("in_dim", in_dim, 1)
        check_at_least("out_dim", out_dim, 1)
        self.in_dim, self.out_dim = in_dim, out_dim
        self.gru = GRUWeights(in_dim, out_dim)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sequences.

        Args:
            features: Local features (B, N, in_dim), in order.
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, out_dim).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.in_dim)
        sequence, _ = close_gaps(features, mask)
        states = read_forwards(self.gru, sequence)
        last = count_elements(features, mask) - 1  # padding comes later, so it has no effect on this state
        rows = torch.arange(states.shape[0], device=states.device)
        return Aggregated(states[rows, last].unsqueeze(1))
