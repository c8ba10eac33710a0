"""Similarities between embedding sets: (A, K, H) against (C, L, H) gives scores (A, C).

K and L may differ. c_kl is the cosine of embeddings k and l.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vse.errors import check_positive

_FLAT = 40.0  # temperature up to which exp(-2 t) is a float32 well above 0
_BLOCK = 1 << 25  # numbers that order() holds at a time
_ROUNDING = 1e-5  # how far from 1 the length of a normalised vector may be


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of single embeddings, s_ij = <a_i, b_j> / (|a_i| |b_j|) (VSE++; VSE∞ equation 1).

    Args:
        a: Embeddings (A, 1, H).
        b: Embeddings (C, 1, H).

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape is wrong, or a side has more than one embedding per sample.

    >>> cosine(torch.randn(3, 1, 8), torch.randn(5, 1, 8)).shape
    torch.Size([3, 5])
    """
    check_embeddings(a, b)
    if a.shape[1] != 1 or b.shape[1] != 1:
        raise ValueError(f"cosine compares single embeddings, got K = {a.shape[1]} and L = {b.shape[1]}")
    return unit(a[:, 0]) @ unit(b[:, 0]).T


def max_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the best pair, max_kl c_kl: multiple-instance learning (PVSE, Song & Soleymani 2019).

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape is wrong.

    >>> max_cosine(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """
    return pair_cosines(a, b).amax(2).amax(0)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Chamfer similarity, (mean_k max_l c_kl + mean_l max_k c_kl) / 2 (DivE, Kim et al. 2023, section 3.3).

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape is wrong.

    >>> chamfer(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """
    cosines = pair_cosines(a, b)
    return (cosines.amax(2).mean(0) + cosines.amax(0).mean(1)) / 2


def smooth_chamfer(a: Tensor, b: Tensor, temperature: float = 16.0) -> Tensor:
    """Smooth-Chamfer similarity (DivE, Kim et al. 2023, section 3.3).

    (mean_k log sum_l exp(t c_kl) + mean_l log sum_k exp(t c_kl)) / 2t, where t is the ``temperature``. Every pair has a
    weight; the larger t is, the more of the weight is on the best pair. The score may exceed 1.

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).
        temperature: The factor t of the cosines.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape is wrong, or ``temperature`` is not positive.

    >>> smooth_chamfer(torch.randn(3, 4, 8), torch.randn(5, 2, 8), temperature=16.0).shape
    torch.Size([3, 5])
    """
    check_positive("temperature", temperature)
    cosines = pair_cosines(a, b)
    if temperature > _FLAT or cosines.dtype in (torch.float16, torch.bfloat16):
        scaled = cosines * temperature
        return (scaled.logsumexp(2).mean(0) + scaled.logsumexp(0).mean(1)) / (2 * temperature)
    # No cosine exceeds 1. With exp(t (c - 1)) one exponential serves both sums, and neither sum underflows.
    near = cosines.sub_(1.0).mul_(temperature).exp_()
    return 1.0 + (near.sum(2).log().mean(0) + near.sum(0).log().mean(1)) / (2 * temperature)


class MatchProbability(nn.Module):
    """Mean over all pairs of sigmoid(a c_kl + b), with a and b learned (PCME, Chun et al. 2021, as used by DivE).

    Args:
        scale: Initial value of a. DivE's released code does not train it.
        shift: Initial value of b. DivE's released code does not train it.

    >>> MatchProbability()(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare embedding sets.

        Args:
            a: Embeddings (A, K, H).
            b: Embeddings (C, L, H).

        Returns:
            Scores (A, C).

        Raises:
            ValueError: A shape is wrong.
        """
        return (pair_cosines(a, b) * self.scale + self.shift).sigmoid().mean(2).mean(0)


def order(a: Tensor, b: Tensor) -> Tensor:
    """Order-embedding score of the best pair, max_kl -|max(0, |b_l| - |a_k|)|_2 with |.| elementwise (PVSE's baseline).

    Vendrov et al. 2016: the score is 0 where the image a is at least as large as its caption b in every coordinate.

    Args:
        a: Embeddings (A, K, H) of the images.
        b: Embeddings (C, L, H) of the captions.

    Returns:
        Scores (A, C).

    Raises:
        ValueError: A shape is wrong.

    >>> order(torch.randn(3, 1, 8), torch.randn(5, 1, 8)).shape
    torch.Size([3, 5])
    """
    check_embeddings(a, b)
    a, b = a.abs(), b.abs()
    rows = max(1, _BLOCK // (a.shape[1] * b.numel()))
    blocks = []
    for block in a.split(rows):  # in blocks, since the difference of all pairs has an axis H
        excess = (b[None, None] - block[:, :, None, None]).relu()  # (rows, K, C, L, H)
        blocks.append(-torch.linalg.vector_norm(excess, dim=-1).amin((1, 3)))
    return torch.cat(blocks)


def pair_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosines of all pairs of embeddings.

    The axes of the embeddings come before those of the samples. A sum or a maximum over the embeddings of a set then
    adds or compares whole rows; over a last axis of 4 it would take several times as long.

    Args:
        a: Embeddings (A, K, H).
        b: Embeddings (C, L, H).

    Returns:
        Cosines (K, A, L, C).

    Raises:
        ValueError: A shape is wrong.

    >>> pair_cosines(torch.randn(3, 4, 8), torch.randn(5, 2, 8)).shape
    torch.Size([4, 3, 2, 5])
    """
    check_embeddings(a, b)
    rows, columns = (unit(side).transpose(0, 1).flatten(0, 1) for side in (a, b))  # (K A, H) and (L C, H)
    return (rows @ columns.T).view(a.shape[1], a.shape[0], b.shape[1], b.shape[0])


def unit(x: Tensor) -> Tensor:
    """L2-normalise the last axis of vectors that are not normalised yet.

    A vector whose length is 1 up to rounding is returned as it is, since a tower has normalised it already. Its score
    and the score's gradient are then those of the plain product, as in the official codes; only the tower's own
    normalisation removes the gradient's component along the vector. Any other vector is divided by its length, and the
    gradient goes through the division.

    Args:
        x: Vectors (..., H).

    Returns:
        Vectors (..., H) of length 1; zero stays zero.

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    normalised = (length - 1).abs() < _ROUNDING
    if not torch.is_grad_enabled() and x.device.type == "cpu" and normalised.all():
        return x  # evaluation compares many blocks; an accelerator would have to be waited for
    divisor = length.clamp(min=torch.finfo(x.dtype).tiny).masked_fill(normalised, 1.0)
    return x / divisor


def check_embeddings(a: Tensor, b: Tensor) -> None:
    """Check that two sides can be compared.

    Args:
        a: Embeddings, to be (A, K, H).
        b: Embeddings, to be (C, L, H).

    Raises:
        ValueError: A side has another number of axes or is empty, or their widths differ.

    >>> check_embeddings(torch.randn(3, 4, 8), torch.randn(5, 2, 8))
    """
    if a.dim() != 3 or b.dim() != 3 or a.shape[-1] != b.shape[-1] or 0 in (*a.shape, *b.shape):
        found = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"expected (A, K, H) and (C, L, H) with one H, nothing empty, got {found}")


SIMILARITIES: dict[str, Callable[..., Tensor | nn.Module]] = {
    "cosine": cosine,
    "max": max_cosine,
    "chamfer": chamfer,
    "smooth_chamfer": smooth_chamfer,
    "match_probability": MatchProbability,
    "order": order,
}
