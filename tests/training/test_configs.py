"""The shipped configs, made small: they train, and what does not fit in them is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, Outcome, read_jsonl, small_config, write_precomp

from vse.build import read_config
from vse.training import trainer

Cli = Callable[..., Outcome]


CONFIGS = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").glob("*/*_region_bigru*.yaml"))


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.startswith("_")])
def test_every_config_trains_and_evaluates(cli: Cli, tiny: list[str], tmp_path: Path, config: str) -> None:
    outcome = cli("train", *small_config(config, tiny), "train.epochs=1")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    content = read_config(ROOT / "configs" / config)
    training = [r["train"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train" in r]
    assert set(content.loss.terms) <= set(training[0]) and all(math.isfinite(v) for v in training[0].values())
    table = cli("eval", tmp_path / "run")
    assert table.code == 0 and "RSUM" in table.out
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    aggregator = content.model.image.aggregator
    sets = "num_embeddings" in aggregator.arguments or aggregator.name == "tokens"
    assert ("sets" in metrics) == sets == ("Image sets" in table.out) == ("image_log_variance" in training[0])


@pytest.mark.parametrize("config", ["esa/f30k_region_bert", "chan/f30k_region_bert", "maxmatch/f30k_region_bert"])
def test_newer_systems_with_bert(cli: Cli, tiny: list[str], tmp_path: Path, tiny_bert: Path, config: str) -> None:
    words = f"model.text.encoder.model={tiny_bert}"
    settings = [s for s in small_config(f"{config}.yaml", tiny) if not s.startswith("model.text.encoder.word_dim")]
    outcome = cli("train", *settings, words, "train.epochs=1")
    assert outcome.code == 0 and "warning" not in outcome.err, outcome.err
    assert cli("eval", tmp_path / "run").code == 0
    assert 0 < json.loads((tmp_path / "run" / "test.json").read_text())["rsum"] <= 600


SYSTEMS = ("pvse/f30k", "vse_2ad/f30k", "dive/f30k", "esa/f30k", "chan/f30k")


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.startswith(SYSTEMS)])
def test_every_parameter_of_every_system_gets_a_gradient(tiny: list[str], config: str) -> None:
    path, *settings = small_config(config, tiny)
    training = trainer.Training(read_config(path, [*settings, "run.precision=fp32"]))
    training.model.train()
    keeps_ends = config.startswith(("vse_2ad", "dive"))
    assert training.loader.dataset.keep_ends == keeps_ends  # type: ignore[union-attr]
    training.train_step(next(training.batches()))
    unused = [name for name, p in training.model.named_parameters() if p.grad is None or not p.grad.any()]
    # Adaptive pooling's balance.bias is added to both sides of a softmax: it changes nothing, in the paper's code too.
    assert [name for name in unused if not name.endswith("balance.bias")] == []


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
    settings = [*small_config("dive/f30k_region_bigru.yaml", tiny), *settings, "--dry-run"]
    settings = [s for s in settings if s != "model.text.aggregator.head_dim=4"]
    assert "'text.aggregator' begins no parameter's name" in cli("train", *settings).error
    assert cli("train", *settings, "optim.factors={text.aggregator: null}").code == 0


def test_positions_with_dropped_regions(cli: Cli, tiny: list[str]) -> None:
    config = small_config("dive/f30k_region_bigru.yaml", tiny)
    assert cli("train", *config, "model.image.aggregator.position=sine", "train.epochs=1").code == 0


def test_a_grid_that_does_not_fit(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    config = small_config("dive/f30k_region_bigru.yaml", tiny)
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
        "is for the cells of a picture, but the text tower has tokens"
        in cli("train", *config, *text, f"run.dir={tmp_path / 'y'}").error
    )
