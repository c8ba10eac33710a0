"""Signals that end a run, remembered until the loop can save."""

import signal


class Stopped(Exception):
    """A signal came, and everything is saved."""


class StopSignal:
    """Remembers SIGTERM, SIGHUP (unless ``nohup`` has it ignored) and Ctrl-C, so that the loop can save and leave.

    While ``saved`` is set there is nothing to save: the signal raises :class:`Stopped` at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.saved = False

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        self.number = number
        if self.saved:
            self.saved = False
            raise Stopped
