"""Terms on the embedding sets of a batch, beside the ranking loss."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vse.errors import check_choice, check_positive
from vse.sets import Aggregated, at_least_float32

Kernel = Literal["rbf", "exponential"]


def diversity_loss(image: Aggregated, text: Aggregated) -> Tensor:
    """Keep the K residuals r of a sample orthogonal (the diversity loss of PVSE, Song & Soleymani 2019).

    |G - I|_F / K^2 with G the Gram matrix of the L2-normalised residuals; mean over the batch, image side + text side.

    Args:
        image: What the image tower returns, with residuals (A, K, H).
        text: What the text tower returns, with residuals (C, L, H).

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: An aggregator gives no residual.

    >>> alike = Aggregated(torch.ones(1, 2, 4), residual=torch.ones(1, 2, 4))
    >>> diversity_loss(alike, alike)
    tensor(0.7071)
    """

    def side(residual: Tensor) -> Tensor:
        identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
        excess = residual @ residual.transpose(1, 2) - identity
        return torch.linalg.matrix_norm(excess).mean() / residual.shape[1] ** 2

    return side(_residuals(image, "image")) + side(_residuals(text, "text"))


def uniformity_loss(image: Aggregated, text: Aggregated) -> Tensor:
    """Keep the K residuals r of a sample apart (DivE, Kim et al. 2023, section 3.4).

    Mean over the pairs i < j of exp(-2 |r_i - r_j|^2) for L2-normalised residuals; mean over the batch, image side +
    text side; 0 for a side with K = 1.

    Args:
        image: What the image tower returns, with residuals (A, K, H).
        text: What the text tower returns, with residuals (C, L, H).

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: An aggregator gives no residual.

    >>> alike = Aggregated(torch.ones(1, 2, 4), residual=torch.ones(1, 2, 4))
    >>> uniformity_loss(alike, alike)
    tensor(2.)
    """

    def side(residual: Tensor) -> Tensor:
        size = residual.shape[1]
        pairs = torch.ones(size, size, dtype=torch.bool, device=residual.device).triu(1)
        squared = 2 - 2 * (residual @ residual.transpose(1, 2))
        potentials = (-2 * squared).exp().masked_fill(~pairs, 0.0)
        return potentials.sum((1, 2)).mean() / max(1, size * (size - 1) // 2)

    return side(_residuals(image, "image")) + side(_residuals(text, "text"))


def mmd_loss(image: Aggregated, text: Aggregated, kernel: Kernel = "rbf", gamma: float = 0.5) -> Tensor:
    """Maximum mean discrepancy between all image and all text embeddings (PVSE, Song & Soleymani 2019).

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), self-pairs included.

    Args:
        image: What the image tower returns, with embeddings (A, K, H).
        text: What the text tower returns, with embeddings (C, L, H).
        kernel: "rbf", k = exp(-gamma |x - y|^2), as in the paper; or "exponential", k = exp(-gamma |x - y|), as in the
            released codes of PVSE and DivE.
        gamma: How fast the kernel falls with the distance.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: The kernel is unknown, ``gamma`` is not positive, or the embeddings have different widths.

    >>> x = Aggregated(torch.ones(1, 2, 4))
    >>> mmd_loss(x, x, kernel="exponential") < 1e-5
    tensor(True)
    """
    check_choice("kernel", kernel, get_args(Kernel))
    check_positive("gamma", gamma)
    x, y = (at_least_float32(side.embeddings).flatten(0, 1) for side in (image, text))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be equally wide, got {x.shape[1]} and {y.shape[1]}")

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        if a is b:  # no rounding, and no gradient, where the distance is exactly 0
            squared = squared.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0.0)
        distance = squared.clamp(min=0.0) if kernel == "rbf" else squared.clamp(min=1e-12).sqrt()
        return (-gamma * distance).exp().mean()

    return mean_kernel(x, x) - 2 * mean_kernel(x, y) + mean_kernel(y, y)


def _residuals(side: Aggregated, name: str) -> Tensor:
    """L2-normalised residuals (B, K, H) of one side."""
    if side.residual is None:
        raise ValueError(f"the {name} aggregator gives no residual; pie_net and set_prediction do")
    return F.normalize(at_least_float32(side.residual), dim=-1)
