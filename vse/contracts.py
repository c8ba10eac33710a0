"""What the parts of a system must give each other, checked on the first few samples and never again.

The parts may be a user's own. A part that breaks its contract gets one line that names it, what it gave and what was
expected. A bug inside of a part keeps its traceback.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vse.aggregators.base import traits_of as traits_of_aggregator
from vse.components import errors_at, is_own_bug
from vse.config import Config
from vse.data.batches import Batch
from vse.data.corpus import Corpus, ImageSource
from vse.encoders.base import traits_of as traits_of_encoder
from vse.errors import first_line
from vse.losses import Criterion
from vse.model import VSEModel
from vse.runtime import keep_random_state
from vse.sets import Aggregated, FeatureSet
from vse.similarity import SIMILARITIES, check_takes_masks, compare

_SOURCE = ("kind", "width", "takes", "__len__", "__getitem__", "read", "transformed")  # the members of an ImageSource
_AXES = {
    "features": "(regions, width)",
    "pictures": "(3, height, width)",
    "frames": "(frames, 3, height, width)",
}
_TYPES = {
    "features": (np.float32, np.float16),
    "pictures": (np.uint8, np.float32),
    "frames": (np.uint8, np.float32),
}


class BrokenContract(ValueError):
    """An encoder or an aggregator does not return what it should.

    Args:
        role: "encoder" or "aggregator".
        problem: What is wrong, in one line.
    """

    def __init__(self, role: str, problem: str) -> None:
        super().__init__(problem)
        self.role = role


def check_fit(config: Config, model: VSEModel, criterion: Criterion, batch: Batch) -> None:
    """Check that encoders, aggregators, similarity and loss fit together, by running a batch through them.

    Args:
        config: The config, resolved; messages name its keys and files.
        model: The model of the config.
        criterion: The losses of the config.
        batch: Some training samples.

    Raises:
        InputError: A component does not fit, or does not return what it should; the message names it.
    """
    similarity, ranking = config.model.similarity, config.loss.ranking
    model.eval()
    # A loss may draw random numbers.
    with torch.no_grad(), keep_random_state(batch.images.device), checked_towers(model):
        with _errors_of_tower(config, "image"):
            image = _embed_images(model, batch)
            _check_embeddings(config, image.embeddings, len(batch.images))
        with _errors_of_tower(config, "text"):
            text = model.text(batch.tokens, batch.token_mask)
            _check_embeddings(config, text.embeddings, len(batch.tokens))
        with errors_at(config, "model.similarity", similarity.arguments):
            scores = _compare(similarity.name, model.similarity, image, text)
            _check_tensor(similarity.name, scores, (len(batch.images), len(batch.tokens)))
        with errors_at(config, "loss.ranking", ranking.arguments):
            _check_tensor(ranking.name, _call(ranking.name, criterion.ranking, scores, batch.positives), ())
            if ":" in ranking.name:
                _check_gradient(ranking.name, criterion.ranking, scores)
        for name, (_, term) in criterion.terms.items():
            with errors_at(config, f"loss.terms.{name}", config.loss.terms[name].arguments):
                _check_tensor(name, _call(name, term, image, text), ())


@contextlib.contextmanager
def _errors_of_tower(config: Config, side: str) -> Iterator[None]:
    """Name the component that breaks its contract; another ValueError may come from either of the tower's two."""
    broken = None
    with errors_at(config, f"model.{side}"):
        try:
            yield
        except BrokenContract as error:
            broken = error
    if broken is not None:
        raise config.error(f"model.{side}.{broken.role}.name", str(broken))


