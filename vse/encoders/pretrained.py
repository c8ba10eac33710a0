"""Models of the `transformers` library as parts of an encoder: loaded, pruned, and rebuilt from a checkpoint."""

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vse.errors import InputError, check_at_least, first_line

Side = Literal["text", "vision"]

# Keys of a model's config that are not architecture: paths, labels, number formats, and names of code to download.
_LEFT_OUT = {
    *("_name_or_path", "transformers_version", "id2label", "label2id", "dtype", "torch_dtype", "auto_map"),
    *("quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation"),
    *("_experts_implementation", "_attn_implementation_internal", "return_dict"),
}

# Projections of queries and values, by their usual names; ModernBERT's Wqkv is also that of the keys.
_LORA_PARTS = {"q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "q", "v", "Wqkv"}
_RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_SLOW_CLASSES = {"SiglipTokenizer"}  # tokenizers that the library reads with sentencepiece although there is a fast one

# Models that attend everywhere, so that the mask of their attention is the mask of the tokens.
_TAKE_FINISHED_MASK = {"albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"}


def load_transformer(
    name: str, weights: Literal["pretrained"] | None, architecture: dict[str, Any] | None, side: Side
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model of ``transformers`` that gives last hidden states.

    The parts that the last hidden states do not depend on (poolers, heads) are removed. No code that a config names is
    downloaded or run.

    Args:
        name: A folder, or a model's name on the hub.
        weights: "pretrained" for the published weights, or None for random ones.
        architecture: The architecture that this function once returned for the model, which a checkpoint holds; it
            replaces ``name``. None reads it from the folder or the hub.
        side: Which half to take of a model that has both.

    Returns:
        The model, and its architecture as plain values.

    Raises:
        InputError: The model cannot be read or gives no hidden states; the message names the folder or model.
    """
    path = local_path(name) if architecture is None else "the checkpoint's architecture"
    with one_line(path):
        architecture = without_extras(_read_architecture(path, side) if architecture is None else architecture)
        config = _make_config(architecture)
        model, absent = make_model(path, config, weights)
        probe = _probe(config, side)
        if (reads := next(iter(probe))) not in inspect.signature(model.forward).parameters:
            raise ValueError(f"{config.model_type} is not a {side} model: it takes no {reads}")
        unused = prune(model, _hidden_states(model, probe))
        if side == "text":
            _check_mask(model, probe["input_ids"])
        check_complete(model, absent - unused)
    return model, architecture


def _read_architecture(path: str, side: Side) -> dict[str, Any]:
    """The architecture of a model, or of one half of it, in a folder or on the hub."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    found = getattr(found, f"{side}_config", None) or found
    content: dict[str, Any] = json.loads(found.to_json_string(use_diff=False))
    return content


def _make_config(architecture: dict[str, Any]) -> Any:
    """The library's config for an architecture. Raises ValueError unless it is one model that gives hidden states."""
    from transformers import AutoConfig

    kind = str(architecture.get("model_type"))
    made_of_others = f"{kind} consists of several models; expected a single one"
    if kind.startswith("timm") or any(key.startswith("backbone") for key in architecture):
        raise ValueError(made_of_others)  # the library would download them
    config = AutoConfig.for_model(**architecture)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} has an encoder and a decoder; expected a model with only an encoder")
    if config.sub_configs:
        raise ValueError(made_of_others)
    return config


def make_model(path: str, config: Any, weights: Literal["pretrained"] | None) -> tuple[nn.Module, set[str]]:
    """Make the model of a config.

    Args:
        path: The folder, or the name on the hub.
        config: The library's config.
        weights: "pretrained", or None for random ones.

    Returns:
        The model, and the names of the parameters that its published weights lack.

    Raises:
        ValueError: The weights do not fit the config.
    """
    from transformers import AutoModel

    if weights is None:
        return AutoModel.from_config(config, trust_remote_code=False), set()
    model, report = AutoModel.from_pretrained(
        path,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below
        dtype=torch.float32,
        trust_remote_code=False,
    )
    if other := [f"{key} has shape {tuple(a)}, expected {tuple(b)}" for key, a, b in report["mismatched_keys"]]:
        raise ValueError(f"its weights do not fit its config: {'; '.join(sorted(other)[:3])}")
    return model, set(report["missing_keys"])


def check_complete(model: nn.Module, absent: set[str]) -> None:
    """Check that the published weights have all that a model needs.

    Args:
        model: The model.
        absent: Names of the parameters that its published weights lack.

    Raises:
        ValueError: The model has one of these parameters.
    """
    missing = [key for key in model.state_dict() if key in absent]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"its weights lack {', '.join(missing[:3])}{more}")


