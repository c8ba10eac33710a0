"""Generalized-mean pooling."""

import math

import torch
from torch import Tensor, nn

from vse.errors import check_positive
from vse.sets import Aggregated, at_least_float32, check_set, count_elements, fill_masked


class GeM(nn.Module):
    """Generalized mean: a pooling between the mean (p = 1) and the maximum (p towards infinity), with p learned.

    Radenović et al. 2018 (TPAMI, "Fine-tuning CNN Image Retrieval with No Human Annotation"), one of the poolings that
    VSE∞ compares with (Chen et al. 2021, figure 4): e_d = ((1/n) sum_i max(x_id, eps)^p)^(1/p), one p for all
    dimensions.

    It is computed as exp((logsumexp_i(p ln max(x_id, eps)) - ln n) / p). The literal form underflows for p above about
    7.5 in a dimension without a positive value, and p's gradient is then NaN; VSE∞ reports such a divergence. Values
    below ``eps``, and so all negative ones, count as ``eps`` and get no gradient, as in the original.

    Args:
        power: Initial value of p.
        eps: Smallest value of a feature.

    Raises:
        ValueError: ``power`` or ``eps`` is not positive.

    >>> GeM(power=3.0)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, power: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        check_positive("power", power)
        check_positive("eps", eps)
        self.eps = eps
        self.power = nn.Parameter(torch.tensor(float(power)))

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        values = at_least_float32(fill_masked(features, mask))  # half precision is too coarse for a p-th root
        power = self.power.to(values.dtype)
        scaled = fill_masked(values.clamp(min=self.eps).log() * power, mask, -math.inf)
        count = count_elements(features, mask).to(values.dtype).unsqueeze(-1)
        pooled = ((scaled.logsumexp(1) - count.log()) / power).exp()
        return Aggregated(pooled.to(features.dtype).unsqueeze(1))

    def extra_repr(self) -> str:
        """Show the smallest value where the module is printed."""
        return f"eps={self.eps}"
