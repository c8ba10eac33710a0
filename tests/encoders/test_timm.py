"""Backbones of timm: cells, class tokens, weights, freezing, and the preprocessing of their pictures."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_pictures
from torch import Tensor

from vse.aggregators import GPO
from vse.build import complete, read_config
from vse.encoders import Timm
from vse.encoders.base import traits_of
from vse.encoders.timm import TimmBackbone, read_preprocessing
from vse.errors import InputError
from vse.model import Tower
from vse.optim import layer_factors

timm = pytest.importorskip("timm")

CNN, VIT = "test_resnet", "test_vit"  # timm's own small models: 0.4 and 0.3 million parameters
MODELS = {  # and the number of cells of a picture of 64 x 64
    CNN: 4,
    "test_convnext": 4,
    "test_efficientnet": 4,
    VIT: 16,
    "test_vit2": 16,  # a register, no class token
}


def make(name: str, **arguments: Any) -> TimmBackbone:
    torch.manual_seed(0)
    size = 64 if "vit" in name else None
    return TimmBackbone(name, arguments.pop("weights", None), image_size=size, **arguments)


def encoder(name: str, **arguments: Any) -> Timm:
    torch.manual_seed(0)
    return Timm(8, name, weights=None, image_size=64, **arguments)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_cells(name: str, pictures: Tensor) -> None:
    """Row by row, in any batch; every parameter is used and belongs to one stage."""
    backbone = make(name).eval()
    with torch.no_grad():
        cells = backbone(pictures)
        assert cells.shape == (3, MODELS[name], backbone.dim)
        torch.testing.assert_close(backbone(pictures[1:2])[0], cells[1], atol=1e-5, rtol=1e-4)
        expected: Tensor = backbone.net.forward_features(pictures)  # type: ignore[operator]
        if expected.dim() == 4:
            for row in range(len(pictures)):
                assert torch.equal(
                    cells[row], torch.stack([v for line in expected[row].permute(1, 2, 0) for v in line])
                )
        else:
            assert torch.equal(cells, expected[:, 1:])
    assert sum(map(len, backbone.stages)) == len(list(backbone.parameters()))
    found = backbone.train().encode(pictures)
    sum(part[..., 0].sum() for part in found if part is not None).backward()  # type: ignore[union-attr]
    assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


def test_the_class_token_is_the_context(pictures: Tensor) -> None:
    """Projected as the patches are, or raw; models without one have no context."""
    for features, dim in (("projected", 8), ("raw", 64)):
        vit = encoder(VIT, features=features).eval()
        result = vit(pictures)
        tokens: Tensor = vit.backbone.net.forward_features(pictures)  # type: ignore[operator]
        expected = vit.head.fc(tokens) if features == "projected" else tokens
        torch.testing.assert_close(result.features, expected[:, 1:])
        torch.testing.assert_close(result.context, expected[:, 0])
        assert (vit.dim, vit.context_dim) == (dim, dim)
    for name in (CNN, "test_vit2"):
        plain = encoder(name).eval()
        assert plain(pictures).context is None and plain.context_dim is None
    pooled = encoder(VIT, context="mean").eval()(pictures)
    torch.testing.assert_close(pooled.context, pooled.features.mean(1))
    assert encoder(VIT, context=None)(pictures).context is None


@pytest.mark.parametrize("name", [CNN, VIT])
def test_dropped_cells(name: str, pictures: Tensor) -> None:
    """In training alone; the class token stays, and gradients are finite."""
    model = encoder(name, drop=0.9)
    assert model.eval()(pictures).mask is None
    result = Tower(model.train(), GPO())(pictures.repeat(8, 1, 1, 1))
    result.embeddings.sum().backward()
    mask = model(pictures.repeat(8, 1, 1, 1)).mask
    assert mask is not None and mask.any(1).all() and not mask.all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_mask_or_another_size_is_refused(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="a batch of pictures takes no mask"):
        encoder(CNN)(pictures, torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="test_vit reads pictures of 64 x 64 pixels, got 32 x 64; set image_size"):
        encoder(VIT)(pictures[:, :, :32])
    assert encoder(CNN)(pictures[:, :, :32]).features.shape == (3, 2, 8)


def test_freezing_and_stages() -> None:
    model = encoder(VIT, freeze_epochs=1, stage_epochs=1)
    net = model.backbone
    assert len(net.stages) == 7 and net.stages[0][0] is net.net.blocks[5].norm1.weight  # type: ignore[union-attr, index]
    for epoch, trained in ((0, 0), (1, 1), (2, 2), (9, 7)):
        model.set_epoch(epoch)
        assert [all(p.requires_grad for p in stage) for stage in net.stages] == [n < trained for n in range(7)]
    assert len(make(CNN).stages) == 5


def test_batchnorm_is_trained_only_when_asked(pictures: Tensor) -> None:
    """With train_norm as timm's own layers in training; otherwise the published statistics stay."""
    for name in (CNN, "test_efficientnet"):  # plain BatchNorm, and timm's with an activation
        fixed, shared = make(name).train(), make(name, train_norm=True).train()
        before = {key: value.clone() for key, value in fixed.state_dict().items()}
        assert fixed.state_dict().keys() == shared.state_dict().keys()
        fixed(pictures)
        assert all(torch.equal(value, before[key]) for key, value in fixed.state_dict().items())
        plain = make(name).net.train()
        expected = plain.forward_features(pictures).flatten(2).transpose(1, 2)  # type: ignore[operator]
        torch.testing.assert_close(shared(pictures), expected)
        assert all(torch.equal(value, plain.state_dict()[key]) for key, value in shared.net.state_dict().items())
    with pytest.raises(ValueError, match="train_norm is for BatchNorm, and test_vit has none"):
        make(VIT, train_norm=True)
    with pytest.raises(ValueError, match="recompute does not go with train_norm"):
        make(CNN, train_norm=True, recompute=True)


