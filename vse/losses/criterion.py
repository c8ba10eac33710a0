"""The sum of a ranking loss and weighted terms."""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from vse.sets import Aggregated


class ScoreTable(NamedTuple):
    """What a ranking loss judges.

    Attributes:
        scores: Scores (A, C), images by captions.
        positives: (A, C) bool, True where image and caption belong together.
        pairs: Rows and columns (2, P) of the positive pairs, if they are known.
    """

    scores: Tensor
    positives: Tensor
    pairs: Tensor | None = None


class Criterion(nn.Module):
    """A ranking loss plus weighted terms: total = ramp * (ranking + sum_t weight_t * term_t(image, text)).

    The ramp is 1, except that it rises linearly from 0 to 1 during the epoch ``ramp_epoch``. VSE∞ uses it in the first
    epoch in which the backbone is trained.

    Args:
        ranking: A loss on scores and positives.
        terms: The weight and the term by name. A term may be a module with parameters.
        ramp_epoch: The epoch of the ramp, counted from 0; None for no ramp.

    >>> from vse.losses import TripletLoss
    >>> same = Aggregated(torch.ones(2, 1, 4))
    >>> sorted(Criterion(TripletLoss())(torch.eye(2), torch.eye(2, dtype=torch.bool), same, same))
    ['ranking', 'total']
    """

    def __init__(
        self,
        ranking: Callable[..., Tensor],
        terms: dict[str, tuple[float, Callable[[Aggregated, Aggregated], Tensor]]] | None = None,
        ramp_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.ranking = ranking
        called = ranking.forward if isinstance(ranking, nn.Module) else ranking
        self.takes_pairs = "pairs" in inspect.signature(called).parameters
        self.ramp_epoch = ramp_epoch
        self.ramp = 1.0
        self.terms = dict(terms or {})
        self.term_modules = nn.ModuleList(t for _, t in self.terms.values() if isinstance(t, nn.Module))

    def whole_batch_parts(self) -> list[str]:
        """Name the parts that judge a batch as a whole, so that gradients must not be summed over batches.

        Such is every part without a class attribute ``accumulates = True``, by which a loss tells that its value for
        several batches together is the mean of its values for each.

        Returns:
            "ranking" for the ranking loss, and the names of the terms.
        """
        parts = {"ranking": self.ranking, **{name: term for name, (_, term) in self.terms.items()}}
        return [name for name, part in parts.items() if getattr(part, "accumulates", False) is not True]

    def set_time(self, time: float) -> None:
        """Set the ramp for a time in epochs, a real number that counts from 0."""
        rising = self.ramp_epoch is not None and self.ramp_epoch <= time < self.ramp_epoch + 1
        self.ramp = time % 1 if rising else 1.0

    def rank(self, scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Compute the ranking loss alone.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            pairs: Rows and columns (2, P) of the positive pairs, if they are known.

        Returns:
            The loss, a scalar.
        """
        if pairs is not None and self.takes_pairs:
            return self.ranking(scores, positives, pairs)
        return self.ranking(scores, positives)

    def rank_all(self, tables: Sequence[ScoreTable]) -> Tensor:
        """Compute the mean of the ranking losses of several score tables.

        Args:
            tables: The tables, at least one.

        Returns:
            The mean, a scalar.
        """
        total = self.rank(*tables[0])
        for table in tables[1:]:
            total = total + self.rank(*table)
        return total / len(tables)

    def forward(
        self,
        scores: Tensor,
        positives: Tensor,
        image: Aggregated,
        text: Aggregated,
        pairs: Tensor | None = None,
        tables: Sequence[ScoreTable] = (),
    ) -> dict[str, Tensor]:
        """Judge a batch.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            image: What the image tower returns.
            text: What the text tower returns.
            pairs: Rows and columns (2, P) of the positive pairs, if they are known.
            tables: What the ranking loss judges in place of the batch's own scores, such as a batch beside a queue.

        Returns:
            The loss as "total"; for the logs also "ranking" and each term by its name, without its weight.
        """
        parts = {"ranking": self.rank_all(tables or [ScoreTable(scores, positives, pairs)])}
        total = parts["ranking"]
        for name, (weight, term) in self.terms.items():
            parts[name] = term(image, text)
            total = total + weight * parts[name]
        return {"total": self.ramp * total, **parts}
