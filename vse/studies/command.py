"""The command ``vse study``: what is missing is trained, then the tables are written."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vse.errors import InputError
from vse.evaluation.tables import as_text
from vse.files import claim_folder, write_json
from vse.studies.execute import command, default_jobs, execute
from vse.studies.measure import merge, read_result
from vse.studies.plan import PlannedRun, Study, read_study, share
from vse.studies.report import metric_tables, write_report
from vse.studies.summary import summarise


def run_study(
    name: str,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    jobs: int | None = None,
    only: str | None = None,
    merged: Sequence[Path] = (),
    dry_run: bool = False,
) -> int:
    """Train what a study lacks, evaluate it, and write results.json, results.md and cost.svg into its folder.

    Args:
        name: A file, or the name of a shipped study.
        overrides: Settings as ``key=value`` for all rows.
        folder: Where runs and results go; None for runs/studies and the study's name.
        jobs: How many runs are trained at once; None for one for each GPU, or one on a CPU.
        only: Which share of the runs this machine trains, such as "1/3"; None for all.
        merged: The study's folders of other machines, whose results are added; then nothing is trained.
        dry_run: Whether to list what is missing, and to train and write nothing.

    Returns:
        The exit code: 1 if a run failed, otherwise 0.

    Raises:
        InputError: An argument, the study or one of its configs is wrong.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    study = read_study(name, overrides, folder)
    own = share(study.runs, only)
    if dry_run:
        _list(study, own)
        return 0
    with claim_folder(study.folder, "--dir", "working on a study"):
        if merged:
            print(f"{study.folder}: {merge(study, merged)} results added")
        missing = [] if merged else [run for run in own if read_result(run, study) is None]
        failed = execute(study, missing, jobs or default_jobs()) if missing else {}
        return _write(study, failed)


def _list(study: Study, own: Sequence[PlannedRun]) -> None:
    """Print which runs are missing, each with its number and the command that trains it."""
    chosen = {run.name for run in own}
    missing = 0
    for number, run in enumerate(study.runs, 1):
        if run.name in chosen and read_result(run, study) is None:
            missing += 1
            print(f"{number:3} {run.name}, {run.config.train.epochs} epochs: {shlex.join(command(run))}")
    print(f"{study.name}: {len(own) - missing} of {len(own)} runs are finished, {missing} are missing")


def _write(study: Study, failed: dict[str, str]) -> int:
    """Write the results of all finished runs, and print a table of them."""
    found = {run.name: read_result(run, study) for run in study.runs}
    results = {name: result for name, result in found.items() if result is not None}
    summary = summarise(study, results, failed)
    write_json(study.folder / "results.json", summary)
    write_report(summary, study.folder)
    if results:
        print(as_text(metric_tables(summary)))
    for reason in dict.fromkeys(failed.values()):
        names = [name for name in failed if failed[name] == reason]
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"{study.name}: {names[0]}{others} failed: {reason}")
    left = len(study.runs) - len(results)
    print(
        f"{study.folder}/results.md: {len(results)} of {len(study.runs)} runs" + (f", {left} missing" if left else "")
    )
    return 1 if failed else 0
