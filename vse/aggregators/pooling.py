"""Parameter-free pooling: one embedding per set."""

from torch import Tensor, nn

from vse.sets import Aggregated, check_set, count_elements, lengths_to_mask, masked_max, masked_mean, masked_sort


class GlobalContext(nn.Module):
    """The encoder's own global vector, untouched (VSE++, Faghri et al. 2018: the last GRU state).

    Shapes: features (B, N, D), mask (B, N), context (B, C) -> embeddings (B, 1, C); without a context, the masked
    mean (B, 1, D). Raises ValueError for an empty set or a wrong shape.

    >>> GlobalContext()(torch.randn(2, 5, 8), context=torch.ones(2, 8)).embeddings[:, 0]
    """

    returns_context = True  # its embeddings are as wide as the context, not as the features

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Return the context as the only embedding."""
        check_set(features, mask)
        return Aggregated(set_context(features, mask, context).unsqueeze(1))


class MeanPool(nn.Module):
    """Mean over the real elements: e_d = (1/n) sum_i x_id.

    Shapes: features (B, N, D), mask (B, N) -> embeddings (B, 1, D). Raises ValueError for an empty set or a wrong
    shape.

    >>> MeanPool()(torch.randn(2, 5, 8)).embeddings[:, 0]
    """

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool; ``context`` is not used."""
        check_set(features, mask)
        return Aggregated(masked_mean(features, mask).unsqueeze(1))


class MaxPool(nn.Module):
    """Maximum of each dimension over the real elements: e_d = max_i x_id.

    Shapes: features (B, N, D), mask (B, N) -> embeddings (B, 1, D). Raises ValueError for an empty set or a wrong
    shape.

    >>> MaxPool()(torch.randn(2, 5, 8)).embeddings[:, 0]
    """

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool; ``context`` is not used."""
        check_set(features, mask)
        return Aggregated(masked_max(features, mask).unsqueeze(1))


class KMaxPool(nn.Module):
    """Mean of the k largest values of each dimension (VSE∞, Chen et al. 2021, section 3.1).

    e_d = (1/m) sum_{j<=m} x_(j)d with m = min(k, n): a set with fewer than k elements is averaged whole.
    Shapes: features (B, N, D), mask (B, N) -> embeddings (B, 1, D). Raises ValueError when k < 1, for an empty set or
    a wrong shape.

    >>> KMaxPool(k=3)(torch.randn(2, 5, 8)).embeddings[:, 0]
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool; ``context`` is not used."""
        check_set(features, mask)
        ranked, _ = masked_sort(features, mask)
        kept = count_elements(features, mask).clamp(max=self.k)
        ranked = ranked[:, : self.k]
        return Aggregated(masked_mean(ranked, lengths_to_mask(kept, ranked.shape[1])).unsqueeze(1))

    def extra_repr(self) -> str:  # noqa: D102
        return f"k={self.k}"


def set_context(
    features: Tensor,
    mask: Tensor | None,
    context: Tensor | None,
    dim: int | None = None,
    project: nn.Linear | None = None,
) -> Tensor:
    """Return the context (B, dim) of a batch of sets: the given one, else the masked mean; then through ``project``.

    Raises ValueError unless it is ``dim`` wide (before ``project``: as wide as that reads).
    """
    given = context is not None
    if context is None:
        context = masked_mean(features, mask)
    dim = dim if project is None else project.in_features
    if context.dim() != 2 or len(context) != len(features) or dim not in (None, context.shape[1]):
        name = "context" if given else "without a context the masked mean stands in, which"
        hint = "" if dim is None else "; see project_context"
        raise ValueError(f"{name} must be ({len(features)}, {dim or 'C'}), got shape {tuple(context.shape)}{hint}")
    return context if project is None else project(context)
