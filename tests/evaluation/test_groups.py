from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from vse.build import read_config
from vse.config import Config, RunConfig, flatten
from vse.evaluation.groups import NOT_COMPARED, group_name, groups_of, mean_and_deviation, short_names


def named(*settings: str) -> tuple[Config, str]:
    return read_config(ROOT / "configs" / "demo.yaml", settings), "best.pt"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["../runs/margin_0.1/best.pt"], ["margin_0.1"]),
        (["runs/a/best.pt", "runs/b/last.pt"], ["a", "b"]),
        (["runs/a/best.pt", "runs/a/last.pt", "runs/b/best.pt"], ["a/best.pt", "a/last.pt", "b"]),
        (["x/a/best.pt", "y/a/best.pt", "y/b/best.pt"], ["x/a", "y/a", "b"]),
        (["k/x/a/best.pt", "k/y/a/best.pt", "l/y/a/best.pt"], ["x/a", "k/y/a", "l/y/a"]),
        (["shared/model.safetensors", "f30k.pth"], ["shared", "f30k.pth"]),
        (["x/a.npz", "y/a.npz", "a/best.pt"], ["x/a.npz", "y/a.npz", "a"]),
        (["x/../y/a/best.pt"], ["a"]),
    ],
)
def test_short_names(files: list[str], names: list[str]) -> None:
    assert short_names([Path(file) for file in files]) == names


def test_a_folder_is_named_wherever_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "margin").mkdir()
    monkeypatch.chdir(tmp_path / "margin")
    assert short_names([Path("best.pt")]) == ["margin"]


def test_runs_that_differ_in_their_seed_alone() -> None:
    """And in what says where and on what machine they ran."""
    runs = {
        "a": named("run.dir=a"),
        "other margin": named("run.dir=b", "run.seed=2", "loss.ranking.margin=0.1"),
        "b": named("run.dir=b", "run.seed=2", "run.device=cpu", "data.workers=0", "train.micro_batch=8"),
        "other margin again": named("run.dir=c", "run.seed=3", "loss.ranking.margin=0.1"),
        "other data": named("run.dir=d", "run.seed=4", "data.root=elsewhere"),
        "other precision": named("run.dir=e", "run.seed=5", "run.precision=bf16"),
        "c": named("run.dir=e", "run.seed=3", "eval.batch_size=9", "data.resident=disk"),
    }
    assert groups_of(runs) == [["a", "b", "c"], ["other margin", "other margin again"]]


def test_the_same_seed_or_another_file_is_no_group() -> None:
    first, same = named("run.dir=a"), named("run.dir=b")
    assert groups_of({"a": first, "b": same}) == []
    second = named("run.seed=2")[0]
    assert groups_of({"a": first, "b": (second, "last.pt")}) == [] and groups_of({"a": first}) == []
    assert groups_of({"a": first, "b": (second, "best.pt")}) == [["a", "b"]]


def test_the_settings_that_are_not_compared_exist() -> None:
    config = named("model.image.encoder.name=grid", "data.transform.name=crop", "model.text.encoder.name=bert")[0]
    known = {*flatten(config.model_dump()), *(f"run.{name}" for name in RunConfig.model_fields)}
    assert set(NOT_COMPARED) <= known, set(NOT_COMPARED) - known
    assert "run.seed" in NOT_COMPARED and "run.precision" not in NOT_COMPARED


def test_names_of_groups() -> None:
    assert group_name(["gpo_seed1", "gpo_seed2", "gpo_seed10"], ["mean"]) == "gpo_seed*"
    assert group_name(["x/1", "x/2"], ["y/1"]) == "x/*"
    assert group_name(["one", "two"], ["three"]) == "one, two"
    assert group_name(["a1", "a2"], ["a3"]) == "a1, a2"  # a* would mean all three


def test_the_mean_and_the_deviation() -> None:
    values = np.array([[60.0, 3.0, 100.0], [61.0, 5.0, 90.0], [65.0, 4.0, 95.0]])
    results: list[dict[str, Any]] = [
        {"i2t": {"r1": a, "medr": b}, "rsum": c, "folds": 5, "sets": {"text_rsum": [c]}, "bootstrap": {"rsum": [a, b]}}
        for a, b, c in values.tolist()
    ]
    found = mean_and_deviation(results)
    mean, deviation = values.mean(0), values.std(0, ddof=1)
    assert found.keys() == {"i2t", "rsum", "folds", "deviation"} and found["folds"] == 5
    assert [found["i2t"]["r1"], found["i2t"]["medr"], found["rsum"]] == pytest.approx(mean)
    own = found["deviation"]
    assert [own["i2t"]["r1"], own["i2t"]["medr"], own["rsum"]] == pytest.approx(deviation)
    assert own.keys() == {"i2t", "rsum"}


def test_each_part_has_a_deviation_of_its_own() -> None:
    results: list[dict[str, Any]] = [
        {"coco_1k": {"rsum": a}, "coco_5k": {"rsum": 2 * a}, "sets": {}} for a in (1.0, 3.0)
    ]
    found = mean_and_deviation(results)
    assert found.keys() == {"coco_1k", "coco_5k"}
    assert found["coco_5k"] == {"rsum": 4.0, "deviation": {"rsum": pytest.approx(8**0.5)}}
