"""Terms on the embedding sets of a batch, beside the ranking loss.

Where the sets of a side differ in size (:attr:`vse.sets.Aggregated.mask`), a masked embedding or residual counts in no
term: means over the embeddings or the pairs of a sample are over its real ones, and a sample with a single one has no
pair, which counts as 0.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vse.errors import check_choice, check_positive
from vse.sets import Aggregated, at_least_float32, fill_masked

Kernel = Literal["rbf", "exponential"]
Vectors = Literal["embeddings", "residual"]


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

    def side(of: Aggregated, name: str) -> Tensor:
        residual = _residuals(of, name)
        identity = torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)
        excess = residual @ residual.transpose(1, 2) - identity
        if of.mask is None:
            return torch.linalg.matrix_norm(excess).mean() / residual.shape[1] ** 2
        excess = excess.masked_fill(~_real_pairs(of.mask), 0.0)
        return (torch.linalg.matrix_norm(excess) / of.mask.sum(1) ** 2).mean()

    return side(image, "image") + side(text, "text")


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

    def side(of: Aggregated, name: str) -> Tensor:
        residual = _residuals(of, name)
        squared = 2 - 2 * (residual @ residual.transpose(1, 2))
        return _mean_of_pairs((-2 * squared).exp(), of.mask)

    return side(image, "image") + side(text, "text")


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
    x, y = (fill_masked(at_least_float32(side.embeddings), side.mask).flatten(0, 1) for side in (image, text))
    x_mask, y_mask = (None if side.mask is None else side.mask.flatten() for side in (image, text))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings must be equally wide, got {x.shape[1]} and {y.shape[1]}")

    def mean_kernel(a: Tensor, a_mask: Tensor | None, b: Tensor, b_mask: Tensor | None) -> Tensor:
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        if a is b:  # no rounding, and no gradient, where the distance is exactly 0
            squared = squared.masked_fill(torch.eye(a.shape[0], dtype=torch.bool, device=a.device), 0.0)
        distance = squared.clamp(min=0.0) if kernel == "rbf" else squared.clamp(min=1e-12).sqrt()
        return _mean_of_real((-gamma * distance).exp(), a_mask, b_mask)

    return mean_kernel(x, x_mask, x, x_mask) - 2 * mean_kernel(x, x_mask, y, y_mask) + mean_kernel(y, y_mask, y, y_mask)


def global_discriminative_loss(
    image: Aggregated,
    text: Aggregated,
    scale: float = 0.5,
    margin: float = 0.7,
    vectors: Vectors = "embeddings",
) -> Tensor:
    """Keep the vectors v of a set away from the sample's global vector g (MaxMatch, Alomari et al., ACL 2025).

    Mean over the K vectors of exp(scale (cos(v_k, g) - margin)); mean over the batch, image side + text side.

    **The paper's code is not public.** That the term is an exponential of the cosine beyond a margin is the paper's.
    The mean and the defaults of ``scale`` and ``margin`` are a third party's reading. The figure on the authors' page
    (github.com/hanialomari/MaxMatch) draws the term on the embeddings; it shows no formula.

    Args:
        image: What the image tower returns, with a context (A, H).
        text: What the text tower returns, with a context (C, H).
        scale: The factor in the exponential.
        margin: The cosine from which a vector counts as near.
        vectors: What is kept away, the "embeddings" or the "residual" of each set.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: ``scale`` is not positive, ``vectors`` is unknown, or an aggregator gives no context or residual.

    >>> alike = Aggregated(torch.ones(1, 2, 4), context=torch.ones(1, 4))
    >>> global_discriminative_loss(alike, alike, scale=1.0, margin=1.0)
    tensor(2.)
    """
    check_positive("scale", scale)
    check_choice("vectors", vectors, get_args(Vectors))

    def side(of: Aggregated, name: str) -> Tensor:
        if of.context is None:
            raise ValueError(f"the {name} aggregator gives no context; set_prediction does")
        context = F.normalize(at_least_float32(of.context), dim=-1)
        near = (_vectors(of, name, vectors) @ context.unsqueeze(2)).squeeze(2)
        values = (scale * (near - margin)).exp()
        if of.mask is None:
            return values.mean()
        return (values.masked_fill(~of.mask, 0.0).sum(1) / of.mask.sum(1)).mean()

    return side(image, "image") + side(text, "text")


def intra_set_divergence_loss(
    image: Aggregated,
    text: Aggregated,
    scale: float = 0.5,
    margin: float = 0.7,
    vectors: Vectors = "embeddings",
) -> Tensor:
    """Keep the vectors v of a set away from each other (MaxMatch, Alomari et al., ACL 2025).

    Mean over the pairs j < k of exp(scale (cos(v_j, v_k) - margin)); mean over the batch, image side + text side; 0 for
    a side with K = 1.

    **The paper's code is not public.** What is certain and what is not is as in :func:`global_discriminative_loss`.

    Args:
        image: What the image tower returns, embeddings (A, K, H).
        text: What the text tower returns, embeddings (C, L, H).
        scale: The factor in the exponential.
        margin: The cosine from which two vectors count as near.
        vectors: What is kept apart, the "embeddings" or the "residual" of each set.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: ``scale`` is not positive, ``vectors`` is unknown, or an aggregator gives no residual.

    >>> alike = Aggregated(torch.ones(1, 2, 4))
    >>> intra_set_divergence_loss(alike, alike, scale=1.0, margin=1.0)
    tensor(2.)
    """
    check_positive("scale", scale)
    check_choice("vectors", vectors, get_args(Vectors))

    def side(of: Aggregated, name: str) -> Tensor:
        own = _vectors(of, name, vectors)
        return _mean_of_pairs((scale * (own @ own.transpose(1, 2) - margin)).exp(), of.mask)

    return side(image, "image") + side(text, "text")


def _vectors(side: Aggregated, name: str, vectors: Vectors) -> Tensor:
    """L2-normalised embeddings or residuals (B, K, H) of one side."""
    if vectors == "residual":
        return _residuals(side, name)
    return F.normalize(fill_masked(at_least_float32(side.embeddings), side.mask), dim=-1)


def _residuals(side: Aggregated, name: str) -> Tensor:
    """L2-normalised residuals (B, K, H) of one side."""
    if side.residual is None:
        raise ValueError(f"the {name} aggregator gives no residual; pie_net and set_prediction do")
    return F.normalize(fill_masked(at_least_float32(side.residual), side.mask), dim=-1)


def _mean_of_real(values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The mean of values (n, m) over the real rows (n,) and columns (m,); None where all are real."""
    if rows is None and columns is None:
        return values.mean()
    real = torch.ones_like(values, dtype=torch.bool)
    if rows is not None:
        real = real & rows.unsqueeze(1)
    if columns is not None:
        real = real & columns
    return values.masked_fill(~real, 0.0).sum() / real.sum()


def _real_pairs(mask: Tensor) -> Tensor:
    """Which pairs of places (B, K, K) hold two real embeddings."""
    return mask.unsqueeze(1) & mask.unsqueeze(2)


def _mean_of_pairs(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the batch of each sample's mean over its pairs j < k, from values (B, K, K)."""
    size = values.shape[1]
    pairs = torch.ones(size, size, dtype=torch.bool, device=values.device).triu(1)
    if mask is None:
        return values.masked_fill(~pairs, 0.0).sum((1, 2)).mean() / max(1, size * (size - 1) // 2)
    pairs = pairs & _real_pairs(mask)
    return (values.masked_fill(~pairs, 0.0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()
