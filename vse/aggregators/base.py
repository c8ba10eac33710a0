"""What an aggregator is: the one contract that models and the assembly rely on."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vse.sets import Aggregated


class Aggregator(Protocol):
    """Turns a batch of sets of local features into K embeddings per sample.

    Any ``nn.Module`` with this call is an aggregator, wherever it is defined. What else an aggregator may tell of
    itself is listed in :class:`AggregatorTraits`.

    >>> class First(nn.Module):
    ...     def forward(self, features, mask=None, context=None):
    ...         return Aggregated(features[:, :1])
    """

    def __call__(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Aggregate features (B, N, D), a mask (B, N) and a context (B, C) into embeddings (B, K, H)."""
        ...


class AggregatorTraits(NamedTuple):
    """What an aggregator may tell of itself, with the defaults of one that tells nothing.

    An aggregator sets those that apply to it as attributes of the same names.
    """

    out_dim: int | None = None  # width of the embeddings; None = that of the features, or of what it returns
    returns_context: bool = False  # whether it returns the context, so that the embeddings are as wide as that
    padding_counts: bool = False  # whether padding changes a result, as in some released codes
    grid: tuple[int, int] | None = None  # height and width of the grid whose cells its features must be


def traits_of(aggregator: nn.Module) -> AggregatorTraits:
    """What an aggregator tells of itself; this is the only place that knows the defaults.

    >>> traits_of(nn.Identity()).padding_counts
    False
    """
    defaults = AggregatorTraits()
    told: dict[str, Any] = {name: getattr(aggregator, name, default) for name, default in defaults._asdict().items()}
    return AggregatorTraits(**told)
