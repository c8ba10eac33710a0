"""A tower is an encoder and an aggregator; a model is two towers and a similarity."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vse.aggregators.base import traits_of as traits_of_aggregator
from vse.encoders.base import EncoderTraits
from vse.encoders.base import traits_of as traits_of_encoder
from vse.errors import check_at_least, first_line
from vse.ragged import Collector, Sets, padded
from vse.sets import Aggregated, FeatureSet, check_mask, pad
from vse.word_regions import WordMatch, match_words

if TYPE_CHECKING:
    from vse.data.subwords import Subwords
    from vse.data.transforms import Transform
    from vse.data.vocabulary import MissingVocabulary, Vocabulary

Progress = bool | Callable[[int], object]
Prepare = Callable[[Sequence[Any]], tuple[Tensor, Tensor | None]]
Kind = Literal["features", "pictures", "frames"]

_DIMENSIONS: dict[Kind, int] = {"features": 2, "pictures": 3, "frames": 4}  # of one image as a tensor or an array


class Tower(nn.Module):
    """An encoder, then an aggregator, then L2 normalisation of every embedding: x / (|x| + 1e-8).

    Args:
        encoder: What turns inputs into sets, see :class:`vse.encoders.base.Encoder`.
        aggregator: What turns sets into embeddings, see :class:`vse.aggregators.base.Aggregator`.

    Raises:
        ValueError: The encoder or the aggregator cannot be called with the arguments of its protocol.

    >>> Tower(Regions(in_dim=2048, dim=1024), GPO())(torch.randn(2, 36, 2048)).embeddings.shape
    torch.Size([2, 1, 1024])
    """

    def __init__(self, encoder: nn.Module, aggregator: nn.Module) -> None:
        super().__init__()
        _check_call(encoder, "encoder", ("inputs", "mask"))
        _check_call(aggregator, "aggregator", ("features", "mask", "context"))
        self.encoder = encoder
        self.aggregator = aggregator

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Aggregated:
        """Embed a batch.

        Args:
            inputs: What the encoder reads.
            mask: The encoder's mask, or None.

        Returns:
            The aggregator's result, with embeddings (B, K, H) of length 1 in float32 or float64, and a mask (B, K) when
            the sets differ in size.

        Raises:
            ValueError: The inputs do not suit the encoder or the aggregator, or one of the two does not return a
                :class:`vse.sets.FeatureSet` or an :class:`vse.sets.Aggregated`, respectively.
        """
        features = self.encoder(inputs, mask)
        if not isinstance(features, tuple):
            raise ValueError(f"the encoder {_name(self.encoder)} must return a FeatureSet, got {_name(features)}")
        result = self.aggregator(*features)
        if not isinstance(result, Aggregated):
            raise ValueError(f"the aggregator {_name(self.aggregator)} must return an Aggregated, got {_name(result)}")
        embeddings = result.embeddings
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        norm = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
        return result._replace(embeddings=embeddings / (norm + 1e-8))


class VSEModel(nn.Module):
    """A visual-semantic embedding model.

    ``model.image(inputs, mask=None)`` and ``model.text(tokens, mask=None)`` are the towers;
    ``model.similarity(a, b)`` compares embedding sets (A, K, H) and (C, L, H) and gives scores (A, C). Sets of unequal
    sizes need ``a_mask`` (A, K) and ``b_mask`` (C, L), too. :meth:`encode_images` and :meth:`encode_texts` embed a
    user's own pictures and captions, :meth:`embed_images` and :meth:`embed_texts` also where the sets differ in size.

    Args:
        image: The image tower.
        text: The text tower.
        similarity: The function or module that compares embedding sets.
        vocabulary: Turns captions into token ids. Without one, :meth:`encode_texts` does not work.
        transform: Prepares pictures or clips. Without one, :meth:`encode_images` takes only tensors and arrays.
    """

    def __init__(
        self,
        image: Tower,
        text: Tower,
        similarity: Callable[..., Tensor],
        vocabulary: "Vocabulary | Subwords | MissingVocabulary | None" = None,
        transform: "Transform | None" = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.similarity = similarity
        self.vocabulary = vocabulary
        self.transform = transform

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def encode_texts(
        self,
        texts: str | Sequence[str],
        batch_size: int = 256,
        progress: Progress = False,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Embed captions, in evaluation mode and without gradients.

        Args:
            texts: One caption, or n of them in a list or another iterable.
            batch_size: Number of captions that are embedded at once.
            progress: True shows a progress bar. A function is called after each batch with its number of captions.
            device: Where to embed, such as "cuda". The model moves there and stays. None: where the model is.

        Returns:
            Embeddings (n, K, H) on the model's device, in the order of the captions; one caption gives (1, K, H).

        Raises:
            ValueError: There is no caption, a caption is empty or not a string, the model has no vocabulary, the
                sets differ in size, or there is no such device.

        >>> model.encode_texts(["a dog runs", "two red kites"]).shape, model.encode_texts("a dog runs").shape
        (torch.Size([2, 1, 1024]), torch.Size([1, 1, 1024]))
        """
        self._move(device)
        return _of_one_size(self.text_sets(texts, batch_size, progress), "embed_texts")

    def embed_texts(
        self,
        texts: str | Sequence[str],
        batch_size: int = 256,
        progress: Progress = False,
        device: str | torch.device | None = None,
    ) -> Aggregated:
        """Embed captions whose embedding sets may differ in size; all else is as in :meth:`encode_texts`.

        Args:
            texts: As there.
            batch_size: As there.
            progress: As there.
            device: As there.

        Returns:
            Embeddings (n, K, H), zero behind the smaller sets, and their mask (n, K), or None when all have one size.

        Raises:
            ValueError: As there, but the sets may differ in size.

        >>> model.embed_texts(["a dog runs", "two red kites"]).mask
        """
        self._move(device)
        return padded(self.text_sets(texts, batch_size, progress))

    def text_sets(self, texts: str | Sequence[str], batch_size: int = 256, progress: Progress = False) -> Sets:
        """Embed captions as :meth:`embed_texts` does, but keep sets of different sizes without padding.

        Args:
            texts: As in :meth:`encode_texts`.
            batch_size: As in :meth:`encode_texts`.
            progress: As in :meth:`encode_texts`.

        Returns:
            Embeddings (n, K, H), or :class:`vse.ragged.RaggedSets` when the sets differ in size.

        Raises:
            ValueError: As :meth:`embed_texts`.

        >>> len(model.text_sets(["a dog runs", "two red kites"]))
        2
        """
        captions = [texts] if isinstance(texts, str) else _as_list(texts, "texts must be a string or a list of strings")
        if self.vocabulary is None:
            raise ValueError("this model has no vocabulary: pass one to vse.load(path, vocabulary=...)")
        for position, caption in enumerate(captions):
            _check_caption(caption, position)
        ids = [torch.as_tensor(self.vocabulary.encode(caption)) for caption in captions]
        return self._encode(self.text, ids, pad, [len(row) for row in ids], batch_size, progress)

    def encode_images(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Progress = False,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Embed images or clips, in evaluation mode and without gradients.

        Args:
            images: One item, or n of them in a list or another iterable. A model of pictures takes paths, PIL pictures,
                arrays (height, width, 3) of bytes, and tensors or arrays (3, height, width). A model of clips takes
                paths of GIF files or of folders of pictures, lists of PIL pictures, arrays (frames, height, width, 3)
                of bytes, and tensors or arrays (frames, 3, height, width). A model of precomputed features takes
                tensors or arrays (regions, width), whose numbers of regions may differ. What has its colours last goes
                through the model's evaluation transform, as paths and PIL pictures do; other tensors and arrays do not.
            batch_size: Number of images that are embedded at once.
            progress: True shows a progress bar. A function is called after each batch with its number of images.
            device: Where to embed, such as "cuda". The model moves there and stays. None: where the model is.

        Returns:
            Embeddings (n, K, H) on the model's device, in the order of the images; one item gives (1, K, H). A clip
            that is a list of PIL pictures must itself be in a list.

        Raises:
            ValueError: There is no image, the model does not read such images, the sets differ in size, or there is no
                such device.
            vse.errors.InputError: A file is missing or cannot be read.

        >>> model.encode_images([torch.randn(36, 2048), torch.randn(20, 2048)]).shape
        torch.Size([2, 1, 1024])
        """
        self._move(device)
        return _of_one_size(self.image_sets(images, batch_size, progress), "embed_images")

    def embed_images(
        self,
        images: Any,
        batch_size: int = 256,
        progress: Progress = False,
        device: str | torch.device | None = None,
    ) -> Aggregated:
        """Embed images or clips whose embedding sets may differ in size; all else is as in :meth:`encode_images`.

        Args:
            images: As there.
            batch_size: As there.
            progress: As there.
            device: As there.

        Returns:
            Embeddings (n, K, H), zero behind the smaller sets, and their mask (n, K), or None when all have one size.

        Raises:
            ValueError: As there, but the sets may differ in size.
            vse.errors.InputError: A file is missing or cannot be read.

        >>> model.embed_images([torch.randn(36, 2048), torch.randn(20, 2048)]).mask.sum(1)  # with the aggregator tokens
        tensor([36, 20])
        """
        self._move(device)
        return padded(self.image_sets(images, batch_size, progress))

    def image_sets(self, images: Any, batch_size: int = 256, progress: Progress = False) -> Sets:
        """Embed images or clips as :meth:`embed_images` does, but keep sets of different sizes without padding.

        Args:
            images: As in :meth:`encode_images`.
            batch_size: As in :meth:`encode_images`.
            progress: As in :meth:`encode_images`.

        Returns:
            Embeddings (n, K, H), or :class:`vse.ragged.RaggedSets` when the sets differ in size.

        Raises:
            ValueError: As :meth:`embed_images`.
            vse.errors.InputError: A file is missing or cannot be read.

        >>> len(model.image_sets([torch.randn(36, 2048), torch.randn(20, 2048)]))
        2
        """
        if self._is_one_image(images):
            images = [images]
        images = _as_list(images, "images must be a path, a PIL picture or a list")
        kind = self._kind_of_images
        if kind == "features":
            features = _check_features(images)
            return self._encode(self.image, features, pad, [len(rows) for rows in features], batch_size, progress)
        return self._encode(self.image, images, self._prepare_images, None, batch_size, progress)

    @property
    def _kind_of_images(self) -> Kind:
        """What the image encoder reads."""
        return kind_of_images(traits_of_encoder(self.image.encoder))

    def _is_one_image(self, images: Any) -> bool:
        """Whether it is one image rather than a list, a tensor or an array of several."""
        if isinstance(images, Tensor | np.ndarray):
            return images.ndim == _DIMENSIONS[self._kind_of_images]
        return isinstance(images, str | Path) or _is_picture(images)

    def _move(self, device: str | torch.device | None) -> None:
        """Move the model to a device. Raises ValueError when there is no such device."""
        if device is None:
            return
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError) as error:
            raise ValueError(f"device {str(device)!r} is not available here ({first_line(error)})") from None
        self.to(device)

    def match(self, image: Any, text: str, temperature: float = 0.1) -> WordMatch:
        """Tell which region of an image each word of a caption takes, in evaluation mode and without gradients.

        Words are compared with regions by the cosine, as :func:`vse.word_regions.match_words` describes. Where an
        aggregator keeps every element (``tokens``, as in late interaction), its embeddings are compared, which is what
        the model was trained to do. For other models the encoders' local features are: nothing has trained single words
        and regions to agree, so look at such a result with care.

        Args:
            image: One image, as an item of :meth:`encode_images`.
            text: One caption.
            temperature: What cosines are divided by in the softmax of the attention.

        Returns:
            The words, and for each its region, the cosine of the two, and its attention to all regions. A region is an
            element of the image encoder: one of the given features, a cell of the grid, row by row, or a frame.

        Raises:
            ValueError: ``image`` is a list, the caption is not a text or has no word, the model has no vocabulary, the
                temperature is not positive, or words and regions cannot be compared, since their widths differ or the
                text encoder does not give one element per token.
            vse.errors.InputError: A file is missing or cannot be read.

        >>> model.match(torch.randn(36, 2048), "a dog runs").region
        tensor([ 3, 17,  4])
        """
        if self.vocabulary is None:
            raise ValueError("this model has no vocabulary: pass one to vse.load(path, vocabulary=...)")
        _check_caption(text, 0)
        ids = torch.as_tensor(self.vocabulary.encode(text))
        words, numbers = self.vocabulary.words_of_tokens(text)
        regions = self._elements(self.image, *self._prepare_images([image]))
        tokens = self._elements(self.text, *pad([ids]))
        return match_words(regions, tokens, words, numbers, temperature)

    @torch.no_grad()
    def _elements(self, tower: Tower, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """The elements (N, D) of one sample: the tower's embeddings if there is one for each, or local features."""
        training = self.training
        self.eval()
        try:
            if traits_of_aggregator(tower.aggregator).keeps_elements:
                result = self._embed(tower, inputs, mask)
                found, kept = result.embeddings[0], result.mask
            else:
                features = FeatureSet(*self._on_device(tower.encoder, inputs, mask))
                found, kept = features.features[0], features.mask
        finally:
            self.train(training)
        return found if kept is None else found[kept[0]]

    def _prepare_images(self, images: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """A batch of images as the image encoder takes it, and its mask."""
        kind = self._kind_of_images
        if kind == "features":
            return pad(_check_features(list(images)))
        return self._read_pictures(images) if kind == "pictures" else self._read_clips(images)

    def _read_pictures(self, pictures: Sequence[Any]) -> tuple[Tensor, None]:
        """Batch (B, 3, height, width) of pictures; there is nothing to mask."""
        tensors = []
        for picture in pictures:
            if isinstance(picture, str | Path) or _is_picture(picture) or _has_colours_last(picture, 3):
                tensors.append(self._transformed(picture, "(3, height, width)"))
            else:
                tensors.append(_as_tensor(picture, "pictures must be paths, PIL pictures, tensors or arrays"))
        first = tensors[0]
        for tensor in tensors:
            _check_same_kind(tensor, first)
            if tensor.dim() != 3 or tensor.shape != first.shape or len(tensor) != 3 or 0 in tensor.shape:
                raise ValueError(f"pictures must be (3, height, width) of one size, got {tuple(tensor.shape)}")
        return torch.stack(tensors), None

    def _read_clips(self, clips: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Batch (B, frames, 3, height, width) of clips, with a mask when their numbers of frames differ."""
        tensors = []
        for clip in clips:
            if isinstance(clip, str | Path | list) or _has_colours_last(clip, 4):
                tensors.append(self._transformed(clip, "(frames, 3, height, width)"))
            else:
                tensors.append(_as_tensor(clip, "clips must be paths, lists of PIL pictures, tensors or arrays"))
        first = tensors[0]
        for tensor in tensors:
            _check_same_kind(tensor, first)
            if tensor.dim() != 4 or tensor.shape[1:] != first.shape[1:] or tensor.shape[1] != 3 or 0 in tensor.shape:
                raise ValueError(f"clips must be (frames, 3, height, width) of one size, got {tuple(tensor.shape)}")
        if all(len(tensor) == len(first) for tensor in tensors):
            return torch.stack(tensors), None
        return pad(tensors)

    def _transformed(self, source: Any, shape: str) -> Tensor:
        """A picture or clip after the evaluation transform."""
        if self.transform is None:
            raise ValueError(f"this model has no transform; pass tensors {shape}")
        return self.transform.read(_as_pictures(source))

    @torch.no_grad()
    def _encode(
        self,
        tower: Tower,
        items: Sequence[Any],
        prepare: Prepare,
        lengths: Sequence[int] | None,
        batch_size: int,
        progress: Progress,
    ) -> Sets:
        """Embed items in batches that ``prepare`` makes; the result has the items' order.

        Items of similar ``lengths`` share a batch, which saves padding. In some released codes padding changes the
        results (:mod:`vse.checkpoints.official`); for their models the batches follow the order of the list.
        """
        if not items:
            raise ValueError("nothing to encode: the list is empty")
        check_at_least("batch_size", batch_size, 1)
        order = list(range(len(items)))
        if lengths is not None and not traits_of_aggregator(tower.aggregator).padding_counts:
            order.sort(key=lengths.__getitem__)
        training, found = self.training, Collector()
        self.eval()
        try:
            with _reporting(progress, len(items)) as report:
                for start in range(0, len(order), batch_size):
                    chosen = order[start : start + batch_size]
                    inputs, mask = prepare([items[i] for i in chosen])
                    found.add(self._embed(tower, inputs, mask))
                    report(len(chosen))
        finally:
            self.train(training)
        return found.sets(order)

    def _embed(self, tower: Tower, inputs: Tensor, mask: Tensor | None) -> Aggregated:
        """What a tower makes of one batch, on the model's device and in its precision."""
        result: Aggregated = self._on_device(tower, inputs, mask)
        return result

    def _on_device(self, part: nn.Module, inputs: Tensor, mask: Tensor | None) -> Any:
        """What a tower or an encoder makes of one batch, on the model's device and in its precision."""
        if inputs.is_floating_point():
            inputs = inputs.to(next(self.parameters()).dtype)
        if mask is not None:
            check_mask(mask, mask.shape)  # on an accelerator nothing looks at its values
            mask = mask.to(self.device)
        return part(inputs.to(self.device), mask)


def _of_one_size(sets: Sets, method: str) -> Tensor:
    """The embeddings of sets of one size. Raises ValueError for others, whose mask would be lost."""
    if not isinstance(sets, Tensor):
        raise ValueError(f"the embedding sets differ in size; {method} also returns the mask that tells them apart")
    return sets


def _name(thing: object) -> str:
    return type(thing).__name__


def _check_call(part: nn.Module, role: str, arguments: tuple[str, ...]) -> None:
    """Raise ValueError when a part's forward cannot be called with these positional arguments."""
    signature = inspect.signature(part.forward)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(
            f"the {role} {_name(part)} is called with ({', '.join(arguments)}), but its forward is {signature}"
        ) from None


def _as_list(items: Any, expected: str) -> list[Any]:
    """The items of a list, a tensor or another iterable."""
    if isinstance(items, str | bytes | Mapping):
        raise ValueError(f"{expected}, got {_name(items)}")
    try:
        iterator = iter(items)
    except TypeError:
        raise ValueError(f"{expected}, got {_name(items)}") from None
    return list(iterator)


def _is_picture(item: Any) -> bool:
    from PIL import Image  # takes a while to import, and only pictures need it

    return isinstance(item, Image.Image)


def _check_caption(caption: Any, position: int) -> None:
    if not isinstance(caption, str):
        raise ValueError(f"caption {position} must be a string, got {_name(caption)}")
    if not caption.strip():
        raise ValueError(f"caption {position} is empty")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise ValueError(f"caption {position} is not valid text: {caption[:80]!r}") from None


def _has_colours_last(item: Any, dimensions: int) -> bool:
    """Whether it is an array of bytes (height, width, 3), as most libraries have pictures, or of several frames."""
    return (
        isinstance(item, np.ndarray)
        and item.dtype == np.uint8
        and item.ndim == dimensions
        and item.shape[-1] == 3
        and item.shape[-3] != 3
    )


def _as_pictures(source: Any) -> Any:
    """An array of bytes as a PIL picture, or a list of them for a clip; anything else as it is."""
    if not isinstance(source, np.ndarray):
        return source
    from PIL import Image

    return Image.fromarray(source) if source.ndim == 3 else [Image.fromarray(frame) for frame in source]


def kind_of_images(traits: EncoderTraits) -> Kind:
    """Return what an image encoder reads; one that does not say reads features."""
    if traits.in_dim is not None and "features" in traits.reads:
        return "features"
    if "pictures" in traits.reads:
        return "pictures"
    if "frames" in traits.reads:
        return "frames"
    return "features"


def _as_tensor(item: Any, expected: str) -> Tensor:
    """A tensor as it is, or an array's values as one."""
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, np.ndarray):
        raise ValueError(f"{expected}, got {_name(item)}")
    try:
        return torch.tensor(np.ascontiguousarray(item))
    except TypeError:
        raise ValueError(f"{expected}, got an array of {item.dtype}") from None


def _check_features(images: list[Any]) -> list[Tensor]:
    """Precomputed features as tensors (regions, width). Raises ValueError unless all are that, not empty, of one width.

    Later a message could not name the image, since batches are sorted by length.
    """
    features = []
    for position, image in enumerate(images):
        expected = f"image {position}: expected a (regions, width) tensor or array of features"
        rows = _as_tensor(image, expected)
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"{expected}, got {rows.dtype} {tuple(rows.shape)}")
        if not len(rows):
            raise ValueError(f"image {position} has no region")
        features.append(rows)
        if rows.shape[1] != features[0].shape[1]:
            raise ValueError(f"image {position} is {rows.shape[1]} wide, but image 0 is {features[0].shape[1]} wide")
    return features


def _check_same_kind(tensor: Tensor, first: Tensor) -> None:
    if tensor.is_floating_point() != first.is_floating_point():
        raise ValueError("a list cannot hold both float tensors and bytes (files and PIL pictures are read as bytes)")


@contextmanager
def _reporting(progress: Progress, total: int) -> Iterator[Callable[[int], object]]:
    """The function to call with the number of finished items: the caller's, a progress bar's, or one without effect."""
    if callable(progress):
        yield progress
    elif progress:
        from tqdm import tqdm

        with tqdm(total=total) as bar:
            yield bar.update
    else:
        yield lambda done: None
