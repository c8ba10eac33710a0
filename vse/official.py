"""The official codes' checkpoints, and what they compute when padding leaks.

The ``*_weights`` functions give our parameter names to their state dicts. The ``Released*`` classes repeat the padding
mistakes of VSE-2AD's and DivE's released codes, for their published checkpoints alone.
"""

import torch
from torch import Tensor

from vse.aggregators import AdaptivePool, SetPrediction
from vse.aggregators.pooling import set_context
from vse.aggregators.set_prediction import SlotBlock
from vse.encoders.backbones import SPLIT
from vse.sets import Aggregated, check_set

Names = dict[str, str | None]  # beginning of an official parameter's name -> ours; None: never used

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
_DIVE_REGIONS: Names = {
    "fc.": "encoder.fc.",
    "mlp.fc1.": "encoder.hidden.",
    "mlp.bn.bn.": "encoder.norm.",
    "mlp.fc2.": "encoder.out.",
}
_GRID: Names = {
    **{f"backbone.{theirs}": f"encoder.backbone.{ours}" for theirs, ours in SPLIT.items()},
    "backbone.resnet.": None,  # every tensor of the backbone a second time
    "image_encoder.fc.": "encoder.head.fc.",
    "image_encoder.gpool.": "aggregator.",
}
_POOL: Names = {"pool.": "aggregator."}
_GPOOL: Names = {"gpool.": "aggregator."}
PIE_NET: Names = {
    "attention.w_1.": "hidden.",
    "attention.w_2.": "maps.",
    "fc.": "fc.",
    "layer_norm.": "norm.",
}
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
        names |= _inside(_SLOT_BLOCK, f"agg_block.layers.{layer}.", block)
    return {**names, "agg_block.last_layer.0.": "slot_norm."}


def vse_infty_weights(image: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our ``regions`` or ``grid`` + ``bigru`` or ``bert`` + ``gpo`` model from VSE∞'s list of two.

    ``image`` and ``text`` are the entries of ``checkpoint["model"]``. Keys may carry ``module.``. Raises ValueError for
    a key that this system does not have.

    >>> model.load_state_dict(vse_infty_weights(*torch.load("model_best.pth")["model"]))
    """
    weights: dict[str, Tensor] = {}
    for side, state, names in (("image", image, _GRID | _REGIONS | _GPOOL), ("text", text, _GRU | _BERT | _GPOOL)):
        weights |= rename(state, _inside(names, "", f"{side}."), f"VSE∞ ({side}: regions or grid, BiGRU or BERT)")
    return weights


def vse_2ad_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our ``regions`` + ``bigru`` + ``adaptive`` model from VSE-2AD's ``checkpoint["model"]``.

    Keys may carry ``module.``. Raises ValueError for a key that this system does not have.

    >>> model.load_state_dict(vse_2ad_weights(torch.load("model_best.pth")["model"]))
    """
    names = _inside(_REGIONS | _POOL, "img_enc.", "image.") | _inside(_GRU | _POOL, "txt_enc.", "text.")
    return rename(state, names, "VSE-2AD (regions, BiGRU)")


def dive_weights(state: dict[str, Tensor], depth: int = 4, share_weights: bool = True) -> dict[str, Tensor]:
    """State dict of our ``regions`` + ``bigru`` + ``set_prediction`` model from DivE's ``checkpoint["model"]``.

    Keys may carry ``module.``. Raises ValueError for a key that this system does not have.

    >>> model.load_state_dict(dive_weights(torch.load("model_best.pth")["model"]))
    """
    sets = _inside(set_prediction_names(depth, share_weights), "spm.", "aggregator.")
    names = _inside(_DIVE_REGIONS | sets, "img_enc.", "image.") | _inside(_GRU | sets, "txt_enc.", "text.")
    return rename(state, names, "DivE (regions, BiGRU)")


def pvse_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our ``grid`` or ``video`` + ``bigru`` + ``pie_net`` model from PVSE's state dict.

    Keys may carry ``module.``. Raises ValueError for a key that this system does not have.

    >>> model.load_state_dict(pvse_weights(torch.load("coco_resnet152.pth")))
    """
    image: Names = {"cnn.": "encoder.backbone.", "fc.": "encoder.head.fc.", "rnn.": "encoder.gru."}
    pie_net = _inside(PIE_NET, "pie_net.", "aggregator.")
    names = _inside(image | pie_net, "img_enc.", "image.") | _inside(_GRU | pie_net, "txt_enc.", "text.")
    return rename(state, names, "PVSE (pictures or clips, BiGRU)")


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


def _inside(names: Names, theirs: str, ours: str) -> Names:
    """Names of a part of a model, from those of the part alone."""
    return {theirs + name: None if new is None else ours + new for name, new in names.items()}


class ReleasedAdaptivePool(AdaptivePool):
    """VSE-2AD's released pooling: padding takes part in the token level's softmax, as zero features.

    >>> ReleasedAdaptivePool(dim=8)(torch.randn(2, 5, 8), lengths_to_mask(torch.tensor([5, 2]))).embeddings
    """

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

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets; what stands in masked places counts."""
        check_set(features, mask)
        return self.predict(features, mask, set_context(features, mask, context, self.out_dim))

    def position_codes(self, features: Tensor, mask: Tensor | None) -> Tensor | None:  # noqa: D102
        return super().position_codes(features, None)
