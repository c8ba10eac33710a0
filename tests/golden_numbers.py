"""What several test files share about the golden numbers (tests/golden/README.md)."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("VSE_GOLDEN_DIR", Path(__file__).parent / "golden"))


def load_recipe() -> Any:
    """The module that draws the golden weights and inputs."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def load(path: Path) -> dict[str, Any]:
    """Arrays of a golden file as tensors, single numbers as Python's."""
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) if data[k].ndim else data[k].item() for k in data.files}


def fill(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """Official weights of these names and shapes."""
    return {name: torch.from_numpy(recipe.fill(prefix + name, tuple(shape))) for name, shape in shapes.items()}


def fill_all(about: dict[str, Any]) -> Any:
    """Official weights of a golden model as its code saves them: one state dict, or VSE∞'s pair of them."""
    if "fill_prefix" not in about:
        return fill(about["state"])
    pairs = zip(about["state"], about["fill_prefix"], strict=True)
    return [fill(state, prefix) for state, prefix in pairs]


def official_tokens(about: dict[str, Any], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Golden captions (C, length) and their lengths (C,)."""
    lengths = about["text_lengths"]
    return torch.from_numpy(recipe.draw_tokens(about["text_seed"], lengths, vocab_size)), torch.tensor(lengths)
