"""What an official checkpoint's weights and options mean, to the last setting: each has a silent wrong reading."""

from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import (
    DIM,
    State,
    below,
    dive_slots,
    dive_state,
    load_content,
    mlp,
    pvse_state,
    region_states,
    small_bert,
    split_backbone,
    vse_2ad_states,
)
from torch import Tensor, nn

from vse.aggregators import GPO, AdaptivePool, SetPrediction
from vse.checkpoints.official import native_state
from vse.sets import lengths_to_mask
from vse.similarity import chamfer, max_cosine, smooth_chamfer


def blank(name: str) -> State:
    """A ResNet of torchvision's shapes whose numbers mean nothing."""
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    return {k: torch.empty(v.shape, dtype=v.dtype) for k, v in state.items() if not k.startswith("fc.")}


def renamed(prefix: str, state: State) -> State:
    """As ``below``, but without copies of what may be large."""
    return {prefix + key: value for key, value in state.items()}


def config_of(content: Any) -> dict[str, Any]:
    found = native_state(content)
    assert found is not None
    config: dict[str, Any] = found["config"]
    return config


def sets_of(count: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(7)
    mask = lengths_to_mask(torch.tensor([length, 2, 3][:count]), length)
    return torch.randn(count, length, width), mask, torch.randn(count, DIM)


def dive_grid_state(backbone: str, cells: int) -> State:
    """DivE, a grid and BiGRU, its set predictions with one block."""
    image = renamed("cnn.", blank(backbone)) | below("fc.", nn.Linear(cells, DIM))
    image |= below("spm.", dive_slots(DIM, 1, True, 1)[1])
    norm = nn.ModuleDict({"bn": nn.BatchNorm1d(4)})
    head = nn.ModuleDict({"fc1": nn.Linear(DIM, 4), "fc2": nn.Linear(4, DIM), "bn": norm})
    _, text = region_states()
    words = {key: value for key, value in text.items() if not key.startswith("gpool.")}
    words |= below("spm.", dive_slots(6, 1, True, 2)[1])
    return renamed("img_enc.", image | below("mlp.", head)) | below("txt_enc.", words)


@pytest.mark.parametrize(("backbone", "cells", "heads"), [("resnet18", 512, 4), ("resnext50_32x4d", 2048, 8)])
def test_the_heads_of_dive(tmp_path: Path, backbone: str, cells: int, heads: int) -> None:
    """Four, but eight beside a ResNeXt, on both sides: shapes alone would fit any number of heads."""
    content = {"model": dive_grid_state(backbone, cells), "args": Namespace(data_name="coco")}
    found: Any = native_state(content)
    assert f"heads={heads}" in found["assumed"]
    model = load_content(tmp_path, content)
    for side, width, seed in (("image", DIM, 1), ("text", 6, 2)):
        section = found["config"]["model"][side]["aggregator"]
        assert section["heads"] == heads and section["head_dim"] == 16 // heads
        torch.manual_seed(0)
        position: Literal["none", "sine"] = "none" if side == "image" else "sine"
        own = SetPrediction(width, DIM, 2, 1, heads, 16 // heads, ff_mult=2, position=position)
        own.load_state_dict(dive_slots(width, 1, True, seed)[0].state_dict())
        features, mask, context = sets_of(3, 5, width)
        with torch.no_grad():
            expected = own.eval()(features, mask, context).embeddings
            found_sets = getattr(model, side).aggregator(features, mask, context).embeddings
        torch.testing.assert_close(found_sets, expected)


def test_regions_have_four_heads() -> None:
    model = config_of({"model": dive_state(), "args": Namespace()})["model"]
    assert model["image"]["aggregator"]["heads"] == model["text"]["aggregator"]["heads"] == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda a, b: smooth_chamfer(a, b, 16.0)),
        ({"temperature": 10.0}, lambda a, b: smooth_chamfer(a, b, 10.0)),
        ({"temperature": 8, "eval_similarity": "smooth_chamfer"}, lambda a, b: smooth_chamfer(a, b, 8.0)),
        ({"eval_similarity": "chamfer"}, chamfer),
        ({"eval_similarity": "max", "temperature": 10.0}, max_cosine),
    ],
)
def test_the_similarity_of_dive(tmp_path: Path, options: dict[str, Any], expected: Any) -> None:
    model = load_content(tmp_path, {"model": dive_state(), "args": Namespace(**options)})
    a, b = torch.randn(3, 2, DIM), torch.randn(4, 2, DIM)
    torch.testing.assert_close(model.similarity(a, b), expected(a, b))


