"""Processes that prepare data beside the one that trains."""

import os
import signal
import threading


def leave_signals_to_the_parent(_: int) -> None:
    """Keep a worker alive when a signal goes to the whole process group: the parent saves, then ends the workers.

    Not every system allows all of this. Windows has neither SIGHUP nor SIGUSR1. On Windows and macOS a process cannot
    find out who sent a SIGTERM, so a worker there ends at once, whoever sent it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_the_parent_asks, daemon=True).start()


def _exit_when_the_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
