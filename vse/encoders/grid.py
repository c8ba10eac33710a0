"""Pictures through a backbone."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vse.encoders.backbones import Normalise, Pixels, Unfreezing, make_backbone
from vse.encoders.regions import Context, Locals, Mlp, Regions, drop_elements
from vse.sets import FeatureSet


class Grid(nn.Module):
    """The cells of a CNN's last feature map (VSE∞, Chen et al. 2021, section 4.1; PVSE, Song & Soleymani 2019).

    X = the map, row by row, or a vision transformer's patches (VSE-2AD); V = fc(X). ``backbone``: a name of
    :class:`vse.encoders.backbones.ResNetBackbone`, or a model of ``transformers``, as a folder or the hub's
    "organisation/model" (:class:`vse.encoders.backbones.TransformerBackbone`). ``weights``: a file of published weights
    or "imagenet" (torchvision downloads them) for the former, "pretrained" for the latter, or none. ``mlp``,
    ``features``, ``context`` and ``dropout`` as in :class:`vse.encoders.Regions`: projected without a context is VSE∞,
    raw with the context "mean" PVSE. ``architecture`` is filled in: a checkpoint holds what is needed of a
    ``transformers`` model.

    The backbone is frozen in the first ``freeze_epochs`` epochs; then it is trained, all of it or, with
    ``stage_epochs``, one stage (a transformer's layer) more, the last first, after every that many epochs. BatchNorm
    keeps the statistics it came with, as in the papers; without published weights, it needs ``train_norm``.
    In training ``drop`` is the size augmentation for grids: with probability 0.2 a picture keeps all its cells,
    otherwise each goes with probability ``drop`` * r, r uniform in [0.2, 1]; never all of them.

    Shapes: pictures (B, 3, height, width) -> features (B, h * w, dim), or (B, h * w, channels) for "raw"; context
    (B, dim) or None. Bytes are RGB and become what the backbone was trained on (``pixels``, see
    :class:`vse.encoders.backbones.Normalise`); floats are taken as they are. Raises ValueError for another shape, an
    unknown name or choice, and :class:`vse.errors.InputError` for a weights file that is missing or does not fit.

    >>> Grid(dim=1024, backbone="resnet18")(torch.randn(2, 3, 224, 224)).features.shape
    torch.Size([2, 49, 1024])
    """

    reads = "pictures"  # what the data must provide

    def __init__(
        self,
        dim: int,
        backbone: str = "resnext101_32x8d",
        weights: str | Literal["imagenet", "pretrained"] | None = None,
        mlp: Mlp | None = None,
        features: Locals = "projected",
        context: Context | None = None,
        dropout: float = 0.0,
        drop: float = 0.0,
        freeze_epochs: int = 0,
        stage_epochs: int | None = None,
        train_norm: bool = False,
        pixels: Pixels = "imagenet",
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {drop}")
        self.drop = drop
        self.unfreezing = Unfreezing(freeze_epochs, stage_epochs)
        self.normalise = Normalise(pixels)
        self.backbone = make_backbone(backbone, weights, architecture, train_norm, pixels)
        self.architecture = self.backbone.architecture
        self.head = Regions(self.backbone.dim, dim, mlp, features, context, dropout)
        self.dim, self.context_dim = self.head.dim, self.head.context_dim

    def set_epoch(self, epoch: int) -> None:
        """Freeze what is not yet trained; epochs count from 0."""
        self.unfreezing(self.backbone.stages, epoch)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of pictures, all of one size; there is nothing to mask."""
        if mask is not None:
            raise ValueError("a batch of pictures takes no mask")
        cells = self.backbone(self.normalise(inputs))
        if self.training and self.drop > 0:
            share = torch.rand(len(cells), 1, device=cells.device) * 0.8 + 0.2
            share = share.masked_fill(torch.rand_like(share) < 0.2, 0.0)
            mask = drop_elements(cells.shape[:2], None, self.drop * share, cells.device)
        result: FeatureSet = self.head(cells, mask)
        return result
