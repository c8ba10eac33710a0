"""What an encoder is: the one contract that models, data and training rely on."""

from numbers import Integral, Real
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
        """Encode a batch.

        Args:
            inputs: What the data gives for a batch: region features (B, N, in_dim), pictures (B, 3, height, width),
                frames (B, T, 3, height, width) or token ids (B, L).
            mask: Which elements are real (B, N), bool. None means that all are.

        Returns:
            Features (B, N, D), their mask (B, N) or None, and a context (B, C) or None.
        """
        ...


class EncoderTraits(NamedTuple):
    """What an encoder may tell of itself beyond :class:`Encoder`, with the defaults of one that tells nothing.

    An encoder sets those that apply to it as attributes of the same names, on the class or on the instance.

    Attributes:
        reads: The kinds of input that it can read, of "features", "pictures", "frames", "words" and "subwords". The
            class must tell this, since the data is prepared before the encoder is built. An encoder that tells nothing
            reads what its tower is given.
        dim: Width D of the local features.
        context_dim: Width C of the context.
        in_dim: Width of the precomputed features that it was built for.
        drop: Probability of the caption augmentation, which the data applies to the captions of a text encoder. An
            image encoder drops its own elements.
        keep_ends: Whether the caption augmentation leaves the first and the last token of a caption alone.
        max_length: Largest number of tokens that it can read.
        architecture: Plain values with which a checkpoint builds it again without any other file.
        backbone: The network from pictures to cells, whose features can be extracted.
        embedding: The table of word vectors, which can be filled from a file.
    """

    reads: tuple[str, ...] = ()
    dim: int | None = None
    context_dim: int | None = None
    in_dim: int | None = None
    drop: float = 0.0
    keep_ends: bool = False
    max_length: int | None = None
    architecture: dict[str, Any] | None = None
    backbone: nn.Module | None = None
    embedding: nn.Embedding | None = None


_TYPES: dict[str, type | tuple[type, ...]] = {
    "reads": (str, tuple, list),
    "dim": Integral,
    "context_dim": Integral,
    "in_dim": Integral,
    "drop": Real,
    "keep_ends": bool,
    "max_length": Integral,
    "architecture": dict,
    "backbone": nn.Module,
    "embedding": nn.Embedding,
}


def traits_of(encoder: object) -> EncoderTraits:
    """What an encoder tells of itself; this is the only place that knows the defaults.

    An attribute that has the name of a trait but another type is the encoder's own affair: an ``nn.Dropout`` called
    ``drop``, for example, says nothing of the caption augmentation.

    Args:
        encoder: An encoder, or the class of one.

    Returns:
        The traits, with their defaults where the encoder tells nothing.

    >>> traits_of(nn.Identity()).drop
    0.0
    """
    told: dict[str, Any] = {}
    for name, expected in _TYPES.items():
        value = getattr(encoder, name, None)
        if isinstance(value, expected):
            told[name] = value
    if "reads" in told:
        told["reads"] = (told["reads"],) if isinstance(told["reads"], str) else tuple(told["reads"])
    return EncoderTraits(**told)
