"""Aggregators: a set of local features (B, N, D) becomes K embeddings (B, K, H).

Every aggregator is ``aggregator(features, mask=None, context=None) -> Aggregated`` and runs on any tensor, without
the rest of the package. Padding never matters: see :mod:`vse.sets`. ``tokens`` alone keeps sets of different sizes.
"""

from torch import nn

from vse.aggregators.adaptive import AdaptivePool
from vse.aggregators.base import Aggregator, AggregatorTraits, traits_of
from vse.aggregators.fspool import FSPool
from vse.aggregators.gcn import GCN
from vse.aggregators.gem import GeM
from vse.aggregators.gpo import GPO
from vse.aggregators.pie_net import PIENet
from vse.aggregators.pooling import FirstElement, GlobalContext, KMaxPool, MaxPool, MeanPool
from vse.aggregators.self_attention import SelfAttention
from vse.aggregators.seq2seq import Seq2Seq
from vse.aggregators.set_prediction import SetPrediction
from vse.aggregators.softmax_pool import SoftmaxPool
from vse.aggregators.tokens import Tokens

AGGREGATORS: dict[str, type[nn.Module]] = {
    "global": GlobalContext,
    "first": FirstElement,
    "mean": MeanPool,
    "max": MaxPool,
    "kmax": KMaxPool,
    "gem": GeM,
    "fspool": FSPool,
    "gpo": GPO,
    "adaptive": AdaptivePool,
    "softmax_pool": SoftmaxPool,
    "seq2seq": Seq2Seq,
    "self_attention": SelfAttention,
    "gcn": GCN,
    "pie_net": PIENet,
    "set_prediction": SetPrediction,
    "tokens": Tokens,
}

__all__ = [
    "AGGREGATORS",
    "GCN",
    "GPO",
    "AdaptivePool",
    "Aggregator",
    "AggregatorTraits",
    "FSPool",
    "FirstElement",
    "GeM",
    "GlobalContext",
    "KMaxPool",
    "MaxPool",
    "MeanPool",
    "PIENet",
    "SelfAttention",
    "Seq2Seq",
    "SetPrediction",
    "SoftmaxPool",
    "Tokens",
    "traits_of",
]
