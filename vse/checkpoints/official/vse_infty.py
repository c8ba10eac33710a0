"""VSE∞ (Chen et al., CVPR 2021): regions or grid, BiGRU or BERT, GPO."""

from vse.checkpoints.official.keys import BERT, GRU, Names, State, size
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.reading import (
    BERT_NAME,
    REGIONS,
    SPLIT_BACKBONE,
    Reading,
    read_dataset,
    read_split_grid,
    read_text_encoder,
)

_POOL: Names = {"gpool.": "aggregator."}
_GRID: Names = {**SPLIT_BACKBONE, "image_encoder.fc.": "encoder.head.fc.", "image_encoder.gpool.": "aggregator."}


def read_vse_infty(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of VSE∞.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: A weight is missing, or the checkpoint needs an option that this package does not support.
    """
    return read_one_pooling("VSE∞", "gpo", (_POOL, _GRID), image, text, options)


def read_one_pooling(
    system: str, aggregator: str, poolings: tuple[Names, Names], image: State, text: State, options: Options
) -> Reading:
    """Read a checkpoint in the layout of VSE∞'s code, whose two sides have the same kind of pooling.

    Args:
        system: The system's name, for messages.
        aggregator: The name of the aggregator of both sides.
        poolings: The names of the pooling's parameters, and the names of all that a grid encoder has.
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: A weight is missing, or the checkpoint needs an option that this package does not support.
    """
    options.require(no_imgnorm=False, no_txtnorm=False)
    pool, grid = poolings
    dataset, vocabulary = read_dataset(options)
    if "fc.weight" in image:
        mlp = "input" if "mlp.layers.0.weight" in image else None
        encoder, names, data = {"name": "regions", "mlp": mlp}, REGIONS | pool, {"format": "precomp"}
        embed_dim = size(image, "fc.weight", 0)
    else:
        encoder, data = read_split_grid(image, options, 2.0)
        names, embed_dim = grid, size(image, "image_encoder.fc.weight", 0)
    return Reading(
        system=system,
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": {"name": aggregator}},
        text={"encoder": read_text_encoder(text, embed_dim, "linear"), "aggregator": {"name": aggregator}},
        embed_dim=embed_dim,
        similarity={"name": "cosine"},
        batch_size=options.get("batch_size", 128),
        names=(names, GRU | BERT | pool),
        vocabulary=vocabulary if "embed.weight" in text else BERT_NAME,
    )