def without_extras(architecture: Any) -> Any:
    """Return a model's config without the keys that are not architecture, at any depth."""
    if isinstance(architecture, dict):
        return {key: without_extras(value) for key, value in architecture.items() if key not in _LEFT_OUT}
    return architecture


def _probe(config: Any, side: Side) -> dict[str, Tensor]:
    """A small input for a model."""
    if side == "text":
        return {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width)}


def _hidden_states(model: nn.Module, probe: dict[str, Tensor]) -> Tensor:
    """The last hidden states of a small input."""
    hidden: Tensor = model.eval()(**probe, return_dict=True).last_hidden_state
    if hidden.dim() != 3:
        raise ValueError(f"it gives {hidden.dim() - 1}-dimensional feature maps; for a ResNet, use torchvision's name")
    return hidden


def prune(model: nn.Module, result: Tensor) -> set[str]:
    """Remove the parts of a model that a result of it does not depend on.

    Args:
        model: The model; it is changed.
        result: What the model gave for some input, with its graph.

    Returns:
        The names of the removed parameters.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(result.sum(), list(parameters.values()), allow_unused=True)
    unused = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    removed: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        if name.startswith(removed):
            continue
        inside = {f"{name}.{key}" for key, _ in module.named_parameters()}
        if name and inside and inside <= unused:
            _replace(model, name, nn.Identity())
            removed += (f"{name}.",)
    for name in unused & {key for key, _ in model.named_parameters()}:
        _replace(model, name, None)
    return unused


@torch.no_grad()
def _check_mask(model: nn.Module, ids: Tensor) -> None:
    """Raise ValueError when padding changes a model's result."""
    padded = torch.cat([ids, ids + 1], dim=1)
    mask = torch.arange(padded.shape[1])[None] < ids.shape[1]
    alone, beside = (
        model(input_ids=i, attention_mask=m.long(), return_dict=True).last_hidden_state[:, : ids.shape[1]]
        for i, m in ((ids, mask[:, : ids.shape[1]]), (padded, mask))
    )
    if not torch.allclose(alone, beside, atol=1e-3):
        raise ValueError("padding changes its results: it ignores the attention mask")


def _replace(model: nn.Module, name: str, new: nn.Module | None) -> None:
    """Put ``new`` in the place of a module or a parameter."""
    parent, _, attribute = name.rpartition(".")
    with contextlib.suppress(AttributeError):  # its module has been removed already
        setattr(model.get_submodule(parent), attribute, new)


def longest_input(model: nn.Module) -> int | None:
    """Return the number of tokens that a text model has positions for, or None for any number."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1  # RoBERTa and similar models count from there on
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def attention_mask(model: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Make the attention mask of a text model, so that a GPU need not be waited for where that is possible.

    Given which tokens are real, the library asks whether all of them are, and waits for the answer. A model in which
    every token attends to every real one also takes the finished mask.

    Args:
        model: The text model.
        tokens: Token ids (B, L).
        mask: (B, L), True on real tokens; None when all are real.

    Returns:
        The finished mask (B, 1, L, L), bool, or (B, L), 1 on real tokens and 0 elsewhere.
    """
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    config: Any = model.config
    if config.model_type in _TAKE_FINISHED_MASK and config._attn_implementation == "sdpa":
        return real[:, None, None].expand(-1, 1, tokens.shape[1], -1)
    return real.long()


