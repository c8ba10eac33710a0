"""The loop, seen through the command line: what it writes, and that no run is ever lost."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, Outcome, read_jsonl, write_precomp
from torch import nn

import vse
from vse.aggregators import AGGREGATORS, MeanPool
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.formats import precomp
from vse.evaluation.score import evaluate
from vse.training import trainer
from vse.training.log import RunLog
from vse.training.stop import StopSignal

Cli = Callable[..., Outcome]


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(run / name)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_from_training_to_embeddings(cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path) -> None:
    outcome = cli("train", *tiny)
    assert outcome.code == 0, outcome.err
    assert "epoch 2/2: dev RSUM" in outcome.out and "samples/s" in outcome.err and "loss=" in outcome.err
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "best.pt", "last.pt", "metrics.jsonl"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".") and name != ".lock"]  # no unfinished file

    # The resolved config trains the same model again.
    again = cli("train", run / "config.yaml", f"run.dir={tmp_path / 'again'}")
    assert again.code == 0 and same(weights(run), weights(tmp_path / "again"))
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"]["ranking"]["margin"] == 0.2

    # The log: epochs and steps in order, dev metrics after each epoch, the best of them in best.pt.
    records = read_jsonl(run / "metrics.jsonl")
    assert [r["step"] for r in records] == [3, 6, 7, 7, 10, 13, 14, 14]  # every 3 steps, and where an epoch ends
    dev = [r["dev"] for r in records if "dev" in r]
    assert len(dev) == 2 and set(dev[0]) == {"i2t", "t2i", "rsum"}
    assert {"total", "ranking", "plateau", "gradient_norm", "lr", "samples_per_second"} == set(records[0]["train"])
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
    assert not (tmp_path / "run").exists()
    assert "no folder" in cli("train", *tiny, f"data.root={tmp_path / 'none'}", "--dry-run").error


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(cli: Cli, tiny: list[str], tmp_path: Path, precision: str) -> None:
    outcome = cli("train", *tiny, f"run.precision={precision}")
    assert outcome.code == 0, outcome.err
    assert all(w.dtype == torch.float32 for w in weights(tmp_path / "run").values() if w.is_floating_point())
    assert cli("eval", tmp_path / "run").code == 0


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_trains(cli: Cli, tiny: list[str], tmp_path: Path, aggregator: str) -> None:
    needed = {"kmax": {"k": 2}, "pie_net": {"num_embeddings": 3}, "set_prediction": {"head_dim": 4}}.get(aggregator, {})
    component = yaml.safe_dump({"name": aggregator, **needed}, default_flow_style=True)
    settings = [f"model.{side}.aggregator={component}" for side in ("image", "text")]
    assert cli("train", *tiny, *settings, "model.similarity.name=max", "train.epochs=1").code == 0
    assert cli("eval", tmp_path / "run").code == 0


CONFIGS = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").glob("*/*_region_bigru*.yaml"))


def small(config: str, tiny: list[str]) -> list[str]:
    """A published system's config with everything wide made narrow, on the tiny corpus."""
    content = read_config(ROOT / "configs" / config)
    settings = [s for s in tiny[1:] if not s.startswith("optim.schedule")]
    for side in ("image", "text"):
        aggregator = getattr(content.model, side).aggregator
        settings += [f"model.{side}.aggregator.head_dim=4" for _ in [0] if aggregator.name == "set_prediction"]
    return [str(ROOT / "configs" / config), *settings]


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.startswith("_")])
def test_every_config_trains_and_evaluates(cli: Cli, tiny: list[str], tmp_path: Path, config: str) -> None:
    outcome = cli("train", *small(config, tiny), "train.epochs=1")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    content = read_config(ROOT / "configs" / config)
    training = [r["train"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in r]
    assert set(content.loss.terms) <= set(training[0]) and all(math.isfinite(v) for v in training[0].values())
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "RSUM" in table.out
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    sets = "num_embeddings" in content.model.image.aggregator.arguments
    assert ("sets" in metrics) == sets == ("Image sets" in table.out) == ("image_log_variance" in training[0])


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.startswith(("pvse/f30k", "vse_2ad/f30k", "dive/f30k"))])
def test_every_parameter_of_every_system_gets_a_gradient(tiny: list[str], config: str) -> None:
    path, *settings = small(config, tiny)
    training = trainer.Training(read_config(path, [*settings, "run.precision=fp32"]))
    training.model.train()
    assert training.loader.dataset.keep_ends == config.startswith("vse_2ad")  # type: ignore[attr-defined]
    training.train_step(next(training.batches()))
    unused = [name for name, p in training.model.named_parameters() if p.grad is None or not p.grad.any()]
    # Adaptive pooling's balance.bias is added to both sides of a softmax: it changes nothing, in the paper's code too.
    assert [name for name in unused if not name.endswith("balance.bias")] == []


