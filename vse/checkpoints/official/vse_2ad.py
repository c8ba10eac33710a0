"""VSE-2AD (Zhang et al., EACL 2023): regions or grid, BiGRU or BERT, adaptive pooling."""

from torch import Tensor

from vse.aggregators import AdaptivePool
from vse.checkpoints.official.keys import BERT, GRU, Names, State, below, size
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

_POOL: Names = {"pool.": "aggregator."}
_NO_MLP: Names = {"fc.": "encoder.fc.", "mlp.": None}  # the released code makes an MLP and does not use it
_GRID: Names = {
    **SPLIT_BACKBONE,
    "img_proj.fc.": "encoder.head.fc.",
    "img_proj.mlp.": None,
    "img_proj.pool.": "aggregator.",
}


def read_vse_2ad(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of VSE-2AD.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: The image encoder is the released ViT, a weight is missing, or the checkpoint needs an option that
            this package does not support.
    """
    options.require(no_imgnorm=False, no_txtnorm=False)
    if below(image, "vit_model."):
        raise ValueError(
            "img_enc.vit_model: the released ViT path pools [CLS] with the patches and drops patches at random in "
            "evaluation; this package reads VSE-2AD's regions and ResNet grids"
        )
    dataset, vocabulary = read_dataset(options)
    if "fc.weight" in image:
        mlp = options.get("precomp_enc_type", "basic", ("basic", "backbone")) == "basic"
        encoder, data = {"name": "regions", "mlp": "input" if mlp else None}, {"format": "precomp"}
        names, embed_dim = (REGIONS if mlp else _NO_MLP) | _POOL, size(image, "fc.weight", 0)
    else:
        encoder, data = read_split_grid(image, options, 1.0)
        names, embed_dim = _GRID, size(image, "img_proj.fc.weight", 0)
    text_encoder = read_text_encoder(text, embed_dim, "fc")
    if text_encoder["name"] == "bigru":
        text_encoder["keep_ends"] = True
    adaptive = {"name": "adaptive"}
    return Reading(
        system="VSE-2AD",
        data={**data, "root": f"data/{dataset}"},
        image={"encoder": encoder, "aggregator": adaptive},
        text={"encoder": text_encoder, "aggregator": adaptive},
        embed_dim=embed_dim,
        similarity={"name": "cosine"},
        batch_size=options.get("batch_size", 128),
        names=(names, GRU | BERT | {"fc.": "encoder.linear."} | _POOL),
        vocabulary=vocabulary if "embed.weight" in text else BERT_NAME,
    )


class ReleasedAdaptivePool(AdaptivePool):
    """VSE-2AD's released pooling: padding takes part in the token level's softmax, as zero features.

    >>> ReleasedAdaptivePool(dim=8)(torch.randn(2, 5, 8), lengths_to_mask(torch.tensor([5, 2]))).embeddings
    """

    padding_counts = True

    def token_mask(self, mask: Tensor | None) -> Tensor | None:  # noqa: D102
        return None
