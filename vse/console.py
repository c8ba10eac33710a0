"""What is printed while work goes on: lines, warnings and progress bars, and the file that keeps the lines.

A bar is drawn where stderr is a terminal. Elsewhere, as in the log of a job, it is one line a minute.
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from vse.errors import InputError

Item = TypeVar("Item")

_SECONDS = 60.0  # between two lines where no bar can be drawn
_FILES: list[Path] = []  # what keeps the lines


class Bar(Protocol):
    """What shows how far some work has come."""

    def update(self, done: float = 1) -> object:
        """Tell that further items are done."""
        ...

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> object:
        """Set what is shown behind the numbers."""
        ...


class Lines:
    """A progress bar for a file: one line a minute on stderr, and none for work that takes less.

    Args:
        title: What is done.
        unit: What is counted, with a space before it.
        total: How many there are.
        first: How many were done before.

    >>> bar = Lines("encoding", " items", total=100)
    >>> bar.update(40)
    """

    def __init__(self, title: str, unit: str, total: int, first: int = 0) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.first = self.done = float(first)
        self.text = ""
        self.started = self.shown = time.monotonic()

    def update(self, done: float = 1) -> None:
        """Tell that further items are done."""
        self.done += done
        now = time.monotonic()
        if now - self.shown >= _SECONDS:
            self.shown = now
            rate = (self.done - self.first) / (now - self.started)
            left = tqdm.format_interval(max(0.0, self.total - self.done) / rate) if rate else "?"
            share = f"{self.done / self.total:.0%}" if self.total else ""
            text = f", {self.text}" if self.text else ""
            counted = f"{self.done:,.0f} of {self.total:,}{self.unit}"
            print(f"{self.title}: {share} ({counted}), {left} left{text}", file=sys.stderr, flush=True)

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Set what is shown behind the numbers."""
        self.text = text


@contextlib.contextmanager
def progress_bar(
    title: str,
    unit: str,
    total: int,
    first: int = 0,
    *,
    stays: bool = False,
    delay: float = 0,
    shown: bool = True,
) -> Iterator[Bar]:
    """Show how far some work has come: a bar on a terminal, one line a minute elsewhere.

    Args:
        title: What is done.
        unit: What is counted, with a space before it; "B" for bytes.
        total: How many there are.
        first: How many were done before.
        stays: Whether the bar is left on the screen at the end.
        delay: Seconds before a bar is drawn, so that quick work has none.
        shown: Whether anything is shown at all.

    Yields:
        The bar; call its ``update`` with the number of items that have been done.

    >>> with progress_bar("encoding", " items", total=100) as bar:
    ...     bar.update(40)
    """
    if shown and not sys.stderr.isatty():
        yield Lines(title, unit, total, first)
        return
    with tqdm(
        total=total,
        initial=first,
        desc=title,
        unit=unit,
        unit_scale=total >= 1000,
        leave=stays,
        delay=delay,
        mininterval=0.5,
        disable=not shown,
    ) as bar:
        yield bar


def show_progress(
    items: Iterable[Item], total: int, title: str, unit: str, *, delay: float = 0, shown: bool = True
) -> Iterator[Item]:
    """Go through items and show how far one has come.

    Args:
        items: The items.
        total: How many there are.
        title: As in :func:`progress_bar`.
        unit: As in :func:`progress_bar`.
        delay: As in :func:`progress_bar`.
        shown: As in :func:`progress_bar`.

    Yields:
        The items.
    """
    with progress_bar(title, unit, total, delay=delay, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


def say(line: str) -> None:
    """Print a line on stdout, and keep it in the file of :func:`kept_in`."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
    _keep(line)


def warn(line: str) -> None:
    """Print a warning on stderr, above the bar if there is one, and keep it in the file of :func:`kept_in`."""
    tqdm.write(f"warning: {line}", file=sys.stderr)
    _keep(f"warning: {line}")


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[None]:
    """A block in which a file gets every line that is said, every warning, and the mistake that ends the block.

    Args:
        path: The file; what it holds is kept.

    Raises:
        InputError: A line cannot be written.
    """
    _FILES.append(path)
    try:
        yield
    except InputError as error:
        with contextlib.suppress(InputError):  # the first mistake counts
            _keep(f"error: {error}")
        raise
    finally:
        _FILES.remove(path)


def _keep(line: str) -> None:
    for path in _FILES:
        try:
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); what was saved is kept") from None
