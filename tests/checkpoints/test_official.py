"""Official checkpoints and vocabularies beyond the golden models: all parts, what is refused, the command lines."""

import json
import os
import pickle
import sys
import types
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    DIM,
    WORDS,
    Outcome,
    below,
    dive_slots,
    dive_state,
    load_content,
    mlp,
    pvse_state,
    region_states,
    resnet_state,
    save_vse_infty,
    small_bert,
    split_backbone,
    vse_2ad_states,
    words_file,
    write_precomp,
    write_tokenizer,
)
from torch import nn

import vse
from vse.aggregators import GPO, AdaptivePool
from vse.checkpoints.official import native_state
from vse.data.subwords import Subwords
from vse.data.vocabulary import SPECIALS, MissingVocabulary, Vocabulary
from vse.encoders import Bert, Grid, Regions
from vse.errors import InputError
from vse.model import Tower
from vse.sets import lengths_to_mask

Cli = Callable[..., Outcome]
VOCABULARY = os.environ.get("VSE_DIVE_VOCABULARY")


def same(found: nn.Module, expected: Tower, *inputs: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs).embeddings, expected.eval()(*inputs).embeddings)


def bert_tower(model: nn.Module, linear: nn.Linear, aggregator: nn.Module, **arguments: Any) -> Tower:
    architecture = {"model_type": "bert", **model.config.to_diff_dict()}  # type: ignore[operator, union-attr]
    encoder = Bert(DIM, weights=None, architecture=architecture, **arguments)
    own = encoder.bert.state_dict()
    encoder.bert.load_state_dict({key: model.state_dict()[key] for key in own})
    encoder.linear.load_state_dict(linear.state_dict())
    return Tower(encoder, aggregator)


TOKENS = (
    torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0)),
    lengths_to_mask(torch.tensor([7, 4, 2])),
)
PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_vse_infty_grid_and_bert(tmp_path: Path) -> None:
    fc, linear, pools, words = nn.Linear(2048, DIM), nn.Linear(64, DIM), (GPO(), GPO()), small_bert()
    backbone = resnet_state("resnet50")
    image = split_backbone(backbone) | below("image_encoder.fc.", fc) | below("image_encoder.gpool.", pools[0])
    text = below("bert.", words) | below("linear.", linear) | below("gpool.", pools[1])
    text["bert.embeddings.position_ids"] = torch.arange(32)[None]
    options = Namespace(data_name="coco", backbone_source="imagenet_res50", input_scale_factor=2.0)
    model = load_content(tmp_path, {"model": [below("module.", image), below("module.", text)], "opt": options})
    grid = Grid(DIM, "caffe_resnet50")
    grid.backbone.load_state_dict(backbone)
    grid.head.fc.load_state_dict(fc.state_dict())
    same(model.image, Tower(grid, pools[0]), PICTURES)
    same(model.text, bert_tower(words, linear, pools[1]), *TOKENS)
    config: Any = native_state(torch.load(tmp_path / "model_best.pth", weights_only=False))
    assert config["config"]["data"] == {
        "format": "id_mapping",
        "root": "data/coco",
        "transform": {"name": "square", "size": 512, "antialias": False},
    }


def test_the_detector_reads_other_pixels() -> None:
    """A ResNet-101 is the detector's, unless the options say ImageNet's."""
    image, text = region_states()
    grid = below("image_encoder.fc.", nn.Linear(2048, DIM)) | below("image_encoder.gpool.", GPO())
    state = [split_backbone(resnet_state("resnet101")) | grid, text]
    for options, pixels in (({}, "caffe"), ({"backbone_source": "imagenet"}, "imagenet")):
        found: Any = native_state({"model": state, "opt": Namespace(**options)})
        assert found["config"]["model"]["image"]["encoder"]["pixels"] == pixels
    assert found["assumed"] == ["input_scale_factor=2.0", "batch_size=128"]