@pytest.mark.parametrize("name", [CNN, VIT])
def test_recompute_changes_no_gradient(name: str, pictures: Tensor) -> None:
    kept, forgotten = make(name).train(), make(name, recompute=True).train()
    for backbone in (kept, forgotten):
        (backbone(pictures) ** 2).mean().backward()
    for (key, a), (_, b) in zip(kept.named_parameters(), forgotten.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_layers_for_decay() -> None:
    """A transformer's blocks; a CNN's stages where they are numbered, not the blocks within them."""
    names = {
        key: [f"image.encoder.backbone.{name}" for name, _ in make(key).named_parameters()]
        for key in (VIT, "test_convnext", CNN)
    }
    factors = layer_factors(names[VIT], 0.5)
    prefix = "image.encoder.backbone.net."
    assert factors[f"{prefix}blocks.5.norm1.weight"] == 0.5 and factors[f"{prefix}blocks.0.norm1.weight"] == 0.5**6
    assert factors[f"{prefix}cls_token"] == 0.5**7 and f"{prefix}norm.weight" not in factors
    stages = layer_factors(names["test_convnext"], 0.5)
    assert {key.split(".")[5]: value for key, value in stages.items() if ".stages." in key} == {
        str(n): 0.5 ** (4 - n) for n in range(4)
    }
    with pytest.raises(ValueError, match="no encoder has numbered layers"):
        layer_factors(names[CNN], 0.5)


@pytest.mark.parametrize("name", [CNN, VIT, "test_convnext"])
def test_weights_from_a_file(name: str, tmp_path: Path, pictures: Tensor) -> None:
    """timm's own files, with the classifier, as .pth and .safetensors."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = timm.create_model(name, pretrained=False, **({"img_size": 64} if name == VIT else {})).eval()
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    expected = make(name).eval()
    assert not torch.equal(expected(pictures), make(name, weights=str(tmp_path / "a.pth")).eval()(pictures))
    expected.net.load_state_dict({key: state[key] for key in expected.net.state_dict()})
    for file in ("a.pth", "a.safetensors"):
        with torch.no_grad():
            found = make(name, weights=str(tmp_path / file)).eval()(pictures)
            assert torch.equal(found, expected(pictures))


def test_positions_follow_the_size_of_the_pictures(tmp_path: Path) -> None:
    torch.save(timm.create_model(VIT, pretrained=False).state_dict(), tmp_path / "a.pth")
    assert make(VIT, weights=str(tmp_path / "a.pth")).net.pos_embed.shape == (1, 17, 64)  # type: ignore[union-attr]


def test_bad_files(tmp_path: Path) -> None:
    state = timm.create_model(CNN, pretrained=False).state_dict()
    contents: dict[str, tuple[Any, str]] = {
        "lacking": ({k: v for k, v in state.items() if "layer4.0.conv1" not in k}, "layer4.0.conv1.weight is missing"),
        "strange": ({**state, "other.weight": torch.zeros(1)}, "other.weight is not in this model"),
        "list": ([1, 2], "expected a state dict"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=f"{name}.pth: .*{message}"):
            make(CNN, weights=str(tmp_path / f"{name}.pth"))
    with pytest.raises(InputError, match="none.pth: no such file; expected the weights of a timm model"):
        make(CNN, weights=str(tmp_path / "none.pth"))


def test_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Tensor) -> None:
    """What timm downloads; without a connection, one line."""
    torch.manual_seed(1)
    state = timm.create_model(CNN, pretrained=False).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: True)
    found = make(CNN, weights="pretrained")
    assert all(torch.equal(value, state[key]) for key, value in found.net.state_dict().items())

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(InputError, match=r"weights of test_resnet cannot be downloaded \(no route\); pass a file"):
        make(CNN, weights="pretrained")
    with pytest.raises(InputError, match="timm has no weights of vit_base_patch16_18x2_224; pass a file, or null"):
        make("vit_base_patch16_18x2_224", weights="pretrained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet51"}, r"model must be one of timm's, got 'resnet51' \(did you mean 'resnet5"),
        ({"model": "qqqqqq"}, r"got 'qqqqqq' \(timm.list_models\(\) has all names\)"),
        ({"model": "resnet50.a1_in1"}, "timm has no weights 'resnet50.a1_in1' .did you mean 'resnet50.a1_in1k'"),
        ({"model": "hf-hub:a/b"}, "model must be one of timm's, got 'hf-hub:a/b'"),
        ({"model": VIT, "image_size": 0}, "image_size must be at least 1, got 0"),
        ({"model": CNN, "context": "last"}, "context must be one of .*, got 'last'"),
        ({"model": CNN, "drop": 1.0}, "drop must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timm(8, weights=None, **arguments)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="crossvit_tiny_240 gives no cells; expected a model with one feature map"):
        TimmBackbone("crossvit_tiny_240", None)
    with pytest.raises(ValueError, match="image_size 50 does not fit test_vit"):
        TimmBackbone(VIT, None, image_size=50)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs the package timm: pip install 'vse-retrieval\[timm\]'"):
        Timm(8, CNN, weights=None)


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "vit_base_patch16_clip_224.openai", "convnext_tiny.fb_in1k"])
def test_preprocessing_is_that_of_timm(name: str) -> None:
    """Pictures and normalisation as timm's own transform for evaluation makes them, up to the rounding to bytes."""
    import numpy as np
    from PIL import Image

    from vse.data.transforms import Pretrained
    from vse.encoders.backbones import Normalise

    steps = read_preprocessing(name)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**data, is_training=False)(picture)
    pixels = Pretrained(size=steps.size, resize=steps.resize, resample=steps.resample).read(picture)  # type: ignore[arg-type]
    found = Normalise((steps.mean, steps.std))(torch.as_tensor(pixels)[None])[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.02


def test_a_size_of_ones_own() -> None:
    steps = read_preprocessing("resnet50.a1_in1k", 64)
    assert (steps.size, steps.resize) == ([64, 64], 67)  # it keeps 95 % of the shorter side


def settings(tmp_path: Path, model: str) -> list[str]:
    return [
        f"data.root={write_pictures(tmp_path / 'data')}",
        *("data.format=karpathy", "data.transform={name: pretrained}", "data.workers=0"),
        f"model.image.encoder={{name: timm, model: {model}, weights: null, image_size: 32}}",
        *("data.vocabulary.min_count=1", "model.embed_dim=8", "model.text.encoder.word_dim=6"),
        *("train.epochs=1", "train.batch_size=16", f"run.dir={tmp_path / 'run'}", "optim.schedule={name: constant}"),
    ]


def test_train_and_load(tmp_path: Path, cli: Any) -> None:
    """A run takes sizes and normalisation from timm; its checkpoint is loaded without the files of weights."""
    import vse

    overrides = settings(tmp_path, VIT)
    config = complete(read_config("vse_infty/f30k_region_bigru", overrides))
    assert config.data.transform is not None and config.data.transform.arguments["size"] == [32, 32]
    outcome = cli("train", "vse_infty/f30k_region_bigru", *overrides, "optim.layer_decay=0.5")
    assert outcome.code == 0, outcome.error
    model = vse.load(tmp_path / "run")
    assert model.encode_images([tmp_path / "data" / "images" / "0.jpg"]).shape == (1, 1, 8)
    architecture = traits_of(model.image.encoder).architecture
    assert architecture is not None and architecture["model"] == VIT


def test_a_wrong_name_in_a_config_is_one_line(tmp_path: Path, cli: Any) -> None:
    outcome = cli("train", "vse_infty/f30k_region_bigru", *settings(tmp_path, "vit_tinny_patch16_224"), "--dry-run")
    assert outcome.code != 0 and "did you mean 'vit_tiny_patch16_224'" in outcome.error
    assert "model.image.encoder: model must be" in outcome.error and "Traceback" not in outcome.error
