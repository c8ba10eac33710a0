"""Towers that ``torch.compile`` has compiled, or that run as they are where it fails."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.console import warn
from vse.errors import first_line
from vse.runtime import keep_random_state
from vse.sets import Aggregated

_LENGTHS = 8  # captions are padded to a multiple of this, so that few lengths have to be compiled


class CompiledTower:
    """Calls a tower compiled; where that fails, it says so once and calls the tower as it is from then on.

    The number of samples is left open, so that one compilation serves all batches. Random draws are those of the tower
    as it is. GRUs are not compiled.

    Args:
        tower: The tower. It is not changed, and stays the owner of its parameters.
        name: Its name, for the message.
        backend: What compiles the graphs, as ``torch.compile`` takes it.
        cuda_graphs: Whether a GPU records its kernels once for each shape of a batch and then replays them, so that
            the CPU no longer starts them one by one. What a tower returns is then overwritten in the next step, which
            :func:`begin_step` announces.
    """

    def __init__(
        self,
        tower: nn.Module,
        name: str,
        backend: str | Callable[..., Any] = "inductor",
        cuda_graphs: bool = False,
    ) -> None:
        from torch._inductor import config

        config.fallback_random = True  # else dropout would draw other numbers
        self.tower, self.name = tower, name
        self.works = True
        mode = "reduce-overhead" if cuda_graphs else None  # torch's name for its CUDA graphs
        self.call = torch.compile(tower, backend=backend, dynamic=False, mode=mode)

    def __call__(self, inputs: Tensor, mask: Tensor | None = None) -> Aggregated:
        """Embed a batch, as the tower does."""
        if self.works:
            tensors = [tensor for tensor in (inputs, mask) if tensor is not None]
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            try:
                result: Aggregated = self.call(inputs, mask)
                return result
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of many kinds: the compiler's, its backends', those of a missing C++ compiler
                self.give_up(error)
        plain: Aggregated = self.tower(inputs, mask)
        return plain

    def give_up(self, error: Exception) -> None:
        """Say that compiling has failed, and call the tower as it is from now on."""
        self.works = False
        warn(
            f"run.compile: the {self.name} tower cannot be compiled ({first_line(error)}); "
            f"it runs as it is, with the same results"
        )

    def try_out(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Find out whether a training step works, backward pass included; nothing is changed by it.

        Args:
            inputs: What the tower's encoder takes, for a few samples.
            mask: Its mask (B, N), or None.
        """
        kept = {name: value.clone() for name, value in self.tower.state_dict().items()}
        trained = [parameter for parameter in self.tower.parameters() if parameter.requires_grad]
        with keep_random_state(inputs.device):
            found = self(inputs, mask).embeddings
            if self.works and found.requires_grad:
                try:
                    torch.autograd.grad(found.sum(), trained, allow_unused=True)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # the backward pass is compiled when it is first used
                    self.give_up(error)
        self.tower.load_state_dict(kept)


def begin_step() -> None:
    """Tell towers with CUDA graphs that nothing of the step before is needed any more."""
    torch.compiler.cudagraph_mark_step_begin()


def pad_captions(tokens: Tensor, mask: Tensor, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad captions to one of a few lengths.

    Args:
        tokens: Token ids (C, L).
        mask: (C, L), True on real tokens.
        longest: The largest length that the encoder can read, or None for any.

    Returns:
        Tokens and mask, (C, M) each: M is the next multiple of 8, but at most ``longest``.

    >>> pad_captions(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool))[0].shape
    torch.Size([2, 8])
    """
    length = -(-tokens.shape[1] // _LENGTHS) * _LENGTHS
    more = max(0, (length if longest is None else min(length, longest)) - tokens.shape[1])
    return F.pad(tokens, (0, more)), F.pad(mask, (0, more))
