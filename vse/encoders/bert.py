"""Captions through a pretrained text model."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vse.encoders.pretrained import load_transformer, longest_input
from vse.sets import FeatureSet, check_mask, masked_max, masked_mean

Context = Literal["cls", "max", "mean"]


class Bert(nn.Module):
    """The last hidden states of BERT, or of a text encoder of ``transformers`` like it.

    VSE∞, Chen et al. 2021, section 4.1: V = dropout(linear(hidden)). ``model``: a folder or a name on the hub, whose
    fast tokenizer the data uses; ``weights``: "pretrained", those that lie there, or None for random ones.
    ``context``: V of the first token ("cls"), the ``max`` or ``mean`` of V (DivE), or none. ``drop`` is the probability
    of the caption augmentation, word by word (see :func:`vse.data.vocabulary.augment`); it acts on token ids in the
    data pipeline. ``architecture`` and ``vocab_size`` are filled in: a checkpoint holds what is needed of ``model``.

    Shapes: token ids (B, L), prefix mask (B, L) -> features (B, L, dim), context (B, dim) or None. Raises ValueError
    for an unknown choice, probabilities outside [0, 1), a tokenizer with more ids than the model, more tokens than it
    has positions, an empty caption; :class:`vse.errors.InputError` when the model cannot be read.

    >>> Bert(dim=1024, model="bert-base-uncased")(torch.tensor([[101, 1037, 3899, 102]])).features.shape
    torch.Size([1, 4, 1024])
    """

    reads = "subwords"  # what the data must provide

    def __init__(
        self,
        dim: int,
        vocab_size: int | None = None,
        model: str = "bert-base-uncased",
        weights: Literal["pretrained"] | None = "pretrained",
        context: Context | None = None,
        dropout: float = 0.0,
        drop: float = 0.0,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, probability in (("drop", drop), ("dropout", dropout)):
            if not 0 <= probability < 1:
                raise ValueError(f"{name} must be in [0, 1), got {probability}")
        if context not in (*get_args(Context), None):
            raise ValueError(f"context must be one of {(*get_args(Context), None)}, got {context!r}")
        self.drop, self.context = drop, context
        self.bert, self.architecture = load_transformer(model, weights, architecture, "text")
        self.max_length = longest_input(self.bert)
        known = self.architecture.get("vocab_size")
        if vocab_size is not None and known is not None and vocab_size > known:
            raise ValueError(f"{model}: its tokenizer has {vocab_size} tokens, but the model knows {known}")
        self.linear = nn.Linear(self.bert.config.hidden_size, dim)  # type: ignore[union-attr, arg-type]
        self.dropout = nn.Dropout(dropout)
        self.dim, self.context_dim = dim, None if context is None else dim

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of token ids."""
        if inputs.dim() != 2 or inputs.is_floating_point() or 0 in inputs.shape:
            raise ValueError(
                f"tokens must be a non-empty (B, L) tensor of ids, got {inputs.dtype} {tuple(inputs.shape)}"
            )
        if self.max_length is not None and inputs.shape[1] > self.max_length:
            raise ValueError(f"tokens must be at most {self.max_length} for this text model, got {inputs.shape[1]}")
        if mask is not None:
            check_mask(mask, inputs.shape, prefix=True)
            inputs = inputs.masked_fill(~mask, 0)  # whatever stands behind the caption is no token
        attention = torch.ones_like(inputs) if mask is None else mask.long()
        hidden = self.bert(input_ids=inputs, attention_mask=attention, return_dict=True).last_hidden_state
        projected = self.dropout(self.linear(hidden))
        if self.context is None:
            return FeatureSet(projected, mask)
        if self.context == "cls":
            return FeatureSet(projected, mask, projected[:, 0])
        pool = masked_max if self.context == "max" else masked_mean
        return FeatureSet(projected, mask, pool(projected, mask))
