"""Visual-semantic embedding: train and evaluate image-text and video-text retrieval models.

Importing this package is quick: a public name is imported from its module when it is first used, and torch with it.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vse.aggregators import GPO, AdaptivePool, GlobalContext, KMaxPool, MaxPool, MeanPool, PIENet, SetPrediction
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

# The module of each public name. The imports above, which only type checkers and editors read, say the same.
_MODULES = {
    "vse.aggregators": (
        "GPO",
        "AdaptivePool",
        "GlobalContext",
        "KMaxPool",
        "MaxPool",
        "MeanPool",
        "PIENet",
        "SetPrediction",
    ),
    "vse.losses": (
        "AdaptiveContrastiveLoss",
        "InfoNCELoss",
        "TripletLoss",
        "diversity_loss",
        "mmd_loss",
        "uniformity_loss",
    ),
    "vse.metrics": ("retrieval_metrics",),
    "vse.model": ("Tower", "VSEModel"),
    "vse.sets": ("Aggregated", "FeatureSet", "lengths_to_mask"),
    "vse.similarity": ("MatchProbability", "chamfer", "cosine", "max_cosine", "order", "smooth_chamfer"),
}
_ROOMS = ("search",)  # rooms that are also found as attributes, without names here
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name, or one of the modules above, when it is first used (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    elif f"vse.{name}" in _MODULES or name in _ROOMS:
        value = importlib.import_module(f"vse.{name}")
    else:
        raise AttributeError(f"module 'vse' has no attribute {name!r}")
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(path: str | Path, vocabulary: str | Path | None = None, padding: str = "masked") -> "VSEModel":
    """Load a trained model, in evaluation mode on the CPU.

    The checkpoint may be of this package or of the official codes of VSE∞, PVSE, VSE-2AD, DivE, ESA and CHAN (see
    :mod:`vse.checkpoints.official`). No code in the file is executed.

    Args:
        path: A run folder, a checkpoint file or the folder of an exported model (``vse export``); an exported model on
            the Hugging Face hub, "hf://owner/name" or "hf://owner/name@revision"; or a config whose encoders are
            pretrained and whose other parts have nothing to train, such as "clip/f30k", for the published model as it
            is.
        vocabulary: A vocabulary file (for BERT: the folder of its tokenizer) to use instead of the checkpoint's own.
            Official checkpoints do not contain one; a file of the published name in the same folder is found without
            this argument. Without any vocabulary ``model.image`` and ``model.text`` work, but ``model.encode_texts``
            does not.
        padding: "masked", or "released" to compute what the official codes of VSE-2AD and DivE compute, where padding
            and the other samples of a batch change an embedding.

    Returns:
        The model.

    Raises:
        vse.errors.InputError: (a ValueError) The file is missing or truncated, is not a checkpoint, or holds a model
            that this package does not have. The message names the file.

    >>> model = vse.load("runs/demo")
    >>> model.similarity(model.encode_images([torch.randn(16, 1728)]), model.encode_texts(["a red circle"]))
    """
    from vse.checkpoints.load import load_model

    return load_model(path, vocabulary=vocabulary, padding=padding).model
