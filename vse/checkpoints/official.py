"""The official codes' checkpoints, and what they compute when padding leaks.

:func:`native_state` makes a checkpoint of this package from one of theirs. The ``Released*`` classes repeat the padding
mistakes of VSE-2AD's and DivE's released codes, for their published checkpoints alone.
"""

import contextlib
import copy
from argparse import Namespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vse.aggregators import AdaptivePool, SetPrediction
from vse.aggregators.pooling import set_context
from vse.aggregators.set_prediction import SlotBlock
from vse.encoders.backbones import SPLIT, ResNetBackbone, resnets
from vse.safe_load import is_state_dict
from vse.sets import Aggregated, check_set

Names = dict[str, str | None]  # beginning of an official parameter's name -> ours; None: never used
State = dict[str, Tensor]
Section = dict[str, Any]  # a part of a config

_PLAIN = (bool, int, float, str)
_BERT_NAME = "bert-base-uncased"  # of all published models that read captions with BERT
_RELEASED = {"adaptive": "ReleasedAdaptivePool", "set_prediction": "ReleasedSetPrediction"}

_GRU: Names = {"embed.": "encoder.embedding.", "rnn.": "encoder.gru."}

_BERT: Names = {
    "bert.pooler.": None,
    "bert.embeddings.position_ids": None,  # a constant that older versions of transformers saved
    "bert.": "encoder.bert.",
    "linear.": "encoder.linear.",
}

# Region features. The second BatchNorm of the MLP is never used.
_REGIONS: Names = {
    "fc.": "encoder.fc.",
    "mlp.layers.0.": "encoder.hidden.",
    "mlp.bns.0.": "encoder.norm.",
    "mlp.layers.1.": "encoder.out.",
    "mlp.bns.1.": None,
}
_NO_MLP: Names = {"fc.": "encoder.fc.", "mlp.": None}  # VSE-2AD makes one and does not use it
_SPLIT_BACKBONE: Names = {
    **{f"backbone.{theirs}": f"encoder.backbone.{ours}" for theirs, ours in SPLIT.items()},
    "backbone.resnet.": None,  # every tensor of the backbone a second time
}
_GRID: Names = {**_SPLIT_BACKBONE, "image_encoder.fc.": "encoder.head.fc.", "image_encoder.gpool.": "aggregator."}
_PROJECTED_GRID: Names = {
    **_SPLIT_BACKBONE,
    "img_proj.fc.": "encoder.head.fc.",
    "img_proj.mlp.": None,
    "img_proj.pool.": "aggregator.",
}
_DIVE_REGIONS: Names = {
    "fc.": "encoder.fc.",
    "mlp.fc1.": "encoder.hidden.",
    "mlp.bn.bn.": "encoder.norm.",
    "mlp.fc2.": "encoder.out.",
}
_DIVE_GRID: Names = {
    **{theirs: str(ours).replace("encoder.", "encoder.head.") for theirs, ours in _DIVE_REGIONS.items()},
    "cnn.": "encoder.backbone.",
    "spm_fc.": None,  # the projection under two more names
    "residual_first_fc.": None,
}
_POOL: Names = {"pool.": "aggregator."}
_GPOOL: Names = {"gpool.": "aggregator."}
PIE_NET: Names = {
    "attention.w_1.": "hidden.",
    "attention.w_2.": "maps.",
    "fc.": "fc.",
    "layer_norm.": "norm.",
}
_SLOTS = "spm.agg_block."
_SLOT_BLOCK: Names = {
    "0.fn.to_q.": "query.",
    "0.fn.to_k.": "key.",
    "0.fn.to_v.": "value.",
    "0.fn.to_out.0.": "out.",
    "0.norm.": "norm.",
    "0.norm_context.": "input_norm.",
    "2.fn.net.": "ff.",
    "2.norm.": "ff_norm.",
}


def set_prediction_names(depth: int, share_weights: bool) -> Names:
    """Names of DivE's set-prediction module; a shared block is there once per depth, with equal values."""
    names: Names = {"residual_norm.": "context_norm.", "agg_block.latents": "slots"}
    for layer in range(depth):
        block = f"blocks.{0 if share_weights else layer}."
        names |= _below_names(_SLOT_BLOCK, f"agg_block.layers.{layer}.", block)
    return {**names, "agg_block.last_layer.0.": "slot_norm."}


