"""Modules that change with the epoch, by their method ``set_epoch``."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Scheduled(Protocol):
    """A module that changes with the epoch, such as an encoder that unfreezes or a loss that warms up.

    Any module of a model or of its loss may have this method, wherever it is defined.

    >>> class Warming(nn.Module):
    ...     def set_epoch(self, epoch):
    ...         self.scale = min(1.0, (epoch + 1) / 5)
    """

    def set_epoch(self, epoch: int) -> None:
        """Prepare for an epoch; epochs count from 0. A run that is resumed during an epoch calls this, too."""
        ...


def set_epoch(modules: Iterable[nn.Module], epoch: int) -> None:
    """Call ``set_epoch`` of all modules that have it.

    Args:
        modules: The modules.
        epoch: Number of the epoch, from 0.
    """
    for module in modules:
        if isinstance(module, Scheduled):
            module.set_epoch(epoch)
