import json
from pathlib import Path
from typing import Any

import pytest

from vse.pages.curves import learning_curves


def write(path: Path, records: list[dict[str, Any]], rest: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + rest)
    return path


def dev(epoch: int, rsum: float) -> dict[str, Any]:
    return {"epoch": epoch, "step": 10 * epoch, "dev": {"rsum": rsum, "i2t": {"r1": rsum / 10}, "t2i": {"r1": 1.0}}}


def train(step: int, **values: float | None) -> dict[str, Any]:
    return {"epoch": 1, "step": step, "train": values}


def test_every_curve(tmp_path: Path) -> None:
    start = {"epoch": 1, "step": 0, "start": {"image_log_variance": -2.0, "text_log_variance": -3.0}}
    steps = [train(5, total=2.0, ranking=1.5, plateau=3.0, image_log_variance=-1.0, text_log_variance=-1.5)]
    steps += [train(10, total=1.0, ranking=None, plateau=3.0, image_log_variance=-0.5, text_log_variance=-1.0)]
    file = write(tmp_path / "metrics.jsonl", [start, *steps, dev(1, 80.0), dev(2, 70.0)], '{"epoch": 3, "st')
    loss, rsum, r1, variance = learning_curves(file)
    assert [(line.name, list(line.x), list(line.y)) for line in loss.lines] == [
        ("loss", [5, 10], [2.0, 1.0]),
        ("ranking loss", [5], [1.5]),
        ("loss of equal scores", [5, 10], [3.0, 3.0]),
    ]
    assert rsum.title == "RSUM on dev: best 80.0 at epoch 1" and list(rsum.lines[0].y) == [80.0, 70.0]
    assert [list(line.y) for line in r1.lines] == [[8.0, 7.0], [1.0, 1.0]]
    assert [list(line.x) for line in variance.lines] == [[0, 5, 10]] * 2 and list(variance.lines[0].y)[0] == -2.0


def test_the_ranking_loss_is_left_out_where_it_is_the_loss(tmp_path: Path) -> None:
    file = write(tmp_path / "m.jsonl", [train(5, total=2.0, ranking=2.0)])
    assert [line.name for line in learning_curves(file)[0].lines] == ["loss"]


def test_long_curves_are_means_of_neighbours(tmp_path: Path) -> None:
    file = write(tmp_path / "m.jsonl", [train(step, total=float(step % 2)) for step in range(1000)])
    line = learning_curves(file)[0].lines[0]
    assert len(line.x) == 200 and list(line.x)[:2] == [2.0, 7.0] and sum(line.y) / 200 == pytest.approx(0.5)


def test_no_file_or_nothing_in_it(tmp_path: Path) -> None:
    assert learning_curves(tmp_path / "missing.jsonl") == []
    odd = '[1, 2]\n3\n{"epoch": 1, "step": 2, "train": 5}\n{"epoch": null, "step": 2, "dev": {"rsum": 5}}\n'
    assert learning_curves(write(tmp_path / "m.jsonl", [], odd)) == []


def test_evaluations_between_the_ends_of_epochs(tmp_path: Path) -> None:
    """They stand at their steps: of six evaluations in two epochs, no two share a place."""
    rsums = {4: 10.0, 8: 30.0, 12: 20.0, 16: 60.0, 20: 50.0}
    evaluations = [{**dev(1 if step <= 10 else 2, rsum), "step": step} for step, rsum in rsums.items()]
    rsum, r1 = learning_curves(write(tmp_path / "m.jsonl", evaluations))
    assert rsum.x_label == r1.x_label == "step" and rsum.title == "RSUM on dev: best 60.0 at step 16"
    assert list(rsum.lines[0].x) == list(r1.lines[0].x) == [4, 8, 12, 16, 20]


def test_an_evaluation_in_the_first_epoch(tmp_path: Path) -> None:
    file = write(tmp_path / "m.jsonl", [{**dev(1, 10.0), "step": 4}, train(6, total=1.0)])
    assert learning_curves(file)[1].title == "RSUM on dev: best 10.0 at step 4"


def test_evaluations_after_every_second_epoch(tmp_path: Path) -> None:
    rsum, _ = learning_curves(write(tmp_path / "m.jsonl", [dev(2, 10.0), dev(4, 20.0)]))
    assert rsum.title == "RSUM on dev: best 20.0 at epoch 4" and list(rsum.lines[0].x) == [2, 4]
