"""A run, seen through the command line: what it trains, writes and prints."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, Outcome, read_jsonl, same_weights, small_config, weights_of, write_pictures, write_precomp
from torch import nn

import vse
from vse.aggregators import AGGREGATORS, MeanPool
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.batches import Batch
from vse.data.formats import precomp
from vse.evaluation.score import evaluate
from vse.training import trainer
from vse.training.run import Training

Cli = Callable[..., Outcome]


def test_a_run_from_training_to_embeddings(cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path) -> None:
    outcome = cli("train", *tiny)
    assert outcome.code == 0, outcome.err
    assert "epoch 2/2: dev RSUM" in outcome.out and outcome.err == ""  # no bars where stderr is no terminal
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "best.pt", "last.pt", "metrics.jsonl", "train.log"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".") and name != ".lock"]  # no unfinished file

    # The resolved config trains the same model again.
    again = cli("train", run / "config.yaml", f"run.dir={tmp_path / 'again'}")
    assert again.code == 0 and same_weights(weights_of(run), weights_of(tmp_path / "again"))
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"]["ranking"]["margin"] == 0.2

    # The log: epochs and steps in order, dev metrics after each epoch, the best of them in best.pt.
    records = read_jsonl(run / "metrics.jsonl")
    assert [r["step"] for r in records] == [3, 6, 7, 7, 10, 13, 14, 14]  # every 3 steps, and where an epoch ends
    dev = [r["dev"] for r in records if "dev" in r]
    assert len(dev) == 2 and set(dev[0]) == {"i2t", "t2i", "rsum"}
    machine = {"samples_per_second", "seconds_per_step", "memory_gib"}
    assert {"total", "ranking", "plateau", "gradient_norm", "lr"} | machine == set(records[0]["train"])
    assert all(r["train"]["seconds_per_step"] > 0 and r["train"]["memory_gib"] > 0 for r in records if "train" in r)
    assert [r["train"]["lr"] for r in records if "train" in r] == pytest.approx([5e-4] * 3 + [5e-5] * 3)
    best = load_checkpoint(run / "best.pt")
    assert best["dev"]["rsum"] == max(d["rsum"] for d in dev)

    # Evaluation: the table, test.json in the run folder, and the file that was asked for.
    outcome = cli("eval", run, "--json", tmp_path / "out.json")
    assert outcome.code == 0, outcome.err
    found = yaml.safe_load((run / "test.json").read_text())
    assert found == yaml.safe_load((tmp_path / "out.json").read_text())
    assert f"RSUM{found['rsum']:18.1f}" in outcome.out and "10 images, 50 captions" in outcome.out
    assert re.search(r"Image to text +\d+\.\d +\d+\.\d +\d+\.\d +\d+\.\d +\d+\.\d", outcome.out)

    # The best epoch's dev numbers come out again, from the checkpoint alone, moved elsewhere.
    alone = (run / "best.pt").rename(tmp_path / "alone.pt")
    outcome = cli("eval", alone, "--split", "dev", "--json", tmp_path / "dev.json")
    assert outcome.code == 0 and yaml.safe_load((tmp_path / "dev.json").read_text()) == best["dev"]

    # The library: the same numbers from lists.
    model = vse.load(alone)
    assert not model.training
    corpus = precomp(str(corpus_folder), "test")
    images = model.encode_images([torch.from_numpy(corpus.images[i]) for i in range(10)])
    texts = model.encode_texts(corpus.captions)
    assert images.shape == (10, 1, 8) and texts.shape == (50, 1, 8)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(10, 1))
    assert vse.retrieval_metrics(model.similarity(images, texts), corpus.positives) == found
    one = model.encode_texts([corpus.captions[7]])
    torch.testing.assert_close(one[0], texts[7])


def test_a_finished_run_says_so(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny)
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns
    outcome = cli("train", *tiny)
    assert outcome.code == 0 and "finished: 2 epochs, best dev RSUM" in outcome.out
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before
    longer = cli("train", *tiny, "train.epochs=3")
    assert longer.code == 0 and "going on with epoch 3, step 1;" in longer.out


def test_a_dry_run_writes_nothing(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    outcome = cli("train", *tiny, "--dry-run")
    assert outcome.code == 0 and "24 images, 120 captions" in outcome.out and "first loss" in outcome.out
    assert "a step of the last epoch" not in outcome.out  # nothing unfreezes
    assert not (tmp_path / "run").exists()
    assert "no folder" in cli("train", *tiny, f"data.root={tmp_path / 'none'}", "--dry-run").error


def test_a_dry_run_sees_the_unfrozen_step(
    cli: Cli, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the last epoch, which needs the most memory; what it took is told where it is known."""
    settings = {
        "run": f"{{dir: {tmp_path / 'run'}, device: cpu}}",
        "data.root": write_pictures(tmp_path / "pictures"),
        "data.workers": 0,
        "data.transform.size": 64,
        "model.embed_dim": 8,
        "model.image.encoder.backbone": "resnet18",
        "model.text.encoder.model": tiny_bert,
        "train.batch_size": 4,
    }
    trained: list[int] = []
    step = Training.train_step

    def noted(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        trained.append(self.count_trained())
        return step(self, batch)

    monkeypatch.setattr(Training, "train_step", noted)
    monkeypatch.setattr(trainer, "describe_memory", lambda _: "peak memory 3.1 of 79.2 GiB")
    arguments = ["vse_infty/coco_grid_wsl_bert", "--dry-run", "model.image.encoder.weights=null"]
    outcome = cli("train", *arguments, *(f"{key}={value}" for key, value in settings.items()))
    assert outcome.code == 0, outcome.err
    assert len(trained) == 2 and trained[1] > trained[0] + 11_000_000
    assert re.search(r"first loss [\d.]+; a step of the last epoch, .*, works too; peak memory 3.1 of 79", outcome.out)


def test_too_little_memory_is_one_line(cli: Cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Training, "train_step", fail)
    for more in ([], ["--dry-run"]):
        error = cli("train", *tiny, *more).error
        assert "cpu: out of memory: a batch of 16 does not fit; what may help: train.micro_batch or" in error
        assert error.endswith("train.batch_size, run.precision=bf16")


def test_too_little_memory_for_an_evaluation(cli: Cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the dev split or of a run, it names the setting that helps there."""

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("vse.model.VSEModel.text_sets", fail)
    error = cli("train", *tiny, "eval.batch_size=64").error
    assert error == (
        "error: cpu: out of memory: an evaluation in batches of 64 does not fit; what may help: eval.batch_size"
    )
    monkeypatch.setattr("vse.evaluation.compare.compare", fail)
    assert cli("eval", "run").error == (
        "error: out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); "
        "what may help: a smaller eval.batch_size"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_mixed_precision(cli: Cli, tiny: list[str], tmp_path: Path, precision: str) -> None:
    outcome = cli("train", *tiny, f"run.precision={precision}")
    assert outcome.code == 0, outcome.err
    assert all(w.dtype == torch.float32 for w in weights_of(tmp_path / "run").values() if w.is_floating_point())
    assert cli("eval", tmp_path / "run").code == 0


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_trains(cli: Cli, tiny: list[str], tmp_path: Path, aggregator: str) -> None:
    needed = {"kmax": {"k": 2}, "pie_net": {"num_embeddings": 3}, "set_prediction": {"head_dim": 4}}.get(aggregator, {})
    component = yaml.safe_dump({"name": aggregator, **needed}, default_flow_style=True)
    settings = [f"model.{side}.aggregator={component}" for side in ("image", "text")]
    assert cli("train", *tiny, *settings, "model.similarity.name=max", "train.epochs=1").code == 0
    assert cli("eval", tmp_path / "run").code == 0


def test_learnable_similarity_and_temperature_are_trained_and_saved(
    cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path
) -> None:
    settings = ["model.similarity.name=match_probability", "loss.ranking.name=info_nce", "train.epochs=1"]
    assert cli("train", *tiny, *settings).code == 0
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["model"]["similarity.scale"] != 1 and state["model"]["similarity.shift"] != 0
    assert state["criterion"]["ranking.log_temperature"] != pytest.approx(math.log(0.07))
    model = vse.load(tmp_path / "run" / "last.pt")
    assert torch.equal(model.similarity.scale.detach(), state["model"]["similarity.scale"])  # type: ignore[attr-defined]
    assert cli("train", *tiny, *settings[:2]).code == 0  # goes on with all of it


def test_every_parameter_gets_a_gradient(tiny: list[str]) -> None:
    training = trainer.Training(read_config(tiny[0], tiny[1:]))
    training.model.train()
    training.train_step(next(training.batches()))
    unused = [name for name, p in training.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


class MyTerm(nn.Module):
    """A user's own regulariser, with a parameter."""

    def __init__(self, power: int = 2) -> None:
        super().__init__()
        self.power, self.scale = power, nn.Parameter(torch.ones(()))

    def forward(self, image: Any, text: Any) -> torch.Tensor:
        return self.scale * (image.embeddings.mean() - text.embeddings.mean()).abs() ** self.power


def my_ranking(scores: torch.Tensor, positives: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """A user's own loss, a function."""
    return (margin + scores.masked_fill(positives, 0.0)).relu().mean() - scores[positives].mean()


def test_own_losses(cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = [
        f"loss.terms={{'{__name__}:MyTerm': {{weight: 0.1, power: 1}}}}",
        f"loss.ranking.name={__name__}:my_ranking",
    ]
    assert cli("train", *tiny, *settings, "train.epochs=1").code == 0
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["criterion"]) == 1
    assert f"{__name__}:MyTerm" in read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["train"]
    assert cli("eval", tmp_path / "run").code == 0  # needs neither
    assert cli("train", *tiny, *settings, "train.epochs=2").code == 0


def test_a_weight_of_zero_takes_a_term_out(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """What a base brings can be left out, also where the aggregator has nothing for it."""
    settings = [f"loss.terms.{term}.weight=0" for term in ("diversity", "mmd")]
    settings += ["model.image.aggregator.num_embeddings=1", "model.text.encoder={features: states}"]
    settings += ["model.text.aggregator.name=mean", "train.epochs=1"]
    outcome = cli("train", *small_config("pvse/f30k_region_bigru.yaml", tiny), *settings)
    assert outcome.code == 0, outcome.err
    logged = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["train"]
    assert not {"diversity", "mmd"} & set(logged)


class MyPool(MeanPool):
    """A user's own aggregator."""

    def __init__(self, in_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((in_dim,), scale))

    def forward(self, features: Any, mask: Any = None, context: Any = None) -> Any:
        return super().forward(features * self.weight, mask)


def test_a_component_from_outside_the_package(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = [f"model.image.aggregator.name={__name__}:MyPool", "model.image.aggregator.scale=2.0"]
    assert cli("train", *tiny, *settings, "train.epochs=1").code == 0
    assert weights_of(tmp_path / "run")["image.aggregator.weight"].shape == (8,)
    assert (
        f"unknown argument of {__name__}:MyPool" in cli("train", *tiny, settings[0], "model.image.aggregator.x=1").error
    )


def test_learning_rate_factors(tiny: list[str]) -> None:
    training = trainer.Training(read_config(tiny[0], [*tiny[1:], "optim.factors={text.encoder: 0.1}"]))
    rates = {id(p): group["lr"] for group in training.optimiser.param_groups for p in group["params"]}
    for name, parameter in training.model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(5e-5 if name.startswith("text.encoder") else 5e-4)


def test_parameters_that_nothing_uses_are_named(cli: Cli, tiny: list[str]) -> None:
    """Max-pooled word vectors leave the GRU out."""
    settings = ["model.text.encoder.features=words", "model.text.encoder.word_dim=8"]
    for more in ([], ["--dry-run"]):
        outcome = cli("train", *tiny, *settings, "train.epochs=1", *more)
        assert outcome.code == 0
        assert "warning: text.encoder.gru.weight_ih_l0 and 7 more: nothing in the model uses" in outcome.err


def test_it_learns(cli: Cli, tmp_path: Path) -> None:
    """Captions that name their image's own word are soon found."""
    rng = np.random.default_rng(0)
    root = write_precomp(tmp_path / "data", train=20, others=20)
    names = [f"word{i}" for i in range(20)]
    features = rng.standard_normal((20, 6, 12)).astype(np.float32)
    for split in ("train", "dev", "test"):
        np.save(root / "precomp" / f"{split}_ims.npy", features)
        captions = [f"a {name} thing {rng.choice(['here', 'there'])}" for name in names for _ in range(5)]
        (root / "precomp" / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    settings = [f"data.root={root}", f"run.dir={tmp_path / 'run'}", "data.workers=0", "data.vocabulary.min_count=1"]
    settings += ["model.embed_dim=32", "train.epochs=25", "train.batch_size=50", "optim.lr=0.01"]
    settings += ["loss.ranking.warmup_epochs=25"]
    outcome = cli("train", ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml", *settings)
    assert outcome.code == 0 and load_checkpoint(tmp_path / "run" / "best.pt")["dev"]["rsum"] > 500


def test_evaluation_with_several_blocks_and_batch_sizes(
    tiny: list[str], cli: Cli, tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("train", *tiny, "train.epochs=1")
    model, corpus = vse.load(tmp_path / "run"), precomp(str(corpus_folder), "dev")
    expected = evaluate(model, corpus, 256, progress=False)
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 100)
    assert evaluate(model, corpus, 3, progress=False) == expected
