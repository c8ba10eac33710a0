"""The new part of a paper: an attention pooling with one query per embedding. my_paper.yaml makes the system of it."""

import torch
from torch import Tensor, nn

from vse.sets import Aggregated, check_set, fill_masked, masked_softmax


class QueryPool(nn.Module):
    """K learned queries, each of which pools the set: e_k = sum_n softmax_n(q_k . x_n / sqrt(D)) W x_n.

    Args:
        in_dim: The width D of the elements; the build fills it in.
        out_dim: The width H of the embeddings; the build fills it in.
        num_embeddings: K.
    """

    def __init__(self, in_dim: int, out_dim: int, num_embeddings: int = 3) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        self.queries = nn.Parameter(torch.randn(num_embeddings, in_dim))
        self.values = nn.Linear(in_dim, out_dim)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool features (B, N, D) with mask (B, N) into embeddings (B, K, H); the context is not used."""
        check_set(features, mask, dim=self.in_dim)
        features = fill_masked(features, mask)
        logits = self.queries @ features.transpose(1, 2) / self.in_dim**0.5
        attention = masked_softmax(logits, None if mask is None else mask.unsqueeze(1))
        return Aggregated(self.values(attention.to(features.dtype) @ features), attention)
