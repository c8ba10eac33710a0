"""Sets of feature vectors, and every operation that must not see padding.

A set of at most N elements is a tensor (B, N, D) with a mask (B, N), True on real elements. What stands in
masked places, NaN included, changes no result and gets a gradient of exactly zero: masked values are *replaced*,
never multiplied by zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class FeatureSet(NamedTuple):
    """What an encoder returns: a set of local features per sample."""

    features: Tensor  # (B, N, D) local features
    mask: Tensor | None = None  # (B, N) bool, True = real element; None = all real
    context: Tensor | None = None  # (B, C) the encoder's own global vector, when it has one


class Aggregated(NamedTuple):
    """What an aggregator, and a tower, returns: K embeddings per sample."""

    embeddings: Tensor  # (B, K, H), always 3-D; L2-normalised only by the tower
    attention: Tensor | None = None  # (B, K, N) weights over elements, zero on padding
    residual: Tensor | None = None  # (B, K, H) locally guided part, for the diversity terms


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """Prefix masks (B, size) from element counts (B,); ``size`` defaults to the largest count.

    >>> lengths_to_mask(torch.tensor([1, 2])).tolist()
    [[True, False], [True, True]]
    """
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack items of different lengths into (B, longest, ...), zero behind each, with their mask (B, longest).

    >>> pad([torch.tensor([1, 2]), torch.tensor([3])])[0].tolist()
    [[1, 2], [3, 0]]
    """
    lengths = torch.tensor([len(item) for item in items])
    return pad_sequence(list(items), batch_first=True), lengths_to_mask(lengths)


def check_set(features: Tensor, mask: Tensor | None, prefix: bool = False, dim: int | None = None) -> None:
    """Raise ValueError unless (features, mask) is a batch of non-empty sets, ``dim`` wide if that is given.

    ``prefix``: the masks must be prefixes.

    On an accelerator what depends on the mask's values is asserted there, without waiting for the answer.
    """
    if features.dim() != 3 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty (B, N, D) tensor, got shape {tuple(features.shape)}")
    if dim not in (None, features.shape[2]):
        raise ValueError(f"features must be {dim} wide, got {features.shape[2]}")
    if mask is not None:
        check_mask(mask, features.shape[:2], prefix)


def check_mask(mask: Tensor, shape: torch.Size, prefix: bool = False) -> None:
    """Raise ValueError unless ``mask`` is a bool tensor of ``shape`` (B, N) with a real element in every row."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True = real element), got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {tuple(shape)} like the set it masks, got {tuple(mask.shape)}")
    filled = mask.any(1)
    if prefix:
        ordered = ~(mask[:, 1:] & ~mask[:, :-1]).any(1)
    if mask.device.type == "cpu":
        if not filled.all():
            raise ValueError(f"sample {int(filled.int().argmin())} of the batch has no element")
        if prefix and not ordered.all():
            raise ValueError(f"sample {int(ordered.int().argmin())}: a sequence needs a prefix mask (padding last)")
    else:
        torch._assert_async(filled.all(), "a sample of the batch has no element")
        if prefix:
            torch._assert_async(ordered.all(), "a sequence needs a prefix mask (padding last)")


def fill_masked(features: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """Features (B, N, D) with ``value`` in the masked places."""
    return features if mask is None else features.masked_fill(~mask.unsqueeze(-1), value)


def count_elements(features: Tensor, mask: Tensor | None) -> Tensor:
    """Number of real elements (B,) of each set."""
    if mask is None:
        return torch.full((features.shape[0],), features.shape[1], device=features.device)
    return mask.sum(1)


def masked_mean(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean (B, D) over the real elements."""
    if mask is None:
        return features.mean(1)
    return fill_masked(features, mask).sum(1) / mask.sum(1, keepdim=True)


def masked_max(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maximum (B, D) over the real elements."""
    return fill_masked(features, mask, float("-inf")).amax(1)


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int = -1) -> Tensor:
    """Softmax over the real elements; ``mask`` broadcasts against ``scores``; masked places get exactly 0."""
    if mask is None:
        return scores.softmax(dim)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim)


def masked_sort(features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Sort every dimension descending over the real elements.

    Returns the sorted features (B, N, D), zero behind the real ones, and their prefix mask (B, N).
    """
    # On a CPU, sorting a contiguous last axis takes two thirds of the time of sorting a strided one.
    ranked = fill_masked(features, mask, float("-inf")).transpose(1, 2).contiguous().sort(dim=2, descending=True).values
    ranked = ranked.transpose(1, 2)
    if mask is None:
        return ranked, None
    prefix = lengths_to_mask(mask.sum(1), mask.shape[1])
    return fill_masked(ranked, prefix), prefix


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the real elements of (B, N, D) sets; across processes, over those of the global batch.

    >>> MaskedBatchNorm(4)(torch.randn(2, 3, 4), torch.tensor([[True, True, False]] * 2)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(dim, eps, momentum)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise features (B, N, D) with the statistics of the places that mask (B, N) marks as real."""
        distributed = self.training and dist.is_available() and dist.is_initialized()
        several = features.shape[0] * features.shape[1] > 1  # torch refuses to normalise a single vector
        if not self.training or (mask is None and not distributed and several):
            return super().forward(features.flatten(0, 1)).view_as(features)
        real = fill_masked(features, mask).float() if features.dtype != torch.float64 else fill_masked(features, mask)
        count = count_elements(features, mask).sum().to(real.dtype)
        total = real.sum((0, 1))
        if distributed:
            count, total = _SumOverProcesses.apply(count), _SumOverProcesses.apply(total)
        mean = total / count
        centred = fill_masked(real - mean, mask)
        squares = centred.square().sum((0, 1))
        if distributed:
            squares = _SumOverProcesses.apply(squares)
        variance = squares / count
        with torch.no_grad():
            unbiased = squares / (count - 1).clamp(min=1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(new.to(running.dtype), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        normalised = centred * (variance + self.eps).rsqrt()
        return (normalised * self.weight + self.bias).to(features.dtype)