class _Options:
    """The options beside the weights; what they lack is taken from the published models, and noted."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = {key: value for key, value in given.items() if value is not None}
        self.assumed: list[str] = []

    def get(self, name: str, published: Any, known: tuple[str, ...] = ()) -> Any:
        """Value of an option. Raises ValueError for another type, or none of those ``known``."""
        if name not in self.given:
            self.assumed.append(f"{name}={published}")
        value = self.given.get(name, published)
        kind = int | float if isinstance(published, float) else type(published)
        odd = isinstance(value, str) and (len(value) > 100 or not value.isprintable())
        if not isinstance(value, kind) or odd or (known and value not in known):
            expected = f"one of {', '.join(known)}" if known else f"a value such as {published!r}"
            raise ValueError(f"its option {name} is {_show(value)}; expected {expected}")
        return value

    def require(self, **values: Any) -> None:
        """Raise ValueError for an option, which the weights do not show, with a value this package does not have."""
        for name, value in values.items():
            found = self.given.get(name, value)
            if not isinstance(found, _PLAIN) or found != value:
                expected = f"this package has {value!r}, as the published models"
                raise ValueError(f"its option {name} is {_show(found)}; {expected}")


def _show(value: Any) -> str:
    """An option for a message."""
    return repr(value)[:100] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


class _Reading(NamedTuple):
    """What a system's reader makes of its state dicts."""

    system: str
    data: Section
    image: Section  # encoder and aggregator
    text: Section
    embed_dim: int
    similarity: Section
    batch_size: int  # of its evaluation
    names: tuple[Names, Names]  # of the image and the text side
    vocabulary: str  # its file


