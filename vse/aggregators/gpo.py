"""The Generalized Pooling Operator of VSE∞."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vse.sets import Aggregated, check_set, lengths_to_mask, masked_softmax, masked_sort


class GPO(nn.Module):
    """Generalized Pooling Operator: learned weights on the ranks of each dimension's sorted values.

    VSE∞, Chen et al. 2021 (arXiv 2011.04305), section 3.2: for a set of n elements, e_d = sum_k theta_k x_(k)d, where
    x_(1)d >= x_(2)d >= ... and theta = softmax_k(s_k / 0.1); the scores s_k come from a sinusoidal code of k, a BiGRU
    whose directions are averaged, and a linear map. theta depends on n alone, so it is computed once per distinct n;
    in evaluation without gradients the table of all n is kept until a parameter changes.

    Shapes: features (B, N, D), mask (B, N) -> embeddings (B, 1, D). Raises ValueError for an empty set or a wrong
    shape.

    >>> pooled = GPO()(torch.randn(2, 36, 1024)).embeddings[:, 0]
    """

    temperature = 0.1  # fixed in the paper's code, not a hyper-parameter

    def __init__(self, position_dim: int = 32, hidden_dim: int = 32) -> None:
        super().__init__()
        if position_dim < 2 or position_dim % 2:
            raise ValueError(f"position_dim must be even and positive, got {position_dim}")
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim}")
        self.position_dim = position_dim
        self.gru = nn.GRU(position_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden_dim, 1, bias=False)
        self._table: Tensor | None = None
        self._table_key: Tensor | None = None

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool; ``context`` is not used."""
        check_set(features, mask)
        ranked, _ = masked_sort(features, mask)
        weights = self.rank_weights(features, mask).to(ranked.dtype)
        return Aggregated(torch.matmul(weights.unsqueeze(1), ranked))

    def rank_weights(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Weights theta of every sample: (B, N), zero behind its real elements, or (1, N) when all sets are full."""
        size = features.shape[1]
        if self.training or torch.is_grad_enabled():
            if mask is None:
                return self._weights(torch.tensor([size]), size)
            distinct, row = mask.sum(1).unique(return_inverse=True)
            return self._weights(distinct, size)[row]
        table = self._cached_table(size)
        if mask is None:
            return table[size - 1 : size, :size]
        return table[:, :size][mask.sum(1) - 1]

    def _weights(self, counts: Tensor, size: int) -> Tensor:
        """Weights theta (R, size) of sets with ``counts`` (R,) elements."""
        # float32 whatever the surrounding precision: the table is tiny and its softmax is sharp.
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            codes = position_codes(size, self.position_dim).to(self.linear.weight)
            packed = pack_padded_sequence(
                codes.expand(len(counts), -1, -1), counts.cpu(), batch_first=True, enforce_sorted=False
            )
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=size)
            forward, backward = states.chunk(2, dim=-1)
            scores = self.linear((forward + backward) / 2).squeeze(-1) / self.temperature
            return masked_softmax(scores, lengths_to_mask(counts.to(scores.device), size))

    def _cached_table(self, size: int) -> Tensor:
        """Weights theta of every count 1..S with S >= size, computed once for the present parameters."""
        # By value: fused optimisers and writes to .data change parameters without raising their version.
        key = parameters_to_vector(self.parameters())
        known = self._table_key
        if known is None or (known.dtype, known.device) != (key.dtype, key.device) or not torch.equal(known, key):
            self._table = None
        if self._table is None or len(self._table) < size:
            size = max(64, 1 << (size - 1).bit_length())  # grow in powers of two: few recomputations
            self._table = self._weights(torch.arange(1, size + 1), size)
            self._table_key = key.clone()
        return self._table


def position_codes(size: int, dim: int) -> Tensor:
    """Sinusoidal codes (size, dim) of 0..size-1, base 10000: sine on even channels, cosine on odd ones."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(size).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
