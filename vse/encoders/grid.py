"""Pictures through a backbone."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vse.encoders.backbones import Normalise, Pixels, Unfreezing, make_backbone
from vse.encoders.regions import Context, Init, Locals, Mlp, Regions, drop_elements
from vse.errors import check_probability
from vse.sets import FeatureSet

_KEEP_ALL = 0.2  # share of the pictures that keep all their cells in training, and the least r of the others


class Grid(nn.Module):
    """The cells of a CNN's last feature map, or a vision transformer's patches (VSE∞, Chen et al. 2021, section 4.1).

    V = fc(X), where X are the cells, row by row. PVSE (Song & Soleymani 2019) keeps X and uses V only for the context;
    VSE-2AD takes a transformer's patches.

    The backbone is frozen in the first ``freeze_epochs`` epochs. After that all of it is trained. With
    ``stage_epochs``, one more stage is trained after every ``stage_epochs`` epochs instead, beginning with the last.
    BatchNorm's statistics do not depend on freezing but on ``train_norm``.

    Args:
        dim: Width of V; filled in from ``model.embed_dim``.
        backbone: A name of :class:`vse.encoders.backbones.ResNetBackbone`, or a vision model of ``transformers``: a
            folder or "organisation/model" (:class:`vse.encoders.backbones.TransformerBackbone`).
        weights: For a ResNet, a file of published weights, "imagenet" (torchvision downloads them), or None for random
            ones. For a model of ``transformers``, "pretrained" or None.
        mlp: What the mlp reads: the cells X ("input"), or fc(X) ("projection"). None means no mlp, as in the papers'
            models of pictures.
        features: As in :class:`vse.encoders.Regions`: "projected" (VSE∞, VSE-2AD, DivE) or "raw" (PVSE).
        context: As in :class:`vse.encoders.Regions`: None (VSE∞, VSE-2AD), "mean" (PVSE) or "max" (DivE).
        dropout: As in :class:`vse.encoders.Regions`.
        drop: Size augmentation in training (VSE∞'s released code). With probability 0.2 a picture keeps all its cells.
            Otherwise each cell is dropped with probability ``drop`` * r, where r is uniform in [0.2, 1]. At least one
            cell is kept.
        freeze_epochs: Number of epochs in which the backbone is frozen.
        stage_epochs: Number of epochs after which one more stage is trained, or None for all stages at once. A stage is
            a transformer's layer or one of a ResNet's parts.
        train_norm: Whether a ResNet's BatchNorm runs in training mode. It then normalises with the statistics of the
            batch and updates its running ones, even while the backbone is frozen. PVSE does this, and by default DivE's
            code. VSE∞ and VSE-2AD keep the published statistics (False). Random weights need True.
        pixels: How pictures are normalised, see :class:`vse.encoders.backbones.Normalise`.
        architecture: The architecture of a ``transformers`` model from a checkpoint, which needs no folder; filled in.
        init: As in :class:`vse.encoders.Regions`: "xavier" (VSE∞, VSE-2AD) or "torch" (PVSE, DivE).
        cls: Whether a transformer's [CLS] token is an element too, the first one (VSE-2AD's released code).
        recompute: Whether the activations of the backbone's blocks are computed again in the backward pass instead of
            being kept. The results are the same. A step takes about a third more time and a fraction of the memory.

    Inputs are pictures (B, 3, height, width) of one size. RGB bytes are normalised; floats are taken as they are. The
    features are (B, N, dim), or (B, N, channels) when they are raw, where N is the number of cells, plus one with
    ``cls``. The context is (B, dim) or None.

    Raises:
        ValueError: A name or a choice is unknown or does not fit the backbone. In the call: the pictures have another
            shape or type, or there is a mask.
        vse.errors.InputError: A file of weights is missing or does not fit, or a model cannot be read.

    >>> Grid(dim=1024, backbone="resnet18")(torch.randn(2, 3, 224, 224)).features.shape
    torch.Size([2, 49, 1024])
    """

    reads: tuple[str, ...] = ("pictures",)

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
        init: Init = "xavier",
        cls: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_probability("drop", drop)
        self.drop = drop
        self.unfreezing = Unfreezing(freeze_epochs, stage_epochs)
        self.normalise = Normalise(pixels)
        self.backbone = make_backbone(backbone, weights, architecture, train_norm, pixels, cls, recompute)
        self.architecture = self.backbone.architecture
        self.head = Regions(self.backbone.dim, dim, mlp, features, context, dropout, init=init)
        self.dim, self.context_dim = self.head.dim, self.head.context_dim

    def set_epoch(self, epoch: int) -> None:
        """Freeze the stages that are not trained in an epoch; epochs count from 0."""
        self.unfreezing(self.backbone.stages, epoch)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of pictures.

        Args:
            inputs: Pictures (B, 3, height, width).
            mask: None; pictures of one size have nothing to mask.

        Returns:
            Features (B, N, dim) or (B, N, channels), and a context (B, dim) or None.

        Raises:
            ValueError: The pictures have another shape or type, or there is a mask.
        """
        if mask is not None:
            raise ValueError("a batch of pictures takes no mask")
        cells = self.backbone(self.normalise(inputs))
        if self.training and self.drop > 0:
            mask = drop_cells(cells, self.drop)
        result: FeatureSet = self.head(cells, mask)
        return result


def drop_cells(cells: Tensor, drop: float) -> Tensor:
    """Draw which cells of pictures are kept (the size augmentation of VSE∞'s released code).

    Args:
        cells: The cells (B, N, D).
        drop: As in :class:`Grid`.

    Returns:
        The mask (B, N) of the kept cells; at least one of each picture.

    >>> drop_cells(torch.zeros(2, 49, 8), 0.2).shape
    torch.Size([2, 49])
    """
    r = torch.rand(len(cells), 1, device=cells.device) * (1 - _KEEP_ALL) + _KEEP_ALL
    keeps_all = torch.rand_like(r) < _KEEP_ALL
    return drop_elements(cells.shape[:2], None, drop * r.masked_fill(keeps_all, 0.0), cells.device)