def native_state(content: Any) -> dict[str, Any] | None:
    """Checkpoint of this package from an official code's; None when it is none of theirs.

    The system, its parts and all widths come from keys and shapes; what those cannot tell, from the options beside
    them (``opt`` or ``args``), or else the published models' are taken and listed as "assumed". The config's training
    stays at defaults. Keys may carry ``module.``. Raises ValueError that names the key or the option that this package
    does not have.

    - VSE∞: ``{"model": [image state, text state], "opt": Namespace, ...}``; regions or grid, BiGRU or BERT
    - VSE-2AD: ``{"model": state, "args": Namespace, ...}``; regions or grid, BiGRU or BERT
    - DivE: ``{"model": state, "args": Namespace, ...}``; regions or grid, BiGRU or BERT
    - PVSE: the state dict alone (its released files, all of them ``legacy``), or as DivE's; pictures or clips

    >>> native_state(torch.load("model_best.pth"))["config"]["model"]["image"]["aggregator"]
    {'name': 'gpo'}
    """
    if not isinstance(content, dict):
        return None
    found = _both_sides(content.get("model", content))
    if found is None:
        return None
    image, text = found
    readers = {
        "gpool.linear.weight": _read_vse_infty,
        "pool.linear.weight": _read_vse_2ad,
        "spm.agg_block.latents": _read_dive,
        "pie_net.fc.weight": _read_pvse,
    }
    fits = [reader for mark, reader in readers.items() if mark in text]
    if not fits:
        raise ValueError(f"its text encoder has none of {', '.join(readers)}")
    given = next((content[key] for key in ("opt", "args") if isinstance(content.get(key), Namespace)), Namespace())
    options = _Options(vars(given))
    reading = fits[0](image, text, options)
    weights: State = {}
    for side, state, names in zip(("image", "text"), (image, text), reading.names, strict=True):
        renamed = rename(state, names, f"{reading.system}'s {side} encoder")
        weights |= {f"{side}.{key}": value for key, value in renamed.items()}
    words = "embed.weight" if "embed.weight" in text else "bert.embeddings.word_embeddings.weight"
    regions = reading.image["encoder"]["name"] == "regions"
    config = {
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
    return {
        "config": config,
        "vocabulary": {"rows": _size(text, words, 0), "file": reading.vocabulary},
        "in_dim": _size(image, "fc.weight", 1) if regions else None,
        "architectures": {} if "embed.weight" in text else {"text": _bert_architecture(text)},
        "model": weights,
        "assumed": list(dict.fromkeys(options.assumed)),
    }


def released_padding(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with the aggregators of the released codes, whose results depend on padding."""
    config = copy.deepcopy(config)
    for side in ("image", "text"):
        with contextlib.suppress(KeyError, TypeError):  # a damaged config is told where it is checked
            aggregator = config["model"][side]["aggregator"]
            if (name := aggregator["name"]) in _RELEASED:
                aggregator["name"] = f"{__name__}:{_RELEASED[name]}"
    return config


def _both_sides(states: Any) -> tuple[State, State] | None:
    """State dicts of the image and the text encoder, from a pair of them or from the whole model's."""
    if isinstance(states, list | tuple) and len(states) == 2 and all(map(is_state_dict, states)):
        image, text = (_plain_names(state) for state in states)
        return image, text
    if not is_state_dict(states):
        return None
    whole = _plain_names(states)
    image, text = (_below(whole, prefix) for prefix in ("img_enc.", "txt_enc."))
    if not image or not text:
        return None
    if len(image) + len(text) < len(whole):
        other = next(key for key in whole if not key.startswith(("img_enc.", "txt_enc.")))
        raise ValueError(f"{other}: neither img_enc. nor txt_enc.")
    return _plain_names(image), _plain_names(text)


def _plain_names(state: State) -> State:
    """A state dict without ``module.``, and with the counters that BatchNorm had not always."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if len(plain) < len(state):
        raise ValueError("it has parameters both with and without module.")
    norms = [key.removesuffix("running_mean") for key in plain if key.endswith(".running_mean")]
    counters = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    return plain | {key: counter for key, counter in counters.items() if key not in plain}


def _read_vse_infty(image: State, text: State, options: _Options) -> _Reading:
    options.require(no_imgnorm=False, no_txtnorm=False)
    dataset, vocabulary = _dataset(options)
    if "fc.weight" in image:
        mlp = "input" if "mlp.layers.0.weight" in image else None
        encoder, names, data = {"name": "regions", "mlp": mlp}, _REGIONS | _GPOOL, {"format": "precomp"}
        embed_dim = _size(image, "fc.weight", 0)
    else:
        encoder, data = _split_grid(image, options, 2.0)
        names, embed_dim = _GRID, _size(image, "image_encoder.fc.weight", 0)
    gpo = {"name": "gpo"}
    return _Reading(
        system="VSE∞",
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": gpo},
        text={"encoder": _text_encoder(text, embed_dim, "linear"), "aggregator": gpo},
        embed_dim=embed_dim,
        similarity={"name": "cosine"},
        batch_size=options.get("batch_size", 128),
        names=(names, _GRU | _BERT | _GPOOL),
        vocabulary=vocabulary if "embed.weight" in text else _BERT_NAME,
    )


def _read_vse_2ad(image: State, text: State, options: _Options) -> _Reading:
    options.require(no_imgnorm=False, no_txtnorm=False)
    if _below(image, "vit_model."):
        raise ValueError(
            "img_enc.vit_model: the released ViT path pools [CLS] with the patches and drops patches at random in "
            "evaluation; this package reads VSE-2AD's regions and ResNet grids"
        )
    dataset, vocabulary = _dataset(options)
    if "fc.weight" in image:
        mlp = options.get("precomp_enc_type", "basic", ("basic", "backbone")) == "basic"
        encoder, data = {"name": "regions", "mlp": "input" if mlp else None}, {"format": "precomp"}
        names, embed_dim = (_REGIONS if mlp else _NO_MLP) | _POOL, _size(image, "fc.weight", 0)
    else:
        encoder, data = _split_grid(image, options, 1.0)
        names, embed_dim = _PROJECTED_GRID, _size(image, "img_proj.fc.weight", 0)
    text_encoder = _text_encoder(text, embed_dim, "fc")
    if text_encoder["name"] == "bigru":
        text_encoder["keep_ends"] = True
    adaptive = {"name": "adaptive"}
    return _Reading(
        system="VSE-2AD",
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": adaptive},
        text={"encoder": text_encoder, "aggregator": adaptive},
        embed_dim=embed_dim,
        similarity={"name": "cosine"},
        batch_size=options.get("batch_size", 128),
        names=(names, _GRU | _BERT | {"fc.": "encoder.linear."} | _POOL),
        vocabulary=vocabulary if "embed.weight" in text else _BERT_NAME,
    )


def _read_dive(image: State, text: State, options: _Options) -> _Reading:
    options.require(arch="slot", spm_activation="gelu", spm_residual=True, spm_post_norm=False, spm_pre_norm=True)
    options.require(first_order=False, query_slot=False, ten_crop=False)
    options.require(img_res_first_fc=True, img_res_first_pool=False, img_res_last_pool=False)
    name = options.get("data_name", "f30k_butd")
    dataset = "coco" if "coco" in name else "f30k"
    encoder: Section = {
        "mlp": "projection" if "mlp.fc1.weight" in image else None,
        "context": {"max": "max", "avg": "mean"}[options.get("img_res_pool", "max", ("max", "avg"))],
        "dropout": options.given.get("img_1x1_dropout", 0.0),
    }
    sets: Section = {"name": "set_prediction", "position": "none"}
    data: Section = {"format": "precomp"}
    heads = 4
    if "cnn.conv1.weight" in image:
        options.require(spm_1x1=True)
        encoder = {"name": "grid", "backbone": _resnet(_below(image, "cnn.")), **encoder}
        heads = 8 if encoder["backbone"].startswith("resnext") else 4  # its authors' answer; not among the options
        options.assumed.append(f"heads={heads}")
        size, transform = 512, {"name": "square", "size": 512}
        if not options.get("gpo_aug", True):
            size = options.get("crop_size", 224)
            transform = {"name": "crop", "size": size, "resize": int(size / 0.875)}
        data = {"format": "coco" if dataset == "coco" else "karpathy", "transform": transform}
        if options.get("spm_img_pos_enc_type", "none", ("none", "sine")) == "sine":
            sets |= {"position": "sine_2d", "grid": [size // 32] * 2}
    else:
        options.require(spm_img_pos_enc_type="none")
        encoder = {"name": "regions", **encoder}
    names = _DIVE_GRID if encoder["name"] == "grid" else _DIVE_REGIONS
    embed_dim = _size(image, "fc.weight", 0)
    text_encoder = _text_encoder(text, embed_dim, "linear")
    if text_encoder["name"] == "bigru":
        reads = {"wemb": "words", "rnn": "states"}[options.get("txt_attention_input", "wemb", ("wemb", "rnn"))]
        pool = {"rnn": "last", "max": "max"}[options.get("txt_pooling", "rnn", ("rnn", "max"))]
        text_encoder |= {"features": reads, "context": pool}
    else:
        text_encoder["context"] = options.get("txt_pooling", "cls", ("cls", "max"))
    text_encoder["dropout"] = options.given.get("dropout", 0.0)
    position = options.get("spm_txt_pos_enc_type", "sine", ("none", "sine"))
    text_sets = {"name": "set_prediction", "position": position}
    known = ("smooth_chamfer", "chamfer", "max")
    similarity: Section = {"name": options.get("eval_similarity", known[0], known)}
    if similarity["name"] == "smooth_chamfer":
        similarity["temperature"] = options.get("temperature", 16.0)
    return _Reading(
        system="DivE",
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": {**sets, **_slots(image, options, heads)}},
        text={"encoder": text_encoder, "aggregator": {**text_sets, **_slots(text, options, heads)}},
        embed_dim=embed_dim,
        similarity=similarity,
        batch_size=options.get("batch_size_eval", 256),
        names=(names | _slot_names(image, options), _GRU | _BERT | _slot_names(text, options)),
        vocabulary=f"{name}_vocab.pkl" if "embed.weight" in text else _BERT_NAME,
    )


def _read_pvse(image: State, text: State, options: _Options) -> _Reading:
    options.require(img_attention=True, txt_attention=True, crop_size=224)
    embed_dim, count = (_size(text, f"pie_net.{key}.weight", 0) for key in ("fc", "attention.w_2"))
    context = "last_step" if options.get("legacy", not options.given) else "last"
    shared: Section = {"dropout": options.given.get("dropout", 0.0)}
    pie_net = _below_names(PIE_NET, "pie_net.", "aggregator.")
    names: Names = {"cnn.": "encoder.backbone.", **pie_net}
    encoder: Section = {"backbone": _resnet(_below(image, "cnn.")), **shared}
    if "rnn.weight_ih_l0" in image:
        dataset = options.get("data_name", "mrw" if count == 5 else "tgif", ("mrw", "tgif"))
        encoder = {"name": "video", **encoder, "context": context}
        names["rnn."] = "encoder.gru."
        frames = options.get("max_video_length", 4 if dataset == "mrw" else 8)
        trim = 6 if dataset == "tgif" else 0
        transform = {"name": "clip", "frames": frames, "size": 224, "resize": 256, "max_skip": 3, "trim": trim}
    else:
        dataset = "coco"
        encoder = {"name": "grid", **encoder, "features": "raw", "context": "mean"}
        names["fc."] = "encoder.head.fc."
        transform = {"name": "crop", "size": 224, "resize": 256}
    words = {**_text_encoder(text, embed_dim, "linear"), **shared, "features": "words", "context": context}
    aggregator = {"name": "pie_net", "num_embeddings": count}
    return _Reading(
        system="PVSE",
        data={"format": dataset, "root": f"data/{dataset}", "transform": transform},
        image={"encoder": encoder, "aggregator": aggregator},
        text={"encoder": words, "aggregator": aggregator},
        embed_dim=embed_dim,
        similarity={"name": "order" if options.get("order", False) else "max"},
        batch_size=options.get("batch_size_eval", 16),
        names=(names, _GRU | pie_net),
        vocabulary=f"{dataset}_vocab.pkl",
    )


def _dataset(options: _Options) -> tuple[str, str]:
    """Data set that VSE∞'s and VSE-2AD's options name, and the file of its vocabulary."""
    if "data_name" not in options.given:
        return "f30k", "f30k_precomp_vocab.json or coco_precomp_vocab.json"
    dataset = "coco" if "coco" in options.get("data_name", "f30k_precomp") else "f30k"
    return dataset, f"{dataset}_precomp_vocab.json"


def _split_grid(image: State, options: _Options, scale: float) -> tuple[Section, Section]:
    """Encoder and data of VSE∞'s and VSE-2AD's grids: ResNets in Caffe's geometry, ResNeXts in torchvision's."""
    parts = {key: next((part for part in SPLIT if key.startswith(f"backbone.{part}")), None) for key in image}
    name = _resnet({SPLIT[p] + key.removeprefix(f"backbone.{p}"): image[key] for key, p in parts.items() if p})
    pixels = "imagenet"
    if name.startswith("resnet"):
        source = options.get("backbone_source", "detector" if name == "resnet101" else "imagenet")
        name, pixels = f"caffe_{name}", "caffe" if "detector" in source else "imagenet"
    size = int(256 * options.get("input_scale_factor", scale))
    encoder = {"name": "grid", "backbone": name, "pixels": pixels}
    return encoder, {"format": "id_mapping", "transform": {"name": "square", "size": size}}


def _resnet(state: State) -> str:
    """Name of torchvision's ResNet with these shapes."""
    shapes = {key: value.shape for key, value in state.items()}
    for name in resnets():
        with torch.device("meta"):
            own = ResNetBackbone(name).state_dict()
        if {key: value.shape for key, value in own.items()} == shapes:
            return name
    raise ValueError(f"its image backbone, of {len(shapes)} tensors, is none of torchvision's ResNets")


def _text_encoder(text: State, embed_dim: int, projection: str) -> Section:
    """A BiGRU or BERT as its weights are."""
    if "embed.weight" in text:
        directions = "average" if _size(text, "rnn.weight_hh_l0", 1) == embed_dim else "concatenate"
        return {"name": "bigru", "word_dim": _size(text, "embed.weight", 1), "directions": directions}
    if f"{projection}.weight" not in text:
        raise ValueError(f"its text encoder has neither embed.weight (BiGRU) nor {projection}.weight (BERT)")
    return {"name": "bert", "model": _BERT_NAME, "weights": None}


def _bert_architecture(text: State) -> dict[str, Any]:
    """What a BERT of these shapes is built from; BERT's heads are 64 wide."""
    tables = "bert.embeddings.{}_embeddings.weight"
    width = _size(text, tables.format("word"), 1)
    return {
        "model_type": "bert",
        "vocab_size": _size(text, tables.format("word"), 0),
        "hidden_size": width,
        "num_hidden_layers": _count_layers(text, "bert.encoder.layer."),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": _size(text, "bert.encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": _size(text, tables.format("position"), 0),
        "type_vocab_size": _size(text, tables.format("token_type"), 0),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


def _slots(state: State, options: _Options, heads: int) -> Section:
    """Arguments of a set prediction as its weights are."""
    inner, width = (_size(state, f"{_SLOTS}layers.0.0.fn.to_q.weight", axis) for axis in (0, 1))
    return {
        "num_embeddings": _size(state, f"{_SLOTS}latents", 0),
        "depth": _count_layers(state, f"{_SLOTS}layers."),
        "heads": heads,
        "head_dim": max(1, inner // heads),
        "ff_mult": max(1, _size(state, f"{_SLOTS}layers.0.2.fn.net.0.weight", 0) // width),
        "dropout": options.given.get("dropout", 0.0),
        "share_weights": _is_shared(state, options),
    }


def _slot_names(state: State, options: _Options) -> Names:
    """Names of a set prediction's parameters."""
    depth = _count_layers(state, f"{_SLOTS}layers.")
    return _below_names(set_prediction_names(depth, _is_shared(state, options)), "spm.", "aggregator.")


def _is_shared(state: State, options: _Options) -> bool:
    """Whether the blocks are one: as the option says, when it does; then the last counts, as in the released code."""
    if "spm_weight_sharing" in options.given:
        return bool(options.get("spm_weight_sharing", True))
    first = _below(state, f"{_SLOTS}layers.0.")
    others = [_below(state, f"{_SLOTS}layers.{layer}.") for layer in range(1, _count_layers(state, f"{_SLOTS}layers."))]
    return all(first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first) for other in others)


def _count_layers(state: State, prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


def _size(state: State, key: str, axis: int) -> int:
    """A width. Raises ValueError when the tensor is missing, of another rank, or empty."""
    if key not in state:
        raise ValueError(f"{key} is missing")
    shape = tuple(state[key].shape)
    if len(shape) <= axis or 0 in shape:
        raise ValueError(f"{key} has the shape {shape}")
    return shape[axis]


def _below(state: State, prefix: str) -> State:
    """The part of a state dict whose names begin so, without that beginning."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def rename(state: dict[str, Tensor], names: Names, system: str) -> dict[str, Tensor]:
    """State dict under our names. Raises ValueError for a key that the ``system`` does not have."""
    weights = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        prefix = next((p for p in names if key.startswith(p)), None)
        if prefix is None:
            raise ValueError(f"{key}: not a parameter of {system}")
        if (ours := names[prefix]) is not None:
            weights[ours + key.removeprefix(prefix)] = value
    return weights


def _below_names(names: Names, theirs: str, ours: str) -> Names:
    """Names of a part of a model, from those of the part alone."""
    return {theirs + name: None if new is None else ours + new for name, new in names.items()}


class ReleasedAdaptivePool(AdaptivePool):
    """VSE-2AD's released pooling: padding takes part in the token level's softmax, as zero features.

    >>> ReleasedAdaptivePool(dim=8)(torch.randn(2, 5, 8), lengths_to_mask(torch.tensor([5, 2]))).embeddings
    """

    padding_counts = True

    def token_mask(self, mask: Tensor | None) -> Tensor | None:  # noqa: D102
        return None


class ReleasedSlotBlock(SlotBlock):
    """DivE's released attention: padding keeps 1/K of the slots' softmax and joins the sum over the elements."""

    def weigh(self, logits: Tensor, mask: Tensor | None) -> Tensor:  # noqa: D102
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return super().weigh(logits, None)


class ReleasedSetPrediction(SetPrediction):
    """DivE's released set prediction: padding gets attention, and the position code depends on the padded length.

    >>> ReleasedSetPrediction(in_dim=8, out_dim=16)(torch.randn(2, 5, 8), context=torch.randn(2, 16)).embeddings
    """

    block = ReleasedSlotBlock
    padding_counts = True

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets; what stands in masked places counts."""
        check_set(features, mask)
        return self.predict(features, mask, set_context(features, mask, context, self.out_dim))

    def position_codes(self, features: Tensor, mask: Tensor | None) -> Tensor | None:  # noqa: D102
        return super().position_codes(features, None)
