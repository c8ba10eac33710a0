"""From the results of runs to the JSON of a study, and from that to its tables and figure."""

import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import ROOT

from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap
from vse.evaluation.folds import FoldRanks, fold_metrics
from vse.files import write_json
from vse.studies.measure import RANKS, RESULT, merge, read_ranks, read_result
from vse.studies.plan import PlannedRun, Study, read_study
from vse.studies.report import cost_chart, results_page, study_markdown, write_report
from vse.studies.summary import read_summary, summarise

Summary = dict[str, Any]
STUDY = """# Means and others.
seeds: [1, 2, 4]
baseline: Mean
rows:
  - {name: GPO, config: demo, published: {rsum: 123.4}}
  - {name: Mean, config: demo, settings: {model.image.aggregator: mean}}
"""
IMAGES = 12


def random_ranks(seed: int) -> FoldRanks:
    draw = np.random.default_rng(seed)
    i2t, t2i = (torch.from_numpy(draw.integers(0, 12, count)) for count in (IMAGES, 2 * IMAGES))
    return FoldRanks(i2t, t2i, np.arange(IMAGES), np.arange(2 * IMAGES) // 2)


def finish(run: PlannedRun, seed: int, digest: str = "same") -> FoldRanks:
    """Write what a finished run leaves, with random ranks."""
    ranks = random_ranks(seed)
    run.folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f".{name}": np.asarray(value) for name, value in ranks._asdict().items()}
    np.savez(run.folder / RANKS, **arrays)
    curve = [[10.0 * run.seed, 1, 50.0], [20.0 * run.seed, 2, 60.0 + run.seed]]
    content = {
        "split": "test",
        "protocol": "retrieval",
        "config": run.config.model_dump(),
        "corpus": {"images": IMAGES, "captions": 2 * IMAGES, "digest": digest},
        "metrics": fold_metrics([ranks]),
        "training": {"steps": 40, "seconds": 60.0 * run.seed, "seconds_per_step": 1.5 * run.seed, "memory_gib": 0.5}
        | {"curve": curve},
        "machine": {"vse": "1", "torch": "2", "python": "3", "system": "Linux", "processor": "P", "cores": 2}
        | {"gpu": None, "threads": 1, "jobs": 2},
    }
    write_json(run.folder / RESULT, content)
    return ranks


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "own.yaml"
    file.write_text(STUDY)
    return read_study(str(file), folder=tmp_path / "out")


def results_of(study: Study) -> dict[str, dict[str, Any]]:
    found = {run.name: read_result(run, study) for run in study.runs}
    return {name: result for name, result in found.items() if result is not None}


@pytest.fixture
def ranks(study: Study) -> dict[str, FoldRanks]:
    """All runs but the last are finished; its ranks are those by the name of each run."""
    return {run.name: finish(run, number) for number, run in enumerate(study.runs[:-1])}


def test_means_differences_and_intervals(study: Study, ranks: dict[str, FoldRanks]) -> None:
    """Each is computed again from the runs."""
    summary = summarise(study, results_of(study), {})
    mean, gpo = summary["rows"]
    assert (mean["name"], gpo["name"]) == ("Mean", "GPO")  # the baseline comes first
    rsums = {name: float(fold_metrics([own])["rsum"]) for name, own in ranks.items()}
    of_gpo = [rsums[f"GPO, seed {seed}"] for seed in (1, 2, 4)]
    assert gpo["metrics"]["rsum"] == pytest.approx(statistics.fmean(of_gpo))
    assert gpo["metrics"]["deviation"]["rsum"] == pytest.approx(statistics.stdev(of_gpo))
    differences = [rsums[f"GPO, seed {seed}"] - rsums[f"Mean, seed {seed}"] for seed in (1, 2)]
    assert gpo["metrics"]["paired"] == {
        "mean": pytest.approx(statistics.fmean(differences)),
        "deviation": pytest.approx(statistics.stdev(differences)),
        "seeds": 2,
    }
    assert "paired" not in mean["metrics"]
    groups = [
        [[ranks[f"{name}, seed {seed}"]] for seed in seeds] for name, seeds in (("Mean", (1, 2)), ("GPO", (1, 2, 4)))
    ]
    expected = bootstrap(groups, 1000)
    paired = bootstrap([groups[0], groups[1][:2]], 1000)  # the seeds that both have
    assert gpo["metrics"]["bootstrap"]["difference"] == pytest.approx(paired[1]["difference"])
    assert gpo["metrics"]["bootstrap"]["rsum"] == pytest.approx(expected[1]["rsum"])
    assert mean["metrics"]["bootstrap"]["rsum"] == pytest.approx(expected[0]["rsum"])
    assert summary["missing"] == ["Mean, seed 4"] and json.loads(json.dumps(summary)) == summary


