"""The result of reading an official checkpoint, and the parts of models that several systems share."""

from typing import Any, NamedTuple

import torch

from vse.checkpoints.official.keys import Names, State, count_layers, size
from vse.checkpoints.official.options import Options
from vse.encoders.backbones import SPLIT, ResNetBackbone, resnets

Section = dict[str, Any]  # a part of a config
BERT_NAME = "bert-base-uncased"  # of all published models that read captions with BERT

# Names on the image side that VSE∞ and VSE-2AD share. The second BatchNorm of the MLP is never used.
REGIONS: Names = {
    "fc.": "encoder.fc.",
    "mlp.layers.0.": "encoder.hidden.",
    "mlp.bns.0.": "encoder.norm.",
    "mlp.layers.1.": "encoder.out.",
    "mlp.bns.1.": None,
}
SPLIT_BACKBONE: Names = {
    **{f"backbone.{theirs}": f"encoder.backbone.{ours}" for theirs, ours in SPLIT.items()},
    "backbone.resnet.": None,  # every tensor of the backbone a second time
}


class Reading(NamedTuple):
    """What a system's reader has found in a checkpoint."""

    system: str
    data: Section
    image: Section  # encoder and aggregator
    text: Section
    embed_dim: int
    similarity: Section
    batch_size: int  # of its evaluation
    names: tuple[Names, Names]  # of the image and the text side
    vocabulary: str  # its file


def read_dataset(options: Options) -> tuple[str, str]:
    """Return the data set that the options of VSE∞ or VSE-2AD name, and its vocabulary file."""
    if "data_name" not in options.given:
        return "f30k", "f30k_precomp_vocab.json or coco_precomp_vocab.json"
    dataset = "coco" if "coco" in options.get("data_name", "f30k_precomp") else "f30k"
    return dataset, f"{dataset}_precomp_vocab.json"


def read_split_grid(image: State, options: Options, scale: float) -> tuple[Section, Section]:
    """Encoder and data of VSE∞'s and VSE-2AD's grids: ResNets in Caffe's geometry, ResNeXts in torchvision's.

    Their codes resize pictures with OpenCV's INTER_LINEAR, which does not antialias.
    """
    parts = {key: next((part for part in SPLIT if key.startswith(f"backbone.{part}")), None) for key in image}
    name = read_resnet({SPLIT[p] + key.removeprefix(f"backbone.{p}"): image[key] for key, p in parts.items() if p})
    pixels = "imagenet"
    if name.startswith("resnet"):
        source = options.get("backbone_source", "detector" if name == "resnet101" else "imagenet")
        name, pixels = f"caffe_{name}", "caffe" if "detector" in source else "imagenet"
    side = int(256 * options.get("input_scale_factor", scale))
    encoder = {"name": "grid", "backbone": name, "pixels": pixels}
    return encoder, {"format": "id_mapping", "transform": {"name": "square", "size": side, "antialias": False}}


def read_resnet(state: State) -> str:
    """Name of torchvision's ResNet with these shapes. Raises ValueError when there is none."""
    shapes = {key: value.shape for key, value in state.items()}
    for name in resnets():
        with torch.device("meta"):
            own = ResNetBackbone(name).state_dict()
        if {key: value.shape for key, value in own.items()} == shapes:
            return name
    raise ValueError(f"its image backbone, which has {len(shapes)} tensors, is not one of torchvision's ResNets")


def read_text_encoder(text: State, embed_dim: int, projection: str) -> Section:
    """A BiGRU or BERT as its weights are; ``projection`` names the layer above BERT."""
    if "embed.weight" in text:
        directions = "average" if size(text, "rnn.weight_hh_l0", 1) == embed_dim else "concatenate"
        return {"name": "bigru", "word_dim": size(text, "embed.weight", 1), "directions": directions}
    if f"{projection}.weight" not in text:
        raise ValueError(f"its text encoder has neither embed.weight (BiGRU) nor {projection}.weight (BERT)")
    return {"name": "bert", "model": BERT_NAME, "weights": None}


def read_bert_architecture(text: State) -> dict[str, Any]:
    """Return the architecture of a BERT with these shapes; each of BERT's heads is 64 wide."""
    tables = "bert.embeddings.{}_embeddings.weight"
    width = size(text, tables.format("word"), 1)
    return {
        "model_type": "bert",
        "vocab_size": size(text, tables.format("word"), 0),
        "hidden_size": width,
        "num_hidden_layers": count_layers(text, "bert.encoder.layer."),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": size(text, "bert.encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": size(text, tables.format("position"), 0),
        "type_vocab_size": size(text, tables.format("token_type"), 0),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
