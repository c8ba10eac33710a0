"""The exponential moving average of a model's weights (``optim.ema``)."""

import copy
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vse.model import VSEModel
from vse.training.scheduled import set_epoch


class WeightAverage:
    """A copy of a model that follows it slowly, and is evaluated and kept as the best in its place.

    After each step, average <- decay * average + (1 - decay) * weights (Polyak and Juditsky 1992, here with exponential
    weights). The weights after the first step are the first average. Buffers are copied: BatchNorm's running statistics
    are averages over the steps already, and others, such as positions, are whole numbers. A step does not wait for a
    GPU, as it would with torch's ``AveragedModel``, which counts its steps in a tensor.

    Args:
        model: The model that is trained.
        decay: The decay, in (0, 1); 0.999 averages over about 1,000 steps.

    Attributes:
        model: The copy.

    >>> average = WeightAverage(model, decay=0.999)
    """

    def __init__(self, model: VSEModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps = 0
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def follow(self, model: VSEModel) -> None:
        """Take the weights after another step into the average.

        Args:
            model: The model that is trained.
        """
        own: list[torch.Tensor] = list(self.model.parameters())
        new: list[torch.Tensor] = list(model.parameters())
        if self.steps:
            self._average(own, new, self.steps)
        else:
            torch._foreach_copy_(own, new)
        for own_buffer, new_buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own_buffer.copy_(new_buffer)
        self.steps += 1

    def set_epoch(self, epoch: int) -> None:
        """Prepare the copy for an epoch, like the model; it stays untrained.

        Args:
            epoch: Number of the epoch, from 0.
        """
        set_epoch(self.model.modules(), epoch)
        self.model.requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs: a number and tensors."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Args:
            state: What :meth:`state` has returned.
        """
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
