"""Encode a large batch in small chunks, with the gradients of the whole batch."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vse.runtime import keep_random_state
from vse.sets import (
    Aggregated,
    MaskedBatchNorm,
    Statistics,
    at_least_float32,
    join_statistics,
    set_statistics,
    update_running,
)

Chunk = tuple[Tensor, Tensor | None]


def encode_in_chunks(tower: nn.Module, inputs: Tensor, mask: Tensor | None, size: int) -> Aggregated:
    """Embed a batch a chunk at a time, so that only one chunk's activations are in memory.

    Gradient caching (Gao et al. 2021): the chunks are encoded without keeping their activations, the loss is computed
    on the embeddings of the whole batch, and in the backward pass each chunk is encoded once more, with the same random
    draws. A BatchNorm over sets uses the statistics of the whole batch, which a first pass over the chunks collects.

    Args:
        tower: The tower; :func:`check_chunks` tells whether it can be chunked.
        inputs: What its encoder takes, (B, ...).
        mask: (B, N), True on real elements; None when all are real.
        size: Number of samples in a chunk.

    Returns:
        What the tower gives for the whole batch, without the attention.
    """
    masks = [None] * len(inputs.split(size)) if mask is None else mask.split(size)
    chunks: list[Chunk] = list(zip(inputs.split(size), masks, strict=True))
    norm = _trained_norm(tower)
    statistics = None
    if norm is not None:
        statistics = _whole_statistics(tower, norm, chunks)
        update_running(norm, statistics)

    def encode(chunk: Tensor, chunk_mask: Tensor | None) -> tuple[Tensor | None, ...]:
        with _normalised_by(norm, statistics):
            result = tower(chunk, chunk_mask)
        residual, context = (
            None if part is None else at_least_float32(part) for part in (result.residual, result.context)
        )
        return result.embeddings, residual, result.mask, context

    parts = [checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks]
    embeddings, residual, mask, context = (
        None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)
    )
    return Aggregated(embeddings, None, residual, mask, context)  # type: ignore[arg-type]


def check_chunks(tower: nn.Module) -> str:
    """Say why a tower in training mode cannot be encoded in chunks exactly.

    Args:
        tower: The tower.

    Returns:
        The problem, which begins with the name of a BatchNorm layer; "" when there is none.
    """
    norms = [name for name, module in tower.named_modules() if isinstance(module, _BatchNorm) and module.training]
    if not norms or (len(norms) == 1 and _trained_norm(tower) is not None):
        return ""
    return f"{norms[0]} takes statistics of the whole batch, which chunks do not have"


def _trained_norm(tower: nn.Module) -> MaskedBatchNorm | None:
    """The tower's BatchNorm over sets, when it is in training mode."""
    norms = [module for module in tower.modules() if isinstance(module, MaskedBatchNorm) and module.training]
    return norms[0] if norms else None


def _whole_statistics(tower: nn.Module, norm: MaskedBatchNorm, chunks: list[Chunk]) -> Statistics:
    """The statistics of what reaches a BatchNorm from all chunks, with gradients.

    The random draws are given back: the encoding that follows draws the same.
    """

    def measure(chunk: Tensor, chunk_mask: Tensor | None) -> tuple[Tensor, ...]:
        reached: list[Chunk] = []
        hook = norm.register_forward_pre_hook(lambda _, inputs: reached.append(inputs))
        norm.eval()  # it looks on: its running statistics stay as they are
        try:
            tower(chunk, chunk_mask)
        finally:
            norm.train()
            hook.remove()
        return tuple(set_statistics(*reached[0]))

    with keep_random_state(chunks[0][0].device):
        parts = [Statistics(*checkpoint(measure, *chunk, use_reentrant=False)) for chunk in chunks]
    return join_statistics(parts)


@contextlib.contextmanager
def _normalised_by(norm: MaskedBatchNorm | None, statistics: Statistics | None) -> Iterator[None]:
    """A block in which a BatchNorm uses given statistics."""
    if norm is None:
        yield
        return
    norm.whole = statistics
    try:
        yield
    finally:
        norm.whole = None
