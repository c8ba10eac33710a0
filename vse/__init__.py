"""Visual-semantic embedding: train and evaluate image-text and video-text retrieval models.

Importing this package is fast: training, configs and data are imported where they are used.
"""

from pathlib import Path

from vse.aggregators import GPO, GlobalContext, KMaxPool, MaxPool, MeanPool
from vse.losses import TripletLoss
from vse.metrics import retrieval_metrics
from vse.model import Tower, VSEModel
from vse.sets import Aggregated, FeatureSet, lengths_to_mask
from vse.similarity import cosine

__version__ = "0.1.0"

__all__ = [
    "GPO",
    "Aggregated",
    "FeatureSet",
    "GlobalContext",
    "KMaxPool",
    "MaxPool",
    "MeanPool",
    "Tower",
    "TripletLoss",
    "VSEModel",
    "cosine",
    "lengths_to_mask",
    "load",
    "retrieval_metrics",
]


def load(path: str | Path, vocabulary: str | Path | None = None, padding: str = "masked") -> VSEModel:
    """Load a trained model from a run folder or a checkpoint, in evaluation mode on the CPU.

    ``vocabulary``: a vocabulary file to use instead of the checkpoint's own. ``padding``: "masked", the only choice for
    this package's checkpoints. Nothing in the file is executed. Raises :class:`vse.errors.InputError` (a ValueError),
    naming the file, when it is missing, truncated or of another kind.

    >>> model = vse.load("runs/demo")
    >>> model.similarity(model.encode_images([torch.randn(16, 1728)]), model.encode_texts(["a red circle"]))
    """
    if padding != "masked":
        raise ValueError(f"padding must be 'masked' for a checkpoint of vse, got {padding!r}")
    from vse.build import load_model
    from vse.data.vocabulary import Vocabulary

    return load_model(path, vocabulary=None if vocabulary is None else Vocabulary.read(vocabulary))[0]
