"""PVSE (Song & Soleymani, CVPR 2019): pictures or clips, BiGRU, PIE-Net."""

from vse.checkpoints.official.keys import GRU, Names, State, below, below_names, size
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.reading import Reading, Section, read_resnet, read_text_encoder

PIE_NET: Names = {
    "attention.w_1.": "hidden.",
    "attention.w_2.": "maps.",
    "fc.": "fc.",
    "layer_norm.": "norm.",
}


def read_pvse(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of PVSE; without options it is one of the released files, all of them ``legacy``.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: A weight is missing, or the checkpoint needs an option that this package does not support.
    """
    options.require(img_attention=True, txt_attention=True, crop_size=224)
    embed_dim, count = (size(text, f"pie_net.{key}.weight", 0) for key in ("fc", "attention.w_2"))
    context = "last_step" if options.get("legacy", not options.given) else "last"
    shared: Section = {"dropout": options.given.get("dropout", 0.0)}
    pie_net = below_names(PIE_NET, "pie_net.", "aggregator.")
    names: Names = {"cnn.": "encoder.backbone.", **pie_net}
    encoder: Section = {"backbone": read_resnet(below(image, "cnn.")), **shared}
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
    words = {**read_text_encoder(text, embed_dim, "linear"), **shared, "features": "words", "context": context}
    aggregator = {"name": "pie_net", "num_embeddings": count}
    return Reading(
        system="PVSE",
        data={"format": dataset, "root": f"data/{dataset}", "transform": transform},
        image={"encoder": encoder, "aggregator": aggregator},
        text={"encoder": words, "aggregator": aggregator},
        embed_dim=embed_dim,
        similarity={"name": "order" if options.get("order", False) else "max"},
        batch_size=options.get("batch_size_eval", 16),
        names=(names, GRU | pie_net),
        vocabulary=f"{dataset}_vocab.pkl",
    )