def test_keep_ends_is_vse_2ads(tmp_path: Path) -> None:
    """Its training leaves <start> and <end> alone; VSE∞'s does not."""
    both = load_content(tmp_path, {"model": vse_2ad_states(), "args": Namespace()})
    encoder: Any = both.text.encoder
    assert encoder.keep_ends is True
    assert config_of({"model": vse_2ad_states(), "args": Namespace()})["model"]["text"]["encoder"]["keep_ends"] is True
    other = load_content(tmp_path, {"model": list(region_states()), "opt": Namespace()})
    encoder = other.text.encoder
    assert encoder.keep_ends is False


WORDS = {"name": "bigru", "word_dim": 6, "directions": "average"}
SETS = {"num_embeddings": 2, "depth": 2, "heads": 4, "head_dim": 4, "ff_mult": 2, "share_weights": True}


def vse_infty_grid(backbone: str) -> list[State]:
    _, text = region_states()
    cells = below("image_encoder.fc.", nn.Linear(2048, DIM)) | below("image_encoder.gpool.", GPO())
    return [split_backbone(blank(backbone)) | cells, text]


def vse_2ad_grid(backbone: str) -> State:
    head = below("fc.", nn.Linear(2048, DIM)) | below("mlp.", mlp(2048)) | below("pool.", AdaptivePool(DIM))
    states = {key: value for key, value in vse_2ad_states().items() if key.startswith("txt_enc.")}
    return renamed("img_enc.", split_backbone(blank(backbone)) | below("img_proj.", head)) | states


def with_bert(text: State, projection: str) -> State:
    """The same text side, read by a BERT."""
    rest = {key: value for key, value in text.items() if not key.startswith(("embed.", "rnn."))}
    return rest | below("bert.", small_bert()) | below(f"{projection}.", nn.Linear(64, DIM))


def no_mlp(image: State) -> State:
    return {key: value for key, value in image.items() if not key.startswith("mlp.")}


def test_vse_infty_regions() -> None:
    image, text = region_states()
    for states, options, encoder, words, root, size in (
        ([image, text], {}, {"name": "regions", "mlp": "input"}, WORDS, "data/f30k", 128),
        (
            [no_mlp(image), with_bert(text, "linear")],
            {"data_name": "coco_precomp", "batch_size": 7},
            {"name": "regions", "mlp": None},
            {"name": "bert", "model": "bert-base-uncased", "weights": None},
            "data/coco",
            7,
        ),
    ):
        config = config_of({"model": states, "opt": Namespace(**options)})
        assert config["data"] == {"format": "precomp", "root": root}
        assert config["model"] == {
            "embed_dim": DIM,
            "image": {"encoder": encoder, "aggregator": {"name": "gpo"}},
            "text": {"encoder": words, "aggregator": {"name": "gpo"}},
            "similarity": {"name": "cosine"},
        }
        assert config["eval"] == {"batch_size": size}


@pytest.mark.parametrize(
    ("make", "backbone", "options", "name", "pixels", "size"),
    [
        (vse_infty_grid, "resnet50", {}, "caffe_resnet50", "imagenet", 512),
        (vse_infty_grid, "resnet101", {}, "caffe_resnet101", "caffe", 512),
        (vse_infty_grid, "resnet50", {"backbone_source": "detector"}, "caffe_resnet50", "caffe", 512),
        (vse_infty_grid, "resnext50_32x4d", {"backbone_source": "wsl"}, "resnext50_32x4d", "imagenet", 512),
        (
            vse_2ad_grid,
            "resnet50",
            {"input_scale_factor": 1.5, "backbone_source": "wsl"},
            "caffe_resnet50",
            "imagenet",
            384,
        ),
        (vse_2ad_grid, "resnext50_32x4d", {"backbone_source": "detector"}, "resnext50_32x4d", "imagenet", 256),
    ],
)
def test_grids_and_their_pixels(
    make: Any, backbone: str, options: dict[str, Any], name: str, pixels: str, size: int
) -> None:
    """ResNets are in Caffe's geometry, ResNeXts in torchvision's; VSE∞'s pictures are twice as large by default.

    OpenCV resized them, without antialiasing.
    """
    config = config_of({"model": make(backbone), "opt": Namespace(**options)})
    assert config["model"]["image"]["encoder"] == {"name": "grid", "backbone": name, "pixels": pixels}
    square = {"name": "square", "size": size, "antialias": False}
    assert config["data"] == {"format": "id_mapping", "root": "data/f30k", "transform": square}


