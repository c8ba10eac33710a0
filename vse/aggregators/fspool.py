"""Featurewise sort pooling."""

import torch
from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sets import Aggregated, check_set, count_elements, masked_sort


class FSPool(nn.Module):
    """Featurewise sort pooling: each dimension's sorted values, weighted by a learned piecewise linear function.

    Zhang, Hare & Prügel-Bennett 2020 (ICLR), one of the poolings that VSE∞ compares with (Chen et al. 2021, figure 4).
    With x_(1)d >= x_(2)d >= ... the values of dimension d over the n real elements, and t_k = (k - 1) / (n - 1) the
    relative rank (0 when n = 1): e_d = sum_k f_d(t_k) x_(k)d, where f_d interpolates the ``pieces`` + 1 learned values
    of dimension d linearly. The weights are neither positive nor do they sum to 1, so e_d grows with n.

    For a set of one element the released code also counts a row of padding; here the weight is f_d(0). The number of
    pieces in VSE∞'s comparison is not printed; 20 is that of FSPool's authors.

    Args:
        dim: Width D of the features.
        pieces: Number of pieces of each dimension's weight function.

    Raises:
        ValueError: ``dim`` or ``pieces`` is below 1.

    >>> FSPool(dim=8)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, dim: int, pieces: int = 20) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        check_at_least("pieces", pieces, 1)
        self.pieces = pieces
        self.weight = nn.Parameter(torch.randn(dim, pieces + 1))

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
        check_set(features, mask, dim=len(self.weight))
        ranked, _ = masked_sort(features, mask)
        shares = self.piece_shares(count_elements(features, mask), features.shape[1]).to(self.weight.dtype)
        weights = shares @ self.weight.T  # (B, N, dim)
        return Aggregated((weights * ranked).sum(1, keepdim=True))

    def piece_shares(self, counts: Tensor, size: int) -> Tensor:
        """Share of each learned value in the weight of each rank.

        Args:
            counts: Number of real elements of each set (B,).
            size: Number of places N.

        Returns:
            Shares (B, N, pieces + 1): two neighbouring values share a rank, and the nearer one has more. Places behind
            the real elements get shares that mean nothing; the sorted features are zero there.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        last = (counts - 1).clamp(min=1).unsqueeze(1)
        positions = self.pieces * torch.arange(size, dtype=dtype, device=counts.device) / last
        knots = torch.arange(self.pieces + 1, device=counts.device)
        return (1 - (positions.unsqueeze(-1) - knots).abs()).relu()

    def extra_repr(self) -> str:
        """Show the sizes where the module is printed."""
        return f"dim={len(self.weight)}, pieces={self.pieces}"
