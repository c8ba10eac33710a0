"""Clips: frames through a backbone, then a GRU over them."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vse.encoders.backbones import Normalise, Pixels, Unfreezing, make_backbone
from vse.encoders.recurrent import Context, read_sequence
from vse.sets import FeatureSet, check_mask, check_set, fill_masked


class Video(nn.Module):
    """The frames of a clip and a bidirectional GRU's summary of them (PVSE, Song & Soleymani 2019, section 3.1).

    Locals: the frame features, each a frame's average-pooled cells from ``backbone``, or precomputed ones (``in_dim``,
    filled in from the data: then there is no backbone). Context: dropout of the GRU's, dim/2 units each way, joined:
    each direction's last state ("last"), the output at the last frame ("last_step", the released checkpoints), or the
    ``max`` or ``mean`` of its states. ``backbone``, ``weights``, ``freeze_epochs``, ``stage_epochs``, ``train_norm``,
    ``pixels`` and ``architecture`` as in :class:`vse.encoders.Grid`. For VSE∞, which pools projected frame features
    without a GRU, take :class:`vse.encoders.Regions`.

    Shapes: frames (B, T, 3, height, width), or features (B, T, in_dim), prefix mask (B, T) -> features (B, T, channels)
    and context (B, dim). Raises ValueError for another shape, an odd ``dim``, an unknown choice, an empty clip.

    >>> Video(dim=512, backbone="resnet18")(torch.randn(2, 8, 3, 224, 224)).features.shape
    torch.Size([2, 8, 512])
    """

    reads = ("frames", "features")  # what the data may provide

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
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even to concatenate two directions, got {dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if context not in get_args(Context):
            raise ValueError(f"context must be one of {get_args(Context)}, got {context!r}")
        self.in_dim, self.context = in_dim, context
        self.architecture = None
        if in_dim is None:
            self.unfreezing = Unfreezing(freeze_epochs, stage_epochs)
            self.normalise = Normalise(pixels)
            self.backbone = make_backbone(backbone, weights, architecture, train_norm, pixels)
            self.architecture = self.backbone.architecture
        self.dim = self.backbone.dim if in_dim is None else in_dim
        self.context_dim = dim
        self.gru = nn.GRU(self.dim, dim // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def set_epoch(self, epoch: int) -> None:
        """Freeze what is not yet trained; epochs count from 0."""
        if self.in_dim is None:
            self.unfreezing(self.backbone.stages, epoch)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of clips."""
        if self.in_dim is not None:
            check_set(inputs, mask, prefix=True, dim=self.in_dim)
            frames = fill_masked(inputs, mask)
        else:
            frames = self._encode_frames(inputs, mask)
        _, context = read_sequence(self.gru, frames, mask, self.context, average=False, states=False)
        return FeatureSet(frames, mask, self.dropout(context))

    def _encode_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Average-pooled cells (B, T, channels) of the real frames; padding costs nothing."""
        if frames.dim() != 5 or 0 in frames.shape:
            raise ValueError(f"frames must be a non-empty (B, T, 3, height, width) tensor, got {tuple(frames.shape)}")
        if mask is None:
            real = frames.flatten(0, 1)
        else:
            check_mask(mask, frames.shape[:2], prefix=True)
            real = frames[mask]
        pooled = self.backbone(self.normalise(real)).mean(1)
        if mask is None:
            return pooled.unflatten(0, frames.shape[:2])
        features = torch.zeros(*frames.shape[:2], self.dim, dtype=pooled.dtype, device=pooled.device)
        features[mask] = pooled
        return features