def test_vse_2ad_regions() -> None:
    """The MLP that is always there is used unless the option says "backbone"."""
    for options, used in (
        ({}, "input"),
        ({"precomp_enc_type": "basic"}, "input"),
        ({"precomp_enc_type": "backbone"}, None),
    ):
        config = config_of({"model": vse_2ad_states(), "args": Namespace(**options)})
        assert config["model"] == {
            "embed_dim": DIM,
            "image": {"encoder": {"name": "regions", "mlp": used}, "aggregator": {"name": "adaptive"}},
            "text": {"encoder": {**WORDS, "keep_ends": True}, "aggregator": {"name": "adaptive"}},
            "similarity": {"name": "cosine"},
        }
        assert config["eval"] == {"batch_size": 128} and config["data"] == {"format": "precomp", "root": "data/f30k"}


def test_dive_regions() -> None:
    """Without options, and with every option at its other value."""
    text = {**WORDS, "features": "words", "context": "last", "dropout": 0.0}
    config = config_of({"model": dive_state(), "args": Namespace()})
    assert config["data"] == {"format": "precomp", "root": "data/f30k"} and config["eval"] == {"batch_size": 256}
    assert config["model"] == {
        "embed_dim": DIM,
        "image": {
            "encoder": {"name": "regions", "mlp": "projection", "context": "max", "dropout": 0.0},
            "aggregator": {"name": "set_prediction", "position": "none", "dropout": 0.0, **SETS},
        },
        "text": {
            "encoder": text,
            "aggregator": {"name": "set_prediction", "position": "sine", "dropout": 0.0, **SETS},
        },
        "similarity": {"name": "smooth_chamfer", "temperature": 16.0},
    }
    others = {"img_res_pool": "avg", "txt_attention_input": "rnn", "txt_pooling": "max", "img_1x1_dropout": 0.3}
    others |= {"dropout": 0.1, "spm_txt_pos_enc_type": "none", "batch_size_eval": 9, "data_name": "coco_butd"}
    state = {key: value for key, value in dive_state(depth=1).items() if not key.startswith("img_enc.mlp.")}
    found: Any = native_state({"model": state, "args": Namespace(**others)})
    config = found["config"]
    sets = {**SETS, "depth": 1, "dropout": 0.1}
    assert config["data"] == {"format": "precomp", "root": "data/coco"} and config["eval"] == {"batch_size": 9}
    assert found["vocabulary"] == {"rows": 30, "file": "coco_butd_vocab.pkl"} and found["in_dim"] == 12
    assert config["model"]["image"] == {
        "encoder": {"name": "regions", "mlp": None, "context": "mean", "dropout": 0.3},
        "aggregator": {"name": "set_prediction", "position": "none", **sets},
    }
    assert config["model"]["text"] == {
        "encoder": {**WORDS, "features": "states", "context": "max", "dropout": 0.1},
        "aggregator": {"name": "set_prediction", "position": "none", **sets},
    }


