"""Precomputed region features."""

import torch
from torch import Tensor, nn

from vse.sets import FeatureSet, MaskedBatchNorm, check_set, fill_masked


class Regions(nn.Module):
    """Projected region features (VSE∞, Chen et al. 2021, section 4.1 and its released code).

    V = fc(X) + mlp(X), with mlp = Linear(in_dim -> dim/2), BatchNorm, ReLU, Linear(dim/2 -> dim). In training each
    region is dropped with probability ``drop`` (the paper's size augmentation), never all of a sample's; dropped
    regions are absent from BatchNorm's statistics too.

    Shapes: X (B, N, in_dim), mask (B, N) -> features (B, N, dim), the mask without the dropped regions, no context.
    Raises ValueError for sizes below 1, ``drop`` outside [0, 1), another width than in_dim, an empty set.

    >>> Regions(in_dim=2048, dim=1024, drop=0.2)(torch.randn(2, 36, 2048)).features.shape
    torch.Size([2, 36, 1024])
    """

    reads = "features"  # what the data must provide
    context_dim = None

    def __init__(self, in_dim: int, dim: int, drop: float = 0.0) -> None:
        super().__init__()
        if in_dim < 1 or dim < 2:
            raise ValueError(f"in_dim must be at least 1 and dim at least 2, got {in_dim} and {dim}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {drop}")
        self.in_dim, self.dim, self.drop = in_dim, dim, drop
        self.fc = nn.Linear(in_dim, dim)
        self.hidden = nn.Linear(in_dim, dim // 2)
        self.norm = MaskedBatchNorm(dim // 2)
        self.out = nn.Linear(dim // 2, dim)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Project a batch of region sets."""
        check_set(inputs, mask)
        if inputs.shape[2] != self.in_dim:
            raise ValueError(f"regions must be {self.in_dim} wide, got {inputs.shape[2]}")
        if self.training and self.drop > 0:
            mask = drop_elements(inputs.shape[:2], mask, self.drop, inputs.device)
        inputs = fill_masked(inputs, mask)  # a NaN in a masked place must not reach the weights' gradients
        residual = self.out(self.norm(self.hidden(inputs), mask).relu())
        return FeatureSet(self.fc(inputs) + residual, mask)


def drop_elements(shape: torch.Size, mask: Tensor | None, probability: float, device: torch.device) -> Tensor:
    """Mask (B, N) that keeps each real element with 1 - probability, and always at least one per sample."""
    draw = torch.rand(shape, device=device)
    if mask is not None:
        draw = draw.masked_fill(~mask, -1.0)
    # The largest draw stays even below the threshold: that happens just when all would go.
    return (draw >= probability) | (draw == draw.amax(1, keepdim=True))
