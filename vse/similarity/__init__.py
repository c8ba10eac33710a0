"""Similarities between embedding sets: (A, K, H) against (C, L, H) gives scores (A, C).

Every similarity is ``similarity(a, b, a_mask=None, b_mask=None)``. K and L may differ, and with masks (A, K) and (C, L)
each set has its own size: what stands in masked places, even NaN, changes no score.
"""

from collections.abc import Callable

from torch import Tensor, nn

from vse.similarity.base import check_embeddings, check_takes_masks, compare, pair_cosines, unit
from vse.similarity.late_interaction import chan, max_sim
from vse.similarity.matching import assignment
from vse.similarity.pooled import MatchProbability, chamfer, cosine, max_cosine, order, smooth_chamfer

SIMILARITIES: dict[str, Callable[..., Tensor | nn.Module]] = {
    "cosine": cosine,
    "max": max_cosine,
    "chamfer": chamfer,
    "smooth_chamfer": smooth_chamfer,
    "match_probability": MatchProbability,
    "order": order,
    "max_sim": max_sim,
    "chan": chan,
    "assignment": assignment,
}

__all__ = [
    "SIMILARITIES",
    "MatchProbability",
    "assignment",
    "chamfer",
    "chan",
    "check_embeddings",
    "check_takes_masks",
    "compare",
    "cosine",
    "max_cosine",
    "max_sim",
    "order",
    "pair_cosines",
    "smooth_chamfer",
    "unit",
]