def test_dive_bert_takes_the_first_token() -> None:
    state = dive_state()
    image = {key: value for key, value in state.items() if key.startswith("img_enc.")}
    text = {key.removeprefix("txt_enc."): value for key, value in state.items() if key.startswith("txt_enc.")}
    for options, context in (({}, "cls"), ({"txt_pooling": "max"}, "max")):
        content = {"model": image | below("txt_enc.", with_bert(text, "linear")), "args": Namespace(**options)}
        encoder = config_of(content)["model"]["text"]["encoder"]
        assert encoder["name"] == "bert" and encoder["context"] == context and encoder["dropout"] == 0.0
        found: Any = native_state(content)
        assert found["vocabulary"] == {"rows": 90, "file": "bert-base-uncased"}
        architecture = found["architectures"]["text"]
        assert architecture["num_hidden_layers"] == 2 and architecture["num_attention_heads"] == 1
        assert architecture["hidden_act"] == "gelu" and architecture["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize(
    ("options", "folder", "transform", "position"),
    [
        ({}, ("karpathy", "data/f30k"), {"name": "square", "size": 512}, {"position": "none"}),
        (
            {"gpo_aug": True, "crop_size": 99, "spm_img_pos_enc_type": "sine", "data_name": "coco"},
            ("coco", "data/coco"),
            {"name": "square", "size": 512},
            {"position": "sine_2d", "grid": [16, 16]},
        ),
        (
            {"gpo_aug": False, "spm_img_pos_enc_type": "sine"},
            ("karpathy", "data/f30k"),
            {"name": "crop", "size": 224, "resize": 256},
            {"position": "sine_2d", "grid": [7, 7]},
        ),
        (
            {"gpo_aug": False, "crop_size": 448, "spm_img_pos_enc_type": "none"},
            ("karpathy", "data/f30k"),
            {"name": "crop", "size": 448, "resize": 512},
            {"position": "none"},
        ),
    ],
)
def test_dive_grids(options: dict[str, Any], folder: tuple[str, str], transform: Any, position: Any) -> None:
    config = config_of({"model": dive_grid_state("resnet18", 512), "args": Namespace(**options)})
    assert config["data"] == {"format": folder[0], "root": folder[1], "transform": transform}
    aggregator = config["model"]["image"]["aggregator"]
    assert {key: aggregator[key] for key in ("position", "grid") if key in aggregator} == position
    assert config["model"]["image"]["encoder"] == {
        **{"name": "grid", "backbone": "resnet18", "mlp": "projection", "context": "max", "dropout": 0.0}
    }


def test_each_side_of_dive_has_its_own_sizes() -> None:
    """The depth, the width of a head and of the feed-forward layer come from that side's weights."""
    state = dive_state()
    text = {key: value for key, value in state.items() if key.startswith("txt_enc.") and "spm." not in key}
    image = {key: value for key, value in state.items() if key.startswith("img_enc.") and "spm." not in key}
    image |= below("img_enc.spm.", dive_slots(DIM, 3, False, 1)[1])
    model = config_of(
        {"model": image | text | below("txt_enc.spm.", dive_slots(6, 1, True, 2)[1]), "args": Namespace()}
    )["model"]
    assert (model["image"]["aggregator"]["depth"], model["text"]["aggregator"]["depth"]) == (3, 1)
    assert model["image"]["aggregator"]["share_weights"] is False
    untied = native_state({"model": dive_state(shared=True), "args": Namespace(spm_weight_sharing=False)})
    assert untied is not None and untied["config"]["model"]["text"]["aggregator"]["share_weights"] is False
    assert "text.aggregator.blocks.1.out.bias" in untied["model"]


PIE = {"name": "pie_net", "num_embeddings": 2}


def test_pvse_pictures() -> None:
    """The state dict alone is legacy; with options, it is not unless they say so."""
    for content, context, dropout in (
        (pvse_state(), "last_step", 0.0),
        ({"model": pvse_state(), "args": Namespace(dropout=0.2)}, "last", 0.2),
        ({"model": pvse_state(), "args": Namespace(legacy=True)}, "last_step", 0.0),
    ):
        config = config_of(content)
        words = {**WORDS, "directions": "concatenate", "dropout": dropout, "features": "words", "context": context}
        image = {"name": "grid", "backbone": "resnet18", "dropout": dropout, "features": "raw", "context": "mean"}
        assert config["model"] == {
            "embed_dim": DIM,
            "image": {"encoder": image, "aggregator": PIE},
            "text": {"encoder": words, "aggregator": PIE},
            "similarity": {"name": "max"},
        }
        crop = {"name": "crop", "size": 224, "resize": 256}
        assert config["data"] == {"format": "coco", "root": "data/coco", "transform": crop}
        assert config["eval"] == {"batch_size": 16}


