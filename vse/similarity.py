"""Similarities between embedding sets: (A, K, H) against (C, L, H) gives scores (A, C)."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of single embeddings, s_ij = <a_i, b_j> / (|a_i| |b_j|) (VSE++; VSE∞ equation 1).

    Shapes: (A, 1, H) and (C, 1, H) -> (A, C). Raises ValueError when a side has more than one embedding per sample.

    >>> cosine(torch.randn(3, 1, 8), torch.randn(5, 1, 8)).shape
    torch.Size([3, 5])
    """
    check_embeddings(a, b)
    if a.shape[1] != 1 or b.shape[1] != 1:
        raise ValueError(f"cosine compares single embeddings, got K = {a.shape[1]} and L = {b.shape[1]}")
    return F.normalize(a[:, 0], dim=-1) @ F.normalize(b[:, 0], dim=-1).T


def check_embeddings(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are (samples, embeddings, H) with one H."""
    if a.dim() != 3 or b.dim() != 3 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"expected (A, K, H) and (C, L, H) with one H, got {tuple(a.shape)} and {tuple(b.shape)}")


SIMILARITIES: dict[str, Callable[..., Tensor]] = {"cosine": cosine}
