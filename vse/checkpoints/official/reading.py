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
    """What a system's reader has found in a checkpoint.

    Attributes:
        system: The system's name, for messages.
        data: The section ``data`` of the config.
        image: The config of the image tower, its encoder and aggregator.
        text: The config of the text tower, its encoder and aggregator.
        embed_dim: The width H of the embeddings.
        similarity: The config of the similarity.
        batch_size: The batch size of the system's evaluation.
        names: This package's prefix for each official prefix of a parameter, for the image and for the text side.
        vocabulary: The name of the vocabulary's file or folder, which the checkpoint does not contain.
    """

    system: str
    data: Section
    image: Section
    text: Section
    embed_dim: int
    similarity: Section
    batch_size: int
    names: tuple[Names, Names]
    vocabulary: str


def read_dataset(options: Options) -> tuple[str, str]:
    """Return the data set that the options of VSE∞ or VSE-2AD name, and its vocabulary file.

    Args:
        options: The options in the checkpoint.

    Returns:
        "f30k" or "coco", and the file's name. Without options, the data set is "f30k" and the file's name tells both.

    Raises:
        ValueError: The option ``data_name`` is not a string.
    """
    if "data_name" not in options.given:
        return "f30k", "f30k_precomp_vocab.json or coco_precomp_vocab.json"
    dataset = "coco" if "coco" in options.get("data_name", "f30k_precomp") else "f30k"
    return dataset, f"{dataset}_precomp_vocab.json"


def read_split_grid(image: State, options: Options, scale: float) -> tuple[Section, Section]:
    """Read the grids of VSE∞ and VSE-2AD: ResNets in Caffe's geometry, ResNeXts in torchvision's.

    Their codes resize pictures with OpenCV's INTER_LINEAR, which does not antialias.

    Args:
        image: The image encoder's weights, under their official names.
        options: The options in the checkpoint.
        scale: The side of the pictures in multiples of 256 pixels, where the options do not tell it.

    Returns:
        The image encoder's section of the config, and the section ``data``.

    Raises:
        ValueError: The backbone is not one of torchvision's ResNets, or an option has the wrong type.
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
    """Find torchvision's ResNet with the same tensors.

    Args:
        state: A backbone's state dict, under torchvision's names.

    Returns:
        The ResNet's name, as in "resnet152".

    Raises:
        ValueError: No ResNet has these names and shapes.
    """
    shapes = {key: value.shape for key, value in state.items()}
    for name in resnets():
        with torch.device("meta"):
            own = ResNetBackbone(name).state_dict()
        if {key: value.shape for key, value in own.items()} == shapes:
            return name
    raise ValueError(f"its image backbone, which has {len(shapes)} tensors, is not one of torchvision's ResNets")


def read_text_encoder(text: State, embed_dim: int, projection: str) -> Section:
    """Read the kind and the sizes of a text encoder, a BiGRU or BERT, from its weights.

    Args:
        text: The text encoder's weights, under their official names.
        embed_dim: The width H of the embeddings.
        projection: The name of the layer above BERT.

    Returns:
        The text encoder's section of the config.

    Raises:
        ValueError: The weights belong to neither a BiGRU nor BERT.
    """
    if "embed.weight" in text:
        directions = "average" if size(text, "rnn.weight_hh_l0", 1) == embed_dim else "concatenate"
        return {"name": "bigru", "word_dim": size(text, "embed.weight", 1), "directions": directions}
    if f"{projection}.weight" not in text:
        raise ValueError(f"its text encoder has neither embed.weight (BiGRU) nor {projection}.weight (BERT)")
    return {"name": "bert", "model": BERT_NAME, "weights": None}


def read_bert_architecture(text: State) -> dict[str, Any]:
    """Return the architecture of a BERT with these shapes; each of BERT's heads is 64 wide.

    Args:
        text: The text encoder's weights, under their official names.

    Returns:
        The fields of the ``config.json`` of a model of ``transformers``.

    Raises:
        ValueError: A table or layer that shows a size is missing.
    """
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
