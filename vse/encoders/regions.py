"""Precomputed region features."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vse.errors import check_at_least, check_choice, check_probability
from vse.sets import FeatureSet, MaskedBatchNorm, check_set, fill_masked, masked_max, masked_mean

Mlp = Literal["input", "projection"]
Locals = Literal["projected", "raw"]
Context = Literal["max", "mean"]
Init = Literal["xavier", "torch"]


class Regions(nn.Module):
    """Region features and their projection V (VSE∞, Chen et al. 2021, section 4.1; DivE, Kim et al. 2023).

    V = fc(X) + mlp(X), where mlp is Linear(-> dim / 2), BatchNorm, ReLU, Linear(-> dim). In training every region is
    dropped with probability ``drop``, which the papers call size augmentation. A dropped region also takes no part in
    the context and in BatchNorm's statistics. At least one region of every sample is kept.

    With ``self_attention`` the regions then attend to each other (CHAN, Pan et al. 2023, its released image encoder):
    V + MHA(LayerNorm(V)), with biases and without dropout. Masked regions are not attended to. The released code has no
    mask here, so in training its regions attend to dropped ones.

    Args:
        in_dim: Width of the region features X; filled in from the data.
        dim: Width of V; filled in from ``model.embed_dim``.
        mlp: What the mlp reads: X ("input"; VSE∞, VSE-2AD) or fc(X) ("projection"; DivE). None means no mlp (PVSE,
            VSE++).
        features: The local features: V ("projected") or X ("raw"; PVSE). Raw features without a context need no
            projection, so ``dim``, ``mlp`` and ``init`` then have no effect.
        context: The context: the "max" (DivE) or "mean" (PVSE) of V, or none.
        dropout: Probability of dropout on V, or on the context when the features are raw (PVSE).
        drop: Probability with which each region is dropped in training.
        init: Initialisation of fc: "xavier", uniform in ±sqrt(6 / (in_dim + dim)) with a bias of 0 (VSE∞, VSE-2AD), or
            "torch", uniform in ±1 / sqrt(in_dim) for both (PVSE, DivE). The mlp and the attention always have torch's
            initialisation.
        drop_after: Whether regions are dropped after the encoding (ESA, Zhu et al. 2023): fc, mlp, BatchNorm and the
            self-attention see all of them, the context and the aggregator only those that are kept.
        self_attention: Whether the regions attend to each other at the end.
        heads: Number of heads of the self-attention.

    Inputs are X (B, N, in_dim) and a mask (B, N). The features are (B, N, dim), or (B, N, in_dim) when they are raw;
    their mask lacks the dropped regions; the context is (B, dim) or None.

    Raises:
        ValueError: A size is too small, a choice is unknown, a probability is outside [0, 1), there is dropout but
            nothing that it could act on, raw features are to attend, or ``heads`` does not divide ``dim``. In the call:
            the width is not ``in_dim``, or a set is empty.

    >>> Regions(in_dim=2048, dim=1024, drop=0.2)(torch.randn(2, 36, 2048)).features.shape
    torch.Size([2, 36, 1024])
    """

    reads: tuple[str, ...] = ("features",)

    def __init__(
        self,
        in_dim: int,
        dim: int,
        mlp: Mlp | None = "input",
        features: Locals = "projected",
        context: Context | None = None,
        dropout: float = 0.0,
        drop: float = 0.0,
        init: Init = "xavier",
        drop_after: bool = False,
        self_attention: bool = False,
        heads: int = 8,
    ) -> None:
        super().__init__()
        check_at_least("in_dim", in_dim, 1)
        check_at_least("dim", dim, 2)
        check_probability("drop", drop)
        check_probability("dropout", dropout)
        check_choice("mlp", mlp, (*get_args(Mlp), None))
        check_choice("features", features, get_args(Locals))
        check_choice("context", context, (*get_args(Context), None))
        check_choice("init", init, get_args(Init))
        projects = features == "projected" or context is not None
        if dropout > 0 and not projects:
            raise ValueError(f"dropout must be 0 for raw features without a context, got {dropout}")
        if self_attention and features == "raw":
            raise ValueError("self_attention needs projected features, got raw ones")
        if self_attention and (heads < 1 or dim % heads):
            raise ValueError(f"heads must divide the width of the features, {dim}, got {heads}")
        self.in_dim, self.drop, self.drop_after = in_dim, drop, drop_after
        self.mlp, self.features, self.context = mlp, features, context
        self.dim = dim if features == "projected" else in_dim
        self.context_dim = None if context is None else dim
        self.dropout = nn.Dropout(dropout)
        if projects:
            self._make_projection(dim, init)
        self.attention: nn.MultiheadAttention | None = None
        if self_attention:
            self.attention_norm = nn.LayerNorm(dim)
            self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def _make_projection(self, dim: int, init: Init) -> None:
        self.fc = nn.Linear(self.in_dim, dim)
        if self.mlp is not None:
            self.hidden = nn.Linear(self.in_dim if self.mlp == "input" else dim, dim // 2)
            self.norm = MaskedBatchNorm(dim // 2)
            self.out = nn.Linear(dim // 2, dim)
        if init == "xavier":
            nn.init.xavier_uniform_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of region sets.

        Args:
            inputs: Region features X (B, N, in_dim).
            mask: (B, N), True on real regions; None when all are real.

        Returns:
            Features (B, N, dim) or (B, N, in_dim), the mask of the regions that are kept, and a context (B, dim) or
            None.

        Raises:
            ValueError: The width is not ``in_dim``, or a set is empty.
        """
        check_set(inputs, mask, dim=self.in_dim)
        kept = seen = mask
        if self.training and self.drop > 0:
            kept = drop_elements(inputs.shape[:2], mask, self.drop, inputs.device)
            seen = mask if self.drop_after else kept
        inputs = fill_masked(inputs, seen)  # a NaN in a masked place must not reach the weights' gradients
        if self.features == "raw":
            return FeatureSet(inputs, kept, self._summarise_raw(inputs, seen, kept))
        projected = self._attend(self.dropout(self._project(inputs, seen)), seen)
        if self.context is None:
            return FeatureSet(projected, kept)
        return FeatureSet(projected, kept, self._pool(projected, kept))

    def _summarise_raw(self, inputs: Tensor, seen: Tensor | None, kept: Tensor | None) -> Tensor | None:
        """Context of features that stay raw; ``seen`` is the mask of the encoding, ``kept`` that of the context."""
        if self.context is None:
            return None
        if self.context == "mean" and self.mlp is None:
            # fc is linear, so the mean of the projections is the projection of the mean. The second projects one row
            # per sample instead of N, which saves most of the work of PVSE's image head.
            return self.dropout(self.fc(masked_mean(inputs, kept)))
        return self.dropout(self._pool(self._project(inputs, seen), kept))

    def _project(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """V, before dropout."""
        projected: Tensor = self.fc(inputs)
        if self.mlp is None:
            return projected
        read = inputs if self.mlp == "input" else projected
        return projected + self.out(self.norm(self.hidden(read), mask).relu())

    def _attend(self, projected: Tensor, mask: Tensor | None) -> Tensor:
        """V + MHA(LayerNorm(V)), or V without self-attention."""
        if self.attention is None:
            return projected
        normed = self.attention_norm(projected)
        padding = None if mask is None else ~mask
        attended: Tensor = self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)[0]
        return projected + attended

    def _pool(self, projected: Tensor, mask: Tensor | None) -> Tensor:
        return masked_max(projected, mask) if self.context == "max" else masked_mean(projected, mask)


def drop_elements(shape: torch.Size, mask: Tensor | None, probability: float | Tensor, device: torch.device) -> Tensor:
    """Draw which elements of each set are kept; at least one real element always is.

    Args:
        shape: Size (B, N) of the mask to make.
        mask: Which elements are real (B, N), bool. None means that all are.
        probability: Probability with which a real element is dropped: one for all samples, or (B, 1), one for each.
        device: Where the mask is made.

    Returns:
        The mask (B, N) of the kept elements.

    >>> drop_elements(torch.Size([2, 5]), None, 0.2, torch.device("cpu")).any(1).tolist()
    [True, True]
    """
    draw = torch.rand(shape, device=device)
    if mask is not None:
        draw = draw.masked_fill(~mask, -1.0)
    # The element with the largest draw is kept even if all draws are below the threshold.
    return (draw >= probability) | (draw == draw.amax(1, keepdim=True))
