"""Sets of feature vectors, and all operations that must ignore padding.

A batch of sets is a tensor (B, N, D) with a mask (B, N) that is True on real elements. The values in masked places,
even NaN, change no result and get a gradient of exactly zero, because they are *replaced* and not multiplied by zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vse.distributed import sum_over_processes, world_size


class FeatureSet(NamedTuple):
    """What an encoder returns: a set of local features per sample.

    >>> FeatureSet(torch.randn(2, 36, 1024)).mask is None
    True
    """

    features: Tensor  # (B, N, D) local features
    mask: Tensor | None = None  # (B, N) bool, True = real element; None = all real
    context: Tensor | None = None  # (B, C) the encoder's own global vector, when it has one


class Aggregated(NamedTuple):
    """What an aggregator, and a tower, returns: K embeddings per sample.

    An aggregator that joins several vectors into one embedding still returns the attention and the residual of each
    vector, so that the diversity terms of the loss can use them.

    >>> Aggregated(torch.randn(2, 4, 1024)).residual is None
    True
    """

    embeddings: Tensor  # (B, K, H), always 3-D; L2-normalised only by the tower
    attention: Tensor | None = None  # (B, K, N) weights over elements, zero on padding
    residual: Tensor | None = None  # (B, K, H) locally guided part, for the diversity terms
    mask: Tensor | None = None  # (B, K) bool, True = real embedding, when the sets differ in size; None = all real
    context: Tensor | None = None  # (B, H) the global part that a sample's embeddings share, when they have one


def lengths_to_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """Make prefix masks from counts of elements.

    Args:
        lengths: Number of real elements of each sample (B,), integers.
        size: Number of places N; the largest count by default.

    Returns:
        Mask (B, N), True in the first ``lengths[b]`` places of row b.

    >>> lengths_to_mask(torch.tensor([1, 2])).tolist()
    [[True, False], [True, True]]
    """
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack items of different lengths, with zeros behind the shorter ones.

    Args:
        items: Tensors (length, ...) that differ only in their lengths.

    Returns:
        The stack (B, longest, ...) and its mask (B, longest).

    >>> pad([torch.tensor([1, 2]), torch.tensor([3])])[0].tolist()
    [[1, 2], [3, 0]]
    """
    lengths = torch.tensor([len(item) for item in items])
    return pad_sequence(list(items), batch_first=True), lengths_to_mask(lengths)


def widen(sets: Aggregated, places: int) -> Aggregated:
    """Give embedding sets more places, which are masked.

    Args:
        sets: Embeddings (B, K, H) with their residual and mask.
        places: The new number of places, at least K.

    Returns:
        Embeddings and residual (B, places, H), zero in new places, a mask (B, places) and the context. The attention
        is left out.

    >>> widen(Aggregated(torch.ones(1, 1, 2)), 2).mask.tolist()
    [[True, False]]
    """
    rows, size = sets.embeddings.shape[:2]
    mask = sets.mask
    if mask is None:
        mask = torch.ones(rows, size, dtype=torch.bool, device=sets.embeddings.device)
    more = places - size
    residual = None if sets.residual is None else F.pad(sets.residual, (0, 0, 0, more))
    return Aggregated(F.pad(sets.embeddings, (0, 0, 0, more)), None, residual, F.pad(mask, (0, more)), sets.context)


def check_set(features: Tensor, mask: Tensor | None, prefix: bool = False, dim: int | None = None) -> None:
    """Check that features and mask are a batch of non-empty sets.

    On an accelerator the mask's values are not checked, because that would wait for it; what copies a mask there checks
    it before. A set without an element would then have an embedding of NaN.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.
        prefix: Whether the real elements must come first, as in a sequence.
        dim: The width D that is expected; None for any.

    Raises:
        ValueError: A shape or a type is wrong, or a set has no element.

    >>> check_set(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), dim=8)
    """
    if features.dim() != 3 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty (B, N, D) tensor, got shape {tuple(features.shape)}")
    if dim not in (None, features.shape[2]):
        raise ValueError(f"features must be {dim} wide, got {features.shape[2]}")
    if mask is not None:
        check_mask(mask, features.shape[:2], prefix)


