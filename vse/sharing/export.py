"""Write a trained model as a folder that others can load: ``vse export``."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vse.checkpoints.exported import write_exported
from vse.checkpoints.load import load_model, state_of
from vse.errors import InputError
from vse.evaluation.tables import parts_of
from vse.files import write_text
from vse.sharing.card import model_card

CARD = "README.md"


def export(run: str | Path, folder: Path, overrides: Sequence[str] = (), vocabulary: str | Path | None = None) -> None:
    """Write a trained model as a folder with all that :func:`vse.load` needs, and a card for people.

    The folder holds model.safetensors, config.json (the config, the vocabulary or what the tokenizer needs, and the
    architecture of pretrained encoders), tokenizer/tokenizer.json for a model of subwords, and README.md with the
    metrics of the run's test.json, the data, the recipe and what to cite. It is written completely or not at all.

    Args:
        run: A run folder, a checkpoint, or whatever else :func:`vse.load` reads.
        folder: The new folder. An empty one may be there.
        overrides: Settings ("key=value") that the exported config has instead.
        vocabulary: A vocabulary file, or a tokenizer's folder, as in :func:`vse.load`.

    Raises:
        InputError: The folder holds something or cannot be written, a weight is not finite, or what :func:`vse.load`
            raises.
    """
    _check_folder(folder)
    loaded = load_model(run, overrides, vocabulary)
    state = state_of(loaded)
    card = model_card(folder.resolve().name, loaded, _test_metrics(Path(run)))
    with _complete_or_not_at_all(folder) as unfinished:
        write_exported(unfinished, state)
        write_text(unfinished / CARD, card, errors="backslashreplace")


def _check_folder(folder: Path) -> None:
    """Raise InputError unless a folder can be made, or is there and empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        problem = "is not empty" if folder.is_dir() else "is a file"
        raise InputError(f"{folder}: {problem}; expected a new or an empty folder to export to")


@contextlib.contextmanager
def _complete_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` that takes its place when the block has ended without an error."""
    place = folder.resolve()
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if place.is_dir():
            place.rmdir()  # it is empty: some systems replace no folder
        os.rename(unfinished, place)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _test_metrics(run: Path) -> dict[str, Any]:
    """The metrics that the last evaluation on the test split left in a run's folder; {} if there are none."""
    content = None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((run / "test.json").read_text(encoding="utf-8"))
    return content if isinstance(content, dict) and parts_of(content) else {}
