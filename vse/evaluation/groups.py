"""What results are called, and which runs are one result: those that differ in their seed alone."""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vse.config import Config, RunConfig, flatten
from vse.evaluation.tables import parts_of
from vse.optim import is_below

# Settings that say where, when and on what machine a run was trained, and its seed, but not what it trains.
NOT_COMPARED = (
    *(f"run.{name}" for name in RunConfig.model_fields if name != "precision"),
    *("data.workers", "data.resident", "train.micro_batch", "eval.batch_size"),
    *("model.image.encoder.recompute", "model.text.encoder.recompute"),
)
_OF_A_RUN = {"best.pt", "last.pt", "model.safetensors"}  # file names that say nothing: their folder has the run's name


def short_names(files: Sequence[Path]) -> list[str]:
    """Name results by the files that they come from, as shortly as tells them apart.

    A run is named after its folder. Its checkpoint's name follows where the folder holds several of the files.

    Args:
        files: The files, all different.

    Returns:
        A name for each.

    >>> short_names([Path("runs/a/best.pt"), Path("runs/b/best.pt"), Path("runs/b/last.pt"), Path("x/scores.npz")])
    ['a', 'b/best.pt', 'b/last.pt', 'scores.npz']
    """
    places = [Path(os.path.abspath(file)) for file in files]
    folders = [place.parent for place in places if place.name in _OF_A_RUN]
    parts = [p.parent.parts if folders.count(p.parent) == 1 and p.name in _OF_A_RUN else p.parts for p in places]
    names = []
    for place, own in zip(places, parts, strict=True):
        length = 2 if own == place.parts and place.name in _OF_A_RUN else 1
        while sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def groups_of(configs: Mapping[str, tuple[Config, str]]) -> list[list[str]]:
    """Find the runs that differ in their seed alone.

    Args:
        configs: The config, resolved, and the name of the checkpoint's file, of each trained run by the run's name.

    Returns:
        The names of the runs of each group of two or more. Runs that do not even differ in their seed are no group.
    """
    alike: dict[str, list[str]] = {}
    for name, (config, file) in configs.items():
        settings = {key: value for key, value in flatten(config.model_dump()).items() if not _is_left_out(key)}
        alike.setdefault(f"{file} {sorted(settings.items())}", []).append(name)
    return [
        names
        for names in alike.values()
        if len(names) > 1 and len({configs[name][0].run.seed for name in names}) == len(names)
    ]


def _is_left_out(key: str) -> bool:
    return any(is_below(key, prefix) for prefix in NOT_COMPARED)


def group_name(names: Sequence[str], others: Sequence[str]) -> str:
    """Name a group of runs: what their names begin with, and a star, as a shell would find them.

    Args:
        names: The names of the group's runs.
        others: The names of all other results.

    Returns:
        The name; all names where they have no common beginning, or one that another result has, too.

    >>> group_name(["gpo_seed1", "gpo_seed2"], ["mean_seed1"])
    'gpo_seed*'
    """
    start = os.path.commonprefix(list(names))
    if not start or any(other.startswith(start) for other in others):
        return ", ".join(names)
    return f"{start}*"


def mean_and_deviation(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the metrics of several runs, and compute how much they differ.

    Args:
        results: The metrics of each run, of one protocol; two or more.

    Returns:
        The mean of each metric that all runs have, and under "deviation", in the same places, their standard deviations
        s = sqrt(sum (x - mean)^2 / (n - 1)). The metrics of each part of a protocol have a "deviation" of their own.

    >>> mean_and_deviation([{"rsum": 400.0}, {"rsum": 402.0}])
    {'rsum': 401.0, 'deviation': {'rsum': 1.4142135623730951}}
    """
    parts = [parts_of(result) for result in results]
    found = {}
    for name in parts[0]:
        means, deviations = _statistics([_without(part[name], "sets", "bootstrap") for part in parts])
        found[name] = {**means, "deviation": deviations}
    return found.get("", found)


def _without(metrics: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key not in keys}


def _statistics(values: Sequence[Any]) -> tuple[Any, Any]:
    """The mean and the deviation of numbers, or of each number in dicts; of anything else the first, and None."""
    first = values[0]
    if isinstance(first, dict):
        shared = [key for key in first if all(key in value for value in values)]
        found = {key: _statistics([value[key] for value in values]) for key in shared}
        deviations = {key: deviation for key, (_, deviation) in found.items() if deviation is not None}
        return {key: mean for key, (mean, _) in found.items()}, deviations
    if isinstance(first, float):
        return statistics.fmean(values), statistics.stdev(values)
    return first, None
