"""ESA (Zhu et al., IEEE TCSVT 2023): regions or grid, BiGRU or BERT, per-dimension attention."""

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

# The bias is the same for all elements, so it cancels in the softmax over them.
_POOL: Names = {"linear1.bias": None, "linear1.": "aggregator.linear."}
_GRID: Names = {
    **SPLIT_BACKBONE,
    "image_encoder.fc.": "encoder.head.fc.",
    "image_encoder.linear1.bias": None,
    "image_encoder.linear1.": "aggregator.linear.",
}


def read_esa(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of ESA.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: A weight is missing, or the checkpoint needs an option that this package does not support.
    """
    options.require(no_imgnorm=False, no_txtnorm=False)
    dataset, vocabulary = read_dataset(options)
    if "fc.weight" in image:
        mlp = "input" if "mlp.layers.0.weight" in image else None
        encoder, names, data = {"name": "regions", "mlp": mlp}, REGIONS | _POOL, {"format": "precomp"}
        embed_dim = size(image, "fc.weight", 0)
    else:
        encoder, data = read_split_grid(image, options, 2.0)
        names, embed_dim = _GRID, size(image, "image_encoder.fc.weight", 0)
    pool = {"name": "softmax_pool"}
    return Reading(
        system="ESA",
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": pool},
        text={"encoder": read_text_encoder(text, embed_dim, "linear"), "aggregator": pool},
        embed_dim=embed_dim,
        similarity={"name": "cosine"},
        batch_size=options.get("batch_size", 128),
        names=(names, GRU | BERT | _POOL),
        vocabulary=vocabulary if "embed.weight" in text else BERT_NAME,
    )
