"""Word vectors and a bidirectional GRU."""

from typing import Literal, get_args

from torch import Tensor, nn

from vse.encoders.recurrent import Context, read_sequence
from vse.sets import FeatureSet, check_mask

Directions = Literal["average", "concatenate"]
Locals = Literal["states", "words"]


class BiGRU(nn.Module):
    """Bidirectional GRU over learned word vectors (VSE∞, PVSE and DivE; Chen et al. 2021, section 4.1).

    ``directions``: each direction has ``dim`` units and the two are averaged (VSE∞, VSE-2AD, DivE), or dim/2 units and
    they are concatenated (PVSE). ``features``: the GRU's states, or the word vectors (PVSE, DivE). ``context``: each
    direction's last state ("last"), the output at the last valid step ("last_step", PVSE's released checkpoints: there
    the backward direction has read one word), or the maximum or mean of the states.
    ``dropout`` acts on word vectors and on the context (PVSE, DivE). ``drop`` is the probability of the caption
    augmentation, which leaves ``<start>`` and ``<end>`` alone with ``keep_ends`` (VSE-2AD); it acts on token ids in the
    data pipeline, where words can be removed (see :func:`vse.data.vocabulary.augment`). Word vectors start
    uniform in [-0.1, 0.1], or from ``data.vocabulary.vectors``; with ``freeze_words`` they stay as they start.

    Shapes: token ids (B, L), prefix mask (B, L) -> features (B, L, dim), or (B, L, word_dim) for "words"; context
    (B, dim). Raises ValueError for sizes below 1, an odd ``dim`` to concatenate, probabilities outside [0, 1), an
    unknown choice, an empty caption, a mask that is no prefix.

    >>> BiGRU(vocab_size=10, dim=64)(torch.randint(0, 10, (2, 5))).features.shape
    torch.Size([2, 5, 64])
    """

    reads = "words"  # what the data must provide

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        word_dim: int = 300,
        directions: Directions = "average",
        features: Locals = "states",
        context: Context = "last",
        dropout: float = 0.0,
        drop: float = 0.0,
        keep_ends: bool = False,
        freeze_words: bool = False,
    ) -> None:
        super().__init__()
        if min(vocab_size, dim, word_dim) < 1:
            raise ValueError(f"sizes must be at least 1, got vocab_size {vocab_size}, dim {dim}, word_dim {word_dim}")
        for name, probability in (("drop", drop), ("dropout", dropout)):
            if not 0 <= probability < 1:
                raise ValueError(f"{name} must be in [0, 1), got {probability}")
        for name, choice, choices in (
            ("directions", directions, Directions),
            ("features", features, Locals),
            ("context", context, Context),
        ):
            if choice not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {choice!r}")
        if directions == "concatenate" and dim % 2:
            raise ValueError(f"dim must be even to concatenate two directions, got {dim}")
        self.directions, self.features, self.context = directions, features, context
        self.drop, self.keep_ends = drop, keep_ends
        self.dim = dim if features == "states" else word_dim
        self.context_dim = dim
        self.embedding = nn.Embedding(vocab_size, word_dim)
        units = dim if directions == "average" else dim // 2
        self.gru = nn.GRU(word_dim, units, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1).requires_grad_(not freeze_words)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of token ids."""
        if inputs.dim() != 2 or inputs.is_floating_point() or 0 in inputs.shape:
            raise ValueError(
                f"tokens must be a non-empty (B, L) tensor of ids, got {inputs.dtype} {tuple(inputs.shape)}"
            )
        if mask is not None:
            check_mask(mask, inputs.shape, prefix=True)
            inputs = inputs.masked_fill(~mask, 0)  # whatever stands behind the caption is no word id
        words = self.dropout(self.embedding(inputs))
        average = self.directions == "average"
        states, context = read_sequence(self.gru, words, mask, self.context, average, self.features == "states")
        features = words if states is None or self.features == "words" else states
        return FeatureSet(features, mask, self.dropout(context))