def check_mask(mask: Tensor, shape: torch.Size, prefix: bool = False) -> None:
    """Check that a mask marks at least one real element in every row; on an accelerator only its type and shape.

    Args:
        mask: The mask, to be a bool tensor (B, N).
        shape: The shape (B, N) that is expected.
        prefix: Whether the real elements must come first, as in a sequence.

    Raises:
        ValueError: The type or the shape is wrong, a row is empty, or a row is not a prefix.

    >>> check_mask(torch.tensor([[True, False]]), torch.Size((1, 2)), prefix=True)
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True = real element), got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {tuple(shape)} like the set it masks, got {tuple(mask.shape)}")
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return
    filled = mask.any(1)
    if not filled.all():
        raise ValueError(f"sample {int(filled.int().argmin())} of the batch has no element")
    ordered = ~(mask[:, 1:] & ~mask[:, :-1]).any(1)
    if prefix and not ordered.all():
        raise ValueError(f"sample {int(ordered.int().argmin())}: a sequence needs a prefix mask (padding last)")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, and leave float32 and float64 as they are.

    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def fill_masked(features: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """Replace the values in masked places, so that neither they nor their gradients have an effect.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.
        value: The new value of the masked places.

    Returns:
        Features (B, N, D).

    >>> fill_masked(torch.ones(1, 2, 1), torch.tensor([[True, False]])).flatten().tolist()
    [1.0, 0.0]
    """
    return features if mask is None else features.masked_fill(~mask.unsqueeze(-1), value)


def count_elements(features: Tensor, mask: Tensor | None) -> Tensor:
    """Count the real elements of each set.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        Counts (B,), integers.

    >>> count_elements(torch.ones(1, 2, 1), torch.tensor([[True, False]])).tolist()
    [1]
    """
    if mask is None:
        return torch.full((features.shape[0],), features.shape[1], device=features.device)
    return mask.sum(1)


def masked_mean(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average each dimension over the real elements.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        Means (B, D).

    >>> masked_mean(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, False]])).tolist()
    [[1.0]]
    """
    if mask is None:
        return features.mean(1)
    return fill_masked(features, mask).sum(1) / mask.sum(1, keepdim=True)


