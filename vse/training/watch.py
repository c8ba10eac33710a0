"""Whether embedding sets are still sets, and whether training has got stuck: both fail silently."""

import sys

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vse.losses import Criterion
from vse.set_health import set_health
from vse.sets import Aggregated

_PATIENCE = 100  # steps in a bad state before it is worth a line
_COLLAPSED = -10.0  # log variance: cosines inside a set of four about 0.9999; PIE-Net's -7.35 still tells them apart
_NEAR = 0.01  # relative distance to the loss of equal scores


@torch.no_grad()
def training_health(
    criterion: Criterion, scores: Tensor, positives: Tensor, image: Aggregated, text: Aggregated
) -> dict[str, Tensor]:
    """What :class:`Watch` reads of a training step: the sets' health, and the ranking loss's plateau.

    ``plateau`` is the loss if all pairs had the scores' mean as their score, where training sits when nothing is
    learned.
    """
    with torch.random.fork_rng(devices=[]):  # a loss may draw random numbers: training must not notice
        plateau = criterion.ranking(scores.mean().expand_as(scores), positives)
    return {"plateau": plateau, **set_health(image.embeddings, text.embeddings, positives.int().argmax(0))}


class Watch:
    """Says once, in one line on stderr, what goes wrong without an error."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        self.model = model
        self.hint = "a lower optim.lr may help"
        if hasattr(criterion.ranking, "warmup_epochs"):
            self.hint += ", or all negatives in the first epochs (loss.ranking.warmup_epochs)"
        self.steps: dict[str, int] = {}
        self.said: set[str] = set()

    def unused_parameters(self) -> None:
        """Warn of trained parameters that a backward pass has left without a gradient."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._say(names[0], f"{names[0]}{more}: nothing in the model uses these parameters, they are not trained")

    def training(self, means: dict[str, float], steps: int) -> None:
        """Warn of a collapsed set, and of a ranking loss at its plateau, from the means over the last ``steps``."""
        lines = {}
        for side in ("image", "text"):
            variance = means.get(f"{side}_log_variance", 0.0)
            if variance < _COLLAPSED:
                lines[side] = (
                    f"the embeddings of each {side} are nearly equal (log within-set variance {variance:.1f}): "
                    f"the set has collapsed to one embedding"
                )
        if abs(means["ranking"] - means["plateau"]) < _NEAR * means["plateau"]:
            lines["plateau"] = (
                f"the ranking loss stays at {means['ranking']:.4g}, as if all scores were equal: nothing is learned; "
                f"{self.hint}"
            )
        self.steps = {name: self.steps.get(name, 0) + steps for name in lines}
        for name, line in lines.items():
            if self.steps[name] >= _PATIENCE:
                self._say(name, line)

    def _say(self, name: str, line: str) -> None:
        if name not in self.said:
            self.said.add(name)
            tqdm.write(f"warning: {line}", file=sys.stderr)
