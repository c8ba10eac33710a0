"""The two halves of CLIP, SigLIP and other two-tower models."""

import json
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.encoders.backbones import Normalise
from vse.encoders.pretrained import (
    add_lora,
    check_complete,
    compute_again,
    local_path,
    make_model,
    one_line,
    prune,
    read_padding,
    read_preprocessing,
    without_extras,
)
from vse.encoders.tokens import clean_tokens
from vse.errors import check_choice
from vse.sets import FeatureSet

Side = Literal["image", "text"]
Features = Literal["projected", "raw"]

# The models that are known to have `text_model` and `vision_model`, with the places of what follows them.
_CAUSAL = {"clip", "metaclip_2"}  # a caption's token sees only those before it, and so never the padding
_PADDED = {"siglip"}  # captions are always filled to the same length, and the filling counts
_MASKED = {"chinese_clip"}
KNOWN = (*sorted(_CAUSAL), *sorted(_PADDED), *sorted(_MASKED))


class Clip(nn.Module):
    """One half of a two-tower model of ``transformers``: CLIP (Radford et al. 2021) or SigLIP (Zhai et al. 2023).

    Both sides of a model name the same encoder and the same folder. Its context is the model's own embedding before the
    normalisation, so the aggregator ``global`` gives the model's zero-shot embedding.

    In CLIP, the pooled vector of a picture is that of [CLS], and that of a caption is that of its end token; a token
    sees only the tokens before it. SigLIP pools the patches by attention. It was trained on captions that are filled to
    a fixed length without a mask, and pools the last token of the filling. This encoder does the same, so SigLIP's
    tokens depend on that filling, but not on the other captions of a batch.

    Args:
        side: Which half: "image" or "text"; filled in.
        model: A folder, or a name on the hub. Its fast tokenizer is the data's vocabulary.
        weights: "pretrained" for the published weights, or None for random ones.
        features: The local features of a picture's patches or a caption's tokens. "projected" sends each of them
            through the norm and the projection that the model has for its pooled vector; SigLIP has none for pictures.
            "raw" are the last hidden states.
        context: "pooled" for the model's own embedding, or None, which leaves out what only this needs.
        cls: Whether a picture's [CLS] token is an element too, the first one.
        lora: Rank of LoRA (Hu et al. 2022) on the query and value projections, which are then all that is trained of
            the model; None trains the model itself. It needs the package ``peft``.
        recompute: As in :class:`vse.encoders.Grid`.
        vocab_size: Number of ids that the tokenizer gives; filled in from the data.
        architecture: The model's architecture from a checkpoint, which needs no folder; filled in.

    Pictures (B, 3, height, width) are normalised as the model's own; floats are taken as they are. The features are
    (B, patches, D), or (B, L, D) for token ids (B, L). The context is (B, C) or None.

    Raises:
        ValueError: A choice is unknown, the model has no [CLS] token, or the tokenizer has more ids than the model. In
            the call: a caption is empty or too long, or the pictures have another shape.
        vse.errors.InputError: The model cannot be read.

    >>> Clip("text", "openai/clip-vit-base-patch32")(torch.tensor([[49406, 1929, 49407]])).context.shape
    torch.Size([1, 512])
    """

    reads: tuple[str, ...] = ("pictures", "subwords")
    pretrained = True  # as the class: with its default weights

    def __init__(
        self,
        side: Side,
        model: str = "openai/clip-vit-base-patch32",
        weights: Literal["pretrained"] | None = "pretrained",
        features: Features = "projected",
        context: Literal["pooled"] | None = "pooled",
        cls: bool = False,
        lora: int | None = None,
        recompute: bool = False,
        vocab_size: int | None = None,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("side", side, get_args(Side))
        check_choice("features", features, get_args(Features))
        check_choice("context", context, ("pooled", None))
        self.side, self.features, self.pools = side, features, context is not None
        self.reads = ("pictures",) if side == "image" else ("subwords",)
        self.pretrained = weights == "pretrained"
        path = local_path(model) if architecture is None else "the checkpoint's architecture"
        with one_line(path):
            content = _read_architecture(path, model, side) if architecture is None else dict(architecture)
            content["model"] = without_extras(content.get("model", {}))
            made, absent = make_model(path, _make_config(content["model"]), weights)
        net: Any = made.eval()
        self.net = net
        self.kind: str = content["model"]["model_type"]
        self.first = 0 if self.kind in _PADDED else 1  # number of tokens before the patches
        if cls and (side == "text" or not self.first):
            raise ValueError(f"cls is for the [CLS] token of a picture; {self.kind} has none in its {side} half")
        self.start = 0 if cls else self.first
        self.padding: int = content.get("padding") or 0
        if architecture is None:
            bias = getattr(net, "logit_bias", None)  # CLIP has none
            content |= {"scale": net.logit_scale.exp().item(), "bias": 0.0 if bias is None else bias.item()}
        self.logit_scale, self.logit_bias = float(content["scale"]), float(content["bias"])
        self.architecture = content
        config = net.config.text_config
        self.max_length: int | None = config.max_position_embeddings if side == "text" else None
        if side == "text" and vocab_size is not None and vocab_size > config.vocab_size:
            raise ValueError(f"{model}: its tokenizer has {vocab_size} tokens, but the model knows {config.vocab_size}")
        if side == "image":
            self.normalise = Normalise((content["mean"], content["std"]))
        with one_line(path), torch.enable_grad():
            found = self(self._probe(), None)
            parts = [part.sum() for part in (found.features, found.context) if part is not None]
            unused = prune(self.net, torch.stack(parts).sum())
            check_complete(self.net, absent - unused)
        self.dim, self.context_dim = found.features.shape[2], None if found.context is None else found.context.shape[1]
        if recompute:
            compute_again(self.net)
        if lora is not None:
            add_lora(self.net, lora)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of pictures or captions.

        Args:
            inputs: Pictures (B, 3, height, width), or token ids (B, L).
            mask: None for pictures. For captions (B, L), True on real tokens, which come first; None when all are real.

        Returns:
            Features, the mask, and a context or None.

        Raises:
            ValueError: The inputs have another shape or type, or a caption is too long.
        """
        return self._pictures(inputs, mask) if self.side == "image" else self._captions(inputs, mask)

    def _pictures(self, pictures: Tensor, mask: Tensor | None) -> FeatureSet:
        """The patches of pictures, and their pooled vectors."""
        if mask is not None:
            raise ValueError("a batch of pictures takes no mask")
        tower = self.net.vision_model
        found = tower(pixel_values=self.normalise(pictures), interpolate_pos_encoding=True, return_dict=True)
        projection = getattr(self.net, "visual_projection", None)  # SigLIP has none
        patches = found.last_hidden_state[:, self.start :]
        if self.features == "projected" and projection is not None:
            patches = projection(tower.post_layernorm(patches))  # SigLIP's patches have been through their norm
        context = found.pooler_output if self.pools else None
        if context is not None and projection is not None:
            context = projection(context)
        return FeatureSet(patches, None, context)

    def _captions(self, tokens: Tensor, mask: Tensor | None) -> FeatureSet:
        """The tokens of captions, and their pooled vectors."""
        ids, length = clean_tokens(tokens, mask), tokens.shape[1]
        assert self.max_length is not None
        if length > self.max_length:
            raise ValueError(f"tokens must be at most {self.max_length} for this text model, got {length}")
        attention = None
        if self.kind in _PADDED:
            ids = ids if mask is None else ids.masked_fill(~mask, self.padding)
            ids = F.pad(ids, (0, self.max_length - length), value=self.padding)
        elif self.kind in _MASKED:
            attention = (torch.ones_like(tokens) if mask is None else mask).long()
        found = self.net.text_model(input_ids=ids, attention_mask=attention, return_dict=True)
        hidden = found.last_hidden_state[:, :length]
        pooled = found.pooler_output if self.kind not in _MASKED else hidden[:, 0]
        projection = getattr(self.net, "text_projection", None)  # SigLIP's is a part of its pooling
        if projection is not None:
            pooled = projection(pooled)
        if self.features == "projected":
            hidden = self.net.text_model.head(hidden) if projection is None else projection(hidden)
        return FeatureSet(hidden, mask, pooled if self.pools else None)

    def _probe(self) -> Tensor:
        """A small input."""
        if self.side == "text":
            return torch.ones(1, 3, dtype=torch.long)
        size = self.net.config.vision_config.image_size
        return torch.zeros(1, 3, size, size)


def _read_architecture(path: str, model: str, side: Side) -> dict[str, Any]:
    """All that a half needs besides its weights, as plain values."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    content: dict[str, Any] = {"model": json.loads(config.to_json_string(use_diff=False))}
    kind = content["model"].get("model_type")
    if side == "image":
        steps = read_preprocessing(model)
        content |= {"mean": steps.mean, "std": steps.std}
    elif kind in _PADDED:
        content["padding"] = read_padding(model)
    return content


def _make_config(content: dict[str, Any]) -> Any:
    """The library's config. Only known models are made, whatever a checkpoint asks for."""
    from transformers import AutoConfig

    kind = content.get("model_type")
    if kind not in KNOWN:
        raise ValueError(f"{kind} is not a two-tower model that this encoder knows: {', '.join(KNOWN)}")
    return AutoConfig.for_model(**content)
