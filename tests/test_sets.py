from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from vse.sets import (
    Aggregated,
    MaskedBatchNorm,
    at_least_float32,
    check_mask,
    close_gaps,
    lengths_to_mask,
    masked_softmax,
    masked_sort,
    sort_descending,
    widen,
)


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 5, 3, dtype=torch.float64), torch.rand(4, 5) < 0.6


def test_lengths_to_mask() -> None:
    assert lengths_to_mask(torch.tensor([1, 3])).tolist() == [[True, False, False], [True, True, True]]
    assert lengths_to_mask(torch.tensor([1]), size=2).tolist() == [[True, False]]


def test_prefix_masks() -> None:
    check_mask(torch.tensor([[True, True, False]]), torch.Size((1, 3)), prefix=True)
    with pytest.raises(ValueError, match="sample 1: a sequence needs a prefix mask"):
        check_mask(torch.tensor([[True, True], [False, True]]), torch.Size((2, 2)), prefix=True)


def test_masked_sort_and_softmax() -> None:
    features, mask = example()
    mask[:, 2] = True
    ranked, prefix = masked_sort(features, mask)
    weights = masked_softmax(features, mask.unsqueeze(-1), dim=1)
    assert prefix is not None
    for row in range(4):
        real = features[row, mask[row]]
        assert torch.equal(ranked[row, prefix[row]], real.sort(dim=0, descending=True).values)
        assert (ranked[row, ~prefix[row]] == 0).all()
        torch.testing.assert_close(weights[row, mask[row]], real.softmax(0))
        assert (weights[row, ~mask[row]] == 0).all()


def reference_norm(features: Tensor, mask: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """torch's BatchNorm over the real elements, gathered in one list."""
    out = torch.zeros_like(features)
    out[mask] = norm(features[mask])
    return out


def test_batch_norm_sees_only_real_elements() -> None:
    features, mask = example()
    mine, theirs = MaskedBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    for _ in range(3):  # running statistics too
        dirty = features.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
        clean = features.clone().requires_grad_()
        found, expected = mine(dirty, mask), reference_norm(clean, mask, theirs)
        torch.testing.assert_close(found[mask], expected[mask])
        found[mask].pow(3).sum().backward()
        expected[mask].pow(3).sum().backward()
        assert dirty.grad is not None and clean.grad is not None
        torch.testing.assert_close(dirty.grad, clean.grad)
        assert (dirty.grad[~mask] == 0).all()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)
    torch.testing.assert_close(mine.eval()(features, mask)[mask], reference_norm(features, mask, theirs.eval())[mask])


def test_batch_norm_without_mask_and_with_one_element() -> None:
    features, _ = example()
    torch.testing.assert_close(
        MaskedBatchNorm(3).double()(features), nn.BatchNorm1d(3).double()(features.flatten(0, 1)).view_as(features)
    )
    alone = torch.zeros(4, 5, dtype=torch.bool)
    alone[1, 2] = True
    assert MaskedBatchNorm(3).double()(features, alone).isfinite().all()
    assert MaskedBatchNorm(3).double()(features[:1, :1]).isfinite().all()


def one_process(rank: int, folder: str, features: Tensor, mask: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = MaskedBatchNorm(3).double()
    part, real = features.chunk(2)[rank].clone().requires_grad_(), mask.chunk(2)[rank]
    out = norm(part, real)
    out[real].pow(3).sum().backward()
    torch.save((out.detach(), part.grad, norm.state_dict()), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_batch_norm_takes_statistics_of_the_global_batch(tmp_path: Path) -> None:
    features, mask = example()
    method = "spawn" if torch.cuda.is_available() else "fork"  # a fork starts at once, but not beside a GPU's threads
    start_processes(one_process, (str(tmp_path), features, mask), nprocs=2, start_method=method)
    whole = features.clone().requires_grad_()
    norm = MaskedBatchNorm(3).double()
    expected = norm(whole, mask)
    expected[mask].pow(3).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat([p[0] for p in parts])[mask], expected[mask].detach())
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), whole.grad)
    for rank in range(2):
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(parts[rank][2][name], value, msg=name)


def test_closing_gaps_keeps_the_order_of_the_real_elements() -> None:
    features, mask = example()
    mask[:, 2] = True
    sequence, prefix = close_gaps(features.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert prefix is not None
    for row in range(4):
        assert prefix[row].tolist() == [True] * int(mask[row].sum()) + [False] * int((~mask[row]).sum())
        assert torch.equal(sequence[row, prefix[row]], features[row, mask[row]])
        assert (sequence[row, ~prefix[row]] == 0).all()
    whole, nothing = close_gaps(features, None)
    assert torch.equal(whole, features) and nothing is None


def test_half_precision_becomes_float32() -> None:
    given = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    found = [at_least_float32(torch.ones(1, dtype=dtype)).dtype for dtype in given]
    assert found == [torch.float32, torch.float32, torch.float32, torch.float64]


@pytest.mark.parametrize("masked", [False, True])
def test_new_places_are_zero_and_masked(masked: bool) -> None:
    embeddings, mask = example()
    residual, context = embeddings + 1, embeddings[:, 0]
    own = mask if masked else torch.ones_like(mask)
    wide = widen(Aggregated(embeddings, residual=residual, mask=mask if masked else None, context=context), 7)
    assert wide.mask is not None and torch.equal(wide.mask[:, :5], own) and not wide.mask[:, 5:].any()
    for found, expected in ((wide.embeddings, embeddings), (wide.residual, residual)):
        assert found is not None and torch.equal(found[:, :5], expected) and not found[:, 5:].any()
    assert wide.context is context and widen(Aggregated(embeddings), 5).residual is None


def test_sorting_is_the_same_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = example()[0]
    expected = sort_descending(values)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert torch.equal(sort_descending(values), expected)


def test_no_value_is_looked_at_on_another_device() -> None:
    """An accelerator would have to be waited for; a tensor without values stands for one here."""
    check_mask(torch.zeros(2, 3, dtype=torch.bool, device="meta"), torch.Size((2, 3)))
    assert sort_descending(torch.zeros(2, 3, device="meta")).shape == (2, 3)