@contextlib.contextmanager
def checked_towers(model: VSEModel) -> Iterator[None]:
    """A block in which what encoders and aggregators return is checked at the first batch of each tower.

    Args:
        model: The model. It is as it was after the block.

    Raises:
        BrokenContract: (a ValueError) An encoder or an aggregator does not return what it should; the message names its
            class.

    >>> with checked_towers(model):
    ...     model.image(images)
    """
    handles = []
    for tower in (model.image, model.text):
        handles.append(_check_first(tower.encoder, "encoder", check_features))
        handles.append(_check_first(tower.aggregator, "aggregator", check_aggregated))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_first(part: nn.Module, role: str, check: Callable[[nn.Module, Tensor, Any], None]) -> Any:
    """Check what a part returns when it is called for the first time; the handle takes the check back."""

    def hook(called: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        handle.remove()
        try:
            check(called, inputs[0], result)
        except ValueError as error:
            raise BrokenContract(role, str(error)) from None

    handle = part.register_forward_hook(hook)
    return handle


def check_features(encoder: nn.Module, inputs: Tensor, result: Any) -> None:
    """Check what an encoder returns.

    Args:
        encoder: The encoder.
        inputs: What it was called with, (B, ...).
        result: What it returned.

    Raises:
        ValueError: It is not a :class:`vse.sets.FeatureSet`, or one of its tensors has another shape or type.

    >>> check_features(encoder, tokens, FeatureSet(torch.zeros(len(tokens), 7, encoder.dim)))
    """
    name, told = f"the encoder {type(encoder).__name__}", traits_of_encoder(encoder)
    if not isinstance(result, tuple) or not 1 <= len(result) <= 3:
        raise ValueError(
            f"{name} must return a FeatureSet of features, mask and context, got {_describe(result)}; "
            f"from vse.sets import FeatureSet"
        )
    features, mask, context = FeatureSet(*result)
    _check_part(f"the features of {name}", features, (len(inputs), "N", told.dim or "D"))
    if mask is not None:
        _check_mask(f"the mask of {name}", mask, features.shape[:2])
    if context is not None:
        _check_part(f"the context of {name}", context, (len(inputs), told.context_dim or "C"))


def check_aggregated(aggregator: nn.Module, features: Tensor, result: Any) -> None:
    """Check what an aggregator returns.

    Args:
        aggregator: The aggregator.
        features: What it was called with, (B, N, D).
        result: What it returned.

    Raises:
        ValueError: It is not a :class:`vse.sets.Aggregated`, or one of its tensors has another shape or type.

    >>> check_aggregated(MeanPool(), features, Aggregated(features.mean(1, keepdim=True)))
    """
    name, told = f"the aggregator {type(aggregator).__name__}", traits_of_aggregator(aggregator)
    if not isinstance(result, Aggregated):
        raise ValueError(
            f"{name} must return an Aggregated, got {_describe(result)}; return Aggregated(embeddings), "
            f"from vse.sets import Aggregated"
        )
    samples, embeddings = len(features), result.embeddings
    count = told.num_embeddings or "K"
    _check_part(f"the embeddings of {name}", embeddings, (samples, count, told.out_dim or "H"))
    if result.mask is not None:
        _check_mask(f"the mask of {name}", result.mask, embeddings.shape[:2])
    if result.attention is not None:
        _check_part(f"the attention of {name}", result.attention, (samples, "K", features.shape[1]))
    if result.residual is not None:
        _check_part(f"the residual of {name}", result.residual, (samples, "K", "H"))
    if result.context is not None:
        _check_part(f"the context of {name}", result.context, (samples, "H"))


def _describe(value: Any) -> str:
    """A value's type, and its shape if it has one."""
    if value is None:
        return "None"
    kind = f"{str(value.dtype).removeprefix('torch.')} tensor" if isinstance(value, Tensor) else type(value).__name__
    article = "an" if kind[0] in "aeioAEIO" else "a"
    return f"{article} {kind} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{article} {kind}"


def _check_part(name: str, value: Any, shape: tuple[int | str, ...]) -> None:
    """Raise ValueError unless a value is a tensor of floats of a shape; a letter stands for any size above 0."""
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == len(shape)
    if not fits or not all(size > 0 if isinstance(n, str) else size == n for size, n in zip(value.shape, shape)):  # noqa: B905
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be a tensor of floats of shape ({expected}), got {_describe(value)}")


def _check_mask(name: str, mask: Any, shape: torch.Size) -> None:
    """Raise ValueError unless a mask is a bool tensor of a shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
        expected = f"None or a bool tensor of shape {tuple(shape)}, True on what is real"
        raise ValueError(f"{name} must be {expected}, got {_describe(mask)}")


def _embed_images(model: VSEModel, batch: Batch) -> Aggregated:
    """What the image tower makes of a batch; ValueError for pictures of a size that it cannot read."""
    try:
        result: Aggregated = model.image(batch.images, batch.image_mask)
    except RuntimeError as error:
        if batch.images.dim() < 4 or isinstance(error, torch.OutOfMemoryError):
            raise
        height, width = batch.images.shape[-2:]
        raise ValueError(f"cannot read pictures of {height} x {width} ({first_line(error)})") from None
    return result


def _check_embeddings(config: Config, embeddings: Tensor, samples: int) -> None:
    """Raise ValueError unless embeddings are (samples, K, model.embed_dim)."""
    width = config.model.embed_dim
    if embeddings.dim() != 3 or len(embeddings) != samples or embeddings.shape[2] != width:
        raise ValueError(f"its embeddings must be ({samples}, K, {width}), got {tuple(embeddings.shape)}")


def _call(name: str, component: Callable[..., Any], *inputs: Any) -> Any:
    """Call a component. Raises ValueError when it does not take that many inputs."""
    called = component.forward if isinstance(component, nn.Module) else component
    signature = inspect.signature(called)
    try:
        signature.bind(*inputs)
    except TypeError:
        raise ValueError(
            f"{name} cannot be called with {len(inputs)} positional arguments, as it must be; its parameters are "
            f"{signature}"
        ) from None
    return component(*inputs)


def _compare(name: str, similarity: Callable[..., Any], image: Aggregated, text: Aggregated) -> Any:
    """Call a similarity. Its ValueError for sets of embeddings gets a list of the similarities that take them."""
    a, b = image.embeddings, text.embeddings
    try:
        if image.mask is None and text.mask is None:
            return _call(name, similarity, a, b)
        check_takes_masks(similarity)
        return compare(similarity, a, b, image.mask, text.mask)
    except ValueError as error:
        if a.shape[1] == b.shape[1] == 1 or is_own_bug(error):
            raise
        fitting = ", ".join(similarities_of(a.shape[1], b.shape[1]))
        raise ValueError(f"{error}; similarities of such sets: {fitting}") from None


def similarities_of(images: int, captions: int) -> list[str]:
    """Return the names of the similarities that compare sets of some sizes.

    Args:
        images: The number K of embeddings of an image.
        captions: The number L of embeddings of a caption.

    Returns:
        Their names, as a config writes them.

    >>> similarities_of(4, 1)[:3]
    ['max', 'chamfer', 'smooth_chamfer']
    """
    names = []
    for name, entry in SIMILARITIES.items():
        similarity: Any = entry() if inspect.isclass(entry) else entry
        with contextlib.suppress(ValueError):
            similarity(torch.zeros(1, images, 1), torch.zeros(1, captions, 1))
            names.append(name)
    return names


def _check_tensor(name: str, result: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a component returned a tensor of floats of the right shape."""
    if not isinstance(result, Tensor) or result.shape != shape or not result.is_floating_point():
        raise ValueError(f"{name} must return a tensor of floats of shape {shape}, got {_describe(result)}")


def _check_gradient(name: str, loss: Callable[..., Any], like: Tensor) -> None:
    """Raise ValueError unless a loss depends on the scores, so that it can be minimised."""
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]], device=like.device, dtype=like.dtype, requires_grad=True)
    with torch.enable_grad():
        result = loss(scores, torch.eye(2, dtype=torch.bool, device=like.device))
    if not result.requires_grad:
        raise ValueError(f"{name} must return a tensor that has a gradient with respect to the scores, got {result}")


