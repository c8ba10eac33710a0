"""The adaptive pooling of VSE-2AD."""

import torch
from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sets import Aggregated, check_set, masked_softmax, masked_sort


class AdaptivePool(nn.Module):
    """Adaptive pooling: two learned weightings of each dimension's sorted values, balanced per sample.

    VSE-2AD, Zhang et al. 2023 (EACL), its adaptive pooling. With x_(1)d >= x_(2)d >= ... the values of dimension d over
    the real elements, and softmaxes over the ranks k:
    E = sum_k softmax_k(x_(k)) * x_(k) (embedding level), T = sum_k softmax_k(relu(W x_(k) + b)) * x_(k) (token level),
    (w_T, w_E) = softmax(v.T + c, v.E + c), and the result is w_T T + w_E E. As in the released code, W is initialised
    Xavier uniform and b with zero, while v and c have torch's initialisation.

    Args:
        dim: Width D of the features.

    Raises:
        ValueError: ``dim`` is below 1.

    >>> AdaptivePool(dim=8)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        self.linear = nn.Linear(dim, dim)
        self.balance = nn.Linear(dim, 1)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, dim).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.linear.in_features)
        levels, weights = self.levels(features, mask)
        return Aggregated((weights.unsqueeze(-1) * levels).sum(1, keepdim=True))

    def levels(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute both levels and their weights.

        Args:
            features: Local features (B, N, dim).
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            T and E as (B, 2, dim), and their weights (B, 2).
        """
        ranked, prefix = masked_sort(features, mask)
        prefix = None if prefix is None else prefix.unsqueeze(-1)
        token = (masked_softmax(self.linear(ranked).relu(), self.token_mask(prefix), dim=1) * ranked).sum(1)
        embedding = (masked_softmax(ranked, prefix, dim=1) * ranked).sum(1)
        levels = torch.stack([token, embedding], dim=1)
        return levels, self.balance(levels).squeeze(-1).softmax(1)

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return the mask of the token level's softmax (the released code differs here)."""
        return mask
