"""The results of a study in one JSON file: everything that its tables and figures need."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap
from vse.evaluation.folds import FoldRanks
from vse.evaluation.groups import mean_and_deviation
from vse.evaluation.json_file import rounded
from vse.evaluation.protocols import parts_of_protocol
from vse.evaluation.tables import parts_of
from vse.studies.measure import read_ranks
from vse.studies.plan import PlannedRun, Study, StudyRow, published_metrics

_SAMPLES = 1000  # of the images
_FORMAT = 1  # of the file

Results = Mapping[str, dict[str, Any]]  # of runs, by their names
RanksOfSeeds = Mapping[int, dict[str, list[FoldRanks]]]  # by seed and part


def summarise(study: Study, results: Results, failed: Mapping[str, str]) -> dict[str, Any]:
    """Compute means, deviations, intervals and differences of a study.

    Args:
        study: The study.
        results: What each finished run has left, see :func:`vse.studies.measure.read_result`.
        failed: Why runs failed, by their names.

    Returns:
        Plain values for :func:`vse.studies.report.as_markdown`. For each row that has a finished run: its published
        metrics, those of each run by its seed, and "metrics", their mean and "deviation" over the seeds. Each part of
        these also has "bootstrap", and for all rows but the baseline "paired", the mean and deviation over common seeds
        of the difference of RSUM to the baseline, and the number of seeds.
    """
    by_row = {
        row.name: [run for run in study.runs if run.row == row.name and run.name in results] for row in _rows(study)
    }
    rows = [_row(row, by_row[row.name], study, results) for row in _rows(study) if by_row[row.name]]
    _add_intervals(rows, by_row, study, results)
    baseline = next((row for row in rows if row["name"] == study.baseline), None)
    for row in rows:
        if baseline is not None and row is not baseline:
            _add_differences(row, baseline)
    missing = [run.name for run in study.runs if run.name not in results and run.name not in failed]
    return rounded(
        {
            "format": _FORMAT,
            "study": study.name,
            "source": study.source,
            "title": study.title,
            "overrides": study.overrides,
            "split": study.content.split,
            "protocol": study.content.protocol,
            "seeds": study.content.seeds,
            "baseline": study.baseline,
            "rows": rows,
            "missing": missing,
            "failed": dict(failed),
        }
    )


def _rows(study: Study) -> list[StudyRow]:
    """The rows, the baseline first: all others are compared with it."""
    return sorted(study.content.rows, key=lambda row: row.name != study.baseline)


def _row(row: StudyRow, runs: list[PlannedRun], study: Study, results: Results) -> dict[str, Any]:
    own = [results[run.name] for run in runs]
    metrics = [result["metrics"] for result in own]
    kept = ("corpus", "metrics", "training", "machine")
    return {
        "name": row.name,
        "config": row.config,
        "settings": {**study.content.settings, **row.settings},
        "published": published_metrics(row, study.protocol),
        "metrics": mean_and_deviation(metrics) if len(metrics) > 1 else _plain(metrics[0]),
        "runs": {str(run.seed): {key: results[run.name][key] for key in kept} for run in runs},
    }


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a single run, without its sets, as a copy."""
    parts = {name: dict(part) for name, part in parts_of(metrics).items()}
    for part in parts.values():
        part.pop("sets", None)
    return parts.get("", parts)


def _add_intervals(
    rows: list[dict[str, Any]], by_row: Mapping[str, list[PlannedRun]], study: Study, results: Results
) -> None:
    """Put bootstrap intervals beside the metrics of the rows that were evaluated on the same captions as the first."""
    if not rows or not study.protocol.bootstrap:
        return
    digests = {name: {results[run.name]["corpus"]["digest"] for run in runs} for name, runs in by_row.items()}
    alike = [row for row in rows if digests[row["name"]] == digests[rows[0]["name"]]]
    names = list(parts_of_protocol(study.protocol))
    ranks = [{run.seed: read_ranks(run.folder, names) for run in by_row[row["name"]]} for row in alike]
    for name in names:
        found = bootstrap([[own[name] for own in by_seed.values()] for by_seed in ranks], _SAMPLES)
        for row, interval in zip(alike, found, strict=True):
            interval.pop("difference", None)
            parts_of(row["metrics"])[name]["bootstrap"] = interval
    if rows[0]["name"] == study.baseline:
        for row, by_seed in zip(alike[1:], ranks[1:], strict=True):
            _add_difference_by_image(row, by_seed, ranks[0])


def _add_difference_by_image(row: dict[str, Any], ranks: RanksOfSeeds, baseline: RanksOfSeeds) -> None:
    """Put the interval of the difference to the baseline, from the seeds that both have, into a row's intervals."""
    seeds = [seed for seed in ranks if seed in baseline]
    if not seeds:
        return
    for name, part in parts_of(row["metrics"]).items():
        _, own = bootstrap([[side[seed][name] for seed in seeds] for side in (baseline, ranks)], _SAMPLES)
        part["bootstrap"]["difference"] = own["difference"]


def _add_differences(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Put the paired differences to the baseline, seed by seed, beside a row's metrics."""
    seeds = [seed for seed in row["runs"] if seed in baseline["runs"]]
    for name, part in parts_of(row["metrics"]).items():
        if not seeds or "rsum" not in part:
            continue
        pairs = [[parts_of(one["runs"][seed]["metrics"])[name]["rsum"] for one in (row, baseline)] for seed in seeds]
        differences = [own - other for own, other in pairs]
        deviation = statistics.stdev(differences) if len(seeds) > 1 else None
        part["paired"] = {"mean": statistics.fmean(differences), "deviation": deviation, "seeds": len(seeds)}


def read_summary(file: Path) -> dict[str, Any]:
    """Read the JSON file of a study.

    Args:
        file: The file.

    Returns:
        Its content.

    Raises:
        InputError: The file is missing, or not a study's.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected a results.json of `vse study`") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "rows" not in content:
        raise InputError(f"{file}: is not the results.json of a study (format {_FORMAT})")
    return content
