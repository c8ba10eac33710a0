"""The adaptive pooling of VSE-2AD."""

import torch
from torch import Tensor, nn

from vse.sets import Aggregated, check_set, masked_softmax, masked_sort


class AdaptivePool(nn.Module):
    """Adaptive pooling: two learned weightings of each dimension's sorted values, balanced per sample.

    VSE-2AD, Zhang et al. 2023 (EACL), its adaptive pooling. With x_(1)d >= x_(2)d >= ... the values of
    dimension d over the real elements, and softmaxes over the ranks k:
    E = sum_k softmax_k(x_(k)) * x_(k) (embedding level), T = sum_k softmax_k(relu(W x_(k) + b)) * x_(k) (token level),
    (w_T, w_E) = softmax(v.T + c, v.E + c), and the result is w_T T + w_E E.

    Shapes: features (B, N, dim), mask (B, N) -> embeddings (B, 1, dim). Raises ValueError for ``dim`` below 1, an
    empty set or a wrong shape.

    >>> AdaptivePool(dim=8)(torch.randn(2, 5, 8)).embeddings[:, 0]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.linear = nn.Linear(dim, dim)
        self.balance = nn.Linear(dim, 1)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool; ``context`` is not used."""
        check_set(features, mask, dim=self.linear.in_features)
        levels, weights = self.levels(features, mask)
        return Aggregated((weights.unsqueeze(-1) * levels).sum(1, keepdim=True))

    def levels(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """T and E as (B, 2, dim), and their weights (B, 2)."""
        ranked, prefix = masked_sort(features, mask)
        prefix = None if prefix is None else prefix.unsqueeze(-1)
        token = (masked_softmax(self.linear(ranked).relu(), self.token_mask(prefix), dim=1) * ranked).sum(1)
        embedding = (masked_softmax(ranked, prefix, dim=1) * ranked).sum(1)
        levels = torch.stack([token, embedding], dim=1)
        return levels, self.balance(levels).squeeze(-1).softmax(1)

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Ranks that take part in the token level's softmax (the released code differs here)."""
        return mask