def test_terms_appear_by_name_in_tensorboard(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli("train", *small("pvse/f30k_region_bigru.yaml", tiny), "train.epochs=1").code == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    logged = [r["train"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in r]
    for name in ("ranking", "diversity", "mmd", "image_log_variance", "text_slots_used"):
        assert [e.value for e in events.Scalars(f"train/{name}")] == pytest.approx([r[name] for r in logged])
    assert "dev/sets/image_log_variance" in events.Tags()["scalars"]
    total = [r["ranking"] + 0.1 * r["diversity"] + 0.01 * r["mmd"] for r in logged]
    assert [r["total"] for r in logged] == pytest.approx(total, rel=1e-4)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.image.aggregator={name: pie_net, num_embeddings: 2}"], "cosine compares single embeddings, got K = 2"),
        (["loss.terms.diversity.weight=0.1"], "the image aggregator gives no residual"),
        (["model.image.aggregator={name: set_prediction, head_dim: 4}"], "got K = 4 and L = 1"),
        (
            ["model.similarity={name: smooth_chamfer, temperature: -1}"],
            "temperature: -1}': model.similarity: temperature must be positive, got -1",
        ),
        (
            ["loss.terms.mmd.weight=0.1", "loss.terms.mmd.gamma=-1"],
            "override 'loss.terms.mmd.gamma=-1': loss.terms.mmd: gamma must be positive, got -1",
        ),
        (["model.image.aggregator={name: pie_net, num_embeddings: 1, out_dim: 4}"], "out_dim: is filled in and cannot"),
        (
            ["model.text.encoder.features=words"],
            "gpo keeps the width of the encoder's features, 6, but",
        ),
        (
            ["model.image.encoder={features: raw, context: mean}"],
            "gpo keeps the width of the encoder's features, 12, but",
        ),
        (
            ["model.image.encoder.features=raw"],
            "gpo keeps the width of the encoder's features, 12, but model.embed_dim is 8",
        ),
    ],
)
def test_parts_that_do_not_fit(cli: Cli, tiny: list[str], tmp_path: Path, settings: list[str], message: str) -> None:
    assert message in cli("train", *tiny, *settings).error
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_factor_of_a_base_is_taken_out(cli: Cli, tiny: list[str]) -> None:
    settings = [
        "model.text.aggregator.name=mean",
        "model.text.encoder.features=states",
        "loss.terms.uniformity.weight=0",
    ]
    settings = [*small("dive/f30k_region_bigru.yaml", tiny), *settings, "--dry-run"]
    settings = [s for s in settings if s != "model.text.aggregator.head_dim=4"]
    assert "'text.aggregator' begins no parameter's name" in cli("train", *settings).error
    assert cli("train", *settings, "optim.factors={text.aggregator: null}").code == 0


def test_positions_with_dropped_regions(cli: Cli, tiny: list[str]) -> None:
    config = small("dive/f30k_region_bigru.yaml", tiny)
    assert cli("train", *config, "model.image.aggregator.position=sine", "train.epochs=1").code == 0


