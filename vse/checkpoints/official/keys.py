"""The official codes' parameter names, and sizes read from the shapes of their weights."""

from typing import Any

import torch
from torch import Tensor

from vse.safe_load import is_state_dict

Names = dict[str, str | None]  # beginning of an official parameter's name -> ours; None: the parameter is never used
State = dict[str, Tensor]

GRU: Names = {"embed.": "encoder.embedding.", "rnn.": "encoder.gru."}
BERT: Names = {
    "bert.pooler.": None,
    "bert.embeddings.position_ids": None,  # a constant that older versions of transformers saved
    "bert.": "encoder.bert.",
    "linear.": "encoder.linear.",
}


def both_sides(states: Any) -> tuple[State, State] | None:
    """The state dicts of the image and the text encoder.

    Args:
        states: A pair of them (VSE∞, ESA), the pair and two empty ones (CHAN), or the state dict of the whole model
            (the other codes).

    Returns:
        The pair, without ``module.`` in the names; None if the argument is something else.

    Raises:
        ValueError: A parameter belongs to neither side.
    """
    if has_four_parts(states):
        states = states[:2]
    if isinstance(states, list | tuple) and len(states) == 2 and all(map(is_state_dict, states)):
        image, text = (_plain_names(state) for state in states)
        return image, text
    if not is_state_dict(states):
        return None
    whole = _plain_names(states)
    image, text = (below(whole, prefix) for prefix in ("img_enc.", "txt_enc."))
    if not image or not text:
        return None
    if len(image) + len(text) < len(whole):
        other = next(key for key in whole if not key.startswith(("img_enc.", "txt_enc.")))
        raise ValueError(f"{other}: neither img_enc. nor txt_enc.")
    return _plain_names(image), _plain_names(text)


def has_four_parts(states: Any) -> bool:
    """Whether a checkpoint holds CHAN's four states, of which those of the similarity and the loss are empty.

    >>> has_four_parts([{"fc.weight": torch.zeros(1)}, {"embed.weight": torch.zeros(1)}, {}, {}])
    True
    """
    is_list = isinstance(states, list | tuple) and len(states) == 4 and all(map(is_state_dict, states))
    return is_list and not states[2] and not states[3]


def _plain_names(state: State) -> State:
    """A state dict without ``module.``, and with BatchNorm's counters, which old files do not have."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if len(plain) < len(state):
        raise ValueError("it has parameters both with and without module.")
    norms = [key.removesuffix("running_mean") for key in plain if key.endswith(".running_mean")]
    counters = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    return plain | {key: counter for key, counter in counters.items() if key not in plain}


def rename(state: State, names: Names, system: str) -> State:
    """Rename the parameters of an official state dict to this package's names.

    Args:
        state: The official weights; the names may begin with ``module.``.
        names: This package's prefix for each official prefix; the first prefix that fits counts.
        system: The name of the model in the message.

    Returns:
        The state dict without the parameters that are never used.

    Raises:
        ValueError: The system has no parameter of that name.
    """
    weights = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        prefix = next((p for p in names if key.startswith(p)), None)
        if prefix is None:
            raise ValueError(f"{key}: not a parameter of {system}")
        if (ours := names[prefix]) is not None:
            weights[ours + key.removeprefix(prefix)] = value
    return weights


def below(state: State, prefix: str) -> State:
    """Select a part of a state dict.

    Args:
        state: The state dict.
        prefix: The beginning of the names in the part.

    Returns:
        The part, without the prefix in its names.
    """
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def below_names(names: Names, theirs: str, ours: str) -> Names:
    """Put prefixes before the names of a part of a model.

    Args:
        names: The names within the part.
        theirs: The part's prefix in the official code.
        ours: The part's prefix in this package.

    Returns:
        The names within the model.
    """
    return {theirs + name: None if new is None else ours + new for name, new in names.items()}


def size(state: State, key: str, axis: int) -> int:
    """Read a size from the shape of a tensor.

    Args:
        state: A state dict.
        key: The tensor's name.
        axis: The axis.

    Returns:
        The size.

    Raises:
        ValueError: The tensor is missing, has too few axes, or is empty.
    """
    if key not in state:
        raise ValueError(f"{key} is missing")
    shape = tuple(state[key].shape)
    if len(shape) <= axis or 0 in shape:
        raise ValueError(f"{key} has the shape {shape}")
    return shape[axis]


def count_layers(state: State, prefix: str) -> int:
    """Count numbered layers.

    Args:
        state: A state dict.
        prefix: What the names of the layers' tensors have before the number.

    Returns:
        The number of layers.
    """
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
