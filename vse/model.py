"""A tower is an encoder and an aggregator; a model is two towers and a similarity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vse.sets import Aggregated, pad

if TYPE_CHECKING:
    from vse.data.clips import ClipTransform
    from vse.data.subwords import Subwords
    from vse.data.transforms import Crop, Square
    from vse.data.vocabulary import MissingVocabulary, Vocabulary


def _as_list(items: Any, what: str) -> list[Any]:
    """The items of a list or another iterable; a single one is a mistake."""
    if isinstance(items, str | bytes | Path) or not hasattr(items, "__iter__") or hasattr(items, "keys"):
        raise ValueError(f"{what} must be a list, got a single {type(items).__name__}")
    return list(items)


class Tower(nn.Module):
    """Encoder, then aggregator, then L2 normalisation of every embedding: x / (|x| + 1e-8).

    Shapes: inputs and mask as the encoder takes them -> :class:`Aggregated` with embeddings (B, K, H) of length 1,
    float32 or float64. Raises what encoder and aggregator raise.

    >>> Tower(Regions(in_dim=2048, dim=1024), GPO())(torch.randn(2, 36, 2048)).embeddings.shape
    torch.Size([2, 1, 1024])
    """

    def __init__(self, encoder: nn.Module, aggregator: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.aggregator = aggregator

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Aggregated:
        """Embed a batch."""
        result: Aggregated = self.aggregator(*self.encoder(inputs, mask))
        embeddings = result.embeddings
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        norm = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
        return result._replace(embeddings=embeddings / (norm + 1e-8))


class VSEModel(nn.Module):
    """A visual-semantic embedding model.

    ``model.image(inputs, mask=None)`` and ``model.text(tokens, mask=None)`` are the towers;
    ``model.similarity(a, b)`` compares embedding sets (A, K, H) and (C, L, H) and gives scores (A, C).
    :meth:`encode_images` and :meth:`encode_texts` go from a user's own lists to embeddings.
    """

    def __init__(
        self,
        image: Tower,
        text: Tower,
        similarity: Callable[[Tensor, Tensor], Tensor],
        vocabulary: "Vocabulary | Subwords | MissingVocabulary | None" = None,
        transform: "Square | Crop | ClipTransform | None" = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.similarity = similarity
        self.vocabulary = vocabulary
        self.transform = transform

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 256, progress: Callable[[int], object] = lambda n: None
    ) -> Tensor:
        """Embeddings (n, K, H) of captions, on the model's device; in evaluation mode, without gradients.

        ``progress`` is called with the number of captions done, batch by batch.

        Raises ValueError for an empty list or an empty caption, or when the model came without a vocabulary.

        >>> model.encode_texts(["a dog runs", "two red kites"]).shape
        torch.Size([2, 1, 1024])
        """
        texts = _as_list(texts, "texts")
        if self.vocabulary is None:
            raise ValueError("this model has no vocabulary: pass one to vse.load(path, vocabulary=...)")
        for position, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                problem = "is empty" if isinstance(text, str) else f"is no text but {type(text).__name__}"
                raise ValueError(f"caption {position} {problem}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"caption {position} is no valid text: {text[:80]!r}") from None
        ids = [torch.as_tensor(self.vocabulary.encode(text)) for text in texts]
        return self._encode(self.text, ids, batch_size, progress)

    def encode_images(self, images: Sequence[Any], batch_size: int = 256) -> Tensor:
        """Embeddings (n, K, H) of images or clips: paths or PIL pictures, or tensors, for a model that reads pictures.

        A picture gets the model's evaluation transform; a tensor (3, height, width) goes to its
        encoder as it is. For a model that reads frames, a GIF file, a folder or a list of pictures is a clip, and so is
        a tensor (frames, 3, height, width). A model of
        precomputed features takes tensors (regions, width), whose numbers of regions may differ. In evaluation mode,
        without gradients, on the model's device. Raises ValueError for an empty list, for anything else, and
        :class:`vse.errors.InputError` for a file that is missing or no picture.

        >>> model.encode_images([torch.randn(36, 2048), torch.randn(20, 2048)]).shape
        torch.Size([2, 1, 1024])
        """
        images = _as_list(images, "images")
        reads = getattr(self.image.encoder, "reads", "features")
        if getattr(self.image.encoder, "in_dim", None) is None and ("pictures" in reads or "frames" in reads):
            return self._encode(self.image, images, batch_size, prepare=self._read_pictures, length=lambda _: 0)
        for position, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dim() != 2 or not image.is_floating_point():
                found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(f"image {position}: expected a (regions, width) tensor of features, got {found}")
            if image.shape[1] != images[0].shape[1]:
                raise ValueError(f"image {position} is {image.shape[1]} wide, image 0 {images[0].shape[1]}")
        return self._encode(self.image, images, batch_size)

    def _read_pictures(self, pictures: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Batch of transformed pictures, which have no mask, or clips."""
        clips = "frames" in getattr(self.image.encoder, "reads", ())
        shape = "(frames, 3, height, width)" if clips else "(3, height, width)"
        tensors = []
        for picture in pictures:
            if isinstance(picture, Tensor):
                tensors.append(picture)
            elif not hasattr(picture, "getexif") and not isinstance(picture, str | Path | (list if clips else Path)):
                kinds = "paths, lists of PIL pictures" if clips else "paths, PIL pictures"
                raise ValueError(f"images must be {kinds} or tensors, got {type(picture).__name__}")
            elif self.transform is None:
                raise ValueError(f"this model came without a transform: pass tensors {shape}")
            else:
                tensors.append(self.transform.read(picture))
            found = tuple(tensors[-1].shape)
            if tensors[-1].is_floating_point() != tensors[0].is_floating_point():
                raise ValueError("bytes, as files and PIL pictures are, and float tensors cannot share a list")
            if found[clips:] != tensors[0].shape[clips:] or len(found) != 3 + clips or 0 in found:
                raise ValueError(f"{'clips' if clips else 'pictures'} must be {shape} of one size, got {found}")
        if clips and len({len(clip) for clip in tensors}) > 1:
            return pad(tensors)
        return torch.stack(tensors), None

    @torch.no_grad()
    def _encode(
        self,
        tower: Tower,
        items: Sequence[Any],
        batch_size: int,
        progress: Callable[[int], object] = lambda n: None,
        prepare: Callable[[Sequence[Any]], tuple[Tensor, Tensor | None]] = pad,
        length: Callable[[Any], int] = len,
    ) -> Tensor:
        """Embed items: similar lengths share a batch, which ``prepare`` makes; the order is kept.

        Where padding counts (:mod:`vse.checkpoints.official`), items share a batch as they stand in the list.
        """
        if not len(items):
            raise ValueError("nothing to encode: the list is empty")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        training = self.training
        self.eval()
        try:
            order = list(range(len(items)))
            if not getattr(tower.aggregator, "padding_counts", False):
                order.sort(key=lambda i: length(items[i]))
            parts = []
            for start in range(0, len(order), batch_size):
                inputs, mask = prepare([items[i] for i in order[start : start + batch_size]])
                if inputs.is_floating_point():
                    inputs = inputs.to(next(self.parameters()).dtype)
                mask = None if mask is None else mask.to(self.device)
                parts.append(tower(inputs.to(self.device), mask).embeddings)
                progress(len(inputs))
        finally:
            self.train(training)
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[inverse.to(self.device)]
