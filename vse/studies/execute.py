"""Train and evaluate what a study lacks, several runs at once, each in a process of its own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vse.console import progress_bar
from vse.errors import InputError, first_line
from vse.files import write_json
from vse.studies.cost import cores, describe_machine, epochs_done
from vse.studies.measure import MACHINE, measure
from vse.studies.plan import PlannedRun, Study
from vse.training.stop import StopSignal

_POLL = 0.5  # seconds between two looks at the processes
_LOG = "study.log"  # in a run folder: what its process printed


class _Job(NamedTuple):
    """A run that is being trained.

    Attributes:
        run: The run.
        process: Its process.
        place: The number of its place among those that work at once.
    """

    run: PlannedRun
    process: subprocess.Popen[bytes]
    place: int


def default_jobs() -> int:
    """How many runs are trained at once by default: one for each GPU, or one on a CPU."""
    return max(1, torch.cuda.device_count())


def command(run: PlannedRun) -> list[str]:
    """The words of the command that trains a run, as a user would type them."""
    return ["vse", "train", run.source, *run.overrides]


def environment(place: int, jobs: int) -> dict[str, str]:
    """Choose the threads and the GPU of a process.

    Args:
        place: The number of its place among those that work at once, from 0.
        jobs: How many work at once.

    Returns:
        This process's environment, with an equal share of the cores in OMP_NUM_THREADS, unless it is smaller already,
        and where there are GPUs with one of them in CUDA_VISIBLE_DEVICES.
    """
    own = dict(os.environ)
    given = own.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // jobs)
    own["OMP_NUM_THREADS"] = str(min(share, int(given)) if given.isdecimal() and int(given) else share)
    count = torch.cuda.device_count()
    if count:
        visible = own.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) == count and all(visible) else [str(number) for number in range(count)]
        own["CUDA_VISIBLE_DEVICES"] = names[place % count]
    package = str(Path(__file__).parents[2])  # a checkout that is not installed
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [package, own.get("PYTHONPATH", "")]))
    return own


def execute(study: Study, runs: Sequence[PlannedRun], jobs: int) -> dict[str, str]:
    """Train and evaluate runs.

    A signal ends the processes, which save their state; this process then exits with 128 + the signal's number.

    Args:
        study: The study.
        runs: The runs that have no result.
        jobs: How many are trained at once.

    Returns:
        Why runs failed, by their names; the others went on.

    Raises:
        InputError: A run folder cannot be written.
    """
    waiting, working, failed = list(runs), list[_Job](), dict[str, str]()
    total = sum(run.config.train.epochs for run in runs)
    shown = _epochs(runs, runs)
    with StopSignal() as stop, progress_bar(study.name, " epochs", total, shown, stays=True) as bar:
        try:
            while (waiting or working) and not stop:
                free = set(range(jobs)) - {job.place for job in working}
                while waiting and free:
                    working.append(_start(waiting.pop(0), free.pop(), jobs))
                for job in [job for job in working if job.process.poll() is not None]:
                    working.remove(job)
                    if not stop:
                        _finish(job, study, failed)
                unfinished = [*waiting, *(job.run for job in working)]
                bar.set_postfix_str(_state(len(runs), len(unfinished), working, failed), refresh=False)
                done = max(shown, _epochs(runs, unfinished))
                bar.update(done - shown)
                shown = done
                time.sleep(_POLL)
        finally:
            _end(working)
    if stop:
        print(f"{study.folder}: stopped and saved; the same command goes on from here", flush=True)
        raise SystemExit(128 + stop.number)
    return failed


def _start(run: PlannedRun, place: int, jobs: int) -> _Job:
    """Start a run's process; what it prints goes into a file."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        own = environment(place, jobs)
        threads = int(own["OMP_NUM_THREADS"])
        write_json(run.folder / MACHINE, {**describe_machine(), "threads": threads, "jobs": jobs})
        with open(run.folder / _LOG, "wb") as log:
            log.write(f"{shlex.join(command(run))}\n".encode())
            log.flush()
            words = [sys.executable, "-m", "vse", *command(run)[1:]]
            # In a session of its own: Ctrl-C reaches this process alone, which then asks the others to save.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own, start_new_session=True
            )
    except OSError as error:
        raise InputError(f"--dir: {run.folder}: cannot be written ({error.strerror})") from None
    return _Job(run, process, place)


def _finish(job: _Job, study: Study, failed: dict[str, str]) -> None:
    """Evaluate a run whose process has ended, or note why it failed.

    An evaluation may take more memory than there is, since other runs work on the same GPU: the study goes on without
    its result, and the same command evaluates the run again.
    """
    if job.process.returncode != 0:
        failed[job.run.name] = f"{_last_line(job.run.folder / _LOG)} (exit code {job.process.returncode})"
        return
    try:
        measure(job.run, study)
    except InputError as error:
        failed[job.run.name] = str(error)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        failed[job.run.name] = f"it is trained, but could not be evaluated ({first_line(error)})"
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the training processes need the memory


def _last_line(file: Path) -> str:
    """The last line that a process printed; the file's first line is its command."""
    lines = file.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()[1:]
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _epochs(runs: Sequence[PlannedRun], unfinished: Sequence[PlannedRun]) -> int:
    """The number of epochs that runs have finished; one that has ended counts as a whole, also where it failed."""
    left = {run.name for run in unfinished}
    count = 0
    for run in runs:
        whole = run.config.train.epochs
        count += min(whole, epochs_done(run.folder / "metrics.jsonl")) if run.name in left else whole
    return count


def _state(total: int, unfinished: int, working: Sequence[_Job], failed: dict[str, str]) -> str:
    """What stands behind the bar."""
    parts = [f"{total - unfinished} of {total} runs"]
    if failed:
        parts.append(f"{len(failed)} failed")
    return "; ".join([*parts, *(job.run.name for job in working)])


def _end(working: Sequence[_Job]) -> None:
    """Ask processes to save and end, and wait for them."""
    for job in working:
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
    for job in working:
        job.process.wait()
