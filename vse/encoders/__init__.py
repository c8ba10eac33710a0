"""Encoders: an input becomes a :class:`vse.sets.FeatureSet`.

``encoder(inputs, mask=None) -> FeatureSet``; ``encoder.dim`` is the width D of the local features and
``encoder.context_dim`` the width C of the context, or None when the encoder has none.
"""

from torch import nn

from vse.encoders.bert import Bert
from vse.encoders.bigru import BiGRU
from vse.encoders.clip import Clip
from vse.encoders.grid import Grid
from vse.encoders.regions import Regions
from vse.encoders.timm import Timm
from vse.encoders.video import Video

ENCODERS: dict[str, type[nn.Module]] = {
    "regions": Regions,
    "grid": Grid,
    "timm": Timm,
    "video": Video,
    "bigru": BiGRU,
    "bert": Bert,
    "clip": Clip,
}

__all__ = ["ENCODERS", "Bert", "BiGRU", "Clip", "Grid", "Regions", "Timm", "Video"]
