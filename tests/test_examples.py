"""The examples run, a user's own parts compute what they say, and a config that names them trains."""

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome, weights_of
from torch import Tensor

from vse.checkpoints.native import load_checkpoint

EXAMPLES = ROOT / "examples"


def part(module: str, name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{module}.py"))[name]


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings with which the demo trains for one epoch on a few scenes; the examples can be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    scenes = ["data.options.train_scenes=24", "data.options.eval_scenes=6", f"data.root={tmp_path / 'scenes'}"]
    return [*scenes, f"run.dir={tmp_path / 'run'}", "model.embed_dim=16", "train.epochs=1", "train.batch_size=16"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet_feature_map", ["GPO torch.Size([2, 1, 512])", "torch.Size([2, 4, 256])", "torch.Size([2, 4, 7, 7])"]),
        ("transformer_hidden_states", ["GPO torch.Size([2, 1, 64])", "torch.Size([2, 4, 64])", "padding 0.0"]),
    ],
)
def test_imported_into_other_models(name: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert all(part in out for part in expected), out


@pytest.mark.parametrize(("module", "name", "sizes"), [("my_pool", "MyPool", (6,)), ("my_paper", "QueryPool", (6, 4))])
def test_an_own_aggregator_ignores_padding(module: str, name: str, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pool = part(module, name)(*sizes)
    features, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, False, True, False, False]])
    together = pool(features.masked_fill(~mask.unsqueeze(-1), torch.nan), mask).embeddings
    torch.testing.assert_close(pool(features[1:, [0, 2]]).embeddings[0], together[1])


