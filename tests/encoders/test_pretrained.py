"""Models of transformers: what is loaded of them, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL, write_transformer

from vse.encoders.pretrained import load_transformer, longest_input, read_pixels, read_preprocessing, read_tokenizer
from vse.errors import InputError


def load_text(folder: Path, weights: Any = "pretrained") -> tuple[Any, dict[str, Any]]:
    return load_transformer(str(folder), weights, None, "text")


def test_the_weights_are_the_folders(tiny_bert: Path) -> None:
    from transformers import AutoModel

    model, architecture = load_text(tiny_bert)
    reference = AutoModel.from_pretrained(tiny_bert).state_dict()
    own = model.state_dict()
    assert own and all(torch.equal(value, reference[key]) for key, value in own.items())
    assert {key.partition(".")[0] for key in reference.keys() - own.keys()} == {"pooler"}
    assert architecture["model_type"] == "bert" and json.loads(json.dumps(architecture)) == architecture


def test_random_weights_need_no_file_of_weights(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bare"))
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    random, _ = load_text(folder, None)
    published, _ = load_text(tiny_bert)
    assert random.state_dict().keys() == published.state_dict().keys()
    key = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(random.state_dict()[key], published.state_dict()[key])


def test_an_architecture_needs_no_folder(tiny_bert: Path) -> None:
    model, architecture = load_text(tiny_bert)
    again, same = load_transformer("/nowhere/bert", None, json.loads(json.dumps(architecture)), "text")
    assert same == architecture and again.state_dict().keys() == model.state_dict().keys()


def test_what_is_no_architecture_is_left_out(tiny_bert: Path) -> None:
    _, architecture = load_text(tiny_bert)
    extras: dict[str, Any] = {"auto_map": {"AutoModel": "evil.Model"}, "_name_or_path": "/home/me"}
    extras |= dict.fromkeys(("transformers_version", "id2label", "label2id", "dtype", "torch_dtype"), "x")
    extras |= dict.fromkeys(("quantization_config", "return_dict", "attn_implementation", "_attn_implementation"), {})
    extras |= dict.fromkeys(("experts_implementation", "_experts_implementation"), "x")
    extras |= {"_attn_implementation_internal": "x"}
    nested = {**architecture, **extras, "inner": {"auto_map": {}, "kept": 1}}
    _, cleaned = load_transformer("", None, nested, "text")
    assert cleaned == {**architecture, "inner": {"kept": 1}}


def test_half_of_a_model_with_two(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    both: dict[str, Any] = {
        "text_config": {"vocab_size": 9, **SMALL},
        "vision_config": {**SMALL, "image_size": 32, "patch_size": 8},
    }
    folder = write_transformer(tmp_path, CLIPConfig(**both), True)
    for side, kind in (("text", "clip_text_model"), ("vision", "clip_vision_model")):
        model, architecture = load_transformer(str(folder), "pretrained", None, side)  # type: ignore[arg-type]
        assert architecture["model_type"] == kind and model.state_dict()


Change = Callable[[Path, dict[str, Any]], object]


def truncate(folder: Path, config: dict[str, Any]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def configure(**changes: Any) -> Change:
    return lambda folder, config: (folder / "config.json").write_text(json.dumps({**config, **changes}))


UNREADABLE = "cannot be read as a model of transformers"
DAMAGES: dict[str, tuple[Change, str]] = {
    "garbled": (
        lambda folder, _: (folder / "config.json").write_text("{"),
        UNREADABLE,
    ),
    "cut": (truncate, UNREADABLE),
    "bare": (lambda folder, _: (folder / "model.safetensors").unlink(), UNREADABLE),
    "deeper": (
        configure(num_hidden_layers=3),
        "its weights lack encoder.layer.2.attention.self.query.weight, .* and 13 more",
    ),
    "wider": (
        configure(intermediate_size=32),
        r"do not fit its config: encoder.layer.0.intermediate.dense.bias has shape \(24,\), expected \(32,\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders(name: str, tiny_bert: Path, tmp_path: Path) -> None:
    """One line, with the folder's name."""
    change, message = DAMAGES[name]
    folder = Path(shutil.copytree(tiny_bert, tmp_path / name))
    change(folder, json.loads((folder / "config.json").read_text()))
    with pytest.raises(InputError, match=f"{name}: .*{message}") as caught:
        load_text(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_model(tiny_vit: Path, tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import ResNetConfig, T5Config

    (tmp_path / "empty").mkdir()
    write_transformer(tmp_path / "t5", T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=80))
    write_transformer(tmp_path / "map", ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8))
    for folder, side, message in (
        (tmp_path / "empty", "text", "empty: cannot be read as a model of transformers"),
        (tmp_path / "t5", "text", "t5 has an encoder and a decoder; expected a model with only an encoder"),
        (tiny_vit, "text", "vit is not a text model: it takes no input_ids"),
        (tiny_bert, "vision", "bert is not a vision model: it takes no pixel_values"),
        (tmp_path / "map", "vision", "gives 3-dimensional feature maps; for a ResNet, use torchvision's name"),
        (tmp_path / "none", "vision", "none: no such folder; expected one with a model of transformers"),
        (Path("nobody/vit"), "vision", "nobody/vit: not a folder, nor a model that can be downloaded"),
    ):
        with pytest.raises(InputError, match=message):
            load_transformer(str(folder), None, None, side)  # type: ignore[arg-type]


