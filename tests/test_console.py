"""What is printed while work goes on."""

import io
import sys
import time
from pathlib import Path

import pytest

from vse import console
from vse.errors import InputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress_bar("encoding", " items", 10, stays=True) as bar:
        bar.update(4)
        bar.set_postfix_str("loss=1.5")
        bar.update(6)
    shown = terminal.getvalue()
    assert "\r" in shown and "encoding: 100%" in shown and "loss=1.5" in shown


@pytest.mark.parametrize("shown", [True, False])
def test_elsewhere_a_line_a_minute(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress_bar("encoding", " items", 1000, first=100, stays=True, shown=shown) as bar:
        for _ in range(9):
            now[0] += 25
            bar.set_postfix_str("loss=1.5")
            bar.update(100)
    lines = ["encoding: 40% (400 of 1,000 items), 02:30 left, loss=1.5"]
    lines += ["encoding: 70% (700 of 1,000 items), 01:15 left, loss=1.5"]
    lines += ["encoding: 100% (1,000 of 1,000 items), 00:00 left, loss=1.5"]
    found = capsys.readouterr()
    assert found.err.splitlines() == (lines if shown else []) and found.out == ""


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.show_progress("abc", 3, "scoring", " blocks")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_lines_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the block alone, after what the file held; also the mistake that ends it."""
    file = tmp_path / "train.log"
    file.write_text("before\n")
    console.say("outside")
    with pytest.raises(InputError), console.kept_in(file):
        console.say("VSE∞")
        console.warn("odd")
        raise InputError("a mistake")
    console.say("outside")
    assert file.read_text(encoding="utf-8") == "before\nVSE∞\nwarning: odd\nerror: a mistake\n"
    found = capsys.readouterr()
    assert found.out == "outside\nVSE∞\noutside\n" and found.err == "warning: odd\n"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train.log: cannot be written .*; what was saved is kept"):
        with console.kept_in(tmp_path / "none" / "train.log"):
            console.say("a line")
