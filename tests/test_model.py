"""Towers, and models from a user's own lists to embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vse.aggregators import GPO, MeanPool, PIENet
from vse.encoders import BiGRU, Grid, Regions, Video
from vse.errors import InputError
from vse.model import Tower, VSEModel
from vse.pages.looks import look
from vse.sets import Aggregated, FeatureSet, lengths_to_mask
from vse.similarity import cosine


class Letters:
    """A vocabulary: each letter is a word."""

    def encode(self, caption: str) -> list[int]:
        return [1 + ord(letter) % 8 for letter in caption]


class Tint:
    """A transform of pictures: their size halved, as bytes. It keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, bool]] = []

    def read(self, source: Any, train: bool = False) -> Tensor:
        self.seen.append((source, train))
        picture = source if isinstance(source, Image.Image) else Image.open(source)
        small = picture.convert("RGB").resize((picture.width // 2, picture.height // 2))
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


class Stack:
    """A transform of clips: pictures of a list, as bytes."""

    def read(self, source: Any, train: bool = False) -> Tensor:
        return torch.stack([Tint().read(picture) for picture in source])


def text_tower() -> Tower:
    return Tower(BiGRU(9, 8, 4), GPO())


def make_model(encoder: nn.Module, aggregator: nn.Module | None = None, transform: Any = None) -> VSEModel:
    torch.manual_seed(0)
    words: Any = Letters()
    return VSEModel(Tower(encoder, aggregator or MeanPool()), text_tower(), cosine, words, transform).eval()


@pytest.fixture
def regions() -> VSEModel:
    return make_model(Regions(5, 8), GPO())


@pytest.fixture
def pictures() -> VSEModel:
    return make_model(Grid(8, "resnet18"), transform=Tint())


@pytest.fixture
def clips() -> VSEModel:
    return make_model(Video(8, backbone="resnet18"), PIENet(512, 8, 2), Stack())


def noise(number: int, size: int = 64) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


# Towers


def test_embeddings_have_length_1() -> None:
    torch.manual_seed(0)
    tower = Tower(Regions(5, 8), GPO())
    inputs, mask = torch.randn(3, 4, 5), lengths_to_mask(torch.tensor([4, 2, 1]))
    result = tower(inputs, mask)
    raw = tower.aggregator(*tower.encoder(inputs, mask)).embeddings
    for row in range(3):
        torch.testing.assert_close(result.embeddings[row, 0], raw[row, 0] / (raw[row, 0].norm() + 1e-8))
    torch.testing.assert_close(result.embeddings.norm(dim=-1), torch.ones(3, 1))


def test_a_zero_embedding_stays_zero() -> None:
    class Zeros(nn.Module):
        def forward(self, features: Tensor, mask: Any = None, context: Any = None) -> Aggregated:
            return Aggregated(0 * features[:, :1])

    encoder = Regions(5, 8)
    embeddings = Tower(encoder, Zeros())(torch.randn(2, 3, 5)).embeddings
    assert not embeddings.any()
    embeddings.sum().backward()
    assert encoder.fc.weight.grad is not None and encoder.fc.weight.grad.isfinite().all()


def test_a_tower_keeps_what_else_the_aggregator_returns() -> None:
    torch.manual_seed(0)
    tower = Tower(Regions(5, 8, context="max"), PIENet(8, 8, 3)).eval()
    inputs = torch.randn(2, 4, 5)
    result, plain = tower(inputs), tower.aggregator(*tower.encoder(inputs))
    assert torch.equal(result.attention, plain.attention) and torch.equal(result.residual, plain.residual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_single(dtype: torch.dtype) -> None:
    class Halves(nn.Module):
        def forward(self, features: Tensor, mask: Any = None, context: Any = None) -> Aggregated:
            return Aggregated(features[:, :1].to(dtype))

    torch.manual_seed(0)
    embeddings = Tower(Regions(5, 8), Halves())(torch.randn(2, 3, 5)).embeddings
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 1), atol=1e-6, rtol=0)
    assert Tower(Regions(5, 8).double(), MeanPool())(torch.randn(2, 3, 5).double()).embeddings.dtype == torch.float64


class Pair(nn.Module):
    """An aggregator without the context."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Aggregated:
        return Aggregated(x[:, :1])


class Vectors(nn.Module):
    """An aggregator that returns a tensor."""

    def forward(self, features: Tensor, mask: Any = None, context: Any = None) -> Tensor:
        return features.mean(1, keepdim=True)


class Maps(nn.Module):
    """An encoder that returns a tensor."""

    dim, context_dim = 8, None

    def forward(self, inputs: Tensor, mask: Any = None) -> Tensor:
        return inputs


class Lone(nn.Module):
    """An encoder without a mask."""

    def forward(self, inputs: Tensor) -> FeatureSet:
        return FeatureSet(inputs)


@pytest.mark.parametrize(
    ("encoder", "aggregator", "message"),
    [
        (Regions(5, 8), Pair(), r"aggregator Pair is called with \(features, mask, context\), but its forward is \(x:"),
        (Lone(), MeanPool(), r"encoder Lone is called with \(inputs, mask\), but its forward is \(inputs:"),
        (Regions(5, 8), Vectors(), "the aggregator Vectors must return an Aggregated, got Tensor"),
        (Maps(), MeanPool(), "the encoder Maps must return a FeatureSet, got Tensor"),
    ],
)
def test_parts_that_do_not_fit(encoder: nn.Module, aggregator: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tower(encoder, aggregator)(torch.randn(2, 3, 5))


def test_a_plain_tuple_is_a_set() -> None:
    class Tuples(nn.Module):
        def forward(self, inputs: Tensor, mask: Any = None) -> Any:
            return inputs, mask

    class Words(Letters):
        def words_of_tokens(self, caption: str) -> tuple[list[str], list[int]]:
            return list(caption), list(range(len(caption)))

    inputs = torch.randn(2, 3, 5)
    assert torch.equal(Tower(Tuples(), MeanPool())(inputs).embeddings, Tower(Plain(), MeanPool())(inputs).embeddings)
    assert torch.equal(look(Tower(Tuples(), GPO()), inputs[:1])[1], inputs[0])
    words: Any = Words()
    texts, image = text_tower(), torch.randn(3, 8)
    found, expected = (
        VSEModel(Tower(encoder, MeanPool()), texts, cosine, words).match(image, "ab") for encoder in (Tuples(), Plain())
    )
    assert torch.equal(found.attention, expected.attention)


class Plain(nn.Module):
    """An encoder that tells nothing of itself and gives its inputs."""

    dim, context_dim = 5, None

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        return FeatureSet(inputs, mask)


# Captions


def test_texts_keep_their_order_and_ignore_batch_mates(regions: VSEModel) -> None:
    texts = ["abcdef", "a", "abc", "ab", "abcdefgh"]
    alone = torch.cat([regions.text(torch.tensor([Letters().encode(text)])).embeddings for text in texts])
    for batch_size in (1, 2, 3, 99):
        torch.testing.assert_close(regions.encode_texts(texts, batch_size), alone.detach())
    assert regions.encode_texts(texts).shape == (5, 1, 8)


def test_one_text_that_is_not_in_a_list(regions: VSEModel) -> None:
    """It is like a list of one; other iterables are lists, too."""
    one = regions.encode_texts("a dog")
    assert one.shape == (1, 1, 8) and torch.equal(one, regions.encode_texts(["a dog"]))
    assert torch.equal(regions.embed_texts("a dog").embeddings, one) and regions.embed_texts("a dog").mask is None
    assert torch.equal(regions.encode_texts(t for t in ("ab", "c")), regions.encode_texts(["ab", "c"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing to encode: the list is empty"),
        ("", "caption 0 is empty"),
        (["a", " \n"], "caption 1 is empty"),
        (["a", None], "caption 1 must be a string, got NoneType"),
        (["a", b"b"], "caption 1 must be a string, got bytes"),
        (["\ud83d"], "caption 0 is not valid text"),
        (b"a dog", "texts must be a string or a list of strings, got bytes"),
        (7, "texts must be a string or a list of strings, got int"),
        ({"a": 1}, "texts must be a string or a list of strings, got dict"),
    ],
)
def test_bad_texts(texts: Any, message: str, regions: VSEModel) -> None:
    with pytest.raises(ValueError, match=message):
        regions.encode_texts(texts)


def test_a_model_without_a_vocabulary(regions: VSEModel) -> None:
    regions.vocabulary = None
    with pytest.raises(ValueError, match="this model has no vocabulary: pass one to vse.load"):
        regions.encode_texts(["a"])


# Precomputed features


def test_features_keep_their_order_and_ignore_batch_mates(regions: VSEModel) -> None:
    images = [torch.randn(n, 5) for n in (3, 6, 1, 4)]
    alone = torch.cat([regions.image(image[None]).embeddings for image in images])
    for batch_size in (1, 2, 3, 99):
        torch.testing.assert_close(regions.encode_images(images, batch_size), alone.detach())


def test_arrays_are_like_tensors(regions: VSEModel) -> None:
    images = np.random.default_rng(0).standard_normal((3, 4, 5))
    expected = regions.encode_images([torch.from_numpy(image).float() for image in images])
    reversed_twice = np.ascontiguousarray(images[:, ::-1])[:, ::-1]  # torch takes no negative strides
    frozen = images.astype(np.float32)
    frozen.flags.writeable = False  # nor, without a warning, what cannot be written
    for same in (images, list(images), list(frozen), list(reversed_twice), torch.from_numpy(images)):
        torch.testing.assert_close(regions.encode_images(same), expected)


def test_one_image_of_features_that_is_not_in_a_list(regions: VSEModel) -> None:
    image = torch.randn(4, 5)
    expected = regions.encode_images([image])
    assert expected.shape == (1, 1, 8)
    for one in (image, image.numpy(), image.double().numpy()):
        torch.testing.assert_close(regions.encode_images(one), expected)
        torch.testing.assert_close(regions.embed_images(one).embeddings, expected)
    assert regions.encode_images(image[None]).shape == (1, 1, 8)


def test_an_encoder_that_tells_nothing_takes_features() -> None:
    model = make_model(Plain())
    images = [torch.randn(3, 5), torch.randn(2, 5)]
    torch.testing.assert_close(
        model.encode_images(images)[1, 0], nn.functional.normalize(images[1].mean(0), dim=0), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "nothing to encode: the list is empty"),
        ("a.jpg", r"image 0: expected a \(regions, width\) tensor or array of features, got str"),
        ([noise(0)], "image 0: expected .* of features, got Image"),
        ([torch.zeros(5)], r"image 0: expected .* got torch.float32 \(5,\)"),
        ([torch.zeros(2, 5), torch.zeros(2, 5).long()], r"image 1: expected .* got torch.int64 \(2, 5\)"),
        ([np.zeros((2, 5), dtype=int)], r"image 0: expected .* got torch.int64 \(2, 5\)"),
        ([np.array([["a"]])], "image 0: expected .* got an array of <U1"),
        ([torch.zeros(2, 5), torch.zeros(2, 4)], "image 1 is 4 wide, but image 0 is 5"),
        ([torch.zeros(2, 4)], "features must be 5 wide, got 4"),
        ([*[torch.zeros(2, 5)] * 3, torch.zeros(0, 5), torch.zeros(1, 5)], "image 3 has no region"),
        (torch.zeros(0, 5), "image 0 has no region"),
        (7, "images must be a path, a PIL picture or a list, got int"),
        ({"a": 1}, "images must be a path, a PIL picture or a list, got dict"),
        (b"a.jpg", "images must be a path, a PIL picture or a list, got bytes"),
    ],
)
def test_bad_features(images: Any, message: str, regions: VSEModel) -> None:
    with pytest.raises(ValueError, match=message):
        regions.encode_images(images)


# Pictures


def test_pictures_from_anything(pictures: VSEModel, tmp_path: Path) -> None:
    """Paths and PIL pictures go through the transform, never augmented; tensors and arrays do not."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        noise(i).save(path)
    tensors = [Tint().read(path) for path in paths]
    with torch.no_grad():
        expected = pictures.image(torch.stack(tensors)).embeddings
    arrays = [tensor.numpy() for tensor in tensors]
    opened = [noise(i) for i in range(3)]
    for same in (paths, [str(path) for path in paths], opened, tensors, arrays, np.stack(arrays), torch.stack(tensors)):
        torch.testing.assert_close(pictures.encode_images(same, batch_size=2), expected, atol=1e-5, rtol=0)
    for one in (paths[1], str(paths[1]), opened[1], tensors[1], arrays[1]):
        torch.testing.assert_close(pictures.encode_images(one), expected[1:2], atol=1e-5, rtol=0)
    transform: Any = pictures.transform
    assert transform.seen and not any(train for _, train in transform.seen)


def test_arrays_with_their_colours_last_are_pictures(pictures: VSEModel, clips: VSEModel) -> None:
    """They go through the transform, one by one or many; other arrays of bytes are as a transform leaves them."""
    opened = [noise(i) for i in range(3)]
    arrays = [np.asarray(picture) for picture in opened]
    expected = pictures.encode_images(opened)
    for same in (arrays, np.stack(arrays)):
        torch.testing.assert_close(pictures.encode_images(same), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(pictures.encode_images(arrays[2]), expected[2:], atol=1e-6, rtol=0)
    clip = clips.encode_images([opened])
    torch.testing.assert_close(clips.encode_images(np.stack(arrays)), clip, atol=1e-6, rtol=0)
    first = np.ascontiguousarray(arrays[0].transpose(2, 0, 1))
    torch.testing.assert_close(pictures.encode_images(first), pictures.encode_images(torch.from_numpy(first)))
    pictures.transform = None
    with pytest.raises(ValueError, match=r"this model has no transform; pass tensors \(3, height, width\)"):
        pictures.encode_images(arrays)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.zeros(3, 64, 64), torch.zeros(3, 32, 64)], r"of one size, got \(3, 32, 64\)"),
        ([torch.zeros(3, 64, 64).byte(), torch.zeros(3, 64, 64)], "a list cannot hold both float tensors and bytes"),
        ([torch.zeros(4, 64)], r"pictures must be \(3, height, width\) of one size, got \(4, 64\)"),
        ([torch.zeros(2, 3, 64, 64)], r"of one size, got \(2, 3, 64, 64\)"),
        ([np.zeros((64, 64, 3))], r"of one size, got \(64, 64, 3\)"),
        ([torch.zeros(3, 0, 64)], r"of one size, got \(3, 0, 64\)"),
        ([[noise(0)]], "pictures must be paths, PIL pictures, tensors or arrays, got list"),
        ([b"bytes"], "pictures must be paths, PIL pictures, tensors or arrays, got bytes"),
        ([], "nothing to encode: the list is empty"),
    ],
)
def test_bad_pictures(images: Any, message: str, pictures: VSEModel) -> None:
    with pytest.raises(ValueError, match=message):
        pictures.encode_images(images)


