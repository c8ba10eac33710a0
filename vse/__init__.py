"""Visual-semantic embedding: train and evaluate image-text and video-text retrieval models.

Importing this package is fast: training, configs and data are imported where they are used.
"""

from pathlib import Path

from vse.aggregators import (
    GPO,
    AdaptivePool,
    GlobalContext,
    KMaxPool,
    MaxPool,
    MeanPool,
    PIENet,
    SetPrediction,
)
from vse.losses import (
    AdaptiveContrastiveLoss,
    InfoNCELoss,
    TripletLoss,
    diversity_loss,
    mmd_loss,
    uniformity_loss,
)
from vse.metrics import retrieval_metrics
from vse.model import Tower, VSEModel
from vse.sets import Aggregated, FeatureSet, lengths_to_mask
from vse.similarity import MatchProbability, chamfer, cosine, max_cosine, order, smooth_chamfer

__version__ = "0.1.0"

__all__ = [
    "GPO",
    "AdaptiveContrastiveLoss",
    "AdaptivePool",
    "Aggregated",
    "FeatureSet",
    "GlobalContext",
    "InfoNCELoss",
    "KMaxPool",
    "MatchProbability",
    "MaxPool",
    "MeanPool",
    "PIENet",
    "SetPrediction",
    "Tower",
    "TripletLoss",
    "VSEModel",
    "chamfer",
    "cosine",
    "diversity_loss",
    "lengths_to_mask",
    "load",
    "max_cosine",
    "mmd_loss",
    "order",
    "retrieval_metrics",
    "smooth_chamfer",
    "uniformity_loss",
]


def load(path: str | Path, vocabulary: str | Path | None = None, padding: str = "masked") -> VSEModel:
    """Load a trained model from a run folder or a checkpoint, in evaluation mode on the CPU.

    A checkpoint is this package's, or one of the official codes of VSE∞, PVSE, VSE-2AD and DivE (see
    :mod:`vse.checkpoints.official`). ``vocabulary``: a vocabulary file (for BERT: a tokenizer's folder) to use
    instead of the checkpoint's own. Official checkpoints have none in them; a file of its published name beside the
    checkpoint is found, and without one ``model.image`` and ``model.text`` work, but not ``model.encode_texts``.
    ``padding``: "masked", or "released" for what VSE-2AD's and DivE's codes compute, where padding and batch mates
    change an embedding. Nothing in a file is executed. Raises :class:`vse.errors.InputError` (a ValueError), naming the
    file, when it is missing, truncated, of another kind, or holds what this package does not have.

    >>> model = vse.load("runs/demo")
    >>> model.similarity(model.encode_images([torch.randn(16, 1728)]), model.encode_texts(["a red circle"]))
    """
    from vse.checkpoints.load import load_model

    return load_model(path, vocabulary=vocabulary, padding=padding)[0]
