"""Exported models on the Hugging Face hub, which are named ``hf://owner/name``."""

import re
from pathlib import Path

from vse.checkpoints.exported import CONFIG, TOKENIZER, WEIGHTS
from vse.errors import InputError, first_line

PREFIX = "hf://"
_NAME = re.compile(r"hf://(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def download(name: str) -> Path:
    """Fetch an exported model from the hub, or find it in the hub's cache.

    Only the files of an exported model are fetched. Where there is a newer version, it is taken; a revision says which.

    Args:
        name: "hf://owner/name", or "hf://owner/name@revision" with a branch, tag or commit.

    Returns:
        The folder on this machine.

    Raises:
        InputError: It is no such name, the package ``huggingface_hub`` is missing, or the hub has no such model.

    >>> download("hf://owner/name@v1")
    PosixPath('/home/me/.cache/huggingface/hub/models--owner--name/snapshots/0a1b2c')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: expected hf://owner/name or hf://owner/name@revision")
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{name}: needs the package huggingface_hub; pip install 'vse-retrieval[hub]'") from None
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id=match["repository"], revision=match["revision"], allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]
        )
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: of the hub, of the connection, of the disk
        raise InputError(f"{name}: cannot be fetched from the hub ({first_line(error)})") from None
    if not (Path(folder) / WEIGHTS).is_file():
        raise InputError(f"{name}: has no {WEIGHTS}; expected a model that `vse export` wrote")
    return Path(folder)
