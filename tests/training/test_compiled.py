"""Compiled towers: the results of plain ones, few compilations, and one line where the compiler fails."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome, read_jsonl
from torch import Tensor

from vse.aggregators import GPO, MeanPool
from vse.build import read_config
from vse.encoders import BiGRU, Regions
from vse.model import Tower
from vse.training.compiled import CompiledTower, begin_step, pad_captions
from vse.training.run import Training

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def counting(graphs: list[torch.fx.GraphModule]) -> Any:
    """A backend that notes the graphs and runs them as they are."""

    def compile_graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return compile_graph


def captions(count: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(length) < torch.randint(1, length + 1, (count, 1))
    return torch.randint(0, 9, (count, length)), mask


def test_captions_have_few_lengths() -> None:
    for length, longest, expected in ((1, None, 8), (8, None, 8), (9, None, 16), (9, 12, 12), (12, 12, 12)):
        tokens, mask = captions(3, length)
        padded, padded_mask = pad_captions(tokens, mask, longest)
        assert padded.shape == padded_mask.shape == (3, expected)
        assert torch.equal(padded[:, :length], tokens) and torch.equal(padded_mask[:, :length], mask)
        assert not padded_mask[:, length:].any()


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_results_are_those_of_the_tower(drop: float) -> None:
    """Embeddings, random draws, gradients and running statistics; batches of other sizes compile nothing anew."""
    torch.manual_seed(0)
    tower = Tower(Regions(6, 8, drop=drop), MeanPool())
    graphs: list[torch.fx.GraphModule] = []
    compiled = CompiledTower(tower, "image", counting(graphs))
    start = {name: value.clone() for name, value in tower.state_dict().items()}
    compiled.try_out(torch.randn(2, 5, 6), None)
    assert graphs and all(torch.equal(value, start[name]) for name, value in tower.state_dict().items())
    compiled(torch.randn(3, 5, 6))
    first = len(graphs)
    for size in (4, 7, 9):
        features = torch.randn(size, 5, 6)
        results = []
        for call in (tower, compiled):
            tower.load_state_dict(start)
            tower.zero_grad()
            torch.manual_seed(size)
            found = call(features).embeddings
            found.sin().sum().backward()
            results.append([found.detach(), *(p.grad for p in tower.parameters()), *map(torch.clone, tower.buffers())])
        torch.testing.assert_close(*results)
    assert compiled.works and len(graphs) == first


def test_an_encoders_gru_stays_outside() -> None:
    """GPO's is one operation of the graph."""
    graphs: list[torch.fx.GraphModule] = []
    tower = Tower(BiGRU(9, 8, 4), GPO())
    compiled = CompiledTower(tower, "text", counting(graphs))
    tokens, mask = captions(4, 8)
    torch.testing.assert_close(compiled(tokens, mask).embeddings, tower(tokens, mask).embeddings)
    assert compiled.works and len(graphs) > 1
    targets = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert {target for target in targets if "gru" in target} == {"vse.gru_states.default"}


def fails(*_: Any) -> Any:
    raise RuntimeError("no C++ compiler\nand more lines")


def test_a_compiler_that_fails_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tower = Tower(Regions(6, 8), MeanPool()).eval()
    compiled = CompiledTower(tower, "image", fails)
    features = torch.randn(2, 5, 6)
    for _ in range(2):
        torch.testing.assert_close(compiled(features).embeddings, tower(features).embeddings)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: run.compile: the image tower cannot be compiled (")
    assert lines[0].endswith("it runs as it is, with the same results")


def test_a_mistake_of_the_caller_stays_an_error() -> None:
    compiled = CompiledTower(Tower(Regions(6, 8), MeanPool()), "image", "eager")
    with pytest.raises(ValueError, match="features must be 6 wide, got 5"):
        compiled(torch.randn(2, 5, 5))


def test_a_backward_pass_that_does_not_compile(capsys: pytest.CaptureFixture[str]) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("lowering failed")

    compiled = CompiledTower(Tower(Regions(6, 8), MeanPool()), "image", "eager")
    plain = compiled.call

    def call(*inputs: Any) -> Any:
        found = plain(*inputs)
        return found._replace(embeddings=Fails.apply(found.embeddings))

    compiled.call = call  # type: ignore[assignment]
    compiled.try_out(torch.randn(2, 5, 6), None)
    assert not compiled.works and "cannot be compiled (lowering failed)" in capsys.readouterr().err


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_cuda_graphs_are_asked_for(cuda_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def note(tower: Any, **options: Any) -> Any:
        asked.update(options)
        return tower

    monkeypatch.setattr(torch, "compile", note)
    CompiledTower(Tower(Regions(6, 8), MeanPool()), "image", cuda_graphs=cuda_graphs)
    assert asked["mode"] == ("reduce-overhead" if cuda_graphs else None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_give_the_same_embeddings_and_gradients() -> None:
    tower = Tower(Regions(6, 8), GPO()).cuda()
    compiled = CompiledTower(tower, "image", cuda_graphs=True)
    for _ in range(4):  # the first steps record
        features = torch.randn(4, 5, 6, device="cuda")
        results = []
        begin_step()
        for call in (tower, compiled):
            tower.zero_grad()
            found = call(features).embeddings
            found.sin().sum().backward()
            results.append(
                [found.detach().clone(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)]
            )
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert compiled.works


def test_micro_batches_are_not_compiled(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(read_config(tiny[0], [*tiny[1:], "run.compile=true", "train.micro_batch=4"]))
    assert not training.compiled
    expected = "warning: run.compile: the towers are not compiled, since train.micro_batch encodes them in chunks"
    assert expected in capsys.readouterr().err.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["true", "cuda_graphs"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_a_compiled_run(cli: Cli, tiny: list[str], tmp_path: Path, setting: str) -> None:
    """Losses of a plain run, and a run folder that a plain run continues. A CPU has no CUDA graphs, and is told so."""
    logged = []
    settings = ["run.log_steps=1", "model.image.aggregator.name=mean", "model.text.aggregator.name=global"]
    for name, value in (("plain", "false"), ("compiled", setting)):
        own = [f"run.dir={tmp_path / name}", "train.epochs=1", f"run.compile={value}", "run.device=cpu"]
        outcome = cli("train", *tiny, *settings, *own)
        warnings = [line for line in outcome.err.splitlines() if line.startswith("warning")]
        expected = ["warning: run.compile: cuda_graphs needs a GPU, and this is cpu; the towers are only compiled"]
        assert outcome.code == 0 and warnings == (expected if value == "cuda_graphs" else []), outcome.err
        lines = [line["train"] for line in read_jsonl(tmp_path / name / "metrics.jsonl") if "train" in line]
        logged.append([line["total"] for line in lines])
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    assert cli("train", *tiny, *settings, f"run.dir={tmp_path / 'compiled'}", "train.epochs=2").code == 0
