"""ESA (Zhu et al., IEEE TCSVT 2023): regions or grid, BiGRU or BERT, per-dimension attention."""

from vse.checkpoints.official.keys import Names, State
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.reading import SPLIT_BACKBONE, Reading
from vse.checkpoints.official.vse_infty import read_one_pooling

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
    return read_one_pooling("ESA", "softmax_pool", (_POOL, _GRID), image, text, options)