@pytest.mark.parametrize("image_side", ["grid", "regions"])
def test_vse_2ad_grid_and_bert(tmp_path: Path, image_side: str) -> None:
    """Its grids, and its regions under precomp_enc_type=backbone, carry an MLP that is not used."""
    torch.manual_seed(3)
    width = 2048 if image_side == "grid" else 12
    fc, linear, pools, words = (
        nn.Linear(width, DIM),
        nn.Linear(64, DIM),
        (AdaptivePool(DIM), AdaptivePool(DIM)),
        small_bert(),
    )
    head = below("fc.", fc) | below("mlp.", mlp(width)) | below("pool.", pools[0])
    backbone = resnet_state("resnet50")
    image = split_backbone(backbone) | below("img_proj.", head) if image_side == "grid" else head
    text = below("bert.", words) | below("fc.", linear) | below("pool.", pools[1])
    options = Namespace(data_name="f30k", precomp_enc_type="backbone", backbone_source="imagenet")
    state = below("img_enc.module.", image) | below("txt_enc.module.", text)
    model = load_content(tmp_path, {"model": state, "args": options, "rsum": 1.0})
    if image_side == "grid":
        encoder: Grid | Regions = Grid(DIM, "caffe_resnet50")
        encoder.backbone.load_state_dict(backbone)  # type: ignore[union-attr]
        encoder.head.fc.load_state_dict(fc.state_dict())  # type: ignore[union-attr]
        inputs: Any = (PICTURES,)
    else:
        encoder = Regions(12, DIM, None)
        encoder.fc.load_state_dict(fc.state_dict())
        inputs = (torch.randn(3, 5, 12), lengths_to_mask(torch.tensor([5, 2, 1])))
    same(model.image, Tower(encoder, pools[0]), *inputs)
    same(model.text, bert_tower(words, linear, pools[1]), *TOKENS)


DIVE = {"data_name": "coco", "img_res_pool": "max", "temperature": 16.0, "dropout": 0.1, "spm_activation": "gelu"}


def test_tied_blocks_are_told_by_their_weights() -> None:
    """Or by the option; then the last counts, as when the released code loads them."""
    for shared in (True, False):
        found: Any = native_state({"model": dive_state(shared=shared), "args": Namespace()})
        assert found["config"]["model"]["text"]["aggregator"]["share_weights"] is shared
        assert ("text.aggregator.blocks.1.out.bias" in found["model"]) is not shared
    untied = dive_state(shared=False)
    found = native_state({"model": untied, "args": Namespace(spm_weight_sharing=True)})
    last = untied["txt_enc.spm.agg_block.layers.1.0.fn.to_out.0.bias"]
    assert torch.equal(found["model"]["text.aggregator.blocks.0.out.bias"], last)


def test_what_is_assumed_is_said() -> None:
    """All that neither weights nor options tell; counters of batches, which old files lack, are none of it."""
    state = {key: value for key, value in dive_state().items() if "num_batches" not in key}
    found: Any = native_state({"model": state, "args": Namespace(eval_similarity=None, tensor=torch.zeros(3))})
    names = [item.partition("=")[0] for item in found["assumed"]]
    assert {"data_name", "eval_similarity", "temperature", "batch_size_eval", "spm_txt_pos_enc_type"} <= set(names)
    assert len(names) == len(set(names)) and found["model"]["image.encoder.norm.num_batches_tracked"] == 0
    found = native_state({"model": vse_2ad_states(), "args": Namespace()})
    assert found["assumed"] == ["precomp_enc_type=basic", "batch_size=128"]


@pytest.mark.parametrize(
    ("options", "transform", "grid"),
    [
        ({"gpo_aug": True}, {"name": "square", "size": 512}, [16, 16]),
        ({"gpo_aug": False, "crop_size": 224}, {"name": "crop", "size": 224, "resize": 256}, [7, 7]),
    ],
)
def test_dive_grid_and_bert(tmp_path: Path, options: Any, transform: Any, grid: list[int]) -> None:
    fc, linear, words, backbone = nn.Linear(512, DIM), nn.Linear(64, DIM), small_bert(), resnet_state()
    norm = nn.ModuleDict({"bn": nn.BatchNorm1d(4)})
    head = nn.ModuleDict({"fc1": nn.Linear(DIM, 4), "fc2": nn.Linear(4, DIM), "bn": norm})
    image_slots, image_state = dive_slots(DIM, 2, False, 1, position="sine_2d", grid=grid)
    text_slots, text_state = dive_slots(DIM, 2, False, 2, position="sine")
    image = below("cnn.", backbone) | below("fc.", fc) | below("mlp.", head) | below("spm.", image_state)
    image |= below("spm_fc.", fc) | below("residual_first_fc.", fc)
    text = below("bert.", words) | below("linear.", linear) | below("spm.", text_state)
    choices = {"txt_pooling": "cls", "spm_weight_sharing": False, "spm_1x1": True}
    positions = {"spm_img_pos_enc_type": "sine", "spm_txt_pos_enc_type": "sine"}
    content = {
        "model": below("module.img_enc.", image) | below("module.txt_enc.", text),
        "args": Namespace(**DIVE, **options, **choices, **positions),
    }
    model = load_content(tmp_path, content)
    encoder = Grid(DIM, "resnet18", mlp="projection", context="max")
    encoder.backbone.load_state_dict(backbone)
    ours = {"fc": fc, "hidden": head["fc1"], "out": head["fc2"], "norm": norm["bn"]}
    for name, module in ours.items():
        getattr(encoder.head, name).load_state_dict(module.state_dict())
    side = 32 * grid[0]
    same(model.image, Tower(encoder, image_slots), torch.randn(1, 3, side, side))
    same(model.text, bert_tower(words, linear, text_slots, context="cls"), *TOKENS)
    found = native_state(content)
    assert found is not None and found["config"]["data"]["format"] == "coco"
    assert found["config"]["data"]["transform"] == transform
    assert model.similarity.keywords == {"temperature": 16.0}  # type: ignore[attr-defined]


