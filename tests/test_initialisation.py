"""How every parameter of a shipped config's model starts, beside what the official codes do.

A parameter that is not in a table below fails its test, and so does a line of a table that fits no parameter.

- ``linear``: torch's default of nn.Linear and nn.GRU's neighbours, U(+-1 / sqrt(fan_in)), of a bias too.
- ``xavier``: U(+-sqrt(6 / (fan_in + fan_out))).
- ``gru``: torch's default of nn.GRU, U(+-1 / sqrt(units)).
"""

from pathlib import Path

import pytest
import torch
from distributions import Start, check_parameters, gru, linear, xavier
from helpers import ROOT, WORDS, without_word_vectors
from torch import nn

from vse.build import build_model, read_config
from vse.data.subwords import Subwords
from vse.data.vocabulary import Vocabulary

DIM, WIDTH, WORD_DIM = 64, 96, 50  # of the embeddings, the region features and the word vectors
ZERO: Start = ("constant", 0.0)
ONE: Start = ("constant", 1.0)
NORMAL: Start = ("normal", 1.0)
TENTH: Start = ("uniform", 0.1)
VOCABULARY = Vocabulary.build([" ".join([*WORDS, *(f"word{number}" for number in range(500))])])


def both(prefix: str, start: Start) -> dict[str, Start]:
    """A layer whose weight and bias start alike."""
    return {f"{prefix}.weight": start, f"{prefix}.bias": start}


def projection(fan_in: int, fan_out: int, prefix: str = "fc") -> dict[str, Start]:
    """A Xavier uniform weight with a bias of zero."""
    return {f"{prefix}.weight": xavier(fan_in, fan_out), f"{prefix}.bias": ZERO}


def norm(prefix: str) -> dict[str, Start]:
    """LayerNorm or BatchNorm, torch's default in every code."""
    return {f"{prefix}.weight": ONE, f"{prefix}.bias": ZERO}


def below(prefix: str, starts: dict[str, Start]) -> dict[str, Start]:
    return {f"{prefix}.{name}": start for name, start in starts.items()}


