from pathlib import Path

import numpy as np
import pytest

from vse import cache

KEPT = {"a": np.arange(5), "b": np.array([[1.5]])}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(found: dict[str, np.ndarray] | None) -> bool:
    return found is not None and found.keys() == KEPT.keys() and all(np.array_equal(found[n], KEPT[n]) for n in KEPT)


def test_what_is_kept_is_found_under_its_kind_and_key(folder: Path) -> None:
    assert cache.load("x", "key") is None and not folder.exists()
    cache.save("x", "key", KEPT)
    assert same(cache.load("x", "key"))
    assert cache.load("x", "other") is None and cache.load("y", "key") is None
    assert [path.suffix for path in folder.iterdir()] == [".npz"]  # nothing half-written stays


@pytest.mark.parametrize("damage", ["shorter", "changed", "empty", "text", "folder"])
def test_damage_is_noticed(folder: Path, damage: str) -> None:
    cache.save("x", "key", KEPT)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    place = content.index(np.arange(5).tobytes())
    content[place + 8] ^= 1
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(
            {"shorter": bytes(content[:-40]), "changed": bytes(content), "empty": b"", "text": b"no"}[damage]
        )
    assert cache.load("x", "key") is None
    cache.save("x", "key", KEPT)
    assert same(cache.load("x", "key")) or damage == "folder"


def test_a_folder_that_cannot_be_written_keeps_nothing(folder: Path) -> None:
    folder.write_text("a file is in its place")
    cache.save("x", "key", KEPT)
    assert cache.load("x", "key") is None


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place() -> Path:
        return cache._path("x", "key").parent

    assert place() == tmp_path / "cache"
    monkeypatch.delenv("VSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place() == tmp_path / "xdg" / "vse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place() == tmp_path / "home" / ".cache" / "vse"
