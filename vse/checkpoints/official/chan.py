"""CHAN (Pan, Wu & Zhang, CVPR 2023): regions, BiGRU or BERT, late interaction."""

from vse.checkpoints.official.keys import BERT, GRU, Names, State, below, size
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.reading import BERT_NAME, Reading, Section, read_dataset, read_text_encoder

_IMAGE: Names = {
    "fc.": "encoder.fc.",
    "feedforward.ln.": "encoder.attention_norm.",
    "feedforward.attn.": "encoder.attention.",
}
_CODINGS = {"VHACoding": "hard_words", "THACoding": "hard_regions", "VSACoding": "soft_regions"}
_POOLINGS = {
    "LSEPooling": "lse",
    "MeanPooling": "mean",
    "MaxPooling": "max",
    "SumPooling": "sum",
    "SoftmaxPooling": "softmax",
}


def read_chan(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of CHAN.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: The image encoder is the released transformer, a weight is missing, or the checkpoint needs an
            option that this package does not support.
    """
    options.require(no_imgnorm=False, no_txtnorm=False)
    kind = "selfattention" if "feedforward.attn.in_proj_weight" in image else "basic"
    if options.given.get("precomp_enc_type") == "transformer" or below(image, "feedforward.mlp."):
        raise ValueError(
            "its option precomp_enc_type is 'transformer': the released code attends over the images of a batch; this "
            "package reads CHAN's 'basic' and 'selfattention'"
        )
    dataset, vocabulary = read_dataset(options)
    embed_dim, is_bigru = size(image, "fc.weight", 0), "embed.weight" in text
    tokens = {"name": "tokens"}
    return Reading(
        system="CHAN",
        data={"format": "precomp", "root": f"data/{dataset}"},
        image={
            "encoder": {"name": "regions", "mlp": None, "self_attention": kind == "selfattention"},
            "aggregator": tokens,
        },
        text={"encoder": read_text_encoder(text, embed_dim, "linear"), "aggregator": tokens},
        embed_dim=embed_dim,
        similarity=_read_similarity(options, "LSEPooling" if is_bigru else "MeanPooling"),
        batch_size=options.get("batch_size", 128),
        names=(_IMAGE, GRU | BERT | {"fc.": None}),  # the released BiGRU has a layer that it never uses
        vocabulary=vocabulary if is_bigru else BERT_NAME,
    )


def _read_similarity(options: Options, pooling: str) -> Section:
    """The similarity's section of the config; ``pooling`` is the published model's."""
    coding = _CODINGS[options.get("coding_type", "VHACoding", tuple(_CODINGS))]
    similarity: Section = {
        "name": "chan",
        "coding": coding,
        "pooling": _POOLINGS[options.get("pooling_type", pooling, tuple(_POOLINGS))],
    }
    if coding == "soft_regions":
        similarity["coding_temperature"] = options.get("alpha", 0.1)
    if similarity["pooling"] in ("lse", "softmax"):
        similarity["pooling_temperature"] = options.get("belta", 0.1)
    return similarity