def local_path(name: str) -> str:
    """Expand the ~ in a folder's name.

    Args:
        name: A folder, or a model's name on the hub.

    Returns:
        The folder, or the name as it is.

    Raises:
        InputError: The name looks like a folder's, and there is no such folder.
    """
    path = os.path.expanduser(name)
    looks_local = path.startswith(("/", "./", "../")) or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise InputError(f"{name}: no such folder; expected one with a model of transformers, or its name on the hub")
    return path


def read_tokenizer(name: str) -> tuple[str, int | None, int | None]:
    """Read the fast tokenizer of a model.

    Args:
        name: A folder, or a model's name on the hub.

    Returns:
        The tokenizer's JSON, the id of its mask or None, and the largest number of tokens that it may give or None.

    Raises:
        InputError: The model has no fast tokenizer.
    """
    with one_line(local_path(name)):
        tokenizer = _fast_tokenizer(name)
        longest = tokenizer.model_max_length
        limit = longest if isinstance(longest, int) and 2 < longest < 1e9 else None
        return tokenizer.backend_tokenizer.to_str(), tokenizer.mask_token_id, limit


def read_padding(name: str) -> int | None:
    """Read the id with which a model's tokenizer fills short captions.

    Args:
        name: A folder, or a model's name on the hub.

    Returns:
        The id, or None if the tokenizer has none.

    Raises:
        InputError: The model has no fast tokenizer.
    """
    with one_line(local_path(name)):
        padding: int | None = _fast_tokenizer(name).pad_token_id
        return padding


def _fast_tokenizer(name: str) -> Any:
    """The fast tokenizer of a model; ValueError if there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = local_path(name)
    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
    if Path(path).is_dir() and not any((Path(path) / file).is_file() for file in files):
        raise InputError(f"{path}: has no tokenizer.json; expected the folder of a text model")
    if (Path(path) / "tokenizer.json").is_file():
        settings = _read_json(Path(path) / "tokenizer_config.json")
        if settings.get("tokenizer_class") in _SLOW_CLASSES:  # the library would read its slow form instead
            return PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError("it has no fast tokenizer: there is no tokenizer.json")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what the library makes of a folder without one
        raise ValueError("it has no tokenizer.json")
    return tokenizer


def _read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if there is no such file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


class Preprocessing(NamedTuple):
    """What a model of pictures was published with.

    Attributes:
        size: Height and width of the pictures that it reads.
        resize: The length of the shorter side before the centre is cut out, or height and width of the whole picture.
        resample: "nearest", "lanczos", "bilinear", "bicubic", "box" or "hamming".
        mean: Mean of the channels in 0..1.
        std: Standard deviation of the channels in 0..1.
    """

    size: list[int]
    resize: int | list[int]
    resample: str
    mean: list[float]
    std: list[float]


def read_preprocessing(name: str) -> Preprocessing:
    """Read how the pictures of a model are resized, cut and normalised.

    Args:
        name: A folder, or a model's name on the hub.

    Returns:
        The steps.

    Raises:
        InputError: The model came without these steps, or they do not give pictures of one size.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    path = local_path(name)
    with one_line(path):
        for file_name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            file = cached_file(path, file_name, _raise_exceptions_for_missing_entries=False)
            content = _read_json(Path(file)) if file else {}
            content = content if part is None else content.get(part, {})
            if content:
                return _preprocessing(content)
        AutoConfig.from_pretrained(path, trust_remote_code=False)  # says so if there is no such model at all
        raise ValueError("it has no preprocessor_config.json")


