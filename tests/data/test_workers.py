import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers import ROOT

from vse.data import workers


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ((), {"SIGINT", "SIGHUP", "SIGUSR1"}),
        (("sigwaitinfo",), {"SIGINT", "SIGHUP", "SIGUSR1"}),  # macOS
        (("sigwaitinfo", "pthread_sigmask", "SIGHUP", "SIGUSR1"), {"SIGINT"}),  # Windows
    ],
    ids=["Linux", "macOS", "Windows"],
)
def test_workers_start_where_signals_are_few(
    lacks: tuple[str, ...], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ignore what there is to ignore; a SIGTERM is waited for only where one can tell who sent it."""
    ignored, blocked, threads = set(), [], []
    monkeypatch.setattr(signal, "signal", lambda number, action: ignored.add(number.name))
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, signals: blocked.append(signals))
    monkeypatch.setattr(threading.Thread, "start", lambda thread: threads.append(thread))
    for name in lacks:
        monkeypatch.delattr(signal, name)
    workers.leave_signals_to_the_parent(0)
    assert ignored == expected
    assert len(blocked) == len(threads) == (0 if lacks else 1)


def test_a_module_without_the_signals_of_posix_can_be_imported() -> None:
    code = """
import signal
for name in ("sigwaitinfo", "pthread_sigmask", "SIGHUP", "SIGUSR1", "sigwait", "sigtimedwait"):
    delattr(signal, name)
import vse.data.batches, vse.data.captions, vse.data.formats, vse.features.extraction
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