def test_a_model_without_a_transform(pictures: VSEModel) -> None:
    pictures.transform = None
    with pytest.raises(ValueError, match=r"this model has no transform; pass tensors \(3, height, width\)"):
        pictures.encode_images([noise(0)])
    assert pictures.encode_images([torch.zeros(3, 64, 64)]).shape == (1, 1, 8)


def test_an_error_of_the_transform_passes_through(pictures: VSEModel) -> None:
    class Broken:
        def read(self, source: Any, train: bool = False) -> Tensor:
            raise InputError(f"{source}: no such picture")

    pictures.transform = Broken()
    with pytest.raises(InputError, match="x.png: no such picture"):
        pictures.train().encode_images(["x.png"])
    assert pictures.training


# Clips


def test_clips_from_lists_tensors_and_arrays(clips: VSEModel) -> None:
    sources = [[noise(i), noise(i + 1)] for i in range(3)]
    tensors = [Stack().read(source) for source in sources]
    expected = clips.encode_images(tensors)
    assert expected.shape == (3, 2, 8)
    for same in (sources, [tensor.numpy() for tensor in tensors], torch.stack(tensors)):
        torch.testing.assert_close(clips.encode_images(same, batch_size=2), expected, atol=1e-5, rtol=0)
    for one in (tensors[1], tensors[1].numpy()):
        torch.testing.assert_close(clips.encode_images(one), expected[1:2], atol=1e-5, rtol=0)


