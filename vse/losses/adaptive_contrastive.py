"""The adaptive objective of VSE-2AD."""

from typing import Literal

import torch
from torch import Tensor, nn

from vse.errors import check_at_least, check_positive
from vse.losses.pairs import pair_cross_entropy, positive_pairs
from vse.sets import at_least_float32


class AdaptiveContrastiveLoss(nn.Module):
    """Contrastive loss against the n hardest negatives, n chosen by the state of the embedding space (AdOpt).

    VSE-2AD, Zhang et al. 2023 (EACL), its adaptive objective. With a the mean score of the positive pairs, u the
    mean over all scores of exp(-s), the positives counting as s = 0 (both without gradient), B candidates of a query:
    n = clip(floor(B cos((a + u)^gamma)) + 1, 1, B - 1). Each positive pair costs the cross-entropy, at the
    ``temperature``, of its score against the query's n hardest negatives, whose scores get ``margin`` added; mean over
    the positive pairs, averaged over both directions. Scores in half precision are converted to float32.

    Args:
        gamma: How fast n shrinks as the space improves.
        margin: What is added to the negatives' scores.
        temperature: What scores are divided by.
        negatives: "adaptive", "random" (n uniform in 1..B-1, one draw per direction and batch) or a constant n.
        released: Whether to follow the published code, which takes the n largest scores with the positive as 0: when
            fewer than n negatives score above 0, the positive enters among its own negatives.

    Raises:
        ValueError: ``gamma`` or ``temperature`` is not positive, ``margin`` is negative, or ``negatives`` is neither
            a known name nor a number of at least 1.

    >>> AdaptiveContrastiveLoss()(torch.eye(4), torch.eye(4, dtype=torch.bool)) < 1e-5
    tensor(True)
    """

    def __init__(
        self,
        gamma: float = 1.25,
        margin: float = 0.2,
        temperature: float = 0.05,
        negatives: int | Literal["adaptive", "random"] = "adaptive",
        released: bool = False,
    ) -> None:
        super().__init__()
        check_positive("gamma", gamma)
        check_positive("temperature", temperature)
        check_at_least("margin", margin, 0)
        if negatives not in ("adaptive", "random") and (type(negatives) is not int or negatives < 1):
            raise ValueError(f"negatives must be 'adaptive', 'random' or a number of at least 1, got {negatives!r}")
        self.gamma, self.margin, self.temperature = gamma, margin, temperature
        self.negatives, self.released = negatives, released

    def forward(self, scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Judge a batch.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            pairs: Rows and columns (2, P) of the positive pairs; found in ``positives`` if they are not given.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: A shape or type is wrong, or no pair is positive.
        """
        rows, columns = positive_pairs(scores, positives, pairs)
        scores = at_least_float32(scores)
        left = self._direction(scores, positives, rows, columns)
        return (left + self._direction(scores.T, positives.T, columns, rows)) / 2

    @torch.no_grad()
    def count_negatives(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Choose n, the number of negatives of each row.

        Args:
            scores: Scores (A, C) of queries and candidates.
            positives: (A, C) bool, True where they belong together.

        Returns:
            n, an integer tensor without shape.
        """
        size = scores.shape[1]
        if self.negatives == "random":
            return torch.randint(1, max(2, size), (), device=scores.device)
        if self.negatives != "adaptive":
            return torch.full((), min(int(self.negatives), size), device=scores.device)
        alignment = scores.masked_fill(~positives, 0.0).sum() / positives.sum()
        uniformity = (-scores.masked_fill(positives, 0.0)).exp().mean()
        share = (alignment + uniformity).clamp(min=0.0).pow(self.gamma).cos()
        return (share * size).floor().long().add(1).clamp(max=size - 1).clamp(min=1)

    def _direction(self, scores: Tensor, positives: Tensor, query: Tensor, match: Tensor) -> Tensor:
        """Loss of the rows' queries against the columns; pair p is (query[p], match[p])."""
        ranking = scores.detach().masked_fill(positives, 0.0 if self.released else float("-inf"))
        value, index = ranking.sort(dim=1, descending=True)
        chosen = torch.arange(scores.shape[1], device=scores.device) < self.count_negatives(scores, positives)
        negatives = (scores.gather(1, index) + self.margin) / self.temperature
        negatives = negatives.masked_fill(~chosen | (value == float("-inf")), float("-inf"))
        return pair_cross_entropy(scores[query, match] / self.temperature, negatives, query)

    def extra_repr(self) -> str:
        """Show the settings where the module is printed."""
        return f"gamma={self.gamma}, margin={self.margin}, temperature={self.temperature}, negatives={self.negatives}"
