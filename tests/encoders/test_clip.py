"""The halves of CLIP, SigLIP and their kin: their results are those of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_clip
from torch import Tensor

from vse.encoders import Clip
from vse.errors import InputError

KINDS = ["clip", "siglip", "chinese_clip", "metaclip_2"]
PICTURES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[2, 7, 30, 3, 55, 66, 77], [2, 8, 9, 21, 40, 41, 3]])
MASK = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp(request.param), request.param)


def library(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


def halves(folder: Path, **arguments: Any) -> tuple[Clip, Clip]:
    image, text = (Clip(side, str(folder), **arguments).eval() for side in ("image", "text"))  # type: ignore[arg-type]
    return image, text


def library_logits(folder: Path) -> Tensor:
    """The scores of the library's own model, its captions filled as its tokenizer fills them."""
    model = library(folder)
    ids, attention = TOKENS.masked_fill(~MASK, 0), MASK.long()
    if model.config.model_type == "siglip":  # filled to its 24 positions, without a mask
        return model(torch.nn.functional.pad(ids, (0, 17)), PICTURES).logits_per_image  # type: ignore[no-any-return]
    return model(ids, PICTURES, attention).logits_per_image  # type: ignore[no-any-return]


@torch.no_grad()
def test_contexts_give_the_librarys_scores(folder: Path) -> None:
    image, text = halves(folder)
    pictures, captions = image(PICTURES).context, text(TOKENS, MASK).context
    assert pictures is not None and captions is not None
    cosines = torch.nn.functional.cosine_similarity(pictures[:, None], captions[None], dim=-1)
    expected = library_logits(folder)
    assert expected.std() > 0.1
    torch.testing.assert_close(cosines * image.logit_scale + image.logit_bias, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("features", ["projected", "raw"])
def test_features_are_the_librarys_hidden_states(folder: Path, features: str) -> None:
    image, text = halves(folder, features=features)
    model = library(folder)
    patches = model.vision_model(pixel_values=PICTURES).last_hidden_state
    ids = TOKENS[1:]  # without padding
    if image.kind == "siglip":
        words = model.text_model(torch.nn.functional.pad(ids, (0, 17))).last_hidden_state[:, :7]
        words = model.text_model.head(words) if features == "projected" else words
    else:
        patches, words = patches[:, 1:], model.text_model(ids).last_hidden_state
        if features == "projected":
            patches = model.visual_projection(model.vision_model.post_layernorm(patches))
            words = model.text_projection(words)
    torch.testing.assert_close(image(PICTURES).features, patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(text(ids).features, words, atol=1e-5, rtol=0)
    assert (image.dim, text.dim) == (patches.shape[2], words.shape[2])


@torch.no_grad()
def test_padding_and_the_batch_do_not_matter(folder: Path) -> None:
    _, text = halves(folder)
    together, alone = text(TOKENS, MASK), text(TOKENS[:1, :4])
    other = text(TOKENS.masked_fill(~MASK, 5), MASK)
    for part in (0, 2):
        a, b, c = together[part], alone[part], other[part]
        a, c = (a[:1, :4], c[:1, :4]) if part == 0 else (a[:1], c[:1])
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(a, c, atol=0, rtol=0)


def test_every_parameter_is_used_and_none_of_the_other_half_is_kept(folder: Path) -> None:
    for context in ("pooled", None):
        for encoder, inputs in zip(halves(folder, context=context), ((PICTURES,), (TOKENS, MASK)), strict=True):
            found = encoder(*inputs)
            parts = found.features.sum() + (0 if found.context is None else found.context.sum())
            gradients = torch.autograd.grad(parts, list(encoder.parameters()), allow_unused=True)
            assert gradients and all(gradient is not None for gradient in gradients)
            other = "text_model" if encoder.side == "image" else "vision_model"
            assert not any(other in name for name, _ in encoder.named_parameters())


@torch.no_grad()
def test_an_architecture_needs_no_folder(folder: Path) -> None:
    for encoder, inputs in zip(halves(folder), ((PICTURES,), (TOKENS, MASK)), strict=True):
        plain = json.loads(json.dumps(encoder.architecture))
        again = Clip(encoder.side, "/nowhere", None, architecture=plain).eval()
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again(*inputs).context, encoder(*inputs).context)
        assert (again.logit_scale, again.logit_bias) == (encoder.logit_scale, encoder.logit_bias)


def test_what_a_half_says_of_itself(folder: Path) -> None:
    image, text = halves(folder)
    assert image.reads == ("pictures",) and text.reads == ("subwords",)
    for encoder, inputs in ((image, (PICTURES,)), (text, (TOKENS, MASK))):
        found = encoder(*inputs)
        assert (encoder.dim, encoder.context_dim) == (found.features.shape[2], found.context.shape[1])
    assert [encoder.context_dim for encoder in halves(folder, context=None)] == [None, None]


def test_cls_is_the_first_element(tiny_clip: Path, tiny_siglip: Path) -> None:
    plain, image = Clip("image", str(tiny_clip)), Clip("image", str(tiny_clip), cls=True)
    found = image(PICTURES)
    assert found.features.shape == (3, 17, 16) and torch.equal(found.features[:, 1:], plain(PICTURES).features)
    torch.testing.assert_close(found.features[:, 0], found.context)
    with pytest.raises(ValueError, match="cls is for the .CLS. token of a picture; siglip has none in its image half"):
        Clip("image", str(tiny_siglip), cls=True)


def test_recompute_changes_no_gradient(tiny_clip: Path) -> None:
    for side, inputs in (("image", (PICTURES,)), ("text", (TOKENS, MASK))):
        grads = []
        for recompute in (False, True):
            encoder = Clip(side, str(tiny_clip), recompute=recompute).train()  # type: ignore[arg-type]
            assert any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules()) == recompute
            encoder(*inputs).context.square().sum().backward()
            grads.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
        for name, grad in grads[0].items():
            torch.testing.assert_close(grad, grads[1][name])