@pytest.mark.parametrize(("count", "dataset", "frames", "trim"), [(5, "mrw", 4, 0), (3, "tgif", 8, 6)])
def test_pvse_clips(count: int, dataset: str, frames: int, trim: int) -> None:
    found: Any = native_state(pvse_state(video=True, count=count))
    clip = {"name": "clip", "frames": frames, "size": 224, "resize": 256, "max_skip": 3, "trim": trim}
    assert found["config"]["data"] == {"format": dataset, "root": f"data/{dataset}", "transform": clip}
    assert found["config"]["model"]["image"] == {
        "encoder": {"name": "video", "backbone": "resnet18", "dropout": 0.0, "context": "last_step"},
        "aggregator": {"name": "pie_net", "num_embeddings": count},
    }
    assert found["vocabulary"] == {"rows": 30, "file": f"{dataset}_vocab.pkl"}


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "f30k_precomp_vocab.json or coco_precomp_vocab.json"),
        ({"data_name": "f30k_precomp"}, "f30k_precomp_vocab.json"),
        ({"data_name": "coco_butd"}, "coco_precomp_vocab.json"),
    ],
)
def test_the_vocabulary_of_vse_infty(options: dict[str, Any], file: str) -> None:
    found: Any = native_state({"model": list(region_states()), "opt": Namespace(**options)})
    assert found["vocabulary"] == {"rows": 30, "file": file}


@pytest.mark.parametrize(
    "wrong",
    [
        {"img_res_first_fc": False},
        {"img_res_first_pool": True},
        {"img_res_last_pool": True},
        {"spm_residual": False},
        {"spm_post_norm": True},
        {"spm_pre_norm": False},
        {"first_order": True},
        {"query_slot": True},
        {"ten_crop": True},
    ],
)
def test_what_dive_may_not_be(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"its option {name} is {value}; this package supports only {not value}"):
        native_state({"model": dive_state(), "args": Namespace(**wrong)})


@pytest.mark.parametrize(("system", "option"), [("opt", "no_imgnorm"), ("opt", "no_txtnorm"), ("args", "no_txtnorm")])
def test_unnormalised_models_are_refused(system: str, option: str) -> None:
    model: Any = list(region_states()) if system == "opt" else vse_2ad_states()
    with pytest.raises(ValueError, match=f"its option {option} is True; this package supports only False"):
        native_state({"model": model, system: Namespace(**{option: True})})


def esa_states(with_bert_text: bool = False) -> list[State]:
    """ESA, regions and BiGRU or BERT; a BERT model's names carry ``module.``."""
    image, text = region_states()
    for side in (image, text):
        for key in [key for key in side if key.startswith("gpool.")]:
            del side[key]
        side |= below("linear1.", nn.Linear(DIM, DIM))
    if not with_bert_text:
        return [image, text]
    return [below("module.", image), below("module.", with_bert(text, "linear"))]


def chan_states(attends: bool = True, with_bert_text: bool = False) -> list[State]:
    """CHAN, with the two empty states of its similarity and its loss."""
    image, text = region_states()
    image = {key: value for key, value in image.items() if key.startswith("fc.")}
    if attends:
        image |= below("feedforward.ln.", nn.LayerNorm(DIM))
        image |= below("feedforward.attn.", nn.MultiheadAttention(DIM, 8))
    text = {key: value for key, value in text.items() if not key.startswith("gpool.")}
    text = with_bert(text, "linear") if with_bert_text else text | below("fc.", nn.Linear(DIM, DIM))
    return [image, text, {}, {}]


