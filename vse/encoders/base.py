"""The contract of an encoder."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vse.sets import FeatureSet


class Encoder(Protocol):
    """Turns a batch of inputs into a batch of sets.

    Any ``nn.Module`` with this call and the two attributes is an encoder, wherever it is defined. It may also have the
    other attributes that :class:`EncoderTraits` lists.

    Attributes:
        dim: Width D of the local features.
        context_dim: Width C of the context, or None if there is no context.

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
    """The attributes of an encoder, with the values that hold for one that does not have them.

    An encoder has them on the class or on the instance. Only ``dim`` and ``context_dim`` are required.

    Attributes:
        reads: The kinds of input that it can read, of "features", "pictures", "frames", "words" and "subwords". The
            class itself must have this attribute, because the data is prepared before the encoder is built. An encoder
            without it reads what its tower is given.
        dim: Width D of the local features.
        context_dim: Width C of the context.
        in_dim: Width of the precomputed features that it was built for.
        drop: Probability with which the data augments each word of the captions for a text encoder. An image encoder
            drops elements itself.
        keep_ends: Whether the caption augmentation leaves the first and the last token of a caption alone.
        max_length: Largest number of tokens that it can read.
        preprocessing: Function of the encoder's arguments, given by name, that tells how its pictures are resized and
            cut (:class:`vse.encoders.pretrained.Preprocessing`). The transform ``pretrained`` follows it. The class
            itself must have this attribute. Without it, the preprocessing is read from the model of ``transformers``
            that the arguments name.
        architecture: Plain values from which the encoder can be built again without any other file.
        backbone: The network from pictures to cells, whose features can be extracted.
        embedding: The table of word vectors, which can be filled from a file.
        pretrained: Whether all of its parameters come from published weights, so that it is of use without training.
        logit_scale: What a published model multiplies its cosines by.
        logit_bias: What a published model adds to them then.
    """

    reads: tuple[str, ...] = ()
    dim: int | None = None
    context_dim: int | None = None
    in_dim: int | None = None
    drop: float = 0.0
    keep_ends: bool = False
    max_length: int | None = None
    preprocessing: Callable[..., Any] | None = None
    architecture: dict[str, Any] | None = None
    backbone: nn.Module | None = None
    embedding: nn.Embedding | None = None
    pretrained: bool = False
    logit_scale: float | None = None
    logit_bias: float | None = None


_TYPES: dict[str, type | tuple[type, ...]] = {
    "reads": (str, tuple, list),
    "dim": Integral,
    "context_dim": Integral,
    "in_dim": Integral,
    "drop": Real,
    "keep_ends": bool,
    "max_length": Integral,
    "preprocessing": Callable,  # type: ignore[dict-item]
    "architecture": dict,
    "backbone": nn.Module,
    "embedding": nn.Embedding,
    "pretrained": bool,
    "logit_scale": Real,
    "logit_bias": Real,
}


def traits_of(encoder: object) -> EncoderTraits:
    """Return the attributes of an encoder; this is the only place that knows their defaults.

    An attribute of another type is ignored: an ``nn.Dropout`` that is called ``drop``, for example, does not mean the
    caption augmentation.

    Args:
        encoder: An encoder, or the class of one.

    Returns:
        The attributes, with the defaults of those that the encoder does not have.

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