def test_pvse_options() -> None:
    """Released files are the state dict alone: legacy, K tells the data set. A trained one says what it is."""
    found = native_state(below("module.", pvse_state(video=True, count=5)))
    assert found is not None and found["config"]["data"]["format"] == "mrw"
    assert found["config"]["model"]["text"]["encoder"]["context"] == "last_step"
    assert found["config"]["data"]["transform"]["frames"] == 4 and "legacy=True" in found["assumed"]
    options = Namespace(legacy=False, order=True, data_name="tgif", max_video_length=6, dropout=0.0)
    found = native_state({"model": pvse_state(video=True), "args": options})
    assert found is not None and found["assumed"] == ["batch_size_eval=16"]
    assert found["config"]["model"]["similarity"] == {"name": "order"}
    assert found["config"]["model"]["image"]["encoder"]["context"] == "last"
    assert found["config"]["data"]["transform"] | {"size": 0} == {
        **{"name": "clip", "frames": 6, "size": 0, "resize": 256, "max_skip": 3, "trim": 6}
    }
    found = native_state(pvse_state())
    assert found is not None and found["config"]["data"]["format"] == "coco" and found["in_dim"] is None


class Wants:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_what_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "created"
    image, text = region_states()
    vit = {k: v for k, v in vse_2ad_states().items() if "img_enc.fc" not in k} | below(
        "img_enc.vit_model.", small_bert()
    )
    cut = {k: v for k, v in text.items() if "bias_hh" not in k}
    dive = dive_state()
    cells = below("image_encoder.fc.", nn.Linear(7, DIM)) | {"backbone.base.0.weight": torch.zeros(3)}
    for content, message in (
        (
            {"model": [image, text], "opt": Wants(target)},
            r"it wants to run (posix|nt).system, which is not allowed",
        ),
        (
            {"model": [image, text], "opt": Namespace(x=np.zeros(2))},
            "it wants to run numpy._core.multiarray._reconstruct",
        ),
        ({"model": [{**image, "more.weight": torch.zeros(1)}, text]}, "more.weight: not a parameter of VSE∞'s image"),
        ({"model": [image, cut]}, r"its weights do not fit this config: text.encoder.gru.bias_hh_l0 is missing"),
        (
            {"model": [{**image, "mlp.layers.0.weight": torch.zeros(4, 5)}, text]},
            r"image.encoder.hidden.weight has shape \(4, 5\)",
        ),
        ({"model": [{**image, "fc.weight": torch.zeros(())}, text]}, r"fc.weight has the shape \(\)"),
        ({"model": [image, {"x": torch.zeros(1)}]}, "its text encoder has none of gpool.linear.weight, pool.linear"),
        (
            {"model": [image, {k: v for k, v in text.items() if k != "embed.weight"}]},
            "neither embed.weight .BiGRU. nor",
        ),
        (
            {"model": [image, text], "opt": Namespace(no_imgnorm=True)},
            "its option no_imgnorm is True; this package supports only",
        ),
        (
            {"model": [image, text], "opt": Namespace(data_name=3)},
            "its option data_name is 3; expected a value such as",
        ),
        ({"model": [cells, text]}, "which has 1 tensors, is not one of torchvision's ResNets"),
        ({"model": vit}, "the released ViT path pools .CLS. with the patches and drops patches at random"),
        ({"model": {**vse_2ad_states(), "head.weight": torch.zeros(1)}}, "head.weight: neither img_enc. nor txt_enc."),
        ({"model": dive, "args": Namespace(spm_activation="geglu")}, "its option spm_activation is 'geglu'; this"),
        ({"model": dive, "args": Namespace(txt_pooling="mean")}, "txt_pooling is 'mean'; expected one of rnn, max"),
        ({"model": dive, "args": Namespace(eval_similarity="this:s")}, "eval_similarity is 'this:s'; expected one of"),
        (
            {"model": dive, "args": Namespace(arch="transformer")},
            "its option arch is 'transformer'; this package supports only",
        ),
        ({"model": dive, "args": Namespace(spm_img_pos_enc_type="sine")}, "spm_img_pos_enc_type is 'sine'; this"),
        (
            {"model": pvse_state(), "args": Namespace(crop_size=299)},
            "crop_size is 299; this package supports only 224",
        ),
        ({"model": {}}, r"not a checkpoint of vse or of an official code \(found: model\)"),
    ):
        with pytest.raises(InputError, match=f"model_best.pth: .*{message}"):
            load_content(tmp_path, content)
    assert not target.exists()
    save_vse_infty(tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut.pth: truncated"):
        vse.load(tmp_path / "cut.pth")


def test_files_of_an_old_torch(tmp_path: Path) -> None:
    """PVSE's are from before torch's zip files."""
    image, text = region_states()
    torch.save({"model": [image, text]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": [image, text]}, tmp_path / "new.pth")
    old, new = (vse.load(tmp_path / f"{name}.pth").state_dict() for name in ("old", "new"))
    assert all(torch.equal(old[key], new[key]) for key in new)


def pickled_vocabulary(words: list[str], module: str, protocol: int) -> bytes:
    """As the official codes pickle theirs: an object of a class of their own."""
    home = types.ModuleType(module)
    kind = type("Vocabulary", (), {"__module__": module})
    home.Vocabulary = kind  # type: ignore[attr-defined]
    sys.modules[module] = home
    vocabulary: Any = kind()
    vocabulary.word2idx = {word: i for i, word in enumerate(words)}
    vocabulary.idx2word, vocabulary.idx = dict(enumerate(words)), len(words)
    try:
        return pickle.dumps(vocabulary, protocol)
    finally:
        del sys.modules[module]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", ["vocab", "somewhere"])
def test_pickled_vocabularies(tmp_path: Path, module: str, protocol: int) -> None:
    words = [*SPECIALS[:-1], *WORDS]
    (tmp_path / "v.pkl").write_bytes(pickled_vocabulary(words, module, protocol))
    (tmp_path / "v.json").write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    found = Vocabulary.read(tmp_path / "v.pkl")
    assert found.words == Vocabulary.read(tmp_path / "v.json").words == [*words, "<mask>"]


def test_hostile_vocabularies(tmp_path: Path) -> None:
    target = tmp_path / "created"
    good = pickled_vocabulary([*SPECIALS], "vocab", 2)
    for content, message in (
        (pickle.dumps(Wants(target)), r"it wants to run (posix|nt).system, which is not allowed"),
        (pickle.dumps({"word2idx": Wants(target)}), "it wants to run"),
        (b"\x80\x02cbuiltins\neval\nq\x00.", "it wants to run builtins.eval"),
        (b"\x80\x02ccollections\nOrderedDict\n)R.", "it wants to run collections.OrderedDict"),
        (good[:-9], "cannot be read as a pickled vocabulary"),
        (pickle.dumps([1, 2]), "expected 'word2idx', a mapping"),
        (pickle.dumps({"word2idx": {1: 2}}), "expected 'word2idx', a mapping"),
        (b"\x80\x02cvocab\nVocabulary\n.", "expected 'word2idx', a mapping"),
        (b"\x80\x04Nr\xff\xff\xff\x3f.", "expected 'word2idx'"),  # no table of a billion places
        (pickle.dumps({"word2idx": {"<pad>": 0, "a": 2}}), r"the ids of its 2 words are not 0..1"),
        (b"\x80\x05\x96" + bytes(7) + b"\x01x.", "cannot be read as a pickled vocabulary"),  # of 2**56 bytes
        (b"\x80\x02r\xff\xff\xff\xff.", "cannot be read as a pickled vocabulary"),
    ):
        (tmp_path / "v.pkl").write_bytes(content)
        with pytest.raises(InputError, match=f"v.pkl: .*{message}") as caught:
            Vocabulary.read(tmp_path / "v.pkl")
        assert str(caught.value).count("cannot be read") <= 1
    assert not target.exists()


@pytest.mark.skipif(not VOCABULARY, reason="VSE_DIVE_VOCABULARY, DivE's f30k_butd_vocab.pkl, is not set")
def test_published_pickle() -> None:
    vocabulary = Vocabulary.read(str(VOCABULARY))
    assert len(vocabulary) == 8482 and vocabulary.words[4] == "raining"


def test_a_checkpoint_without_its_vocabulary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Towers work; encode_texts names the file; the file beside the checkpoint is found; a wrong one is told."""
    file = save_vse_infty(tmp_path / "model_best.pth")
    model = vse.load(file)
    assert isinstance(model.vocabulary, MissingVocabulary) and len(model.vocabulary) == 30
    with pytest.raises(
        ValueError, match=r"model_best.pth: came without .* f30k_precomp_vocab.json \(30 rows\); pass it"
    ):
        model.encode_texts(["a dog"])
    tokens = torch.tensor([[1, 6, 7, 2]])
    expected = model.text(tokens).embeddings
    assert model.encode_images([torch.randn(4, 12)]).shape == (1, 1, DIM)
    given = vse.load(file, vocabulary=words_file(tmp_path / "other.json", 29))
    assert torch.equal(given.text(tokens).embeddings, expected)
    torch.testing.assert_close(given.encode_texts([f"{WORDS[2]} {WORDS[3]}"]), expected.detach())  # ids 6 and 7
    words_file(tmp_path / "f30k_precomp_vocab.json", 12)
    capfd.readouterr()
    assert isinstance(vse.load(file).vocabulary, MissingVocabulary)
    assert "f30k_precomp_vocab.json: not used: has 13 words, but" in capfd.readouterr().err
    words_file(tmp_path / "f30k_precomp_vocab.json", 29)
    torch.testing.assert_close(vse.load(file).encode_texts([f"{WORDS[2]} {WORDS[3]}"]), expected.detach())
    for count in (30, 28, 31):
        if count == 30:  # without a row for <mask>, as in PVSE's and DivE's codes: it gets <unk>'s
            table: Any = vse.load(file, vocabulary=words_file(tmp_path / "x.json", count)).text.encoder.embedding
            assert table.weight.shape == (31, 6) and torch.equal(table.weight[30], table.weight[3])
            continue
        with pytest.raises(
            InputError, match=rf"x.json: has {count + 1} words, but the table in .*model_best.pth has 30"
        ):
            vse.load(file, vocabulary=words_file(tmp_path / "x.json", count))


def test_bert_needs_its_tokenizer(tmp_path: Path) -> None:
    _, text = region_states()
    image, _ = region_states()
    text = below("bert.", small_bert()) | below("linear.", nn.Linear(64, DIM)) | below("gpool.", GPO())
    text["bert.embeddings.word_embeddings.weight"] = text["bert.embeddings.word_embeddings.weight"][:72]
    content = {"model": [image, text], "opt": Namespace(data_name="f30k_precomp")}
    model = load_content(tmp_path, content)
    with pytest.raises(ValueError, match="came without its vocabulary, the folder bert-base-uncased of"):
        model.encode_texts(["a dog"])
    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    write_tokenizer(folder, WORDS)
    found = load_content(tmp_path, content)
    assert isinstance(found.vocabulary, Subwords) and found.encode_texts(["a dog"]).shape == (1, 1, DIM)
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other, WORDS[1:])  # ids that mean other words
    with pytest.raises(InputError, match=r"other: has 71 words, but the table in .*model_best.pth has 72 rows"):
        load_content(tmp_path, content, vocabulary=other)


def test_released_padding_depends_on_the_batch(tmp_path: Path) -> None:
    """Captions share a batch as they stand in the list, as in the released code; masked, mates change nothing."""
    content = {"model": vse_2ad_states(), "args": Namespace(data_name="f30k", precomp_enc_type="basic")}
    vocabulary = words_file(tmp_path / "v.json", 29)
    released, masked = (
        load_content(tmp_path, content, vocabulary=vocabulary, padding=p) for p in ("released", "masked")
    )
    texts = [" ".join(WORDS[:n]) for n in (2, 9, 1, 5, 3)]
    ids = [torch.from_numpy(released.vocabulary.encode(text)) for text in texts]  # type: ignore[union-attr]
    batches = [(0, 1), (2, 3), (4,)]
    parts = []
    for batch in batches:
        tokens = nn.utils.rnn.pad_sequence([ids[i] for i in batch], batch_first=True)
        parts.append(released.text(tokens, lengths_to_mask(torch.tensor([len(ids[i]) for i in batch]))).embeddings)
    torch.testing.assert_close(released.encode_texts(texts, batch_size=2), torch.cat(parts))
    alone = torch.cat([masked.encode_texts([text]) for text in texts])
    torch.testing.assert_close(masked.encode_texts(texts, batch_size=2), alone)
    differ = (released.encode_texts(texts, batch_size=2) - alone).abs().amax((1, 2)) > 1e-4
    assert differ.tolist() == [True, False, True, False, False]
    with pytest.raises(InputError, match="padding must be 'masked' or 'released', got 'leaky'"):
        load_content(tmp_path, content, padding="leaky")


def test_command_lines(cli: Cli, tmp_path: Path) -> None:
    """eval.py and convert.py on an official checkpoint; what was converted gives the same and needs no other file."""
    (tmp_path / "official").mkdir()
    data, file = write_precomp(tmp_path / "data"), save_vse_infty(tmp_path / "official" / "model_best.pth")
    outcome = cli("eval", file, f"data.root={data}")
    assert outcome.code == 2 and "came without its vocabulary, f30k_precomp_vocab.json (30 rows)" in outcome.error
    vocabulary = words_file(tmp_path / "words.json", 29)
    results = tmp_path / "a.json"
    first = cli("eval", file, f"data.root={data}", "--vocabulary", vocabulary, "--json", results)
    assert first.code == 0 and "model_best.pth, test: 10 images, 50 captions" in first.out, first.err
    converted = tmp_path / "converted.pt"
    outcome = cli("convert", file, converted, "--vocabulary", vocabulary, f"data.root={data}")
    assert outcome.code == 0 and f"{converted}: written, with 30 words\n" == outcome.out, outcome.err
    words = list(json.loads(vocabulary.read_text())["word2idx"]) + ["<mask>"]
    vocabulary.unlink()
    assert cli("eval", converted, "--json", tmp_path / "b.json").code == 0
    assert json.loads(results.read_text()) == json.loads((tmp_path / "b.json").read_text())
    outcome = cli("convert", file, converted)
    assert outcome.code == 2 and "converted.pt: exists already; expected the name of a new file" in outcome.error
    outcome = cli("eval", converted, file, "--vocabulary", words_file(tmp_path / "v.json", 29), f"data.root={data}")
    assert outcome.code == 0 and outcome.out.count("RSUM") == 3, outcome.err  # of each, and of both
    outcome = cli("eval", converted, "--padding", "released")
    assert outcome.code == 0 and "converted.pt, test: 10 images, 50 captions, released padding" in outcome.out
    for content, message in (
        ({word: i for word, i in zip(words, reversed(range(30)), strict=True)}, "the vocabulary's id 0 must be <pad>"),
        ({word: i for i, word in enumerate([*words[:4], words[5], words[4], *words[6:]])}, "has other words, or other"),
    ):
        shuffled = tmp_path / "shuffled.json"
        shuffled.write_text(json.dumps({"word2idx": content}))
        outcome = cli("eval", converted, "--vocabulary", shuffled)
        assert outcome.code == 2 and message in outcome.error
    empty = tmp_path / "empty.json"
    empty.touch()
    assert cli("eval", converted, "--json", empty).code == 0 and json.loads(empty.read_text())["rsum"]
    bare = tmp_path / "bare.pt"
    outcome = cli("convert", file, bare)
    assert outcome.code == 0 and "30 words that are missing (--vocabulary f30k_precomp_vocab.json)" in outcome.out
    assert isinstance(vse.load(bare).vocabulary, MissingVocabulary)
    for arguments, message in (
        (
            ["--published"],
            "--published: the papers have no numbers for protocol retrieval; expected f30k",
        ),
        (["--cxc", tmp_path], "--cxc is for --protocol cxc, got --protocol retrieval"),
        (
            ["--protocol", "eccv", "--bootstrap", "9"],
            "--bootstrap is for R@K of a corpus's own pairs, not for --protocol eccv",
        ),
        (["--protocol", "eccv"], "protocol eccv is for a split of 5,000 images, this one has 10"),
        (["--protocol", "cxc", "--cxc", tmp_path], "sis_test.csv: no such file, nor sis_test.csv.gz"),
        (["--vocabulary", tmp_path / "none.json"], "none.json: no such file"),
    ):
        outcome = cli("eval", converted, *arguments)
        assert outcome.code == 2 and message in outcome.error, arguments