def masked_max(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Take the maximum of each dimension over the real elements.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        Maxima (B, D).

    >>> masked_max(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, False]])).tolist()
    [[1.0]]
    """
    return fill_masked(features, mask, float("-inf")).amax(1)


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int = -1) -> Tensor:
    """Take the softmax over the real elements.

    Args:
        scores: Scores of any shape.
        mask: True on real elements, of a shape that broadcasts against the scores; None when all are real.
        dim: The axis of the elements.

    Returns:
        Weights of the scores' shape, exactly 0 in masked places.

    >>> masked_softmax(torch.zeros(1, 3), torch.tensor([[True, True, False]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    if mask is None:
        return scores.softmax(dim)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim)


def masked_sort(features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Sort every dimension on its own, descending, over the real elements.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        The sorted features (B, N, D), zero behind the real ones, and their prefix mask (B, N), or None.

    >>> masked_sort(torch.tensor([[[1.0], [5.0]]]))[0].flatten().tolist()
    [5.0, 1.0]
    """
    ranked = sort_descending(fill_masked(features, mask, float("-inf")).transpose(1, 2)).transpose(1, 2)
    if mask is None:
        return ranked, None
    prefix = lengths_to_mask(mask.sum(1), mask.shape[1])
    return fill_masked(ranked, prefix), prefix


def sort_descending(values: Tensor) -> Tensor:
    """Sort the last axis, the largest value first.

    On a CPU NumPy finds the order: it has vector instructions for this and takes a quarter of torch's time.

    Args:
        values: Values of any shape.

    Returns:
        The sorted values, of the same shape, with gradients.

    >>> sort_descending(torch.tensor([1.0, 5.0])).tolist()
    [5.0, 1.0]
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return values.sort(dim=-1, descending=True).values
    order = np.argsort(at_least_float32(-values.detach()).contiguous().numpy(), axis=-1)
    return values.gather(-1, torch.from_numpy(order))


def close_gaps(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Move the real elements to the front, in their order: a set with holes becomes a sequence.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        The sequence (B, N, D), zero behind the real elements, and its prefix mask (B, N), or None.

    >>> close_gaps(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[False, True]]))[0].flatten().tolist()
    [5.0, 0.0]
    """
    if mask is None:
        return features, None
    prefix, places = mask.int().sort(dim=1, descending=True, stable=True)
    moved = features.gather(1, places.unsqueeze(-1).expand_as(features))
    return fill_masked(moved, prefix.bool()), prefix.bool()


class Statistics(NamedTuple):
    """Statistics of the real elements of some sets.

    Attributes:
        total: The number of elements, a tensor without shape.
        mean: (D,) the mean of each dimension.
        squares: (D,) the sum of the squared differences from the mean.
    """

    total: Tensor
    mean: Tensor
    squares: Tensor


def set_statistics(features: Tensor, mask: Tensor | None) -> Statistics:
    """Take the statistics of a batch of sets.

    Args:
        features: Local features (B, N, D).
        mask: (B, N), True on real elements; None when all are real.

    Returns:
        The statistics of the batch's real elements, at least in float32.

    >>> set_statistics(torch.tensor([[[1.0], [3.0]]]), None).mean
    tensor([2.])
    """
    real = at_least_float32(fill_masked(features, mask))
    count = count_elements(features, mask).sum().to(real.dtype)
    mean = real.sum((0, 1)) / count
    return Statistics(count, mean, fill_masked(real - mean, mask).square().sum((0, 1)))


def join_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Join the statistics of the parts of a batch; across processes, of the parts that all of them have.

    Args:
        parts: What :func:`set_statistics` gives for each part.

    Returns:
        The statistics of all parts together.
    """
    if len(parts) == 1 and world_size() == 1:
        return parts[0]
    total = sum_over_processes(sum_of([part.total for part in parts]))
    mean = sum_over_processes(sum_of([part.total * part.mean for part in parts])) / total
    apart = [part.squares + part.total * (part.mean - mean).square() for part in parts]
    return Statistics(total, mean, sum_over_processes(sum_of(apart)))


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(0)


def normalise(norm: nn.modules.batchnorm._BatchNorm, features: Tensor, statistics: Statistics) -> Tensor:
    """Normalise features as BatchNorm does, with given statistics.

    (x - mean) / sqrt(squares / total + eps) * weight + bias, for each dimension.

    Args:
        norm: The BatchNorm layer, for its eps, weight (D,) and bias (D,).
        features: Local features (B, N, D).
        statistics: The statistics to normalise with.

    Returns:
        Features (B, N, D) in the type of the given ones.
    """
    variance = statistics.squares / statistics.total
    normalised = (at_least_float32(features) - statistics.mean) * (variance + norm.eps).rsqrt()
    return (normalised * norm.weight + norm.bias).to(features.dtype)


@torch.no_grad()
def update_running(norm: nn.modules.batchnorm._BatchNorm, statistics: Statistics) -> None:
    """Move the running statistics of a BatchNorm layer towards those of a batch.

    Args:
        norm: The BatchNorm layer, which is changed. Its momentum is the batch's share in the new values.
        statistics: The batch's statistics. As in torch, the running variance is the unbiased one.
    """
    unbiased = statistics.squares / (statistics.total - 1).clamp(min=1)
    for running, new in ((norm.running_mean, statistics.mean), (norm.running_var, unbiased)):
        running.lerp_(new.to(running.dtype), norm.momentum)  # type: ignore[union-attr, arg-type]
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the real elements of sets; across processes, over those of the global batch.

    Args:
        dim: Width D of the features.
        eps: What is added to the variance before its root is taken.
        momentum: Share of each batch in the running statistics.

    Attributes:
        whole: The statistics of the batch that the sets are a part of, when a batch is encoded in parts; they are then
            used as they are. None for whole batches.

    >>> MaskedBatchNorm(4)(torch.randn(2, 3, 4), torch.tensor([[True, True, False]] * 2)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(dim, eps, momentum)
        self.whole: Statistics | None = None

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            Features (B, N, D), normalised with the statistics of the real elements.
        """
        if self.training and self.whole is not None:
            return normalise(self, fill_masked(features, mask), self.whole)
        several = features.shape[0] * features.shape[1] > 1  # torch refuses to normalise a single vector
        if not self.training or (mask is None and world_size() == 1 and several):
            return super().forward(features.flatten(0, 1)).view_as(features)
        statistics = join_statistics([set_statistics(features, mask)])
        update_running(self, statistics)
        return normalise(self, fill_masked(features, mask), statistics)
