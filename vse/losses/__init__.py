"""Ranking losses on a score matrix, terms on the embedding sets, and the criterion that joins them.

A ranking loss is ``loss(scores (A, C), positives (A, C) bool) -> scalar``: rows are images, columns captions, and
``positives`` says which pairs belong together; it comes from ids, so a row may have any number of positives. A loss
with a third argument ``pairs`` also gets the rows and columns (2, P) of the positives. The loader knows them already;
finding them in ``positives`` would mean a wait for the GPU.

A term, or regulariser, is ``term(image: Aggregated, text: Aggregated) -> scalar``.
"""

from collections.abc import Callable

from torch import Tensor, nn

from vse.losses.adaptive_contrastive import AdaptiveContrastiveLoss
from vse.losses.criterion import Criterion, ScoreTable
from vse.losses.info_nce import InfoNCELoss
from vse.losses.pairs import positive_pairs
from vse.losses.regularisers import (
    diversity_loss,
    global_discriminative_loss,
    intra_set_divergence_loss,
    mmd_loss,
    uniformity_loss,
)
from vse.losses.sigmoid import SigmoidLoss
from vse.losses.triplet import Mining, Positives, Reduction, TripletLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "triplet": TripletLoss,
    "adaptive_contrastive": AdaptiveContrastiveLoss,
    "info_nce": InfoNCELoss,
    "sigmoid": SigmoidLoss,
}
REGULARISERS: dict[str, Callable[..., Tensor | nn.Module]] = {
    "diversity": diversity_loss,
    "uniformity": uniformity_loss,
    "mmd": mmd_loss,
    "global_discriminative": global_discriminative_loss,
    "intra_set_divergence": intra_set_divergence_loss,
}

__all__ = [
    "LOSSES",
    "REGULARISERS",
    "AdaptiveContrastiveLoss",
    "Criterion",
    "InfoNCELoss",
    "Mining",
    "Positives",
    "Reduction",
    "ScoreTable",
    "SigmoidLoss",
    "TripletLoss",
    "diversity_loss",
    "global_discriminative_loss",
    "intra_set_divergence_loss",
    "mmd_loss",
    "positive_pairs",
    "uniformity_loss",
]