def test_clips_of_different_lengths_share_a_batch(clips: VSEModel) -> None:
    tensors = [Stack().read([noise(i) for i in range(n)]) for n in (3, 1, 2)]
    alone = torch.cat([clips.encode_images([tensor]) for tensor in tensors])
    torch.testing.assert_close(clips.encode_images(tensors), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.zeros(3, 64, 64)], r"clips must be \(frames, 3, height, width\) of one size, got \(3, 64, 64\)"),
        ([torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 32, 32)], r"of one size, got \(2, 3, 32, 32\)"),
        ([np.zeros((2, 64, 64, 3))], r"of one size, got \(2, 64, 64, 3\)"),
        ([torch.zeros(0, 3, 64, 64)], r"of one size, got \(0, 3, 64, 64\)"),
        ([noise(0), noise(1)], "clips must be paths, lists of PIL pictures, tensors or arrays, got Image"),
        (
            [torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64).byte()],
            "a list cannot hold both float tensors and bytes",
        ),
    ],
)
def test_bad_clips(images: Any, message: str, clips: VSEModel) -> None:
    with pytest.raises(ValueError, match=message):
        clips.encode_images(images)


def test_a_clip_model_on_precomputed_frames() -> None:
    model = make_model(Video(8, in_dim=5), PIENet(5, 8, 2))
    assert model.encode_images([torch.randn(4, 5), torch.randn(2, 5)]).shape == (2, 2, 8)


