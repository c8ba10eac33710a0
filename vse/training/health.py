"""Warnings about silent failures: collapsed sets, a loss that does not move, parameters that nothing uses."""

import math

import torch
from torch import Tensor, nn

from vse.console import warn
from vse.losses import Criterion, TripletLoss
from vse.runtime import keep_random_state
from vse.set_health import Similarity, constant_share, set_health
from vse.sets import Aggregated

_PATIENCE = 100  # steps in a bad state before it is worth a line
_LOGS = 2  # logged steps in a bad state before it is worth a line: a single one may be chance
_LONG = 100  # logged steps after which sets that were nearly equal from the start are worth a line
_EQUAL = -10.0  # log variance below which embeddings are nearly equal: in a set of four, cosines of about 0.9999
_FALL = 2.0  # how far below its value at the start the log variance of a collapsed set must be
_NEAR = 0.01  # relative distance to the loss of equal scores


@torch.no_grad()
def plateau_loss(criterion: Criterion, scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Compute the ranking loss of equal scores, at which training stays when nothing is learned.

    Args:
        criterion: The criterion, whose ranking loss is used.
        scores: Scores (A, C); all are replaced by their mean.
        positives: (A, C) bool, True where image and caption belong together.
        pairs: Rows and columns (2, P) of the positive pairs, if they are known.

    Returns:
        The loss, a scalar.
    """
    with keep_random_state(scores.device):  # a loss may draw random numbers
        return criterion.rank(scores.mean().expand_as(scores), positives, pairs)


def batch_health(similarity: Similarity, positives: Tensor, image: Aggregated, text: Aggregated) -> dict[str, Tensor]:
    """Measure the embedding sets of a batch.

    Args:
        similarity: The model's similarity.
        positives: Which caption describes which image, (A, C) bool.
        image: The result of the image tower.
        text: The result of the text tower.

    Returns:
        The result of :func:`vse.set_health.set_health`, and for sides with several residuals, of which all samples have
        the same number, ``{side}_constant_share`` (:func:`vse.set_health.constant_share`).
    """
    sides = image.embeddings.float(), text.embeddings.float()
    health = set_health(*sides, positives.int().argmax(0), similarity, image.mask, text.mask)
    for side, result in (("image", image), ("text", text)):
        if result.residual is not None and result.residual.shape[1] > 1 and result.mask is None:
            health[f"{side}_constant_share"] = constant_share(result.residual)
    return health


class HealthMonitor:
    """Prints a warning on stderr, once for each kind of silent failure.

    Args:
        model: The model that is trained.
        criterion: Its criterion.

    Attributes:
        start: The sets' health at the first step of the run, before any update; {} when it is not known.
    """

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        self.model = model
        self.hint = "a lower optim.lr may help"
        if isinstance(criterion.ranking, TripletLoss):
            self.hint += ", or all negatives in the first epochs (loss.ranking.warmup_epochs)"
        self.start: dict[str, float] = {}
        self._steps: dict[str, int] = {}  # how many steps, and logged steps, each bad state has lasted
        self._logs: dict[str, int] = {}
        self._said: set[str] = set()

    def check_parameters(self) -> None:
        """Warn of trained parameters that a backward pass has left without a gradient."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._say(names[0], f"{names[0]}{more}: nothing in the model uses these parameters, they are not trained")

    def check(self, logged: dict[str, float], steps: int) -> None:
        """Warn of collapsed sets, and of a ranking loss that stays at its plateau.

        A set has collapsed when its embeddings are nearly equal and were further apart at the start of the run, at
        every logged step over 100 steps. Some aggregators begin with nearly equal embeddings (an untrained PIE-Net for
        text has a log variance of -10.9). For these there is a warning if they are still so close after 100 logged
        steps. The number of embeddings used is ignored, since a similarity gives equal embeddings equal weights.

        Args:
            logged: The logged step's "ranking" loss, its "plateau" (:func:`plateau_loss`), and its sets' health.
            steps: Number of steps since the last logged one.
        """
        lines = {}
        for side in ("image", "text"):
            variance = logged.get(f"{side}_log_variance", 0.0)
            start = self.start.get(f"{side}_log_variance", -math.inf)
            if variance < _EQUAL:
                equal = f"the embeddings of each {side} are nearly equal (log within-set variance {variance:.1f}"
                lines[f"{side}s never parted"] = f"{equal}): training has not parted them"
                if variance < start - _FALL:
                    lines[f"{side}s collapsed"] = f"{equal}, {start:.1f} at the start): the set has collapsed"
        if abs(logged["ranking"] - logged["plateau"]) < _NEAR * logged["plateau"]:
            lines["plateau"] = (
                f"the ranking loss stays at {logged['ranking']:.4g}, as if all scores were equal: nothing is learned; "
                f"{self.hint}"
            )
        self._steps = {name: self._steps.get(name, 0) + steps for name in lines}
        self._logs = {name: self._logs.get(name, 0) + 1 for name in lines}
        for name, line in lines.items():
            logs = _LONG if name.endswith("never parted") else _LOGS
            if self._steps[name] >= _PATIENCE and self._logs[name] >= logs:
                self._say(name.split()[0], line)

    def _say(self, subject: str, line: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            warn(line)