def test_the_command_of_a_study_can_be_pasted(tmp_path: Path) -> None:
    """A file is named as the user named it, a shipped study by its short name; a shell reads what was given."""
    (tmp_path / "my own.yaml").write_text(STUDY)
    overrides = ["data.root=it's", "optim.lr=1e-3", "train={epochs: 3}", "run.tracker=none"]
    for name in (str(tmp_path / "my own.yaml"), "demo"):
        summary = summarise(read_study(name, overrides), {}, {})
        text = study_markdown(summary).split("```")[1]
        assert shlex.split(text) == ["vse", "study", name, *overrides]
        assert text.strip().endswith("optim.lr=1e-3 'train={epochs: 3}' run.tracker=none")


def test_tables(study: Study, ranks: dict[str, FoldRanks], tmp_path: Path) -> None:
    summary = summarise(study, results_of(study), {"Mean, seed 4": "the loss is nan"})
    text = study_markdown(summary, "cost.svg")
    lines = text.splitlines()
    assert lines[0] == "# Study own" and "Means and others." in lines and f"vse study {tmp_path}/own.yaml" in lines
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    by_name: dict[str, list[list[str]]] = {}
    for name, *cells in rows:
        by_name.setdefault(name, []).append(cells)
    metrics = summary["rows"][1]["metrics"]
    low, high = metrics["bootstrap"]["rsum"]
    rsum = f"{metrics['rsum']:.1f} ± {metrics['deviation']['rsum']:.1f} [{low:.1f}, {high:.1f}]"
    assert by_name["GPO (n = 3)"][0][-1] == rsum
    assert by_name["GPO (published)"] == [["-"] * 6 + ["123.4"]]
    paired, (low, high) = metrics["paired"], metrics["bootstrap"]["difference"]
    assert by_name["GPO"] == [
        [
            f"{paired['mean']:+.1f} ± {paired['deviation']:.1f}",
            "2",
            f"{paired['mean']:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{statistics.fmean([61, 62, 64]):.1f} ± {statistics.stdev([61, 62, 64]):.1f}",
            f"{1.5 * 7 / 3:.3f} ± {1.5 * statistics.stdev([1, 2, 4]):.3f}",
            f"{7 / 3:.1f} ± {statistics.stdev([1, 2, 4]):.1f}",
            "0.50",
        ]
    ]
    assert by_name["Mean"][0][:3] == ["-", "-", "-"]
    assert "Failed: Mean, seed 4: `the loss is nan`" in text and "![Study own" in text and "(cost.svg)" in text
    assert "* 5 runs: vse 1, torch 2, Python 3, Linux; P, 2 cores; 1 thread a run, 2 at once" in text


def test_rows_on_other_data_have_no_intervals(study: Study) -> None:
    for number, run in enumerate(study.runs):
        finish(run, number, run.row)
    mean, gpo = summarise(study, results_of(study), {})["rows"]
    assert "bootstrap" in mean["metrics"] and "bootstrap" not in gpo["metrics"]


def test_the_health_of_sets(study: Study, ranks: dict[str, FoldRanks]) -> None:
    results = results_of(study)
    for seed in (1, 2, 4):
        sets = {"image_log_variance": -2.0 - seed, "image_embeddings_used": 3.0, "image_rsum": [10.0, 20.0 + seed]}
        results[f"GPO, seed {seed}"]["metrics"]["sets"] = sets
    text = study_markdown(summarise(study, results, {}))
    line = next(line for line in text.splitlines() if line.startswith("| GPO | -4.33"))
    assert line == "| GPO | -4.33 ± 1.53 | 3.0 ± 0.0 | 22.3 ± 1.5 | - | - | - |"


