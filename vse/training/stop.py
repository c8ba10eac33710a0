"""Signals that end a run after the loop has saved its state."""

import contextlib
import signal
from collections.abc import Iterator

_HANGUP: int | None = getattr(signal, "SIGHUP", None)  # what a closed terminal sends; Windows does not have it
_WARNING: int | None = getattr(signal, "SIGUSR1", None)  # what a scheduler sends before a job's time is up


class Stopped(Exception):
    """A signal came, and everything is saved."""


class StopSignal:
    """Remembers SIGTERM, SIGUSR1, SIGHUP and Ctrl-C, so that the loop can save its state and leave.

    It is true once a signal has come. A SIGHUP that is ignored (``nohup``) stays ignored. While there is nothing to
    save, :meth:`immediately` lets a signal end the work at once.

    >>> with StopSignal() as stop:
    ...     while not stop:
    ...         train_step()
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came; 0: none yet
        self._raises = False

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> "StopSignal":
        numbers: list[int] = [signal.SIGTERM, signal.SIGINT]
        if _WARNING is not None:
            numbers.append(_WARNING)
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            numbers.append(_HANGUP)
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def immediately(self) -> Iterator[None]:
        """Let a signal end this block at once, or at its start if one has come before.

        Raises:
            Stopped: A signal has come.
        """
        self._raises = True
        try:
            if self:
                raise Stopped
            yield
        finally:
            self._raises = False

    def _remember(self, number: int, _: object) -> None:
        self.number = number
        if self._raises:
            self._raises = False  # a second signal must not interrupt the cleanup
            raise Stopped