def test_my_paper_pools_as_it_says() -> None:
    torch.manual_seed(0)
    pool = part("my_paper", "QueryPool")(6, 4, num_embeddings=3).double()
    features = torch.randn(2, 5, 6, dtype=torch.float64)
    result = pool(features).embeddings
    assert result.shape == (2, 3, 4)
    for row, elements in enumerate(features):
        for k, query in enumerate(pool.queries):
            logits = [(query @ x).item() / math.sqrt(6) for x in elements]
            total = sum(math.exp(logit) for logit in logits)
            expected = sum(math.exp(a) / total * pool.values(x) for a, x in zip(logits, elements, strict=True))
            torch.testing.assert_close(result[row, k], expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_my_similarity_equals_its_slow_twin(share: float) -> None:
    torch.manual_seed(0)
    images, captions = torch.randn(3, 2, 5).double(), torch.randn(4, 3, 5).double()
    images, captions = (x / x.norm(dim=-1, keepdim=True) for x in (images, captions))
    scores = part("my_similarity", "best_to_mean")(images, captions, share=share)
    assert scores.shape == (3, 4)
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            cosines = [float(a @ b) for a in image for b in caption]
            expected = share * max(cosines) + (1 - share) * sum(cosines) / len(cosines)
            assert scores[i, j].item() == pytest.approx(expected)


def slow_soft_margin(scores: Tensor, positives: Tensor, scale: float) -> float:
    """The loss of one direction, query by query."""
    costs = []
    for row, of_query in zip(scores.tolist(), positives.tolist(), strict=True):
        for positive in (score for score, belongs in zip(row, of_query, strict=True) if belongs):
            for candidate, belongs in zip(row, of_query, strict=True):
                costs.append(0.0 if belongs else math.log1p(math.exp(scale * (candidate - positive))) / scale)
    return sum(costs) / len(costs)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_my_loss_equals_its_slow_twin(scale: float) -> None:
    """Images have one to three captions, and one caption has two images."""
    torch.manual_seed(0)
    scores = torch.rand(3, 6, dtype=torch.float64)
    positives = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
    expected = slow_soft_margin(scores, positives, scale) + slow_soft_margin(scores.T, positives.T, scale)
    assert part("my_loss", "SoftMargin")(scale)(scores, positives).item() == pytest.approx(expected)


def write_tab_separated(folder: Path, name: str = "captions.tsv") -> None:
    """Two images in train and one each in dev and test; the captions of train are not in the order of the images."""
    folder.mkdir()
    for split, count in (("train", 2), ("dev", 1), ("test", 1)):
        np.save(folder / f"{split}.npy", np.arange(count * 12, dtype=np.float32).reshape(count, 3, 4))
    rows = ["train\t1\ta red dog", "train\t0\ta blue cat", "train\t1\tthe dog", "dev\t0\ta cat", "test\t0\ta bird"]
    (folder / name).write_text("\n".join(rows) + "\n")


def test_my_format_reads_a_folder(tmp_path: Path) -> None:
    write_tab_separated(tmp_path / "data")
    corpus = part("my_format", "tab_separated")(str(tmp_path / "data"), "train")
    assert corpus.captions == ["a red dog", "a blue cat", "the dog"]
    assert corpus.image_of_caption.tolist() == [1, 0, 1]
    assert (len(corpus.images), corpus.images.kind, corpus.images.width) == (2, "features", 4)
    np.testing.assert_array_equal(corpus.images.read(np.array([1]))[0], np.arange(12, 24).reshape(3, 4))


def test_my_format_in_a_config(cli: Callable[..., Outcome], small_demo: list[str], tmp_path: Path) -> None:
    write_tab_separated(tmp_path / "data", "other.tsv")
    settings = [
        *("data.format=my_format:tab_separated", f"data.root={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}"),
        *("model.embed_dim=16", "train.epochs=1", "train.batch_size=2"),
    ]
    outcome = cli("train", "demo", *settings, "data.options.file=other.tsv")
    assert outcome.code == 0, outcome.err
    assert "train 2 images, 3 captions; dev 1 images, 1 captions" in outcome.out
    refused = cli("eval", tmp_path / "run")
    assert "which is not an nn.Module; pass data.format=my_format:tab_separated to allow it" in refused.error
    allowed = cli("eval", tmp_path / "run", "data.format=my_format:tab_separated")
    assert allowed.code == 0 and "1 images, 1 captions" in allowed.out
    misspelt = cli("train", "demo", *settings, "data.options.files=other.tsv", "--dry-run")
    assert "unknown argument of my_format:tab_separated (did you mean 'file'?)" in misspelt.error


def test_an_own_aggregator_trains(cli: Callable[..., Outcome], small_demo: list[str], tmp_path: Path) -> None:
    outcome = cli("train", EXAMPLES / "my_pool.yaml", *small_demo)
    assert outcome.code == 0, outcome.err
    assert cli("eval", tmp_path / "run").code == 0
    assert weights_of(tmp_path / "run")["image.aggregator.score.0.weight"].shape[0] == 64
    misspelt = cli("train", EXAMPLES / "my_pool.yaml", *small_demo, "model.image.aggregator.hidden=4")
    assert "unknown argument of my_pool:MyPool (did you mean 'hidden_dim'?)" in misspelt.error


def test_an_own_similarity_trains(cli: Callable[..., Outcome], small_demo: list[str], tmp_path: Path) -> None:
    """A checkpoint cannot choose a function outside of the package; whoever evaluates names it again."""
    setting = "model.similarity={name: 'my_similarity:best_to_mean', share: 0.25}"
    outcome = cli("train", "demo", setting, *small_demo)
    assert outcome.code == 0, outcome.err
    saved = load_checkpoint(tmp_path / "run" / "best.pt")["config"]["model"]["similarity"]
    assert saved == {"name": "my_similarity:best_to_mean", "share": 0.25}
    name = "model.similarity.name=my_similarity:best_to_mean"
    assert f"which is not an nn.Module; pass {name} to allow it" in cli("eval", tmp_path / "run").error
    assert cli("eval", tmp_path / "run", name).code == 0


def test_an_own_loss_trains(cli: Callable[..., Outcome], small_demo: list[str], tmp_path: Path) -> None:
    outcome = cli("train", "demo", "loss.ranking={name: 'my_loss:SoftMargin', scale: 5.0}", *small_demo)
    assert outcome.code == 0, outcome.err
    saved = load_checkpoint(tmp_path / "run" / "best.pt")["config"]["loss"]["ranking"]
    assert saved == {"name": "my_loss:SoftMargin", "scale": 5.0}
    assert cli("eval", tmp_path / "run").code == 0


def test_my_paper_trains(cli: Callable[..., Outcome], small_demo: list[str], tmp_path: Path) -> None:
    """Three queries on each side are trained, and the set's health is logged."""
    outcome = cli("train", EXAMPLES / "my_paper.yaml", *small_demo)
    assert outcome.code == 0, outcome.err
    weights = weights_of(tmp_path / "run")
    assert weights["image.aggregator.queries"].shape[0] == weights["text.aggregator.queries"].shape[0] == 3
    evaluated = cli("eval", tmp_path / "run")
    assert evaluated.code == 0 and "6 images, 30 captions" in evaluated.out