def test_lora_starts_as_the_model_and_trains_little(folder: Path) -> None:
    pytest.importorskip("peft")
    for plain, encoder in zip(halves(folder), halves(folder, lora=2), strict=True):
        inputs = (PICTURES,) if plain.side == "image" else (TOKENS, MASK)
        torch.testing.assert_close(encoder(*inputs).context, plain(*inputs).context, atol=1e-6, rtol=1e-5)
        trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)  # layers, q and v, A and B


def test_bytes_are_normalised_as_the_model_says(tiny_clip: Path) -> None:
    from transformers import CLIPImageProcessorPil

    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = CLIPImageProcessorPil.from_pretrained(tiny_clip)(list(pictures.numpy()), return_tensors="pt")
    image = Clip("image", str(tiny_clip))
    torch.testing.assert_close(image.normalise(pictures), expected["pixel_values"], atol=1e-5, rtol=0)


def test_mistakes(tiny_clip: Path, tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="side must be one of .*, got 'left'"):
        Clip("left", str(tiny_clip))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features must be projected or raw, got 'all'|features must be"):
        Clip("image", str(tiny_clip), features="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its tokenizer has 91 tokens, but the model knows 90"):
        Clip("text", str(tiny_clip), vocab_size=91)
    with pytest.raises(ValueError, match="tokens must be at most 24 for this text model, got 25"):
        Clip("text", str(tiny_clip))(torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="a batch of pictures takes no mask"):
        Clip("image", str(tiny_clip))(PICTURES, torch.ones(3, 16, dtype=torch.bool))
    with pytest.raises(InputError, match="bert is not a two-tower model that this encoder knows: clip, metaclip_2"):
        Clip("text", str(tiny_bert))
    with pytest.raises(InputError, match="openai/clip-vit-base-patch32: not a folder, nor a model"):
        Clip("text")


@pytest.mark.parametrize("damaged", [{}, {"model": None}, {"model": {"model_type": "clip", "text_config": 1}}])
def test_a_damaged_architecture_is_one_line(damaged: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the checkpoint's architecture"):
        Clip("text", "", None, architecture=damaged)


@pytest.mark.parametrize("kind", ["blip", "clip_text_model", None])
def test_a_hostile_architecture_makes_only_known_models(kind: str | None) -> None:
    architecture = {"model": {"model_type": kind, "auto_map": {"AutoModel": "/tmp--evil.Model"}}}
    with pytest.raises(InputError, match="is not a two-tower model that this encoder knows"):
        Clip("text", "", None, architecture=architecture)
