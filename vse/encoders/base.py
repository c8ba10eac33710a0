"""What an encoder is: the one contract that models, data and training rely on."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vse.sets import FeatureSet


class Encoder(Protocol):
    """Turns a batch of inputs into a batch of sets.

    Any ``nn.Module`` with this call and the two attributes is an encoder, wherever it is defined. What else an encoder
    may tell of itself is listed in :class:`EncoderTraits`.

    Attributes:
        dim: Width D of the local features.
        context_dim: Width C of the context, or None when the encoder gives none.

    >>> class Identity(nn.Module):
    ...     dim, context_dim = 2048, None
    ...     def forward(self, inputs, mask=None):
    ...         return FeatureSet(inputs, mask)
    """

    dim: int
    context_dim: int | None

    def __call__(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch: inputs and mask (B, N) become features (B, N, D), a mask, and perhaps a context (B, C)."""
        ...


class EncoderTraits(NamedTuple):
    """What an encoder may tell of itself beyond :class:`Encoder`, with the defaults of one that tells nothing.

    An encoder sets those that apply to it as attributes of the same names.
    """

    reads: tuple[str, ...] = ()  # "features", "pictures", "frames", "words", "subwords"; () = what the tower is given
    dim: int | None = None  # width of the local features
    context_dim: int | None = None  # width of the context
    in_dim: int | None = None  # width of the precomputed features that it reads
    drop: float = 0.0  # probability of the caption augmentation, which the data applies
    keep_ends: bool = False  # whether that augmentation leaves a caption's first and last token alone
    max_length: int | None = None  # number of tokens that it can read
    architecture: dict[str, Any] | None = None  # what a checkpoint must hold to build it again without other files
    backbone: nn.Module | None = None  # the network from pictures to cells, whose features may be extracted
    embedding: nn.Embedding | None = None  # the table of word vectors


def traits_of(encoder: object) -> EncoderTraits:
    """What an encoder tells of itself; this is the only place that knows the defaults.

    >>> traits_of(nn.Identity()).drop
    0.0
    """
    defaults = EncoderTraits()
    told: dict[str, Any] = {name: getattr(encoder, name, default) for name, default in defaults._asdict().items()}
    if isinstance(told["reads"], str):
        told["reads"] = (told["reads"],)
    return EncoderTraits(**told)