def _preprocessing(content: dict[str, Any]) -> Preprocessing:
    """The steps that a preprocessor_config.json describes."""
    crops = content.get("do_center_crop", "crop_size" in content)
    resize = _side_or_sides(content.get("size"), square=not crops)
    size = _side_or_sides(content.get("crop_size"), square=True) if crops else resize
    if not content.get("do_resize", True) or resize is None or not isinstance(size, list):
        raise ValueError("its preprocessor_config.json does not give pictures of one size")
    plain = not content.get("do_normalize", True)
    mean, std = ([0.0] * 3, [1.0] * 3) if plain else (content["image_mean"], content["image_std"])
    factor = 255 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255.0
    mean, std = [value / factor for value in mean], [value / factor for value in std]
    number = content.get("resample", 3)
    if number not in range(len(_RESAMPLES)):
        raise ValueError(f"its preprocessor_config.json resamples in way {number}; known: 0 to {len(_RESAMPLES) - 1}")
    return Preprocessing(size, resize, _RESAMPLES[number], mean, std)


def _side_or_sides(size: Any, square: bool) -> int | list[int] | None:
    """The shorter side, or height and width, of the forms in which ``transformers`` writes sizes."""
    if isinstance(size, int):
        return [size, size] if square else size
    if not isinstance(size, dict):
        return None
    if "height" in size and "width" in size:
        return [int(size["height"]), int(size["width"])]
    shortest = size.get("shortest_edge")
    return int(shortest) if shortest is not None and "longest_edge" not in size else None


def compute_again(model: nn.Module) -> None:
    """Let a model's layers forget their activations and compute them again in the backward pass.

    Args:
        model: A model of ``transformers``.

    Raises:
        ValueError: The model cannot do that.
    """
    net: Any = model
    if not net.supports_gradient_checkpointing:
        raise ValueError(f"recompute: {net.config.model_type} cannot compute its activations again")
    name = "activation_checkpointing_enable"  # older versions have the other name alone
    getattr(net, name if hasattr(net, name) else "gradient_checkpointing_enable")({"use_reentrant": False})


def add_lora(model: nn.Module, rank: int) -> None:
    """Put low-rank updates beside the query and value projections, W + B A, and freeze all the rest.

    LoRA, Hu et al. 2022. B starts as 0, so the model's results stay as they are at first.

    Args:
        model: A model of ``transformers``; it is changed.
        rank: The number of rows of A; the updates are scaled by 1.

    Raises:
        ValueError: ``rank`` is below 1, or the model has no projections of these kinds.
        vse.errors.InputError: The package ``peft`` is missing.

    >>> add_lora(Clip("text").net, rank=8)
    """
    check_at_least("lora", rank, 1)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("lora needs the package peft: pip install 'vse-retrieval[lora]'") from None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if name.rpartition(".")[2] in _LORA_PARTS]
    if not targets:
        net: Any = model
        known = ", ".join(sorted(_LORA_PARTS))
        raise ValueError(f"lora: {net.config.model_type} has no linear layers of these names: {known}")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)


def read_pixels(name: str) -> tuple[list[float], list[float]] | None:
    """Read how a model's pictures are normalised.

    Args:
        name: A folder, or a model's name on the hub.

    Returns:
        Mean and standard deviation of the three channels, in 0..1; None if they were not published with the model.

    Raises:
        InputError: The file that says so cannot be read.
    """
    from transformers.utils.hub import cached_file

    path = local_path(name)
    with one_line(path):
        file = cached_file(path, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        if not content.get("do_normalize", True) or not {"image_mean", "image_std"} <= set(content):
            return None
        return list(content["image_mean"]), list(content["image_std"])


@contextlib.contextmanager
def one_line(path: str) -> Iterator[None]:
    """Turn any error into one InputError about ``path``, and print nothing but the progress bar of a download.

    Args:
        path: The folder, or the name on the hub, that the block reads.

    Raises:
        InputError: The block raised an error.
    """
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
    except (MemoryError, InputError):
        raise
    except Exception as error:  # of many kinds: hub, safetensors, tokenizers, JSON, the models' own
        if isinstance(error, OSError) and not Path(path).is_dir():
            raise InputError(
                f"{path}: not a folder, nor a model that can be downloaded ({first_line(error)}); pass a folder with "
                f"the files of the model instead"
            ) from None
        raise InputError(f"{path}: cannot be read as a model of transformers ({first_line(error)})") from None
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
        if bars:
            settings.enable_progress_bar()
