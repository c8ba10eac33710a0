"""Real processes, joined by gloo, for tests of what they do together."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def _enter(rank: int, world: int, file: str, check: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    check()
    dist.destroy_process_group()


def in_processes(world: int, folder: Path, check: Callable[[], None]) -> None:
    """Run ``check`` in ``world`` processes; what it raises in one of them is raised here."""
    start_processes(_enter, (world, str(folder / "meeting"), check), nprocs=world, start_method="fork")
