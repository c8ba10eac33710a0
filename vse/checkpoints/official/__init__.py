"""The official codes' checkpoints, one file per system.

:func:`native_state` makes a checkpoint of this package from one of theirs. The ``Released*`` classes repeat the padding
mistakes of VSE-2AD's and DivE's released codes, for their published checkpoints alone.
"""

import contextlib
import copy
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from vse.checkpoints.official.chan import read_chan
from vse.checkpoints.official.dive import ReleasedSetPrediction, read_dive, set_prediction_names
from vse.checkpoints.official.esa import read_esa
from vse.checkpoints.official.keys import State, both_sides, has_four_parts, rename, size
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.pvse import PIE_NET, read_pvse
from vse.checkpoints.official.reading import Reading, read_bert_architecture
from vse.checkpoints.official.vse_2ad import ReleasedAdaptivePool, read_vse_2ad
from vse.checkpoints.official.vse_infty import read_vse_infty

__all__ = [
    "PIE_NET",
    "ReleasedAdaptivePool",
    "ReleasedSetPrediction",
    "native_state",
    "released_padding",
    "rename",
    "set_prediction_names",
]

# The parameter of the text encoder that tells the systems apart.
_READERS: dict[str, Callable[[State, State, Options], Reading]] = {
    "gpool.linear.weight": read_vse_infty,
    "pool.linear.weight": read_vse_2ad,
    "spm.agg_block.latents": read_dive,
    "pie_net.fc.weight": read_pvse,
    "linear1.weight": read_esa,
}
_RELEASED = {"adaptive": ReleasedAdaptivePool, "set_prediction": ReleasedSetPrediction}


def native_state(content: Any) -> dict[str, Any] | None:
    """Convert an official code's checkpoint into the fields of this package's.

    The system, its parts and all widths follow from the names and shapes of the weights. Other settings are read from
    the options in the file (``opt`` or ``args``); where these are missing, the published models' values are used. The
    config's training settings are defaults. Names may begin with ``module.``.

    - VSE∞: ``{"model": [image state, text state], "opt": Namespace, ...}``; regions or grid, BiGRU or BERT
    - VSE-2AD: ``{"model": state, "args": Namespace, ...}``; regions or grid, BiGRU or BERT
    - DivE: ``{"model": state, "args": Namespace, ...}``; regions or grid, BiGRU or BERT
    - ESA: as VSE∞'s
    - CHAN: ``{"model": [image state, text state, {}, {}], "opt": Namespace, ...}``; regions, BiGRU or BERT
    - PVSE: the state dict alone (its released files, all of them ``legacy``), or as DivE's; pictures or clips

    Args:
        content: What ``torch.load`` gives for the file.

    Returns:
        The fields of :class:`vse.checkpoints.native.EvaluationState`, and "assumed", a list of "option=value" for the
        options that are missing in the file. None if none of these codes wrote the content.

    Raises:
        ValueError: The checkpoint has a weight or an option that this package does not support.

    >>> native_state(torch.load("model_best.pth"))["config"]["model"]["image"]["aggregator"]
    {'name': 'gpo'}
    """
    if not isinstance(content, dict):
        return None
    states = content.get("model", content)
    found = both_sides(states)
    if found is None:
        return None
    image, text = found
    readers = [reader for mark, reader in _READERS.items() if mark in text]
    if has_four_parts(states):  # its text encoder alone looks like others
        readers = [read_chan]
    if not readers:
        raise ValueError(f"its text encoder has none of {', '.join(_READERS)}")
    given = next((content[key] for key in ("opt", "args") if isinstance(content.get(key), Namespace)), Namespace())
    options = Options(vars(given))
    reading = readers[0](image, text, options)
    weights: State = {}
    for side, state, names in zip(("image", "text"), (image, text), reading.names, strict=True):
        renamed = rename(state, names, f"{reading.system}'s {side} encoder")
        weights |= {f"{side}.{key}": value for key, value in renamed.items()}
    words = "embed.weight" if "embed.weight" in text else "bert.embeddings.word_embeddings.weight"
    reads_regions = reading.image["encoder"]["name"] == "regions"
    return {
        "config": _config(reading),
        "vocabulary": {"rows": size(text, words, 0), "file": reading.vocabulary},
        "in_dim": size(image, "fc.weight", 1) if reads_regions else None,
        "architectures": {} if "embed.weight" in text else {"text": read_bert_architecture(text)},
        "model": weights,
        "assumed": list(dict.fromkeys(options.assumed)),
    }


def _config(reading: Reading) -> dict[str, Any]:
    """The config of a model that was read. Its training settings are placeholders, since a config must have some."""
    return {
        "run": {"dir": "runs/official"},
        "data": reading.data,
        "model": {
            "embed_dim": reading.embed_dim,
            "image": reading.image,
            "text": reading.text,
            "similarity": reading.similarity,
        },
        "loss": {"ranking": {"name": "triplet"}},
        "optim": {"name": "adamw", "lr": 5e-4, "schedule": {"name": "constant"}},
        "train": {"epochs": 1},
        "eval": {"batch_size": reading.batch_size},
    }


def released_padding(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the aggregators of the released codes, whose results depend on padding."""
    config = copy.deepcopy(config)
    for side in ("image", "text"):
        with contextlib.suppress(KeyError, TypeError):  # load_checkpoint's caller reports a damaged config
            aggregator = config["model"][side]["aggregator"]
            if (released := _RELEASED.get(aggregator["name"])) is not None:
                aggregator["name"] = f"{released.__module__}:{released.__name__}"
    return config