def test_a_model_that_does_not_heed_the_mask(tmp_path: Path) -> None:
    from transformers import FNetConfig

    folder = write_transformer(tmp_path, FNetConfig(vocab_size=80, tpu_short_seq_length=8, **SMALL), True)
    with pytest.raises(InputError, match="padding changes its results: it ignores the attention mask"):
        load_text(folder)


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "blip", "text_config": {"auto_map": {"AutoModel": "/tmp--evil.Model"}}},
        {"model_type": "dpt", "backbone": "evil/repo", "use_timm_backbone": False},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/repo"},
        {"auto_map": {"AutoModel": "/tmp--evil.Model"}},
        {},
        {"model_type": "no such"},
        {"model_type": "bert", "hidden_size": "wide"},
    ],
)
def test_a_hostile_architecture_fetches_and_runs_nothing(
    architecture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked for a folder, the hub, or the user's consent")

    for place in (
        "transformers.AutoConfig.from_pretrained",
        "transformers.AutoModel.from_pretrained",
        "builtins.input",
    ):
        monkeypatch.setattr(place, refuse)
    with pytest.raises(InputError, match="the checkpoint's architecture: cannot be read as a model of transformers"):
        load_transformer("bert-base-uncased", None, architecture, "text")


def test_kernels_and_quantisation_are_not_taken_from_an_architecture(tiny_bert: Path) -> None:
    _, architecture = load_text(tiny_bert)
    hostile = {
        "auto_map": {"AutoModel": "/tmp--evil.Model"},
        "attn_implementation": "nobody/kernels",
        "_attn_implementation": "nobody/kernels",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    model: Any = load_transformer("", None, {**architecture, **hostile}, "text")[0]
    assert model.config._attn_implementation == "sdpa"


def test_longest_input(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, XLNetConfig

    assert longest_input(load_text(tiny_bert)[0]) == 32
    roberta = write_transformer(tmp_path / "r", RobertaConfig(vocab_size=80, max_position_embeddings=20, **SMALL))
    assert longest_input(load_text(roberta, None)[0]) == 18  # its positions count from 2 on
    xlnet = write_transformer(tmp_path / "x", XLNetConfig(vocab_size=80, d_model=16, n_layer=1, n_head=2, d_inner=24))
    assert longest_input(load_text(xlnet, None)[0]) is None


def test_read_pixels(tiny_vit: Path, tmp_path: Path) -> None:
    assert read_pixels(str(tiny_vit)) is None
    file = tmp_path / "preprocessor_config.json"
    content: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    file.write_text(json.dumps(content))
    assert read_pixels(str(tmp_path)) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    file.write_text(json.dumps({**content, "do_normalize": False}))
    assert read_pixels(str(tmp_path)) is None
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read as a model of transformers"):
        read_pixels(str(tmp_path))


def test_read_tokenizer(tiny_bert: Path, tiny_vit: Path) -> None:
    content, mask, longest = read_tokenizer(str(tiny_bert))
    assert json.loads(content)["model"]["type"] == "WordPiece" and mask == 4 and longest is None
    with pytest.raises(InputError, match="has no tokenizer.json; expected the folder of a text model"):
        read_tokenizer(str(tiny_vit))


# --- How pictures are prepared -------------------------------------------------------------------------------------

HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def preprocessing_of(folder: Path, content: dict[str, Any]) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return read_preprocessing(str(folder))


@pytest.mark.parametrize(
    ("content", "size", "resize"),
    [
        ({"size": 40, "crop_size": 32, "do_center_crop": True}, [32, 32], 40),
        ({"size": 40, "crop_size": 32}, [32, 32], 40),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}, [32, 24], 40),
        ({"size": 32, "do_center_crop": False, "crop_size": 20}, [32, 32], [32, 32]),
        ({"size": 32}, [32, 32], [32, 32]),
        ({"size": {"height": 32, "width": 24}}, [32, 24], [32, 24]),
        ({"size": {"height": 32, "width": 24}, "do_resize": True}, [32, 24], [32, 24]),
    ],
)
def test_the_forms_of_sizes(tmp_path: Path, content: dict[str, Any], size: Any, resize: Any) -> None:
    assert preprocessing_of(tmp_path, {**content, **HALF}) == (size, resize, "bicubic", [0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    "content",
    [
        {"size": 32, "do_resize": False},
        {"crop_size": 32},
        {"size": {"shortest_edge": 32}},
        {"size": {"height": 32}},
        {"size": {"width": 32}},
        {"size": {"shortest_edge": 40, "longest_edge": 80}, "crop_size": 32},
        {"size": "large"},
    ],
)
def test_pictures_of_many_sizes_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="does not give pictures of one size"):
        preprocessing_of(tmp_path, {**content, **HALF})


def test_each_way_to_resample_has_pillows_name(tmp_path: Path) -> None:
    from PIL.Image import Resampling

    for number in range(6):
        found = preprocessing_of(tmp_path, {"size": 32, **HALF, "resample": number})
        assert found.resample == Resampling(number).name.lower()
    with pytest.raises(InputError, match="resamples in way 6; known: 0 to 5"):
        preprocessing_of(tmp_path, {"size": 32, **HALF, "resample": 6})


@pytest.mark.parametrize(
    "steps",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_normalize": True}],
)
def test_pictures_are_normalised_as_the_library_does(tmp_path: Path, steps: dict[str, Any]) -> None:
    from transformers import CLIPImageProcessorPil

    content = {"size": {"height": 8, "width": 8}, "do_center_crop": False, **HALF, **steps}
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    expected = CLIPImageProcessorPil(**content)([picture.numpy()], return_tensors="pt")["pixel_values"][0]
    found = preprocessing_of(tmp_path, content)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (found.mean, found.std))
    if steps == {"do_normalize": False}:  # the library rescales all the same
        assert found.mean == [0.0] * 3 and found.std == [1.0] * 3
    torch.testing.assert_close((picture / 255 - mean) / std, expected.float(), atol=1e-4, rtol=1e-5)


def test_the_files_of_older_and_newer_models(tmp_path: Path, tiny_siglip: Path) -> None:
    shutil.copy(tiny_siglip / "config.json", tmp_path)
    new = {"size": {"height": 32, "width": 24}, **HALF}
    processor = tmp_path / "processor_config.json"
    processor.write_text(json.dumps({"image_processor": new}))
    assert read_preprocessing(str(tmp_path)).size == [32, 24]
    assert preprocessing_of(tmp_path, {**new, "size": 16}).size == [16, 16]  # the older file comes first
    (tmp_path / "preprocessor_config.json").unlink()
    processor.write_text(json.dumps({"processor_class": "SiglipProcessor"}))
    with pytest.raises(InputError, match="it has no preprocessor_config.json"):
        read_preprocessing(str(tmp_path))
    with pytest.raises(InputError, match="openai/clip-vit-base-patch32: not a folder, nor a model that can be downl"):
        read_preprocessing("openai/clip-vit-base-patch32")
