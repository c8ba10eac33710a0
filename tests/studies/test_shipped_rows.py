"""Each row of the studies on region features with a BiGRU takes training steps, made narrow, on a small corpus."""

from pathlib import Path

import pytest

from vse.build import read_config
from vse.studies.plan import PlannedRun, read_study
from vse.training.trainer import dry_run

SMALL = [
    *("model.embed_dim=8", "model.text.encoder.word_dim=6", "data.vocabulary.min_count=1", "data.workers=0"),
    *("data.vocabulary.vectors=null", "train.batch_size=16", "run.precision=fp32"),
]


def rows(name: str) -> list[PlannedRun]:
    """A run of each row."""
    runs = read_study(name).runs
    return [run for run in runs if run.seed == runs[0].seed]


@pytest.mark.slow
@pytest.mark.parametrize("study", ["demo", "flickr8k", "ablation", "ablation_sets"])
def test_each_row_trains(study: str, data_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for run in rows(study):
        check_row(run, data_folder)
        assert "dry run: train 24 images" in capfd.readouterr().out, run.folder


def check_row(run: PlannedRun, data_folder: Path) -> None:
    settings = [*SMALL, "data.format=precomp", f"data.root={data_folder}"]
    for side in ("image", "text"):
        if getattr(run.config.model, side).aggregator.name == "set_prediction":
            settings.append(f"model.{side}.aggregator.head_dim=4")
    if run.config.model.text.encoder.arguments.get("freeze_words"):
        settings.append("model.text.encoder.freeze_words=false")
    dry_run(read_config(run.source, [*run.overrides, *settings]))
