"""Several processes that train one model together, started by ``torchrun``.

The losses of this field are statistics of the whole batch: its hardest negatives, its kernel means. So every process
encodes its share of a batch, all embeddings are gathered with their gradients, and every process computes the same loss
of the whole batch. With one process every function here does nothing.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET = 1 << 24  # gradient numbers that travel together


def launched() -> bool:
    """Whether ``torchrun`` started this process, alone or among others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start() -> None:
    """Join the processes that ``torchrun`` started; without it nothing happens.

    Tensors on a GPU travel by NCCL when each process of this machine has a GPU of its own, all others by gloo.
    """
    if not launched() or dist.is_initialized():
        return
    own_gpu = torch.cuda.is_available() and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    if own_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo")


def finish() -> None:
    """Leave the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_rank() -> int:
    """Return this process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def shares(total: int, count: int | None = None) -> list[int]:
    """Divide a number of items into parts of nearly equal size, one for each process.

    Args:
        total: Number of items.
        count: Number of parts; by default the number of processes.

    Returns:
        The sizes of the parts.

    >>> shares(8, 3)
    [3, 3, 2]
    """
    count = world_size() if count is None else count
    return [total // count + int(part < total % count) for part in range(count)]


def share(total: int) -> slice:
    """Return this process's part of ``total`` items; the parts are consecutive and cover all items.

    >>> share(8)
    slice(0, 8, None)
    """
    sizes = shares(total)
    first = sum(sizes[: rank()])
    return slice(first, first + sizes[rank()])


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order; the gradient of the own rows, times the number of processes.

    Gradients of parameters are averaged over processes afterwards. The factor turns that average into the sum that the
    encoders need, and leaves the average for parameters of the loss, whose gradient every process has in full.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = sum(ctx.sizes[: rank()])
        return gradient[first : first + ctx.sizes[rank()]] * len(ctx.sizes), None


def gather(own: Tensor, total: int) -> Tensor:
    """All processes' rows of a tensor whose rows were cut by :func:`share`, with gradients.

    Args:
        own: This process's rows (n, ...).
        total: Number of rows of all processes together.

    Returns:
        The rows (total, ...) in their order before the cut; with one process, ``own`` itself.
    """
    if world_size() == 1:
        return own
    gathered: Tensor = _Gather.apply(own.contiguous(), shares(total))
    return gathered


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; a missing one counts as zero.

    A parameter that has no gradient in any process keeps none.
    """
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, is_used in zip(trained, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients in their order, cut so that a bucket has one type and device and is not too large."""
    buckets: list[list[Tensor]] = []
    size = 0
    for gradient in gradients:
        last = buckets[-1][-1] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (gradient.dtype, gradient.device)
        if not alike or size + gradient.numel() > _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.numel()
    return buckets


def agree(*flags: bool) -> list[bool]:
    """Return for each flag whether any process has raised it; all processes get the same answer.

    >>> agree(False, True)
    [False, True]
    """
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]


def broadcast(value: Any) -> Any:
    """Return the main process's ``value``, which must consist of plain values, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def collect(value: Any) -> list[Any]:
    """Return every process's ``value``, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes have reached this call."""
    if world_size() > 1:
        dist.barrier()
