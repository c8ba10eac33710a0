"""A ranking loss and weighted terms, joined."""

from collections.abc import Callable

from torch import Tensor, nn

from vse.sets import Aggregated


class Criterion(nn.Module):
    """A ranking loss plus weighted terms: total = ramp * (ranking + sum_t weight_t * term_t(image, text)).

    The ramp is 1, but in the epoch ``ramp_epoch`` it rises linearly from 0: that is the first epoch in which VSE∞
    trains its backbone.

    Args:
        ranking: A loss on scores and positives.
        terms: Weight and term by name; a term may be a module with parameters of its own.
        ramp_epoch: The epoch in which the total rises from 0, counted from 0; None for none.

    >>> from vse.losses import TripletLoss
    >>> same = Aggregated(torch.ones(2, 1, 4))
    >>> sorted(Criterion(TripletLoss())(torch.eye(2), torch.eye(2, dtype=torch.bool), same, same))
    ['ranking', 'total']
    """

    def __init__(
        self,
        ranking: Callable[[Tensor, Tensor], Tensor],
        terms: dict[str, tuple[float, Callable[[Aggregated, Aggregated], Tensor]]] | None = None,
        ramp_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.ranking = ranking
        self.ramp_epoch = ramp_epoch
        self.ramp = 1.0
        self.terms = dict(terms or {})
        self.term_modules = nn.ModuleList(t for _, t in self.terms.values() if isinstance(t, nn.Module))

    def set_time(self, time: float) -> None:
        """Set the ramp for a time in epochs, a real number that counts from 0."""
        rising = self.ramp_epoch is not None and self.ramp_epoch <= time < self.ramp_epoch + 1
        self.ramp = time % 1 if rising else 1.0

    def forward(self, scores: Tensor, positives: Tensor, image: Aggregated, text: Aggregated) -> dict[str, Tensor]:
        """Judge a batch.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            image: What the image tower returns.
            text: What the text tower returns.

        Returns:
            "total", and for the logs "ranking" and each term by its name, unweighted.
        """
        parts = {"ranking": self.ranking(scores, positives)}
        total = parts["ranking"]
        for name, (weight, term) in self.terms.items():
            parts[name] = term(image, text)
            total = total + weight * parts[name]
        return {"total": self.ramp * total, **parts}