# What both have


Call = Callable[..., Tensor]


@pytest.mark.parametrize("side", ["images", "texts"])
def test_progress(side: str, regions: VSEModel, capsys: pytest.CaptureFixture[str]) -> None:
    items: Any = [torch.randn(n, 5) for n in (1, 2, 3)] if side == "images" else ["a", "ab", "abc"]
    encode: Call = regions.encode_images if side == "images" else regions.encode_texts
    done: list[int] = []
    encode(items, batch_size=2, progress=done.append)
    assert done == [2, 1]
    encode(items)
    assert capsys.readouterr().err == ""
    encode(items, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_the_mode_is_restored_and_no_gradient_is_kept(regions: VSEModel) -> None:
    for training in (True, False):
        regions.train(training)
        found = regions.encode_images([torch.randn(3, 5)])
        assert not found.requires_grad and regions.training is training
        assert all(module.training is training for module in regions.modules())


def test_the_model_moves_to_the_device(regions: VSEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays there; a device that is not there leaves it as it is."""
    moves: list[Any] = []
    monkeypatch.setattr(regions, "to", moves.append)
    texts, image = regions.encode_texts(["a"]), torch.randn(3, 5)
    assert moves == []
    assert torch.equal(regions.encode_texts(["a"], device="cpu"), texts) and moves == ["cpu"]
    regions.embed_texts("a", device=torch.device("cpu"))
    regions.encode_images(image, device=torch.device("cpu"))
    regions.embed_images(image, device=torch.device("cpu"))
    assert moves == ["cpu", *[torch.device("cpu")] * 3]
    for device in ("meta", "cuda:77", "tpu9"):
        with pytest.raises(ValueError, match=f"device '{device}' is not available here"):
            regions.encode_images(image, device=device)
    assert len(moves) == 4


def test_evaluation_mode_is_used() -> None:
    model = make_model(Regions(5, 8, drop=0.5, dropout=0.5)).train()
    image = [torch.randn(6, 5)]
    assert torch.equal(model.encode_images(image), model.encode_images(image))


def test_inputs_take_the_models_precision(regions: VSEModel) -> None:
    image = torch.randn(3, 5)
    assert regions.double().encode_images([image.half()]).dtype == torch.float64


def test_batch_size(regions: VSEModel) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        regions.encode_texts(["a"], batch_size=0)


class Padding(nn.Module):
    """An aggregator whose result is the padded length, as the released codes' depend on it."""

    padding_counts = True

    def forward(self, features: Tensor, mask: Any = None, context: Any = None) -> Aggregated:
        length = torch.tensor([1.0, float(features.shape[1])])
        return Aggregated(length.expand(len(features), 1, 2))


def test_where_padding_counts_batches_are_as_the_list_stands() -> None:
    model = make_model(Regions(5, 8), Padding())
    images = [torch.randn(n, 5) for n in (1, 4, 2, 3)]
    found = model.encode_images(images, batch_size=2)[:, 0]
    lengths = (found[:, 1] / found[:, 0]).round().tolist()
    assert lengths == [4, 4, 3, 3]
