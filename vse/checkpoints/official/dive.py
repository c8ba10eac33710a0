"""DivE (Kim et al., CVPR 2023): regions or grid, BiGRU or BERT, set prediction."""

import torch
from torch import Tensor

from vse.aggregators import SetPrediction
from vse.aggregators.pooling import set_context
from vse.aggregators.set_prediction import SlotBlock
from vse.checkpoints.official.keys import BERT, GRU, Names, State, below, below_names, count_layers, size
from vse.checkpoints.official.options import Options
from vse.checkpoints.official.reading import BERT_NAME, Reading, Section, read_resnet, read_text_encoder
from vse.sets import Aggregated, check_set

_REGIONS: Names = {
    "fc.": "encoder.fc.",
    "mlp.fc1.": "encoder.hidden.",
    "mlp.bn.bn.": "encoder.norm.",
    "mlp.fc2.": "encoder.out.",
}
_GRID: Names = {
    **{theirs: str(ours).replace("encoder.", "encoder.head.") for theirs, ours in _REGIONS.items()},
    "cnn.": "encoder.backbone.",
    "spm_fc.": None,  # the projection under two more names
    "residual_first_fc.": None,
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


def read_dive(image: State, text: State, options: Options) -> Reading:
    """Read a checkpoint of DivE.

    Args:
        image: The image encoder's weights, under their official names.
        text: The text encoder's weights, under their official names.
        options: The options in the checkpoint.

    Returns:
        The model's parts, widths and data, and the names of its parameters.

    Raises:
        ValueError: A weight is missing, or the checkpoint needs an option that this package does not support.
    """
    options.require(arch="slot", spm_activation="gelu", spm_residual=True, spm_post_norm=False, spm_pre_norm=True)
    options.require(first_order=False, query_slot=False, ten_crop=False)
    options.require(img_res_first_fc=True, img_res_first_pool=False, img_res_last_pool=False)
    name = options.get("data_name", "f30k_butd")
    dataset = "coco" if "coco" in name else "f30k"
    is_grid = "cnn.conv1.weight" in image
    if is_grid:
        data, image_tower = _read_grid(image, options, dataset)
    else:
        data, image_tower = {"format": "precomp"}, _read_regions(image, options)
    embed_dim = size(image, "fc.weight", 0)
    text_tower = _read_text(text, options, embed_dim, image_tower["aggregator"]["heads"])
    return Reading(
        system="DivE",
        data={**data, "root": f"data/{dataset}"},
        image=image_tower,
        text=text_tower,
        embed_dim=embed_dim,
        similarity=_read_similarity(options),
        batch_size=options.get("batch_size_eval", 256),
        names=((_GRID if is_grid else _REGIONS) | _slot_names(image, options), GRU | BERT | _slot_names(text, options)),
        vocabulary=f"{name}_vocab.pkl" if "embed.weight" in text else BERT_NAME,
    )


def _read_regions(image: State, options: Options) -> Section:
    """The image tower for region features."""
    encoder = {"name": "regions", **_read_head(image, options)}
    options.require(spm_img_pos_enc_type="none")
    sets = {"name": "set_prediction", "position": "none", **_read_slots(image, options, heads=4)}
    return {"encoder": encoder, "aggregator": sets}


def _read_grid(image: State, options: Options, dataset: str) -> tuple[Section, Section]:
    """The data and the image tower for pictures."""
    head = _read_head(image, options)
    options.require(spm_1x1=True)
    encoder = {"name": "grid", "backbone": read_resnet(below(image, "cnn.")), **head}
    heads = 8 if encoder["backbone"].startswith("resnext") else 4  # its authors' answer; not among the options
    options.assumed.append(f"heads={heads}")
    side, transform = 512, {"name": "square", "size": 512}
    if not options.get("gpo_aug", True):
        side = options.get("crop_size", 224)
        transform = {"name": "crop", "size": side, "resize": int(side / 0.875)}
    sets: Section = {"name": "set_prediction", "position": "none"}
    if options.get("spm_img_pos_enc_type", "none", ("none", "sine")) == "sine":
        sets |= {"position": "sine_2d", "grid": [side // 32] * 2}
    data = {"format": "coco" if dataset == "coco" else "karpathy", "transform": transform}
    return data, {"encoder": encoder, "aggregator": {**sets, **_read_slots(image, options, heads)}}


def _read_head(image: State, options: Options) -> Section:
    """The part of the image encoder that regions and grids share."""
    return {
        "mlp": "projection" if "mlp.fc1.weight" in image else None,
        "context": {"max": "max", "avg": "mean"}[options.get("img_res_pool", "max", ("max", "avg"))],
        "dropout": options.given.get("img_1x1_dropout", 0.0),
    }


def _read_text(text: State, options: Options, embed_dim: int, heads: int) -> Section:
    """The text tower."""
    encoder = read_text_encoder(text, embed_dim, "linear")
    if encoder["name"] == "bigru":
        reads = {"wemb": "words", "rnn": "states"}[options.get("txt_attention_input", "wemb", ("wemb", "rnn"))]
        pool = {"rnn": "last", "max": "max"}[options.get("txt_pooling", "rnn", ("rnn", "max"))]
        encoder |= {"features": reads, "context": pool}
    else:
        encoder["context"] = options.get("txt_pooling", "cls", ("cls", "max"))
    encoder["dropout"] = options.given.get("dropout", 0.0)
    position = options.get("spm_txt_pos_enc_type", "sine", ("none", "sine"))
    sets = {"name": "set_prediction", "position": position, **_read_slots(text, options, heads)}
    return {"encoder": encoder, "aggregator": sets}


def _read_similarity(options: Options) -> Section:
    """The similarity of its evaluation."""
    known = ("smooth_chamfer", "chamfer", "max")
    similarity: Section = {"name": options.get("eval_similarity", known[0], known)}
    if similarity["name"] == "smooth_chamfer":
        similarity["temperature"] = options.get("temperature", 16.0)
    return similarity


def _read_slots(state: State, options: Options, heads: int) -> Section:
    """Arguments of a set prediction as its weights are."""
    inner, width = (size(state, f"{_SLOTS}layers.0.0.fn.to_q.weight", axis) for axis in (0, 1))
    return {
        "num_embeddings": size(state, f"{_SLOTS}latents", 0),
        "depth": count_layers(state, f"{_SLOTS}layers."),
        "heads": heads,
        "head_dim": max(1, inner // heads),
        "ff_mult": max(1, size(state, f"{_SLOTS}layers.0.2.fn.net.0.weight", 0) // width),
        "dropout": options.given.get("dropout", 0.0),
        "share_weights": _is_shared(state, options),
    }


def _is_shared(state: State, options: Options) -> bool:
    """Whether the blocks are one: as the option says, when it does; then the last counts, as in the released code."""
    if "spm_weight_sharing" in options.given:
        return bool(options.get("spm_weight_sharing", True))
    first = below(state, f"{_SLOTS}layers.0.")
    others = [below(state, f"{_SLOTS}layers.{layer}.") for layer in range(1, count_layers(state, f"{_SLOTS}layers."))]
    return all(first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first) for other in others)


def _slot_names(state: State, options: Options) -> Names:
    """Names of a set prediction's parameters."""
    depth = count_layers(state, f"{_SLOTS}layers.")
    return below_names(set_prediction_names(depth, _is_shared(state, options)), "spm.", "aggregator.")


def set_prediction_names(depth: int, share_weights: bool) -> Names:
    """Map the names of DivE's set-prediction module; a shared block is there once per depth, with equal values.

    Args:
        depth: The number of rounds of attention.
        share_weights: Whether one block of this package serves all rounds.

    Returns:
        This package's prefix for each official prefix, both within the module.
    """
    names: Names = {"residual_norm.": "context_norm.", "agg_block.latents": "slots"}
    for layer in range(depth):
        block = f"blocks.{0 if share_weights else layer}."
        names |= below_names(_SLOT_BLOCK, f"agg_block.layers.{layer}.", block)
    return {**names, "agg_block.last_layer.0.": "slot_norm."}


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
        """Embed a batch of sets; what stands in masked places counts.

        Args:
            features: Local features (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Global vectors (B, out_dim); None for the mean of the real features.

        Returns:
            Embeddings and residual (B, K, out_dim), and attention (B, K, N): the last round's, averaged over heads.

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask)
        return self.predict(features, mask, set_context(features, mask, context, self.out_dim))

    def position_codes(self, features: Tensor, mask: Tensor | None) -> Tensor | None:  # noqa: D102
        return super().position_codes(features, None)
