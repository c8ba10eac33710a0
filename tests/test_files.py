"""Files written whole, folders held alone, and what works where file locks and POSIX signals do not exist."""

import hashlib
import lzma
import multiprocessing
import os
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
from helpers import ROOT

from vse.errors import InputError
from vse.files import check_target, claim_folder, sha256, write_file, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """As on a full disk: a limit on file sizes makes the write itself fail."""
    file = tmp_path / "a.bin"
    write_file(file, lambda out: out.write(b"old"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a.bin: cannot be written \(File too large\); the previous one is kept"):
            write_file(file, lambda out: out.write(bytes(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_bug_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(out: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_file(tmp_path / "a.bin", broken)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "none" / "a.bin", "none: no such folder; expected a folder for a.bin"),
        (tmp_path / "folder", "folder: expected the name of a file"),
    ):
        with pytest.raises(InputError, match=message):
            check_target(path)
    with pytest.raises(InputError, match="folder: expected the name of a file"):
        write_file(tmp_path / "folder", lambda out: out.write(b""))
    check_target(tmp_path / "a.bin")


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def hold(folder: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with claim_folder(folder):
        held.set()
        done.wait(60)


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="data.root: another process is extracting in .*run"):
        with claim_folder(tmp_path / "run", "data.root", "extracting"):
            raise AssertionError("the folder was free")
    other.kill()  # which frees the folder, with nothing to clean up
    other.join()
    (tmp_path / "run" / ".best.pt.7.tmp").touch()
    with claim_folder(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_folder_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a file is locked by msvcrt, whose error is that of a file without permission."""
    calls: list[tuple[int, int]] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        calls.append((mode, count))
        if len(calls) > 1:
            raise PermissionError(13, "Permission denied")

    module = types.ModuleType("msvcrt")
    module.locking, module.LK_NBLCK = locking, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setattr("vse.files.sys.platform", "win32")
    with claim_folder(tmp_path):
        with pytest.raises(InputError, match="run.dir: another process is training in"):
            with claim_folder(tmp_path):
                raise AssertionError("the folder was free")
    assert calls == [(3, 1), (3, 1)]


WITHOUT_POSIX = """
import signal, sys
sys.modules["fcntl"] = None  # importing it fails
del signal.SIGHUP
from pathlib import Path
import vse
from vse.checkpoints.load import load_model
from vse.data.formats import precomp
from vse.evaluation.score import evaluate
from vse.files import claim_folder
from vse.training.stop import StopSignal
checkpoint, corpus, folder = sys.argv[1:]
model, config, *_ = load_model(checkpoint)
dev = precomp(corpus, "dev")
print(evaluate(model, dev, 16, progress=False)["rsum"])
print(model.encode_texts(dev.captions[:1]).shape)
with claim_folder(Path(folder)), StopSignal() as stop:
    print(bool(stop))
"""


@pytest.mark.slow
def test_without_file_locks_and_hang_ups(tmp_path: Path) -> None:
    """Loading and evaluating need neither, as on Windows."""
    data = ROOT / "tests" / "checkpoints" / "data" / "version_1"
    (tmp_path / "best.pt").write_bytes(lzma.decompress((data / "best.pt.xz").read_bytes()))
    arguments = [str(tmp_path / "best.pt"), str(data / "corpus"), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rsum, shape, stopped = done.stdout.splitlines()
    assert float(rsum) == pytest.approx(350.0) and shape == "torch.Size([1, 2, 8])" and stopped == "False"


def test_only_own_unfinished_files_are_removed(tmp_path: Path) -> None:
    """Whoever names a folder that is not one of this package's keeps what is in it."""
    (tmp_path / ".model.7.tmp").mkdir()  # of an export that was killed
    (tmp_path / "letter").write_text("dear")
    (tmp_path / ".link.7.tmp").symlink_to(tmp_path / "letter")
    for name in (".notes.tmp", ".a.b.tmp", "c.7.tmp", ".7.tmp", ".last.pt.123.tmp"):
        (tmp_path / name).touch()
    with claim_folder(tmp_path):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {".model.7.tmp", "letter", ".link.7.tmp", ".notes.tmp", ".a.b.tmp", "c.7.tmp", ".7.tmp", ".lock"}


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    """Pages show it; anything else must not change unnoticed."""
    name = os.fsdecode(b"caf\xe9.jpg")
    write_text(tmp_path / "a.html", f"{name} é", errors="backslashreplace")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "caf\\udce9.jpg é"
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", name)
