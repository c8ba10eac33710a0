"""Models of the `transformers` library as parts of an encoder: loaded, pruned, and rebuilt from a checkpoint."""

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vse.errors import InputError, first_line

_UNUSED = ("pooler", "post_layernorm", "head")  # what stands behind the last hidden states
_NOT_ARCHITECTURE = {  # a path, a training choice, or something that would be fetched and run
    *("_name_or_path", "auto_map", "quantization_config", "dtype", "torch_dtype", "id2label", "label2id"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
}


def load_transformer(
    name: str,
    weights: Literal["pretrained"] | None,
    architecture: dict[str, Any] | None,
    side: Literal["text", "vision"],
) -> nn.Module:
    """Model of ``transformers`` that gives last hidden states, without the parts that these do not depend on.

    ``name``: a folder, or a model's name on the hub; ``weights``: "pretrained", those that lie there, or None for
    random ones. ``architecture``: what :func:`describe` gave for such a model, instead of reading ``name``. ``side``:
    "text" or "vision", the half that is taken of a model with both. Raises InputError that names folder or model.
    """
    from transformers import AutoConfig, AutoModel

    path = local_path(name) if architecture is None else name
    with _one_line(path):
        if architecture is None:
            config = AutoConfig.from_pretrained(path)
        else:
            config = AutoConfig.for_model(**{k: v for k, v in architecture.items() if k not in _NOT_ARCHITECTURE})
        config = getattr(config, f"{side}_config", None) or config
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{config.model_type} is an encoder and a decoder; expected one model of hidden states")
        if weights is None:
            model = AutoModel.from_config(config)
        else:
            model, found = AutoModel.from_pretrained(path, config=config, output_loading_info=True)
            missing = [key for key in model.state_dict() if key in found["missing_keys"] and not _is_unused(key)]
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise ValueError(f"its weights lack {', '.join(missing[:3])}{more}")
        inputs = {"text": "input_ids", "vision": "pixel_values"}[side]
        if inputs not in inspect.signature(model.forward).parameters:
            raise ValueError(f"{config.model_type} is no {side} model: it takes no {inputs}")
    for part in _UNUSED:
        if getattr(model, part, None) is not None:
            setattr(model, part, nn.Identity())
    if getattr(getattr(model, "embeddings", None), "mask_token", None) is not None:
        model.embeddings.mask_token = None
    result: nn.Module = model.float()
    return result


def describe(model: nn.Module) -> dict[str, Any]:
    """Architecture of a ``transformers`` model as plain values, for a checkpoint: it then needs no folder."""
    content = json.loads(model.config.to_json_string(use_diff=False))  # type: ignore[operator, union-attr]
    return {key: value for key, value in content.items() if key not in _NOT_ARCHITECTURE}


def longest_input(config: Any) -> int | None:
    """Return the number of tokens that a text model has positions for, or None for any number."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa and its kin count from the padding's id on.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type or config.model_type == "camembert" else 0
    return int(positions - offset)


def local_path(name: str) -> str:
    """``name`` with its ~ expanded. Raises InputError for a path that does not exist."""
    path = os.path.expanduser(name)
    looks_local = path.startswith(("/", "./", "../")) or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise InputError(f"{name}: no such folder; expected one with a model of transformers, or its name on the hub")
    return path


@contextlib.contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is one InputError about ``path``; nothing else is printed but a download's bar."""
    from transformers.utils import logging as settings

    quiet = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in quiet]
    bars = settings.is_progress_bar_enabled()
    for logger in quiet:
        logger.setLevel(logging.CRITICAL)
    if Path(path).is_dir():
        settings.disable_progress_bar()
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:  # of many kinds: hub, safetensors, tokenizers, JSON, the models' own
        if isinstance(error, OSError) and not Path(path).is_dir():
            raise InputError(
                f"{path}: neither a folder here nor a model that can be fetched ({first_line(error)}); a folder of "
                f"that model's files may be named instead"
            ) from None
        raise InputError(f"{path}: cannot be read as a model of transformers ({first_line(error)})") from None
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
        if bars:
            settings.enable_progress_bar()


def _is_unused(key: str) -> bool:
    return key.split(".")[0] in _UNUSED or key.endswith("mask_token")


def read_tokenizer(name: str) -> tuple[str, int | None, int | None]:
    """The fast tokenizer of a folder or a model: its JSON, its mask's id, and the number of tokens it may give.

    Raises InputError when there is none.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = local_path(name)
    with _one_line(path):
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
        if not tokenizer.is_fast:
            raise ValueError("its tokenizer is no fast one: there is no tokenizer.json")
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what the library makes of a folder without one
            raise ValueError("it has no tokenizer.json")
        positions = longest_input(getattr(config, "text_config", None) or config)
        lengths = [length for length in (positions, tokenizer.model_max_length) if length is not None]
        length = min(lengths) if lengths and min(lengths) < 1e9 else None
        return tokenizer.backend_tokenizer.to_str(), tokenizer.mask_token_id, length
