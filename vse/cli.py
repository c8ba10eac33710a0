"""What every command shares: its parser, and what becomes of the user's mistakes."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from vse.errors import InputError


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        message = message.replace(", key=value", "")  # argparse calls optional overrides required
        raise InputError(f"{message}; see {self.prog} --help")


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """One line on stderr and exit code 2 for the user's mistakes; a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clean up on the way out
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):  # nobody reads what is printed any more; what is saved is saved
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "writing"
        _fail(f"{where}: {error.strerror}; what was saved is kept")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)
