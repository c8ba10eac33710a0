"""The bert encoder, its tokenizer, and runs that use them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import check_module, linear, xavier
from helpers import ROOT, SMALL, Outcome, write_tokenizer, write_transformer
from torch import Tensor

import vse
from vse.checkpoints.native import load_checkpoint
from vse.data.subwords import Subwords
from vse.encoders import Bert
from vse.errors import InputError
from vse.sets import lengths_to_mask

Cli = Callable[..., Outcome]


def encoder(folder: Path, **options: Any) -> Bert:
    torch.manual_seed(0)
    return Bert(dim=8, model=str(folder), **options).eval()


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 3, 1])
    return torch.randint(5, 80, (3, 7), generator=torch.Generator().manual_seed(0)), lengths_to_mask(lengths)


def test_published_weights(tiny_bert: Path, tokens: tuple[Tensor, Tensor]) -> None:
    """The hidden states are those of the library's own model on each caption alone, through the projection."""
    from transformers import AutoModel

    ids, mask = tokens
    bert = encoder(tiny_bert)
    found = bert(ids, mask)
    assert found.mask is mask and found.context is None and bert.context_dim is None
    features = found.features
    reference = AutoModel.from_pretrained(tiny_bert).eval()
    for row, length in enumerate(mask.sum(1)):
        with torch.no_grad():
            expected = bert.linear(reference(input_ids=ids[row : row + 1, :length]).last_hidden_state[0])
        torch.testing.assert_close(features[row, :length], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", ["cls", "max", "mean"])
def test_padding_changes_nothing(tiny_bert: Path, tokens: tuple[Tensor, Tensor], context: Any) -> None:
    ids, mask = tokens
    bert = encoder(tiny_bert, context=context)
    result, garbage = bert(ids, mask), bert(ids.masked_fill(~mask, -1), mask)
    assert result.context is not None and garbage.context is not None
    assert result.mask is mask and bert.context_dim == result.context.shape[1] == 8
    assert torch.equal(result.context, garbage.context)
    for row, length in enumerate(mask.sum(1)):
        alone = bert(ids[row : row + 1, :length])
        torch.testing.assert_close(result.features[row, :length], alone.features[0], atol=1e-5, rtol=0)
        twin = {"cls": lambda v: v[0], "max": lambda v: v.max(0).values, "mean": lambda v: v.mean(0)}[context]
        torch.testing.assert_close(result.context[row], twin(alone.features[0]), atol=1e-5, rtol=0)


def test_the_folder_decides_neither_precision_nor_attention(tiny_bert: Path, tmp_path: Path) -> None:
    """A half-precision folder is a full-precision model, the same as what a checkpoint builds again."""
    from transformers import AutoModel

    folder = shutil.copytree(tiny_bert, tmp_path / "half")
    AutoModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager", "return_dict": False}))
    bert = encoder(folder)
    assert {p.dtype for p in bert.parameters()} == {torch.float32}
    again = Bert(8, weights=None, architecture=json.loads(json.dumps(bert.architecture))).eval()
    again.load_state_dict(bert.state_dict())
    ids = torch.tensor([[2, 7, 9, 3]])
    assert torch.equal(again(ids).features, bert(ids).features)
    assert again.bert.config._attn_implementation == bert.bert.config._attn_implementation  # type: ignore[union-attr]


def test_dropout_acts_on_features_and_context(tiny_bert: Path) -> None:
    bert = encoder(tiny_bert, dropout=0.5, context="mean").train()
    bert.bert.eval()
    result = bert(torch.full((50, 4), 7))
    assert abs((result.features == 0).float().mean() - 0.5) < 0.1
    assert result.context is not None
    torch.testing.assert_close(result.context, result.features.mean(1))


def test_every_parameter_is_used(tiny_bert: Path, tokens: tuple[Tensor, Tensor]) -> None:
    bert = encoder(tiny_bert).train()
    bert(*tokens).features.sum().backward()
    assert not [name for name, p in bert.named_parameters() if p.grad is None]


TEXT_MODELS = ["Roberta", "MPNet", "Longformer", "DistilBert", "Electra", "CLIPText", "CLIP", "ModernBert", "XLNet"]


@pytest.mark.parametrize("kind", [f"{name}Config" for name in TEXT_MODELS])
def test_other_text_models(kind: str, tmp_path: Path, tokens: tuple[Tensor, Tensor]) -> None:
    """They load, use all their parameters, and take captions up to their length and no longer."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 80, "max_position_embeddings": 20, **SMALL}
    if kind == "LongformerConfig":
        sizes["attention_window"] = 4
    if kind == "XLNetConfig":
        sizes = {"vocab_size": 80, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
    if kind == "DistilBertConfig":
        sizes = {"vocab_size": 80, "max_position_embeddings": 20, "dim": 16, "n_layers": 2, "n_heads": 2}
    if kind.startswith(("CLIP", "Modern")):
        sizes |= {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    both = {"text_config": sizes, "vision_config": {**SMALL, "image_size": 32, "patch_size": 8}}
    torch.manual_seed(0)
    folder = write_transformer(
        tmp_path / "model", getattr(transformers, kind)(**(both if kind == "CLIPConfig" else sizes)), True
    )
    bert = encoder(folder).train()
    bert(*tokens).features.sum().backward()
    assert not [name for name, p in bert.named_parameters() if p.grad is None]
    longest = bert.max_length
    if kind == "XLNetConfig":
        assert longest is None
        return
    assert longest == (18 if kind in ("RobertaConfig", "MPNetConfig", "LongformerConfig") else 20)
    assert bert(torch.full((1, longest), 7)).features.shape == (1, longest, 8)
    with pytest.raises(ValueError, match=f"tokens must be at most {longest} for this text model, got {longest + 1}"):
        bert(torch.full((1, longest + 1), 7))
    pytest.importorskip("peft")
    assert any("lora_" in name for name, p in encoder(folder, lora=2).named_parameters() if p.requires_grad)


def test_a_tokenizer_may_have_as_many_tokens_as_the_model_knows(tiny_bert: Path) -> None:
    assert Bert(dim=8, model=str(tiny_bert), vocab_size=90).architecture["vocab_size"] == 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": 1.0}, r"drop must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"context": "min"}, "context must be one of .*, got 'min'"),
        ({"vocab_size": 91}, "its tokenizer has 91 tokens, but the model knows 90"),
        ({"model": "VIT"}, "vit is not a text model: it takes no input_ids"),
        ({"model": "/nowhere/bert"}, "/nowhere/bert: no such folder; expected one with a model of transformers"),
        ({"model": "bert-of-nobody"}, "bert-of-nobody: not a folder, nor a model that can be downloaded"),
    ],
)
def test_bad_arguments(tiny_bert: Path, tiny_vit: Path, arguments: dict[str, Any], message: str) -> None:
    if arguments.get("model") == "VIT":
        arguments = {"model": str(tiny_vit)}
    with pytest.raises(ValueError, match=message):
        Bert(dim=8, **{"model": str(tiny_bert), **arguments})


def test_bad_tokens(tiny_bert: Path) -> None:
    bert = encoder(tiny_bert)
    with pytest.raises(ValueError, match="tokens must be a non-empty .* tensor of ids, got torch.float32"):
        bert(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="sample 1"):
        bert(torch.ones(2, 3, dtype=torch.long), lengths_to_mask(torch.tensor([2, 0]), 3))


@pytest.fixture
def run(tiny: list[str], tiny_bert: Path, tmp_path: Path) -> list[str]:
    """Config and overrides of a run with a copy of the small BERT."""
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    settings = [s for s in tiny[1:] if "word_dim" not in s]
    config = ROOT / "configs" / "vse_infty" / "f30k_region_bert.yaml"
    return [str(config), *settings, f"model.text.encoder.model={folder}", "optim.factors={text.encoder.bert: 0.5}"]


def test_a_run_needs_the_folder_only_to_start(run: list[str], cli: Cli, tmp_path: Path) -> None:
    """Training, going on, evaluation and loading; the checkpoint holds tokenizer and architecture."""
    outcome = cli("train", *run, "train.epochs=1")
    assert outcome.code == 0, outcome.err
    assert cli("train", *run, "train.epochs=1", "model.text.encoder.model=/moved/elsewhere").code == 0
    model = vse.load(tmp_path / "run")
    with (tmp_path / "bert" / "config.json").open() as file:
        assert {"transformers_version", "dtype"} <= set(json.load(file))
    before = model.encode_texts(["a red dog", "snowy cats fly"])
    shutil.rmtree(tmp_path / "bert")
    assert "going on with epoch 2" in cli("train", *run).out
    assert cli("eval", tmp_path / "run").code == 0
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["architectures"]["text"]["model_type"] == "bert" and "image" not in state["architectures"]
    assert not {"_name_or_path", "transformers_version", "dtype", "id2label"} & set(state["architectures"]["text"])
    assert str(tmp_path) not in json.dumps(state["architectures"]) + state["vocabulary"]["content"]
    again = vse.load(tmp_path / "run" / "last.pt").encode_texts(["a red dog", "snowy cats fly"])
    assert before.shape == again.shape == (2, 1, 8) and not torch.equal(before, again)
    groups = {group["initial_lr"] for group in state["optimiser"]["param_groups"]}
    assert groups == {5e-4, 2.5e-4}


def test_going_on_is_the_same_to_the_bit(run: list[str], cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *run).code == 0
    whole = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    parts = [*run, f"run.dir={tmp_path / 'parts'}"]
    assert cli("train", *parts, "train.epochs=1").code == 0 and cli("train", *parts).code == 0
    resumed = load_checkpoint(tmp_path / "parts" / "last.pt")["model"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_another_vocabulary(run: list[str], cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *run, "train.epochs=1").code == 0
    for texts, message in (
        ([None], "caption 0 must be a string, got NoneType"),
        (["a", "b \ud83d"], "caption 1 is not valid text: 'b"),
        (b"a dog", "texts must be a string or a list of strings, got bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            vse.load(tmp_path / "run").encode_texts(texts)  # type: ignore[arg-type]
    assert len(vse.load(tmp_path / "run").encode_texts(text for text in ("a", "b"))) == 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match="more: has 156 words, but the table in .*best.pt has 72 rows"):
        folder = shutil.copytree(tmp_path / "bert", tmp_path / "more")
        vse.load(tmp_path / "run", vocabulary=write_tokenizer(Path(folder), [f"word{i}" for i in range(99)]))
    same = vse.load(tmp_path / "run", vocabulary=tmp_path / "bert")
    assert torch.equal(same.encode_texts(["a dog"]), vse.load(tmp_path / "run").encode_texts(["a dog"]))


def test_mistakes_are_one_line(run: list[str], cli: Cli, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    nowhere = cli("train", *run, f"model.text.encoder.model={tmp_path}/none")
    assert nowhere.code == 2 and f"model.text.encoder.model: {tmp_path}/none: no such folder" in nowhere.error
    vocabulary = cli("train", *run, "data.vocabulary.file=words.json")
    assert "data.vocabulary.file: bert has its own vocabulary; got words.json" in vocabulary.error
    vectors = cli("train", *run, "data.vocabulary.vectors=glove.txt")
    assert "data.vocabulary.vectors: bert has no table of words to fill" in vectors.error
    picture = cli("train", *run, "model.image.encoder={name: bert}")
    assert "bert reads subwords, but" in picture.error
    filled = cli("train", *run, "model.text.encoder.architecture={model_type: bert}")
    assert "model.text.encoder.architecture: is filled in and cannot be set" in filled.error
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "bert" / "tokenizer.json"), pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "bert")
    mask = cli("train", *run)
    assert "model.text.encoder.drop: the tokenizer of" in mask.error and "has no mask token" in mask.error
    assert cli("train", *run, "model.text.encoder.drop=0", "--dry-run").code == 0


def test_a_hostile_checkpoint_fetches_and_runs_nothing(
    run: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", *run, "train.epochs=1").code == 0
    file = tmp_path / "run" / "best.pt"
    state = torch.load(file, weights_only=True)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    hostile = {
        "auto_map": {"AutoModel": f"{tmp_path}--evil.Model", "AutoConfig": f"{tmp_path}--evil.Config"},
        "attn_implementation": "nobody/kernels",
        "_attn_implementation": "nobody/kernels",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    state["architectures"]["text"] |= hostile
    torch.save(state, file)
    encoder: Any = vse.load(file).text.encoder
    assert encoder.bert.config._attn_implementation == "sdpa"

    readers = [f"transformers.{name}.from_pretrained" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked for a folder, the hub, or the user's consent")

    for place in (*readers, "builtins.input"):
        monkeypatch.setattr(place, refuse)
    nested: dict[str, Any] = {"auto_map": {"AutoModel": f"{tmp_path}--evil.Model"}}
    for architecture in (
        {"model_type": "blip", "text_config": nested},
        {"model_type": "dpt", "backbone": "evil/repo", "use_timm_backbone": False},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/repo"},
        nested,
        None,  # none at all
        {"model_type": "no such"},
        {"model_type": "bert", "hidden_size": "wide"},
    ):
        state["architectures"] = {} if architecture is None else {"text": architecture}
        torch.save(state, file)
        with pytest.raises(InputError, match="the checkpoint's architecture: cannot be read as a model of tr"):
            vse.load(file)
    state["vocabulary"]["content"] = "{}"
    torch.save(state, file)
    with pytest.raises(InputError, match="the checkpoint's vocabulary: not a tokenizer's JSON"):
        vse.load(file)


def test_a_tokenizer_without_words_cannot_drop_them(run: list[str], cli: Cli, tmp_path: Path) -> None:
    """One word for the whole caption: augmentation would remove everything or nothing."""
    file = tmp_path / "bert" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False}
    file.write_text(json.dumps(content))
    assert "has no notion of words; expected 0, got 0.2" in cli("train", *run).error


def test_ids_beyond_the_count_of_pieces(tiny_bert: Path, tmp_path: Path) -> None:
    """A hole in the ids: the highest decides what a model must know, and no hole is drawn."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "holes"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    pieces = Subwords.read(str(folder))
    assert len(pieces) == 5001 and 5000 in pieces.plain and 4999 not in pieces.plain
    with pytest.raises(ValueError, match="its tokenizer has 5001 tokens, but the model knows 90"):
        encoder(folder, vocab_size=len(pieces))


def test_the_projection_starts_as_torch_has_it(tiny_bert: Path) -> None:
    """In VSE∞, VSE-2AD and DivE alike; ESA has Xavier's."""
    torch.manual_seed(0)
    bert = Bert(dim=600, model=str(tiny_bert))
    check_module(bert.linear, {"weight": linear(16), "bias": linear(16)})
    bert = Bert(dim=600, model=str(tiny_bert), init="xavier")
    check_module(bert.linear, {"weight": xavier(16, 600), "bias": ("constant", 0.0)})


def test_the_models_own_dropout_acts_in_training(tiny_bert: Path) -> None:
    """Also in a model that a checkpoint's architecture describes: the papers fine-tune BERT with it."""
    torch.manual_seed(0)
    tokens = torch.full((2, 5), 7)
    bert = encoder(tiny_bert)
    for model in (bert, Bert(8, weights=None, architecture=json.loads(json.dumps(bert.architecture)))):
        assert torch.equal(model.eval()(tokens).features, model(tokens).features)
        assert not torch.equal(model.train()(tokens).features, model(tokens).features)


def test_recompute_changes_no_gradient(tiny_bert: Path) -> None:
    tokens, gradients = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 3]]), []
    for recompute in (False, True):
        torch.manual_seed(1)
        encoder = Bert(8, model=str(tiny_bert), recompute=recompute).train()
        assert any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules()) == recompute
        torch.manual_seed(2)  # dropout
        encoder(tokens).features.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_lora_starts_as_the_model_and_trains_little(tiny_bert: Path, tokens: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("peft")
    plain, adapted = encoder(tiny_bert), encoder(tiny_bert, lora=2)
    adapted.linear.load_state_dict(plain.linear.state_dict())
    torch.testing.assert_close(adapted(*tokens).features, plain(*tokens).features, atol=1e-6, rtol=1e-5)
    trained = {name: parameter.shape for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    low_rank = {name: shape for name, shape in trained.items() if "lora_" in name}
    assert trained.keys() - low_rank.keys() == {"linear.weight", "linear.bias"}
    assert len(low_rank) == 2 * 2 * 2 and all(2 in shape for shape in low_rank.values())  # layers, q and v, A and B


def test_lora_needs_layers_that_it_knows(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from transformers import XLNetConfig

    config = XLNetConfig(vocab_size=80, d_model=16, n_layer=2, n_head=2, d_inner=24)
    with pytest.raises(ValueError, match="lora: xlnet has no linear layers of these names: Wqkv, q, .*query"):
        encoder(write_transformer(tmp_path / "model", config, True), lora=2)


def test_a_run_with_lora(run: list[str], cli: Cli, tmp_path: Path) -> None:
    """The pretrained weights stay, and evaluation and going on build the low-rank updates again."""
    pytest.importorskip("peft")
    published = Bert(8, model=str(tmp_path / "bert")).bert.state_dict()
    settings = [*run, "model.text.encoder.lora=2"]
    assert cli("train", *settings, "train.epochs=1").code == 0
    assert cli("train", *settings).code == 0 and cli("eval", tmp_path / "run").code == 0
    trained = load_checkpoint(tmp_path / "run" / "last.pt")["model"]
    updates = [name for name in trained if "lora_B" in name]
    assert len(updates) == 2 * 2 and all(trained[name].any() for name in updates)
    for name, value in published.items():
        kept = [key for key in trained if key.replace(".base_layer", "").endswith(f"bert.{name}")]
        assert len(kept) == 1 and torch.equal(trained[kept[0]], value)