def test_the_curve_of_a_row_is_the_mean_of_its_seeds(study: Study, ranks: dict[str, FoldRanks]) -> None:
    summary = summarise(study, results_of(study), {})
    chart = cost_chart(summary)
    assert chart is not None and [line.name for line in chart.lines] == ["Mean", "GPO"]
    assert chart.lines[0].x == [15.0, 30.0] and chart.lines[0].y == [50.0, 61.5]
    write_report(summary, study.folder)
    figure = ElementTree.parse(study.folder / "cost.svg").getroot()
    texts = [element.text for element in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Mean", "GPO", "dev RSUM", "seconds of training steps"} <= set(texts)


def test_a_study_without_results(study: Study) -> None:
    summary = summarise(study, {}, {})
    text = study_markdown(summary)
    assert cost_chart(summary) is None and "Not trained yet: GPO, seed 1; GPO, seed 2;" in text


def test_one_seed(study: Study) -> None:
    """No deviation, and the difference is that of the one pair."""
    ranks = {run.name: finish(run, number) for number, run in enumerate(study.runs) if run.seed == 2}
    _, gpo = summarise(study, results_of(study), {})["rows"]
    own, other = (float(fold_metrics([ranks[f"{row}, seed 2"]])["rsum"]) for row in ("GPO", "Mean"))
    assert gpo["metrics"]["paired"] == {"mean": pytest.approx(own - other), "deviation": None, "seeds": 1}
    assert "±" not in study_markdown(summarise(study, results_of(study), {})).split("Differences")[0].split("\n|")[3]


def test_ranks_are_read_as_they_were(study: Study, ranks: dict[str, FoldRanks]) -> None:
    run = study.runs[0]
    (found,) = read_ranks(run.folder, [""])[""]
    for field in FoldRanks._fields:
        assert np.array_equal(getattr(found, field), getattr(ranks[run.name], field)), field


def test_results_of_other_settings(study: Study, ranks: dict[str, FoldRanks], tmp_path: Path) -> None:
    """More epochs go on, another split is measured again, and another model is refused."""
    file = str(tmp_path / "own.yaml")
    longer = read_study(file, ["train.epochs=9"], study.folder)
    assert read_result(longer.runs[0], longer) is None
    patient = read_study(file, ["train.patience=2"], study.folder)
    assert read_result(patient.runs[0], patient) is None
    other = read_study(file, ["model.embed_dim=8"], study.folder)
    with pytest.raises(
        InputError, match=r"seed_1: was trained with other settings: model.embed_dim \(96 in the run, 8"
    ):
        read_result(other.runs[0], other)
    Path(file).write_text(STUDY + "split: dev\n")
    moved = read_study(file, folder=study.folder)
    assert read_result(moved.runs[0], moved) is None and read_result(study.runs[0], study) is not None
    (study.runs[0].folder / RESULT).write_text("{")
    with pytest.raises(InputError, match=r"result.json: is not the result of a run; remove it"):
        read_result(study.runs[0], study)


def test_merge(study: Study, ranks: dict[str, FoldRanks], tmp_path: Path) -> None:
    """The results of another machine's folder are added, and nothing that is here is replaced."""
    here = read_study(str(tmp_path / "own.yaml"), folder=tmp_path / "here")
    finish(here.runs[0], 77)
    assert merge(here, [study.folder]) == 4 and merge(here, [study.folder]) == 0
    results = results_of(here)
    assert len(results) == 5 and results["GPO, seed 1"]["metrics"]["rsum"] == fold_metrics([random_ranks(77)])["rsum"]
    assert results["Mean, seed 1"] == results_of(study)["Mean, seed 1"]
    summarise(here, results, {})
    with pytest.raises(InputError, match="--merge: .*none: no such folder"):
        merge(here, [tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--merge: .*empty: holds no result of study own"):
        merge(here, [tmp_path / "empty"])


def test_the_results_page_is_what_the_studies_give(tmp_path: Path) -> None:
    """docs/RESULTS.md and its figures, made again from docs/results."""
    committed = ROOT / "docs" / "results"
    folder = tmp_path / "results"
    folder.mkdir()
    files = sorted(committed.glob("*.json"))
    assert files
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    results_page([folder / file.name for file in files], tmp_path / "RESULTS.md", committed / "text.md")
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "docs" / "RESULTS.md").read_text()
    for file in files:
        svg = file.with_suffix(".svg").name
        assert (folder / svg).read_bytes() == (committed / svg).read_bytes()


def test_the_committed_results_name_their_runs() -> None:
    for file in (ROOT / "docs" / "results").glob("*.json"):
        summary = read_summary(file)
        study = read_study(summary["study"])
        assert summary["study"] == file.stem and {row["name"] for row in summary["rows"]} <= {
            row.name for row in study.content.rows
        }
        assert not re.search(r"/(work|tmp|home)/", file.read_text())


def test_mistakes_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rsum": 3}')
    with pytest.raises(InputError, match="a.json: is not the results.json of a study"):
        results_page([tmp_path / "a.json"], tmp_path / "out.md")
    with pytest.raises(InputError, match="none.json: cannot be read"):
        results_page([tmp_path / "none.json"], tmp_path / "out.md")
