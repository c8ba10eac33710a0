"""Aggregators: a set of local features (B, N, D) becomes K embeddings (B, K, H).

Every aggregator is ``aggregator(features, mask=None, context=None) -> Aggregated`` and runs on any tensor, without
the rest of the package. Padding never matters: see :mod:`vse.sets`.
"""

from torch import nn

from vse.aggregators.adaptive import AdaptivePool
from vse.aggregators.gpo import GPO
from vse.aggregators.pie_net import PIENet
from vse.aggregators.pooling import GlobalContext, KMaxPool, MaxPool, MeanPool
from vse.aggregators.set_prediction import SetPrediction

AGGREGATORS: dict[str, type[nn.Module]] = {
    "global": GlobalContext,
    "mean": MeanPool,
    "max": MaxPool,
    "kmax": KMaxPool,
    "gpo": GPO,
    "adaptive": AdaptivePool,
    "pie_net": PIENet,
    "set_prediction": SetPrediction,
}

__all__ = [
    "AGGREGATORS",
    "GPO",
    "AdaptivePool",
    "GlobalContext",
    "KMaxPool",
    "MaxPool",
    "MeanPool",
    "PIENet",
    "SetPrediction",
]
