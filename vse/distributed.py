"""Several processes that train one model together, started by ``torchrun``.

The losses of this field are statistics of the whole batch: its hardest negatives, its kernel means. So every process
encodes its share of a batch, all embeddings are gathered with their gradients, and every process computes the same loss
of the whole batch. With one process every function here does nothing.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from vse.errors import ProcessLost, first_line

Result = TypeVar("Result")

_PATIENCE = timedelta(days=1)  # others wait while the main process ranks or indexes alone; a lost one shows at once
_BUCKET = 1 << 24  # gradient numbers that travel together


def launched() -> bool:
    """Whether ``torchrun`` started this process, alone or among others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """A block in which the processes that ``torchrun`` started work together; without it nothing changes.

    Tensors on a GPU travel by NCCL when each process of this machine has a GPU of its own, all others by gloo. In the
    block only the main process prints. :func:`is_first_to_report` decides which process reports what ends it.
    """
    if not launched():
        yield
        return
    store, own_rank, size = next(iter(rendezvous("env://")))
    _STORES.append(store)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if owns_gpu() else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=_PATIENCE)
    with contextlib.ExitStack() as stack:
        if not is_main():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        yield
    agree(False)  # the main process may have work left, such as scoring; all leave together
    dist.destroy_process_group()


_STORES: list[Any] = []  # what all processes can read and write, once they have joined


def owns_gpu() -> bool:
    """Whether each process of this machine has a GPU of its own."""
    return torch.cuda.is_available() and dist.is_nccl_available() and local_world_size() <= torch.cuda.device_count()


def is_first_to_report() -> bool:
    """Whether no other process has asked this before: what ends a run is said once, not by every process."""
    if not launched():
        return True
    if not _STORES:
        return int(os.environ["RANK"]) == 0
    try:
        return _STORES[0].add("vse/reports", 1) == 1
    except RuntimeError:  # the main process held the store and has ended; if it could not speak, another one must
        return int(os.environ["RANK"]) == 1


def _together(work: Callable[[], Result]) -> Result:
    """Do what needs all processes. Raises ProcessLost when one of them cannot be reached."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ProcessLost(first_line(error)) from None


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_rank() -> int:
    """Return this process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def share_of_machine(total: int) -> int:
    """How many of a batch's items, at most, the processes of this machine have together."""
    return min(total, -(-total // world_size()) * local_world_size())


def share_of_free(free: int) -> int:
    """How much of a machine's free memory this process may take, if all processes of the machine want the same.

    Args:
        free: Bytes that are free now; in :func:`first_on_each_machine`, the first process has taken its share already.
    """
    takers = local_world_size()
    return free // max(1, takers - 1 if local_rank() else takers)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """A block that one process of each machine does first; the others then find in the cache what it has made."""
    if local_rank() > 0:
        agree(False)
    try:
        yield
    finally:  # after a failure, too: the others will fail in the same way, and say so
        if local_rank() == 0:
            agree(False)


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


def share(total: int, part: int | None = None, count: int | None = None) -> slice:
    """Return a process's part of ``total`` items; the parts are consecutive and cover all items.

    Args:
        total: Number of items.
        part: The process's number; this process's unless it is given.
        count: Number of processes; all of them unless it is given.

    Returns:
        The slice of the process's part among the items.

    >>> share(8, part=2, count=3)
    slice(6, 8, None)
    """
    part = rank() if part is None else part
    sizes = shares(total, count)
    first = sum(sizes[:part])
    return slice(first, first + sizes[part])


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, with gradients: the gradient is summed over them, too.

    Args:
        tensor: One of the same shape in every process.

    Returns:
        The sum, of the tensor's shape, which is the same in every process.
    """
    total: Tensor = _Sum.apply(tensor) if world_size() > 1 else tensor
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        _together(lambda: dist.all_reduce(total))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        _together(lambda: dist.all_reduce(total))
        return total


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order; the gradient of the own rows.

    It is the gradient that one process would have there, without a factor that half precision would have to bear.
    :func:`share_gradients` does the rest.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, total: int) -> Tensor:
        ctx.total, sizes = total, shares(total)
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        if own.is_cuda and not owns_gpu():
            padded = padded.cpu()  # gloo gathers no tensors of a GPU
        parts = [torch.empty_like(padded) for _ in sizes]
        _together(lambda: dist.all_gather(parts, padded))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(own.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[share(ctx.total)], None


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
    gathered: Tensor = _Gather.apply(own.contiguous(), total)
    return gathered


def share_gradients(of_shares: Iterable[nn.Parameter], of_whole: Iterable[nn.Parameter] = ()) -> None:
    """Replace the gradients of all processes by those of the whole batch; a missing one counts as zero.

    Every process encodes only its share of the batch, so the gradients of the encoders are summed. Every process
    computes the loss of the whole batch, so all have the same gradients there, up to rounding, and these are averaged.
    A parameter that has no gradient in any process keeps none.

    Args:
        of_shares: Parameters of what computes a process's own rows, before :func:`gather`.
        of_whole: Parameters of what every process computes for the whole batch, after :func:`gather`.

    >>> share_gradients(model.image.parameters(), criterion.parameters())
    """
    if world_size() == 1:
        return
    summed = [parameter for parameter in of_shares if parameter.requires_grad]
    averaged = [parameter for parameter in of_whole if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in (*summed, *averaged)], dtype=torch.int32)
    _together(lambda: dist.all_reduce(used, op=dist.ReduceOp.MAX))
    gradients = []
    for parameter, is_used in zip((*summed, *averaged), used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = sum_over_processes(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))
    for parameter in averaged:
        if parameter.grad is not None:
            parameter.grad.div_(world_size())


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
    _together(lambda: dist.all_reduce(raised, op=dist.ReduceOp.MAX))
    return [bool(flag) for flag in raised.tolist()]


def largest(*numbers: int) -> list[int]:
    """Return for each number the largest that any process has given; all processes get the same answer.

    >>> largest(3, 7)
    [3, 7]
    """
    if world_size() == 1:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.int64)
    _together(lambda: dist.all_reduce(found, op=dist.ReduceOp.MAX))
    return [int(number) for number in found.tolist()]


def broadcast(value: Any) -> Any:
    """Return the main process's ``value``, which must consist of plain values, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    _together(lambda: dist.broadcast_object_list(values, src=0))
    return values[0]


def collect(value: Any) -> list[Any]:
    """Return every process's ``value``, in the order of their numbers; an empty list outside the main process."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    _together(lambda: dist.gather_object(value, values))
    return values or []