def check_scores(similarity: Callable[..., Any], a: Tensor, b: Tensor) -> None:
    """Check that a similarity returns scores.

    Args:
        similarity: The similarity, perhaps one from outside of the package.
        a: Embeddings (A, K, H) of images; the first is compared.
        b: Embeddings (C, L, H) of captions; the first two are compared.

    Raises:
        ValueError: It does not return a tensor of floats (A, C).

    >>> check_scores(cosine, torch.randn(3, 1, 8), torch.randn(5, 1, 8))
    """
    a, b = a[:1], b[:2]
    called: Any = getattr(similarity, "func", similarity)  # of a function whose settings are bound
    name = getattr(called, "__name__", type(called).__name__)
    _check_tensor(f"the similarity {name}", similarity(a, b), (len(a), len(b)))


def check_corpus(name: str, corpus: Any) -> None:
    """Check that a data format returns a corpus whose images can be read.

    Args:
        name: The format's name in the config.
        corpus: What its function returned.

    Raises:
        ValueError: It is not a :class:`vse.data.Corpus`, or its images are not an :class:`vse.data.ImageSource`.

    >>> check_corpus("mine:read", Corpus("mine", ArrayFeatures(array), captions, image_of_caption, ids, caption_ids))
    """
    if not isinstance(corpus, Corpus):
        raise ValueError(f"{name} must return a Corpus, got {type(corpus).__name__}; from vse.data import Corpus")
    images: Any = corpus.images
    if isinstance(images, ImageSource):
        return
    found = type(images).__name__
    if isinstance(images, np.ndarray):
        hint = "such as ArrayFeatures(array)"
    elif isinstance(images, list | tuple):
        hint = "such as PictureFiles(paths) or ArrayFeatures(array)"
    else:
        hint = f"but {found} lacks {', '.join(member for member in _SOURCE if not hasattr(images, member))}"
    raise ValueError(f"{name} returns images as {found}; expected an ImageSource of vse.data, {hint}")


def check_images(images: ImageSource) -> None:
    """Check what a source of images reads, on its first and last image.

    Args:
        images: The source, ready to be read.

    Raises:
        ValueError: It cannot be called as it must be, or does not return what its kind and its width say.

    >>> check_images(ArrayFeatures(np.zeros((5, 16, 48), dtype=np.float32)))
    """
    name, indices = type(images).__name__, np.array([0, len(images) - 1])
    signature = inspect.signature(images.read)
    try:
        signature.bind(indices, None)
    except TypeError:
        raise ValueError(f"{name}.read is called with (indices, epoch), but its parameters are {signature}") from None
    arrays: Any = images.read(indices, None)
    if not isinstance(arrays, np.ndarray | list) or len(arrays) != 2:
        found = f"{len(arrays)} of them" if isinstance(arrays, np.ndarray | list) else type(arrays).__name__
        raise ValueError(f"{name}.read must return one array for each of the 2 indices, got {found}")
    expected, types = _AXES[images.kind], _TYPES[images.kind]
    for array in arrays:
        fits = isinstance(array, np.ndarray) and array.ndim == expected.count(",") + 1 and array.dtype in types
        if not fits:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            kinds = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{name}.read must return arrays {expected} of {kinds} for {images.kind}, got {found}")
        if images.width is not None and array.shape[1] != images.width:
            raise ValueError(f"{name} says that its width is {images.width}, but reads features {array.shape[1]} wide")
