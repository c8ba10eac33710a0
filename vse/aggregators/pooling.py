"""Parameter-free pooling: one embedding per set."""

from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sets import (
    Aggregated,
    check_set,
    close_gaps,
    count_elements,
    lengths_to_mask,
    masked_max,
    masked_mean,
    masked_sort,
)


class GlobalContext(nn.Module):
    """The encoder's own global vector, untouched (VSE++, Faghri et al. 2018: the last state of the GRU).

    >>> GlobalContext()(torch.randn(2, 5, 8), context=torch.ones(2, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    returns_context = True  # its embeddings are as wide as the context, not as the features

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Return the context as the only embedding.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: The global vectors (B, C); None for the mean of the real elements.

        Returns:
            Embeddings (B, 1, C), or (B, 1, D) without a context.

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        return Aggregated(set_context(features, mask, context).unsqueeze(1))


class FirstElement(nn.Module):
    """The first real element alone, e = x_1: the "CLS" pooling of VSE∞'s comparison (Chen et al. 2021, figure 4).

    For BERT the first element is the [CLS] token; for a BiGRU it is the first word.

    >>> FirstElement()(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Return the first real element as the only embedding.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        return Aggregated(close_gaps(features, mask)[0][:, :1])


class MeanPool(nn.Module):
    """Mean of each dimension over the real elements: e_d = (1/n) sum_i x_id.

    >>> MeanPool()(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        return Aggregated(masked_mean(features, mask).unsqueeze(1))


class MaxPool(nn.Module):
    """Maximum of each dimension over the real elements: e_d = max_i x_id.

    >>> MaxPool()(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        return Aggregated(masked_max(features, mask).unsqueeze(1))


class KMaxPool(nn.Module):
    """Mean of the k largest values of each dimension (VSE∞, Chen et al. 2021, section 3.1).

    e_d = (1/m) sum_{j<=m} x_(j)d with m = min(k, n), where x_(1)d >= x_(2)d >= ...: a set with fewer than k elements
    is averaged whole.

    Args:
        k: Number of values that are averaged.

    Raises:
        ValueError: ``k`` is below 1.

    >>> KMaxPool(k=3)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        check_at_least("k", k, 1)
        self.k = k

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        ranked, _ = masked_sort(features, mask)
        kept = count_elements(features, mask).clamp(max=self.k)
        return Aggregated(masked_mean(ranked, lengths_to_mask(kept, ranked.shape[1])).unsqueeze(1))

    def extra_repr(self) -> str:
        """Show k where the module is printed."""
        return f"k={self.k}"


def set_context(
    features: Tensor,
    mask: Tensor | None,
    context: Tensor | None,
    dim: int | None = None,
    project: nn.Linear | None = None,
) -> Tensor:
    """Return the context of a batch of sets: the given one, or else the mean of the real elements.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.
        context: The global vectors (B, C), or None.
        dim: The width that the context must have; None for any. With ``project``, its input width counts instead.
        project: A learned map that the context goes through.

    Returns:
        Context (B, dim).

    Raises:
        ValueError: The context, or the mean in its place, has another width or batch size.

    >>> set_context(torch.randn(2, 5, 8), None, None, dim=8).shape
    torch.Size([2, 8])
    """
    given = context is not None
    if context is None:
        context = masked_mean(features, mask)
    dim = dim if project is None else project.in_features
    if context.dim() != 2 or context.shape[0] != features.shape[0] or dim not in (None, context.shape[1]):
        name = "context" if given else "the masked mean, which replaces the missing context,"
        hint = "" if dim is None else "; see project_context"
        raise ValueError(f"{name} must be ({len(features)}, {dim or 'C'}), got shape {tuple(context.shape)}{hint}")
    return context if project is None else project(context)
