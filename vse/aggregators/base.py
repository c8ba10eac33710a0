"""The contract of an aggregator."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vse.sets import Aggregated


class Aggregator(Protocol):
    """Turns a batch of sets of local features into K embeddings per sample.

    Any ``nn.Module`` with this call is an aggregator, wherever it is defined. It may also have the attributes that
    :class:`AggregatorTraits` lists.

    >>> class First(nn.Module):
    ...     def forward(self, features, mask=None, context=None):
    ...         return Aggregated(features[:, :1])
    """

    def __call__(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Aggregate a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: The encoder's global vectors (B, C), or None.

        Returns:
            Embeddings (B, K, H), and whatever else the aggregator computes.
        """
        ...


class AggregatorTraits(NamedTuple):
    """The optional attributes of an aggregator, with the values that hold for one that does not have them."""

    out_dim: int | None = None  # width of the embeddings; None: that of the features or of the context
    returns_context: bool = False  # whether the embedding is the context, and so has the context's width
    padding_counts: bool = False  # whether padding changes a result, as in some released codes
    grid: tuple[int, int] | None = None  # height and width, if its features must be the cells of a grid
    num_embeddings: int | None = None  # the number K of embeddings; None: it depends on the settings or the inputs
    keeps_elements: bool = False  # whether each element becomes one embedding, in the same order


def traits_of(aggregator: nn.Module) -> AggregatorTraits:
    """Return the optional attributes of an aggregator; this is the only place that knows their defaults.

    >>> traits_of(nn.Identity()).padding_counts
    False
    """
    defaults = AggregatorTraits()
    told: dict[str, Any] = {name: getattr(aggregator, name, default) for name, default in defaults._asdict().items()}
    return AggregatorTraits(**told)
