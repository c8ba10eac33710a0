"""An aggregator of one's own, named in a config: ``PYTHONPATH=examples python scripts/train.py examples/my_pool.yaml``.

Its constructor's arguments are its config keys. ``in_dim`` (the encoder's width) and ``out_dim`` (the embedding's) are
filled in when it has arguments of these names.
"""

import torch
from torch import Tensor, nn

from vse.sets import Aggregated, check_set, masked_softmax


class MyPool(nn.Module):
    """Attention pooling: a weighted mean of the elements, the weights from a small network."""

    def __init__(self, in_dim: int, hidden_dim: int = 32) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 1))

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool features (B, N, in_dim) with mask (B, N) into embeddings (B, 1, in_dim)."""
        check_set(features, mask)
        if mask is not None:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in masked places
        attention = masked_softmax(self.score(features).transpose(1, 2), None if mask is None else mask.unsqueeze(1))
        return Aggregated(torch.matmul(attention.to(features.dtype), features), attention)
