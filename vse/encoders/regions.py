"""Precomputed region features."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vse.sets import FeatureSet, MaskedBatchNorm, check_set, fill_masked, masked_max, masked_mean

Mlp = Literal["input", "projection"]
Locals = Literal["projected", "raw"]
Context = Literal["max", "mean"]


class Regions(nn.Module):
    """Projected region features V (VSE∞, Chen et al. 2021, section 4.1; DivE, Kim et al. 2023, its released code).

    V = fc(X) + mlp(X), where mlp = Linear(-> dim/2), BatchNorm, ReLU, Linear(dim/2 -> dim) reads X
    (``mlp: input``; VSE∞, VSE-2AD) or fc(X) (``projection``; DivE), or is left out (``null``; PVSE, VSE++).
    ``features``: V, or the ``raw`` X (PVSE, whose V only makes the context). ``context``: the ``max`` (DivE) or
    ``mean`` (PVSE) of V, or none. ``dropout`` acts on V, or, when the features are raw, on the context.
    In training each region is dropped with probability ``drop`` (the papers' size augmentation), never all of a
    sample's; dropped regions are absent from the context and from BatchNorm's statistics too.

    Shapes: X (B, N, in_dim), mask (B, N) -> features (B, N, dim), or (B, N, in_dim) for ``raw``, the mask without the
    dropped regions, context (B, dim) or None. Raises ValueError for sizes below 1, an unknown choice, raw features
    without a context, probabilities outside [0, 1), another width than in_dim, an empty set.

    >>> Regions(in_dim=2048, dim=1024, drop=0.2)(torch.randn(2, 36, 2048)).features.shape
    torch.Size([2, 36, 1024])
    """

    reads = "features"  # what the data must provide

    def __init__(
        self,
        in_dim: int,
        dim: int,
        mlp: Mlp | None = "input",
        features: Locals = "projected",
        context: Context | None = None,
        dropout: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if in_dim < 1 or dim < 2:
            raise ValueError(f"in_dim must be at least 1 and dim at least 2, got {in_dim} and {dim}")
        for name, probability in (("drop", drop), ("dropout", dropout)):
            if not 0 <= probability < 1:
                raise ValueError(f"{name} must be in [0, 1), got {probability}")
        for name, choice, choices in (
            ("mlp", mlp, (*get_args(Mlp), None)),
            ("features", features, get_args(Locals)),
            ("context", context, (*get_args(Context), None)),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {choice!r}")
        if features == "raw" and context is None:
            raise ValueError("context must be 'max' or 'mean' when the features are raw: nothing else uses the weights")
        self.in_dim, self.drop = in_dim, drop
        self.mlp, self.features, self.context = mlp, features, context
        self.dim = dim if features == "projected" else in_dim
        self.context_dim = None if context is None else dim
        self.fc = nn.Linear(in_dim, dim)
        if mlp is not None:
            self.hidden = nn.Linear(in_dim if mlp == "input" else dim, dim // 2)
            self.norm = MaskedBatchNorm(dim // 2)
            self.out = nn.Linear(dim // 2, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Project a batch of region sets."""
        check_set(inputs, mask, dim=self.in_dim)
        if self.training and self.drop > 0:
            mask = drop_elements(inputs.shape[:2], mask, self.drop, inputs.device)
        inputs = fill_masked(inputs, mask)  # a NaN in a masked place must not reach the weights' gradients
        if self.features == "raw" and self.mlp is None and self.context == "mean":
            return FeatureSet(inputs, mask, self.dropout(self.fc(masked_mean(inputs, mask))))  # the same, N times less
        projected = self.fc(inputs)
        if self.mlp is not None:
            read = inputs if self.mlp == "input" else projected
            projected = projected + self.out(self.norm(self.hidden(read), mask).relu())
        if self.features == "projected":
            projected = self.dropout(projected)
        context = None
        if self.context is not None:
            context = (masked_max if self.context == "max" else masked_mean)(projected, mask)
        if self.features == "projected":
            return FeatureSet(projected, mask, context)
        return FeatureSet(inputs, mask, self.dropout(context))


def drop_elements(shape: torch.Size, mask: Tensor | None, probability: float | Tensor, device: torch.device) -> Tensor:
    """Mask (B, N) that keeps each real element with 1 - probability, and always at least one per sample.

    ``probability``: one for all, or (B, 1), one per sample.
    """
    draw = torch.rand(shape, device=device)
    if mask is not None:
        draw = draw.masked_fill(~mask, -1.0)
    # The largest draw stays even below the threshold: that happens just when all would go.
    return (draw >= probability) | (draw == draw.amax(1, keepdim=True))