def mlp(fan_in: int) -> dict[str, Start]:
    """Modules/mlp.py of VSE∞ and VSE-2AD, MLP of DivE: torch's defaults."""
    return {**both("hidden", linear(fan_in)), **norm("norm"), **both("out", linear(DIM // 2))}


def bigru(words: Start, units: int = DIM) -> dict[str, Start]:
    return {"embedding.weight": words, **gru(units)}


def gpo() -> dict[str, Start]:
    """VSE∞, gpo.py: torch's defaults."""
    return {**gru(32), "linear.weight": linear(32)}


def adaptive() -> dict[str, Start]:
    """VSE-2AD, adcap.py: init_weights names ``linear`` alone; ``balance`` keeps torch's default."""
    return {**projection(DIM, DIM, "linear"), **both("balance", linear(DIM))}


def pie_net(fan_in: int, count: int = 2) -> dict[str, Start]:
    """PVSE, model.py: init_weights of MultiHeadSelfAttention and PIENet."""
    hidden = fan_in // 2
    attention = {"hidden.weight": xavier(fan_in, hidden), "maps.weight": xavier(hidden, count)}
    return {**attention, **projection(fan_in, DIM), **norm("norm")}


def set_prediction(fan_in: int, inner: int, count: int = 4) -> dict[str, Start]:
    """DivE, agg_block.py and attention.py without --spm_xavier_init: slots N(0, 1), the rest torch's defaults."""
    block: dict[str, Start] = {**norm("norm"), **norm("input_norm"), **norm("ff_norm")}
    block |= {"query.weight": linear(DIM), "key.weight": linear(fan_in), "value.weight": linear(fan_in)}
    block |= {**both("out", linear(inner)), **both("ff.0", linear(DIM)), **both("ff.3", linear(4 * DIM))}
    return {"slots": NORMAL, **below("blocks.0", block), **norm("slot_norm"), **norm("context_norm")}


def tower(encoder: dict[str, Start], aggregator: dict[str, Start]) -> dict[str, Start]:
    return {**below("encoder", encoder), **below("aggregator", aggregator)}


DIVE_INNER = 4 * 16  # heads, and their width made small
REGIONS: dict[str, tuple[dict[str, Start], dict[str, Start]]] = {
    # VSE++, model.py: init_weights of EncoderImagePrecomp (its bias is 0) and EncoderText.
    "vsepp": (tower(projection(WIDTH, DIM), {}), tower(bigru(TENTH), {})),
    # VSE∞, encoders.py: init_weights of EncoderImageAggr and (branch bigru) EncoderText.
    "vse_infty": (
        tower({**projection(WIDTH, DIM), **mlp(WIDTH)}, gpo()),
        tower(bigru(TENTH), gpo()),
    ),
    # VSE-2AD, img_enc.py and txt_enc.py: the same.
    "vse_2ad": (
        tower({**projection(WIDTH, DIM), **mlp(WIDTH)}, adaptive()),
        tower(bigru(TENTH), adaptive()),
    ),
    # PVSE, model.py: EncoderImage.init_weights is never called; the words that GloVe lacks keep nn.Embedding's N(0, 1).
    "pvse": (
        tower(both("fc", linear(WIDTH)), pie_net(WIDTH)),
        tower(bigru(NORMAL, DIM // 2), pie_net(WORD_DIM)),
    ),
    # DivE, model_spm.py: EncoderImage.init_weights needs --spm_xavier_init; words as in PVSE.
    "dive": (
        tower({**both("fc", linear(WIDTH)), **mlp(DIM)}, set_prediction(DIM, DIVE_INNER)),
        tower(bigru(NORMAL), set_prediction(WORD_DIM, DIVE_INNER)),
    ),
}


def attention() -> dict[str, Start]:
    """CHAN, modules.py: torch's defaults of nn.MultiheadAttention, whose three maps are one Xavier matrix."""
    return {
        "attention.in_proj_weight": xavier(DIM, 3 * DIM),
        "attention.in_proj_bias": ZERO,
        "attention.out_proj.weight": linear(DIM),
        "attention.out_proj.bias": ZERO,
    }


# ESA, encoders.py: init_weights of EncoderImageAggr names fc and linear1; EncoderText's linear1 keeps torch's default.
REGIONS["esa"] = (
    tower({**projection(WIDTH, DIM), **mlp(WIDTH)}, {"linear.weight": xavier(DIM, DIM)}),
    tower(bigru(NORMAL), {"linear.weight": linear(DIM)}),
)
# CHAN, encoders.py: init_weights of EncoderImagePrecomp names fc; words that GloVe lacks keep nn.Embedding's N(0, 1).
REGIONS["chan"] = (
    tower({**projection(WIDTH, DIM), **norm("attention_norm"), **attention()}, {}),
    tower(bigru(NORMAL), {}),
)


@pytest.mark.parametrize("system", REGIONS)
def test_regions_and_bigru(system: str) -> None:
    check_towers(dict(build(f"{system}/f30k_region_bigru").named_parameters()), *REGIONS[system])


GLOROT = xavier(len(VOCABULARY), WORD_DIM)


@pytest.mark.parametrize(("system", "words"), [("pvse", GLOROT), ("dive", TENTH), ("chan", GLOROT)])
def test_words_without_glove(system: str, words: Start) -> None:
    """What the comments of the configs give for running without GloVe is what the codes do without it."""
    word_init = {"pvse": "xavier", "dive": "uniform", "chan": "xavier"}[system]
    image, text = REGIONS[system]
    model = build(f"{system}/f30k_region_bigru", [f"model.text.encoder.word_init={word_init}"])
    check_towers(dict(model.named_parameters()), image, {**text, "encoder.embedding.weight": words})


GRIDS: dict[str, tuple[dict[str, Start], dict[str, Start]]] = {
    # VSE∞, encoders.py: EncoderImageAggr.init_weights; EncoderText.linear keeps torch's default.
    "vse_infty/coco_grid_wsl_bert": (
        tower(below("head", projection(512, DIM)), gpo()),
        tower(both("linear", linear(16)), gpo()),
    ),
    # VSE-2AD, img_enc.py: EncoderImage_ProjFeature.init_weights; txt_enc.py: EncoderText_BERT.fc keeps torch's default.
    "vse_2ad/f30k_vit_bert": (
        tower(below("head", projection(16, DIM)), adaptive()),
        tower(both("linear", linear(16)), adaptive()),
    ),
    # DivE, model_spm.py: all torch's defaults.
    "dive/coco_resnext_bert": (
        tower(below("head", both("fc", linear(512))), set_prediction(DIM, 8 * 16)),
        tower(both("linear", linear(16)), set_prediction(DIM, 8 * 16)),
    ),
    # PVSE, model.py: as for regions.
    "pvse/coco_resnet152_bigru": (
        tower(below("head", both("fc", linear(512))), pie_net(512)),
        tower(bigru(NORMAL, DIM // 2), pie_net(WORD_DIM)),
    ),
    # PVSE, model.py, EncoderVideo: the GRU keeps torch's default.
    "pvse/tgif": (
        tower(gru(DIM // 2), pie_net(512, 3)),
        tower(bigru(NORMAL, DIM // 2), pie_net(WORD_DIM, 3)),
    ),
}


def test_esa_with_bert(tiny_bert: Path) -> None:
    """ESA_BERT, encoders.py: init_weights names linear and linear1 on both sides."""
    model = build("esa/f30k_region_bert", [], tiny_bert)
    heads = {key: value for key, value in model.named_parameters() if not key.startswith("text.encoder.bert.")}
    pool = {"linear.weight": xavier(DIM, DIM)}
    check_towers(heads, REGIONS["esa"][0], tower(projection(16, DIM, "linear"), pool))


@pytest.mark.parametrize("name", GRIDS)
def test_heads_of_backbones(name: str, tiny_bert: Path, tiny_vit: Path) -> None:
    """What stands on a pretrained backbone; the backbone itself starts from its weights."""
    settings = [f"model.image.encoder.backbone={tiny_vit}"]
    if "vit" not in name:
        settings = ["model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null"]
    model = build(name, settings, tiny_bert)
    pretrained = ("image.encoder.backbone.", "text.encoder.bert.")
    heads = {key: value for key, value in model.named_parameters() if not key.startswith(pretrained)}
    check_towers(heads, *GRIDS[name])


def build(name: str, settings: list[str] | None = None, tiny_bert: Path | None = None) -> nn.Module:
    """The model of a shipped config, with narrow embeddings and words."""
    torch.manual_seed(0)
    file = ROOT / "configs" / f"{name}.yaml"
    config = read_config(file)
    small = [f"model.embed_dim={DIM}", *without_word_vectors(file), *(settings or [])]
    for side in ("image", "text"):
        if getattr(config.model, side).aggregator.name == "set_prediction":
            small.append(f"model.{side}.aggregator.head_dim=16")
    vocabulary: Vocabulary | Subwords = VOCABULARY
    if config.model.text.encoder.name == "bert":
        small.append(f"model.text.encoder.model={tiny_bert}")
        vocabulary = Subwords.read(str(tiny_bert))
    else:
        small.append(f"model.text.encoder.word_dim={WORD_DIM}")
    in_dim = WIDTH if config.model.image.encoder.name == "regions" else None
    return build_model(read_config(file, small), in_dim, vocabulary)


def check_towers(parameters: dict[str, nn.Parameter], image: dict[str, Start], text: dict[str, Start]) -> None:
    check_parameters(parameters, {**below("image", image), **below("text", text)})