def test_a_grid_that_does_not_fit(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    config = small("dive/f30k_region_bigru.yaml", tiny)
    grid = ["model.image.aggregator.position=sine_2d", "model.image.aggregator.grid=[2, 3]"]
    assert cli("train", *config, *grid, "train.epochs=1").code == 0
    other = write_precomp(tmp_path / "other")
    features = np.load(other / "precomp" / "test_ims.npy")
    np.save(other / "precomp" / "test_ims.npy", features[:, :5])
    error = cli("eval", tmp_path / "run", f"data.root={other}").error
    assert "grid is 2 x 3 = 6 cells, but there are 5 features" in error
    wrong = cli("train", *config, *grid[:1], "model.image.aggregator.grid=[3, 3]", f"run.dir={tmp_path / 'x'}").error
    assert "model.image: grid is 3 x 3 = 9 cells, but there are 6 features" in wrong and "override" not in wrong
    text = ["model.text.aggregator.position=sine_2d", "model.text.aggregator.grid=[2, 3]"]
    assert (
        "is for a picture's cells, but the text tower has tokens"
        in cli("train", *config, *text, f"run.dir={tmp_path / 'y'}").error
    )


def test_parameters_that_nothing_uses_are_named(cli: Cli, tiny: list[str]) -> None:
    """Max-pooled word vectors leave the GRU out."""
    settings = ["model.text.encoder.features=words", "model.text.encoder.word_dim=8"]
    for more in ([], ["--dry-run"]):
        outcome = cli("train", *tiny, *settings, "train.epochs=1", *more)
        assert outcome.code == 0
        assert "warning: text.encoder.gru.weight_ih_l0 and 7 more: nothing in the model uses" in outcome.err


def test_a_collapse_is_said_once(cli: Cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vse.training.watch._PATIENCE", 6)
    collapsed = ["model.image.aggregator={name: pie_net, num_embeddings: 2, hidden_dim: 1}"]
    collapsed += ["model.similarity.name=max", "optim.lr=1e-12", "loss.ranking.warmup_epochs=0", "train.epochs=4"]
    monkeypatch.setattr("vse.training.watch._COLLAPSED", 0.0)
    outcome = cli("train", *tiny, *collapsed)
    assert outcome.code == 0 and outcome.err.count("warning: ") == outcome.err.count("the set has collapsed") == 1


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
        "loss.terms={'test_trainer:MyTerm': {weight: 0.1, power: 1}}",
        "loss.ranking.name=test_trainer:my_ranking",
    ]
    assert cli("train", *tiny, *settings, "train.epochs=1").code == 0
    assert len(load_checkpoint(tmp_path / "run" / "last.pt")["criterion"]) == 1
    assert "test_trainer:MyTerm" in read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["train"]
    assert cli("eval", tmp_path / "run").code == 0  # needs neither
    assert cli("train", *tiny, *settings, "train.epochs=2").code == 0


def test_a_weight_of_zero_takes_a_term_out(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """What a base brings can be left out, also where the aggregator has nothing for it."""
    settings = [f"loss.terms.{term}.weight=0" for term in ("diversity", "mmd")]
    settings += ["model.image.aggregator.num_embeddings=1", "model.text.encoder={features: states}"]
    settings += ["model.text.aggregator.name=mean", "train.epochs=1"]
    outcome = cli("train", *small("pvse/f30k_region_bigru.yaml", tiny), *settings)
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
    settings = ["model.image.aggregator.name=test_trainer:MyPool", "model.image.aggregator.scale=2.0"]
    assert cli("train", *tiny, *settings, "train.epochs=1").code == 0
    assert weights(tmp_path / "run")["image.aggregator.weight"].shape == (8,)
    assert (
        "unknown argument of test_trainer:MyPool"
        in cli("train", *tiny, settings[0], "model.image.aggregator.x=1").error
    )


def test_learning_rate_factors(tiny: list[str]) -> None:
    training = trainer.Training(read_config(tiny[0], [*tiny[1:], "optim.factors={text.encoder: 0.1}"]))
    rates = {id(p): group["lr"] for group in training.optimiser.param_groups for p in group["params"]}
    for name, parameter in training.model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(5e-5 if name.startswith("text.encoder") else 5e-4)


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


# --- No run is ever lost -------------------------------------------------------------------------------------------


def start(tiny: list[str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *tiny, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


LONG = ["train.epochs=12", "run.save_minutes=0.0005", "optim.schedule.milestones=[5]"]


def test_kill_at_any_moment_and_go_on(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """kill -9 at random moments, with other numbers of workers each time: the same weights, the same log."""
    whole = tmp_path / "whole"
    assert cli("train", *tiny, *LONG, f"run.dir={whole}").code == 0
    expected = read_jsonl(whole / "metrics.jsonl")
    rng = random.Random(0)
    run = tmp_path / "run"
    kills = 0
    for attempt in range(20):
        process = start(tiny, *LONG, f"data.workers={attempt % 3}")
        seen = time.monotonic() + 120
        mark = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < seen:  # wait until it trains, then a random while
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size != mark:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.6)
        if process.poll() is None and kills < 4:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        out, err = process.communicate()
        assert process.returncode == 0, err
        break
    assert kills >= 2, "the run was over before it could be killed"
    assert same(weights(run), weights(whole)) and same(weights(run, "best.pt"), weights(whole, "best.pt"))
    found = read_jsonl(run / "metrics.jsonl")
    assert [r["step"] for r in found if "dev" in r] == [r["step"] for r in expected if "dev" in r]
    assert [r["dev"] for r in found if "dev" in r] == [r["dev"] for r in expected if "dev" in r]
    assert len({(r["step"], "dev" in r) for r in found}) == len(found)  # nothing is logged twice
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [True, False], ids=["group", "process"])
def test_a_signal_saves_and_leaves(tiny: list[str], tmp_path: Path, number: signal.Signals, group: bool) -> None:
    settings = ["train.epochs=500", "data.workers=2"]
    process = start(tiny, *settings)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "stopped and saved; the same command goes on from here" in out and "Traceback" not in err
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["epoch"] * 7 + state["step"] > 0


@pytest.mark.parametrize("when", ["validating", "saved", "logged"])
def test_stopped_around_a_validation(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A signal while validating leaves at once; a kill between the epoch's writes repeats or loses nothing."""
    whole = tmp_path / "whole"
    cli("train", *tiny, f"run.dir={whole}")
    killed = False

    def once(*_: Any, **__: Any) -> Any:
        nonlocal killed
        if not killed:
            killed = True
            if when == "validating":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise SystemExit(9)  # as kill -9 here: nothing after this line is written

    with monkeypatch.context() as patch:
        if when == "validating":
            patch.setattr("vse.evaluation.score.encode_corpus", once)
        elif when == "saved":
            patch.setattr("vse.training.log.RunLog.write", lambda *a: once() if "dev" in a[-1] else None)
        else:
            means, calls = RunLog.means, iter(range(1000))  # the first call is the epoch's last training log
            patch.setattr(
                "vse.training.log.RunLog.means", lambda self: means(self) if next(calls) != 1 else once() or {}
            )
        outcome = cli("train", *tiny, "run.log_steps=100")
    assert outcome.code == (128 + signal.SIGTERM if when == "validating" else 9), outcome.err
    outcome = cli("train", *tiny, "run.log_steps=100")
    assert "going on with epoch 1, step 8;" in outcome.out
    run = tmp_path / "run"
    assert same(weights(run), weights(whole)) and same(weights(run, "best.pt"), weights(whole, "best.pt"))
    dev = [[r for r in read_jsonl(folder / "metrics.jsonl") if "dev" in r] for folder in (run, whole)]
    assert dev[0] == dev[1]


def test_nohup_is_respected() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_leftovers_of_a_killed_write_go(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny, "train.epochs=1")
    leftover = tmp_path / "run" / ".last.pt.123.tmp"
    leftover.touch()
    assert cli("train", *tiny).code == 0 and not leftover.exists()


def test_best_without_last_is_not_overwritten(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny)
    (tmp_path / "run" / "last.pt").unlink()
    assert "last.pt: missing, beside a best.pt that a new run would replace" in cli("train", *tiny).error


def test_a_closed_pipe_loses_nothing(tiny: list[str], tmp_path: Path) -> None:
    process = start(tiny)
    assert process.stdout
    process.stdout.close()
    _, err = process.communicate()
    assert "Traceback" not in err and process.returncode == 1
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "best.pt").exists()


def test_interrupted_in_this_process_equals_uninterrupted(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of the second epoch; the model has dropout from the device's own generator."""
    whole = tmp_path / "whole"
    cli("train", *tiny, f"run.dir={whole}")
    step = trainer.Training.train_step

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if self.total_steps == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "train_step", interrupted)
    assert cli("train", *tiny).code == 128 + signal.SIGTERM
    monkeypatch.setattr(trainer.Training, "train_step", step)
    outcome = cli("train", *tiny, "data.workers=1")
    assert "going on with epoch 2, step 5;" in outcome.out
    a, b = load_checkpoint(tmp_path / "run" / "last.pt"), load_checkpoint(whole / "last.pt")
    assert same(a["model"], b["model"]) and torch.equal(a["random"]["torch"], b["random"]["torch"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_the_run_and_keeps_the_last_good_state(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    forward = vse.TripletLoss.forward
    calls = []

    def poisoned(self: vse.TripletLoss, scores: Any, positives: Any) -> Any:
        calls.extend([1] * torch.is_grad_enabled())
        loss = forward(self, scores, positives)
        if len(calls) < 12:
            return loss
        return loss * math.nan if what == "loss" else loss + (scores.sum() * 0).sqrt()  # finite, its gradient is not

    monkeypatch.setattr(vse.TripletLoss, "forward", poisoned)
    outcome = cli("train", *tiny)
    assert outcome.code == 2
    assert re.search(r"epoch 2, step 5: the loss is \S+ and its gradient's norm nan.*last.pt keeps", outcome.error)
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that overflows after a finite loss and gradient, with a checkpoint due at once."""
    step = trainer.Training.train_step

    def overflowing(self: trainer.Training, batch: Any) -> Any:
        losses = step(self, batch)
        if self.total_steps == 9:
            with torch.no_grad():
                self.model.image.encoder.fc.weight[0, 0] = math.inf  # type: ignore
        return losses

    monkeypatch.setattr(trainer.Training, "train_step", overflowing)
    outcome = cli("train", *tiny, "run.save_minutes=0.000001")
    assert "image.encoder.fc.weight is no longer finite; " in outcome.error and outcome.code == 2
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["step"] == 2 and all(w.isfinite().all() for w in state["model"].values())


def test_logged_metrics_are_the_models_own(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """A fused optimiser changes parameters behind the back of whatever caches by version."""
    outcome = cli("train", *tiny, "optim.fused=true", "optim.lr=0.01", "train.epochs=3")
    assert outcome.code == 0, outcome.err
    last = [r["dev"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "dev" in r][-1]
    cli("eval", tmp_path / "run" / "last.pt", "--split", "dev", "--json", tmp_path / "dev.json")
    assert yaml.safe_load((tmp_path / "dev.json").read_text()) == last


def test_a_full_disk(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """As on a full disk: a limit on file sizes that the log keeps and a checkpoint does not."""
    import resource

    assert cli("train", *tiny, "train.epochs=1").code == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        outcome = cli("train", *tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 2 and re.search(r"(best|last).pt: cannot be written \(File too large\)", outcome.error)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert cli("train", *tiny).code == 0


def test_a_truncated_checkpoint(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    cli("train", *tiny)
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    outcome = cli("train", *tiny, "train.epochs=3")
    assert outcome.code == 2 and "last.pt: truncated" in outcome.error
    assert cli("eval", tmp_path / "run").code == 0  # best.pt is whole


def test_resume_under_another_config(cli: Cli, tiny: list[str], tmp_path: Path, corpus_folder: Path) -> None:
    cli("train", *tiny)
    outcome = cli("train", *tiny, "optim.lr=0.1", "model.embed_dim=16", "train.epochs=3")
    assert outcome.code == 2
    assert "model.embed_dim (8 there, 16 here); optim.lr (0.0005 there, 0.1 here)" in outcome.error
    assert "train.epochs" not in outcome.error
    moved = corpus_folder.rename(tmp_path / "moved")
    allowed = ["train.epochs=3", f"data.root={moved}", "data.workers=1", "run.log_steps=1", "run.save_minutes=3"]
    assert cli("train", *tiny, *allowed).code == 0
    other = write_precomp(tmp_path / "other", train=30)
    outcome = cli("train", *tiny, "train.epochs=4", f"data.root={other}")
    assert "this run trained on 120 captions, but" in outcome.error and "has 150" in outcome.error
    assert "run.resume is never, but" in cli("train", *tiny, "run.resume=never").error


def test_a_run_from_before_a_setting_existed_goes_on(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    """Its config gets the default, which is what it did."""
    assert cli("train", *tiny).code == 0
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for key in ("mlp", "features", "context", "dropout"):
        del state["config"]["model"]["image"]["encoder"][key]
    del state["history"]
    torch.save(state, tmp_path / "run" / "last.pt")
    outcome = cli("train", *tiny, "train.epochs=3")
    assert outcome.code == 0 and "epoch 3/3" in outcome.out, outcome.err
    assert (
        "model.image.encoder.mlp (input there, None here)" in cli("train", *tiny, "model.image.encoder.mlp=null").error
    )


def test_a_run_folder_belongs_to_one_process(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    process = start(tiny, "train.epochs=500")
    while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
    assert "another process is training in" in cli("train", *tiny).error
    process.kill()
    process.communicate()


def test_evaluation_with_several_blocks_and_batch_sizes(
    tiny: list[str], cli: Cli, tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("train", *tiny, "train.epochs=1")
    model, corpus = vse.load(tmp_path / "run"), precomp(str(corpus_folder), "dev")
    expected = evaluate(model, corpus, 256, progress=False)
    monkeypatch.setattr("vse.evaluation.score._BLOCK", 100)
    assert evaluate(model, corpus, 3, progress=False) == expected
