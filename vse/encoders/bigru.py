"""Word vectors and a bidirectional GRU."""

from typing import Literal, get_args

from torch import Tensor, nn

from vse.encoders.recurrent import Context, read_sequence
from vse.encoders.tokens import clean_tokens
from vse.errors import check_at_least, check_choice, check_probability
from vse.sets import FeatureSet

Directions = Literal["average", "concatenate"]
Locals = Literal["states", "words"]
WordInit = Literal["uniform", "normal", "xavier"]


class BiGRU(nn.Module):
    """Bidirectional GRU over learned word vectors (VSE∞, Chen et al. 2021, section 4.1; PVSE; DivE; VSE-2AD).

    Args:
        vocab_size: Number of words; filled in from the vocabulary.
        dim: Width of the states and of the context; filled in from ``model.embed_dim``.
        word_dim: Width of the word vectors.
        directions: "average": each direction has ``dim`` units and the two are averaged (VSE∞, VSE-2AD, DivE).
            "concatenate": each has dim / 2 units (PVSE).
        features: The local features: the "states" of the GRU (VSE∞, VSE-2AD), or the "words" themselves (PVSE, DivE).
        context: The context: "last", the last state of each direction; "last_step", the output at the last real token,
            where the backward direction has read a single word (the released PVSE checkpoints); "max" or "mean" of the
            states.
        dropout: Probability of dropout on the word vectors and on the context (PVSE, DivE).
        drop: Probability with which the data changes each word of a caption, see :func:`vse.data.augmentation.augment`.
        keep_ends: Whether that augmentation leaves ``<start>`` and ``<end>`` alone (VSE-2AD, DivE).
        freeze_words: Whether the word vectors are not trained.
        word_init: Initialisation of the word vectors: "uniform" in ±0.1 (VSE∞, VSE-2AD, DivE without GloVe); "xavier",
            uniform in ±sqrt(6 / (vocab_size + word_dim)) (PVSE without GloVe); or "normal", N(0, 1) (PVSE and DivE for
            the words that GloVe lacks). ``data.vocabulary.vectors`` replaces the vectors of the words that it has.

    Inputs are token ids (B, L) and a prefix mask (B, L). The features are (B, L, dim), or (B, L, word_dim) for "words";
    the context is (B, dim).

    Raises:
        ValueError: A size is below 1, ``dim`` is odd where two directions are concatenated, a probability is outside
            [0, 1), or a choice is unknown. In the call: a caption is empty, or the mask is not a prefix.

    >>> BiGRU(vocab_size=10, dim=64)(torch.randint(0, 10, (2, 5))).features.shape
    torch.Size([2, 5, 64])
    """

    reads: tuple[str, ...] = ("words",)

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
        word_init: WordInit = "uniform",
    ) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("dim", dim), ("word_dim", word_dim)):
            check_at_least(name, size, 1)
        check_probability("drop", drop)
        check_probability("dropout", dropout)
        check_choice("directions", directions, get_args(Directions))
        check_choice("features", features, get_args(Locals))
        check_choice("context", context, get_args(Context))
        check_choice("word_init", word_init, get_args(WordInit))
        if directions == "concatenate" and dim % 2:
            raise ValueError(f"dim must be even to concatenate two directions, got {dim}")
        self.directions, self.features, self.context = directions, features, context
        self.drop, self.keep_ends = drop, keep_ends
        self.dim = dim if features == "states" else word_dim
        self.context_dim = dim
        self.embedding = nn.Embedding(vocab_size, word_dim)  # torch starts it from N(0, 1)
        units = dim if directions == "average" else dim // 2
        self.gru = nn.GRU(word_dim, units, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        if word_init == "uniform":
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        elif word_init == "xavier":
            nn.init.xavier_uniform_(self.embedding.weight)
        self.embedding.weight.requires_grad_(not freeze_words)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of captions.

        Args:
            inputs: Token ids (B, L).
            mask: (B, L), True on real tokens, which come first; None when all are real.

        Returns:
            Features (B, L, dim), or (B, L, word_dim) for "words", and a context (B, dim).

        Raises:
            ValueError: A caption is empty, or the mask is not a prefix.
        """
        words = self.dropout(self.embedding(clean_tokens(inputs, mask)))
        states, context = read_sequence(self.gru, words, mask, self.context, self.directions == "average")
        return FeatureSet(words if self.features == "words" else states, mask, self.dropout(context))
