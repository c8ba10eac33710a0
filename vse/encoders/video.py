"""Clips: frames through a backbone, then a GRU over them."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from vse.encoders.backbones import Normalise, Pixels, Unfreezing, make_backbone
from vse.encoders.recurrent import Context, read_sequence
from vse.errors import check_choice, check_probability
from vse.sets import FeatureSet, check_mask, check_set, fill_masked


class Video(nn.Module):
    """The frames of a clip and a bidirectional GRU's summary of them (PVSE, Song & Soleymani 2019, section 3.1).

    The local features are one vector per frame: the average of the frame's cells, or a precomputed feature. The context
    is the GRU's vector after dropout. VSE∞ pools projected frame features without a GRU; use
    :class:`vse.encoders.Regions` for that.

    Args:
        dim: Width of the context, dim / 2 units for each direction; filled in from ``model.embed_dim``.
        in_dim: Width of precomputed frame features; filled in from the data. The encoder then has no backbone, and the
            backbone's arguments have no effect.
        backbone: As in :class:`vse.encoders.Grid`.
        weights: As in :class:`vse.encoders.Grid`.
        context: The context: "last", the last state of each direction; "last_step", the output at the last frame, where
            the backward direction has read a single frame (the released checkpoints); "max" or "mean" of the states.
        dropout: Probability of dropout on the context.
        freeze_epochs: As in :class:`vse.encoders.Grid`.
        stage_epochs: As in :class:`vse.encoders.Grid`.
        train_norm: As in :class:`vse.encoders.Grid`. PVSE trains with True.
        pixels: As in :class:`vse.encoders.Grid`.
        architecture: As in :class:`vse.encoders.Grid`.
        recompute: As in :class:`vse.encoders.Grid`.

    Inputs are frames (B, T, 3, height, width), or features (B, T, in_dim), and a prefix mask (B, T). The features are
    (B, T, channels), the context is (B, dim).

    Raises:
        ValueError: ``dim`` is odd, ``dropout`` is outside [0, 1), or a choice is unknown. In the call: the frames have
            another shape, a clip is empty, or the mask is not a prefix.
        vse.errors.InputError: A file of weights is missing or does not fit, or a model cannot be read.

    >>> Video(dim=512, backbone="resnet18")(torch.randn(2, 8, 3, 224, 224)).features.shape
    torch.Size([2, 8, 512])
    """

    reads: tuple[str, ...] = ("frames", "features")

    def __init__(
        self,
        dim: int,
        in_dim: int | None = None,
        backbone: str = "resnet152",
        weights: str | Literal["imagenet", "pretrained"] | None = None,
        context: Context = "last",
        dropout: float = 0.0,
        freeze_epochs: int = 0,
        stage_epochs: int | None = None,
        train_norm: bool = False,
        pixels: Pixels = "imagenet",
        architecture: dict[str, Any] | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even to concatenate two directions, got {dim}")
        check_probability("dropout", dropout)
        check_choice("context", context, get_args(Context))
        self.in_dim, self.context = in_dim, context
        self.architecture = None
        if in_dim is None:
            self.unfreezing = Unfreezing(freeze_epochs, stage_epochs)
            self.normalise = Normalise(pixels)
            self.backbone = make_backbone(backbone, weights, architecture, train_norm, pixels, recompute=recompute)
            self.architecture = self.backbone.architecture
        self.dim = self.backbone.dim if in_dim is None else in_dim
        self.context_dim = dim
        self.gru = nn.GRU(self.dim, dim // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def set_epoch(self, epoch: int) -> None:
        """Freeze the stages that are not trained in an epoch; epochs count from 0."""
        if self.in_dim is None:
            self.unfreezing(self.backbone.stages, epoch)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of clips.

        Args:
            inputs: Frames (B, T, 3, height, width), or precomputed features (B, T, in_dim).
            mask: (B, T), True on real frames, which come first; None when all are real.

        Returns:
            Features (B, T, channels) and a context (B, dim).

        Raises:
            ValueError: The inputs have another shape, a clip is empty, or the mask is not a prefix.
        """
        if self.in_dim is not None:
            check_set(inputs, mask, prefix=True, dim=self.in_dim)
            frames = fill_masked(inputs, mask)
        else:
            frames = self._encode_frames(inputs, mask)
        _, context = read_sequence(self.gru, frames, mask, self.context, average=False)
        return FeatureSet(frames, mask, self.dropout(context))

    def _encode_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Average-pooled cells (B, T, channels) of the real frames; padding is not encoded."""
        if frames.dim() != 5 or 0 in frames.shape:
            raise ValueError(f"frames must be a non-empty (B, T, 3, height, width) tensor, got {tuple(frames.shape)}")
        if mask is None:
            pooled = self.backbone(self.normalise(frames.flatten(0, 1))).mean(1)
            return pooled.unflatten(0, frames.shape[:2])
        check_mask(mask, frames.shape[:2], prefix=True)
        places = mask.flatten().nonzero().squeeze(1)  # a GPU is waited for once: how many frames there are to encode?
        pooled = self.backbone(self.normalise(frames.flatten(0, 1)[places])).mean(1)
        empty = pooled.new_zeros(mask.numel(), self.dim)
        return empty.index_copy(0, places, pooled).unflatten(0, mask.shape)