@pytest.mark.parametrize("bert", [False, True])
def test_esa(tmp_path: Path, bert: bool) -> None:
    states = esa_states(bert)
    content = {"model": states, "opt": Namespace(data_name="coco"), "epoch": 1, "best_rsum": 1.0, "Eiters": 3}
    found: Any = native_state(content)
    config = found["config"]
    assert config["data"] == {"format": "precomp", "root": "data/coco"} and found["in_dim"] == 12
    pool = {"name": "softmax_pool"}
    assert config["model"]["image"] == {"encoder": {"name": "regions", "mlp": "input"}, "aggregator": pool}
    text = {"name": "bert", "model": "bert-base-uncased", "weights": None} if bert else WORDS
    assert config["model"]["text"] == {"encoder": text, "aggregator": pool}
    assert config["model"]["similarity"] == {"name": "cosine"} and found["assumed"] == ["batch_size=128"]
    model = load_content(tmp_path, content)
    weight = {key.removeprefix("module."): value for key, value in states[1].items()}["linear1.weight"]
    assert torch.equal(model.state_dict()["text.aggregator.linear.weight"], weight)
    assert model.image(torch.randn(2, 5, 12)).embeddings.shape == (2, 1, DIM)


def test_esa_grid() -> None:
    grid = below("image_encoder.fc.", nn.Linear(2048, DIM)) | below("image_encoder.linear1.", nn.Linear(DIM, DIM))
    content = {"model": [split_backbone(blank("resnet50")) | grid, esa_states()[1]], "opt": Namespace()}
    found: Any = native_state(content)
    assert found["config"]["model"]["image"]["encoder"]["backbone"] == "caffe_resnet50"
    assert found["config"]["data"]["format"] == "id_mapping"
    assert "image.aggregator.linear.weight" in found["model"] and "image.aggregator.linear.bias" not in found["model"]


@pytest.mark.parametrize(("attends", "bert"), [(True, False), (False, True)])
def test_chan(tmp_path: Path, attends: bool, bert: bool) -> None:
    content = {"model": chan_states(attends, bert), "opt": Namespace(data_name="f30k"), "epoch": 1}
    found: Any = native_state(content)
    model = found["config"]["model"]
    encoder = {"name": "regions", "mlp": None, "self_attention": attends}
    assert model["image"] == {"encoder": encoder, "aggregator": {"name": "tokens"}}
    text = {"name": "bert", "model": "bert-base-uncased", "weights": None} if bert else WORDS
    assert model["text"] == {"encoder": text, "aggregator": {"name": "tokens"}}
    published = {"pooling": "mean"} if bert else {"pooling": "lse", "pooling_temperature": 0.1}
    assert model["similarity"] == {"name": "chan", "coding": "hard_words", **published}
    assert f"pooling_type={'MeanPooling' if bert else 'LSEPooling'}" in found["assumed"]
    loaded = load_content(tmp_path, content)
    tokens, mask = torch.randint(5, 30, (3, 6)), lengths_to_mask(torch.tensor([6, 2, 4]))
    image, text_sets = loaded.image(torch.randn(2, 5, 12)), loaded.text(tokens, mask)
    assert image.mask is None and text_sets.mask is not None and torch.equal(text_sets.mask, mask)
    scores = loaded.similarity(image.embeddings, text_sets.embeddings, b_mask=text_sets.mask)
    alone = loaded.similarity(image.embeddings, loaded.text(tokens[1:2, :2]).embeddings)
    torch.testing.assert_close(scores[:, 1:2], alone)


def test_the_options_of_chan() -> None:
    options = {"coding_type": "VSACoding", "pooling_type": "SoftmaxPooling", "alpha": 0.2, "belta": 0.3}
    found: Any = native_state({"model": chan_states(), "opt": Namespace(**options)})
    assert found["config"]["model"]["similarity"] == {
        **{"name": "chan", "coding": "soft_regions", "coding_temperature": 0.2},
        **{"pooling": "softmax", "pooling_temperature": 0.3},
    }
    for wrong, message in (
        (
            {"coding_type": "Other"},
            "its option coding_type is 'Other'; expected one of VHACoding, THACoding, VSACoding",
        ),
        ({"precomp_enc_type": "transformer"}, "'transformer': the released code attends over the images of a batch"),
        ({"no_imgnorm": True}, "its option no_imgnorm is True; this package supports only False"),
    ):
        with pytest.raises(ValueError, match=message):
            native_state({"model": chan_states(), "opt": Namespace(**wrong)})
    assert native_state({"model": [*chan_states()[:2], {"scale": torch.zeros(1)}, {}]}) is None
