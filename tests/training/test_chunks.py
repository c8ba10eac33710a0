"""Encoding in chunks: gradients with random draws, memory, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Outcome
from torch import Tensor, nn

from vse.aggregators import GPO, PIENet
from vse.encoders import Regions
from vse.model import Tower
from vse.sets import lengths_to_mask
from vse.training import chunks
from vse.training.chunks import check_chunks, encode_in_chunks


def towers() -> list[Tower]:
    torch.manual_seed(0)
    return [
        Tower(Regions(in_dim=6, dim=4, drop=0.4), GPO()).double(),
        Tower(Regions(in_dim=6, dim=4, dropout=0.3, mlp=None), PIENet(4, 4, 2, dropout=0.3)).double(),
    ]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, 6, dtype=torch.float64, generator=generator), lengths_to_mask(torch.arange(7) % 5 + 1)


def gradients(tower: Tower, size: int, seed: int = 3) -> list[Tensor]:
    """Gradients of a statistic of the whole batch, with random draws."""
    torch.manual_seed(seed)
    tower.zero_grad()
    embeddings = encode_in_chunks(tower, *batch(), size).embeddings.flatten(1)
    (embeddings @ embeddings.T).exp().mean().backward()
    return [p.grad for p in tower.parameters() if p.grad is not None]


@pytest.mark.parametrize("number", [0, 1])
def test_the_second_encoding_draws_as_the_first(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients as those of a plain forward pass over the same chunks, which keeps its activations."""
    cached = gradients(towers()[number], 3)
    other = gradients(towers()[number], 3, seed=4)
    monkeypatch.setattr(chunks, "checkpoint", lambda function, *inputs, use_reentrant: function(*inputs))
    plain = gradients(towers()[number], 3)
    for found, expected in zip(cached, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(cached[0], other[0])  # the draws count


def test_one_chunk_is_the_whole_batch() -> None:
    """The statistics of a BatchNorm are those of the regions that stay: both passes draw the same."""
    tower = towers()[0]
    torch.manual_seed(3)
    embeddings = tower(*batch()).embeddings.flatten(1)
    (embeddings @ embeddings.T).exp().mean().backward()
    whole = [p.grad for p in tower.parameters() if p.grad is not None]
    for found, expected in zip(gradients(towers()[0], 7), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def kept_numbers(size: int) -> int:
    """How many numbers autograd keeps for the backward pass."""
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encode_in_chunks(towers()[1], *batch(), size)
    return sum(kept)


def test_activations_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = kept_numbers(2)
    monkeypatch.setattr(chunks, "checkpoint", lambda function, *inputs, use_reentrant: function(*inputs))
    assert cached < kept_numbers(2) / 4


def test_which_norms_can_be_chunked() -> None:
    regions, without = towers()
    assert check_chunks(regions) == check_chunks(without) == ""
    other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert check_chunks(other) == "1 takes statistics of the whole batch, which chunks do not have"
    assert check_chunks(other.eval()) == ""
    assert "whole batch" in check_chunks(nn.ModuleList(towers()[:1] + towers()[:1]))


def test_a_backbone_that_trains_its_norm_is_refused(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    settings = [f"data.root={tmp_path / 'world'}", f"run.dir={tmp_path / 'run'}", "data.workers=0"]
    settings += ["data.options={train_scenes: 4, eval_scenes: 2}", "train.micro_batch=2"]
    error = cli("train", ROOT / "configs" / "demo_pictures.yaml", *settings, "--dry-run").error
    assert "train.micro_batch=2': train.micro_batch: is not exact for this model: image.encoder.backbone" in error
