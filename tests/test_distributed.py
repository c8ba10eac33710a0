"""Real processes, joined by gloo: gathering, averaging and agreeing against what one process computes."""

import os
import time
from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import Tensor, nn

from vse import distributed


def test_shares_are_near_equal_and_complete() -> None:
    assert distributed.shares(8, 3) == [3, 3, 2]
    assert distributed.shares(2, 3) == [1, 1, 0]
    for total in range(20):
        for count in range(1, 6):
            sizes = distributed.shares(total, count)
            assert sum(sizes) == total and max(sizes) - min(sizes) <= 1


def test_one_process_does_nothing() -> None:
    rows = torch.randn(3, 2)
    assert distributed.gather(rows, 3) is rows
    assert distributed.share(5) == slice(0, 5)
    assert distributed.agree(True, False) == [True, False]
    assert distributed.collect("own") == ["own"] and distributed.broadcast(1) == 1
    assert distributed.is_main() and distributed.world_size() == 1 and distributed.rank() == 0


def _loss(rows: Tensor, scale: Tensor) -> Tensor:
    """A statistic of the whole batch, with a parameter of its own."""
    return (rows @ rows.T * scale).logsumexp(1).mean()


def _trained(rows: Tensor, total: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and shared gradients of a small encoder of some rows, of a parameter of the loss, and of an unused one."""
    torch.manual_seed(0)
    encoder = nn.Linear(4, 3, dtype=torch.float64)
    scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    loss = _loss(distributed.gather(encoder(rows), total), scale)
    loss.backward()
    distributed.share_gradients([*encoder.parameters(), unused], [scale])
    assert unused.grad is None
    return loss.detach(), [p.grad for p in (*encoder.parameters(), scale) if p.grad is not None]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_compute_what_one_computes(tmp_path: Path, world: int) -> None:
    rows = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, gradients = _trained(rows, 7)

    def check() -> None:
        own = rows[distributed.share(7)]
        assert torch.equal(distributed.gather(own, 7), rows)
        own_loss, own_gradients = _trained(own, 7)
        assert (own_loss - loss).abs() < 1e-12
        for found, expected in zip(own_gradients, gradients, strict=True):
            assert (found - expected).abs().max() < 1e-12
        last = distributed.rank() == world - 1
        assert distributed.agree(last, False, True) == [True, False, True]
        assert distributed.collect(distributed.rank()) == ([] if distributed.rank() else list(range(world)))
        assert distributed.broadcast({"from": distributed.rank()}) == {"from": 0}

    in_processes(world, tmp_path, check)


def test_half_precision_bears_no_number_of_processes(tmp_path: Path) -> None:
    """A loss scale that one process bears is borne by several: what arrives at their outputs is as large as there."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).half()

    def arriving(own: Tensor, total: int, scale: float) -> Tensor:
        embeddings = own.clone().requires_grad_()
        (_loss(distributed.gather(embeddings, total).float(), torch.tensor(1.0)) * scale).backward()
        assert embeddings.grad is not None and embeddings.grad.dtype == torch.float16
        return embeddings.grad

    largest = arriving(rows, 6, 1024.0).abs().max().item()
    scale = 1024.0 * 0.75 * torch.finfo(torch.float16).max / largest  # twice as much would not fit into float16
    alone = arriving(rows, 6, scale)
    assert alone.isfinite().all()

    def check() -> None:
        place = distributed.share(6)
        assert torch.equal(arriving(rows[place], 6, scale), alone[place])

    in_processes(2, tmp_path, check)


def check_turns() -> None:
    """The first process is done before the others begin, and lets them in even when it fails."""
    folder = Path(os.environ["VSE_CACHE"])
    with distributed.first_on_each_machine():
        if distributed.rank() == 0:
            time.sleep(0.5)
            (folder / "made").touch()
        assert (folder / "made").exists()
    with pytest.raises(ValueError, match="bad"), distributed.first_on_each_machine():
        raise ValueError("bad")


def test_one_process_of_a_machine_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSE_CACHE", str(tmp_path))
    in_processes(3, tmp_path, check_turns)


def test_a_gradient_missing_in_one_process_counts_as_zero(tmp_path: Path) -> None:
    def check() -> None:
        summed, averaged = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        if distributed.rank() == 1:
            (summed + averaged).sum().backward()
        distributed.share_gradients([summed], [averaged])
        for parameter, expected in ((summed, 1.0), (averaged, 0.5)):
            assert parameter.grad is not None and torch.equal(parameter.grad, torch.full((3,), expected))

    in_processes(2, tmp_path, check)


def test_gradients_of_several_types_and_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BUCKET", 4)

    def check() -> None:
        kinds = (torch.float32, torch.float64)
        parameters = [nn.Parameter(torch.zeros(size, dtype=kind)) for size in (3, 2, 6) for kind in kinds]
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, float(number + 10 * distributed.rank()))
        distributed.share_gradients(parameters[:4], parameters[4:])
        for number, parameter in enumerate(parameters):
            expected = 2 * number + 10 if number < 4 else number + 5
            assert parameter.grad is not None and (parameter.grad == expected).all()

    in_processes(2, tmp_path, check)


def test_shares_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of six processes are here. The first takes its share of the memory before the other three do."""
    monkeypatch.setattr(distributed, "world_size", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [distributed.share_of_machine(total) for total in (3, 12, 13)] == [3, 8, 12]
    for local_rank, share in (("0", 300), ("1", 400), ("3", 400)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert distributed.share_of_free(1200) == share
