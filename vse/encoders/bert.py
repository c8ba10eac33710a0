"""Captions through a pretrained text model."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from vse.encoders.pretrained import add_lora, attention_mask, compute_again, load_transformer, longest_input
from vse.encoders.regions import Init
from vse.encoders.tokens import clean_tokens
from vse.errors import check_choice, check_probability
from vse.sets import FeatureSet, masked_max, masked_mean

Context = Literal["cls", "max", "mean"]


class Bert(nn.Module):
    """The last hidden states of BERT, or of another text model of ``transformers`` (VSE∞, Chen et al. 2021, 4.1).

    V = linear(hidden states).

    Args:
        dim: Width of V; filled in from ``model.embed_dim``.
        vocab_size: Number of ids that the tokenizer gives; filled in from the data.
        model: A folder, or a name on the hub. Its fast tokenizer is the data's vocabulary.
        weights: "pretrained" for the published weights, or None for random ones.
        context: The context: V of the first token ("cls") or the maximum of V ("max"), as in DivE; the mean of V
            ("mean"); or None.
        dropout: Probability of dropout on V. VSE∞, VSE-2AD and DivE have none (DivE's code creates it and never uses
            it). The dropout inside the text model is not affected.
        drop: Probability with which the data changes each word of a caption, see :func:`vse.data.augmentation.augment`.
        architecture: The model's architecture from a checkpoint, which needs no folder; filled in.
        init: Initialisation of the linear layer: "torch" (VSE∞, VSE-2AD, DivE, CHAN), or "xavier" with a bias of 0
            (ESA).
        recompute: As in :class:`vse.encoders.Grid`.
        lora: Rank of LoRA (Hu et al. 2022) on the query and value projections, which are then all that is trained of
            the text model, beside the linear layer; None trains the model itself. It needs the package ``peft``.

    Inputs are token ids (B, L) and a prefix mask (B, L). The features are (B, L, dim), the context is (B, dim) or None.

    Raises:
        ValueError: A choice is unknown, a probability is outside [0, 1), or the tokenizer has more ids than the model.
            In the call: a caption is empty, or has more tokens than the model has positions.
        vse.errors.InputError: The model cannot be read.

    >>> Bert(dim=1024, model="bert-base-uncased")(torch.tensor([[101, 1037, 3899, 102]])).features.shape
    torch.Size([1, 4, 1024])
    """

    reads: tuple[str, ...] = ("subwords",)

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
        init: Init = "torch",
        recompute: bool = False,
        lora: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("init", init, get_args(Init))
        check_probability("drop", drop)
        check_probability("dropout", dropout)
        check_choice("context", context, (*get_args(Context), None))
        self.drop, self.context = drop, context
        self.bert, self.architecture = load_transformer(model, weights, architecture, "text")
        self.max_length = longest_input(self.bert)
        known = self.architecture.get("vocab_size")
        if vocab_size is not None and known is not None and vocab_size > known:
            raise ValueError(f"{model}: its tokenizer has {vocab_size} tokens, but the model knows {known}")
        if recompute:
            compute_again(self.bert)
        if lora is not None:
            add_lora(self.bert, lora)
        self.linear = nn.Linear(self.bert.config.hidden_size, dim)  # type: ignore[union-attr, arg-type]
        if init == "xavier":
            nn.init.xavier_uniform_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.dropout = nn.Dropout(dropout)
        self.dim, self.context_dim = dim, None if context is None else dim

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of captions.

        Args:
            inputs: Token ids (B, L).
            mask: (B, L), True on real tokens, which come first; None when all are real.

        Returns:
            Features (B, L, dim) and a context (B, dim) or None.

        Raises:
            ValueError: A caption is empty or too long, or the mask is not a prefix.
        """
        tokens = clean_tokens(inputs, mask)
        if self.max_length is not None and tokens.shape[1] > self.max_length:
            raise ValueError(f"tokens must be at most {self.max_length} for this text model, got {tokens.shape[1]}")
        attention = attention_mask(self.bert, tokens, mask)
        hidden = self.bert(input_ids=tokens, attention_mask=attention, return_dict=True).last_hidden_state
        projected = self.dropout(self.linear(hidden))
        if self.context is None:
            return FeatureSet(projected, mask)
        if self.context == "cls":
            return FeatureSet(projected, mask, projected[:, 0])
        pool = masked_max if self.context == "max" else masked_mean
        return FeatureSet(projected, mask, pool(projected, mask))
