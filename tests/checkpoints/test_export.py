"""Exported models: what `vse export` writes, that `vse.load` reads the same model from it, also from the hub."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, Outcome, save_vse_infty, words_file, write_pictures, write_precomp
from PIL import Image
from safetensors.torch import load_file, save_file

import vse
from vse.build import build_model, build_vocabulary, read_config
from vse.checkpoints.load import load_model
from vse.checkpoints.native import evaluation_state, load_checkpoint, save_checkpoint
from vse.data.formats import FORMATS
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary
from vse.errors import InputError
from vse.sharing.card import model_card
from vse.sharing.export import export
from vse.sharing.papers import PAPERS, papers_of

Cli = Callable[..., Outcome]
MakeRun = Callable[..., Path]
TEXTS = ["red dog runs", "a green cat", "two blue birds sit beside the water"]
FILES = {"README.md", "config.json", "model.safetensors"}


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_same_model(exported: Path, run: str | Path, images: list[Any]) -> None:
    """Every embedding, to the bit."""
    expected, found = vse.load(run), vse.load(exported)
    assert not found.training
    assert torch.equal(found.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    assert torch.equal(found.encode_images(images), expected.encode_images(images))


@pytest.fixture(scope="module")
def exported(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that no test changes."""
    folder = tmp_path_factory.mktemp("shared") / "my_model"
    export(make_run(), folder)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.parametrize("system", ["vse_infty", "dive", "chan"])
def test_words_and_regions(system: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(system)
    export(run, tmp_path / "out" / "model")
    assert names_in(tmp_path / "out") == {f"model/{name}" for name in FILES}
    expected, found = vse.load(run), vse.load(str(tmp_path / "out" / "model"))
    images = [torch.randn(6, 12), torch.randn(4, 12)]
    assert torch.equal(found.embed_texts(TEXTS).embeddings, expected.embed_texts(TEXTS).embeddings)
    assert torch.equal(found.embed_images(images).embeddings, expected.embed_images(images).embeddings)
    before, after = load_checkpoint(run / "best.pt"), load_checkpoint(tmp_path / "out" / "model" / "model.safetensors")
    for key in ("config", "vocabulary", "architectures", "in_dim"):
        assert after[key] == before[key], key


def test_subwords(cli: Cli, tiny: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    """The tokenizer is a file of its own, and the folder of the published model is no longer needed."""
    bert = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    settings = [item for item in tiny if "word_dim" not in item]
    text = f"model.text.encoder={{name: bert, model: {bert}}}"
    assert cli("train", *settings, text, "train.epochs=1").code == 0
    shutil.rmtree(bert)
    run, folder = tmp_path / "run", tmp_path / "shared"
    export(run, folder)
    assert names_in(folder) == {*FILES, "tokenizer/tokenizer.json"}
    assert_same_model(folder, run, [torch.randn(5, 12), torch.randn(2, 12)])
    before, after = vse.load(run).vocabulary, vse.load(folder).vocabulary
    assert isinstance(before, Subwords) and isinstance(after, Subwords) and after.state == before.state
    content = json.loads((folder / "config.json").read_text())
    assert "content" not in content["vocabulary"] and content["architectures"]["text"]["model_type"] == "bert"


def test_a_pretrained_model_of_two_towers(tiny_clip: Path, tmp_path: Path) -> None:
    """A config is exported as it is; pictures are prepared as before."""
    both = [f"model.{side}.encoder.model={tiny_clip}" for side in ("image", "text")]
    export("clip/f30k", tmp_path / "clip", [*both, "model.embed_dim=16"])
    expected = load_model("clip/f30k", [*both, "model.embed_dim=16"]).model
    found = vse.load(tmp_path / "clip")
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    assert torch.equal(found.encode_images(pictures), expected.encode_images(pictures))
    assert torch.equal(found.encode_texts(TEXTS), expected.encode_texts(TEXTS))


def test_a_grid_of_pictures(cli: Cli, tmp_path: Path) -> None:
    """BatchNorm's statistics, of which there is a whole number, too; `vse eval FOLDER` needs only the data."""
    data = write_pictures(tmp_path / "data")
    settings = [
        *(f"run.dir={tmp_path / 'run'}", f"data.root={data}", "data.format=karpathy", "model.embed_dim=8"),
        *("model.image.encoder={name: grid, backbone: resnet18, weights: null}", "data.workers=0"),
        *("data.transform={name: square, size: 32}", "data.vocabulary.min_count=1", "model.text.encoder.word_dim=6"),
    ]
    config = read_config("vse_infty/f30k_region_bigru", settings)
    words = build_vocabulary(config, read_corpus_of(config))
    torch.manual_seed(0)
    model = build_model(config, None, words)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
    save_checkpoint(tmp_path / "best.pt", evaluation_state(config, model, None))
    export(tmp_path / "best.pt", tmp_path / "grid")
    pictures = sorted((data / "images").glob("*.jpg"))[:2]
    assert_same_model(tmp_path / "grid", tmp_path / "best.pt", pictures)
    moved = Path(shutil.move(data, tmp_path / "elsewhere"))
    outcome = cli("eval", tmp_path / "grid", f"data.root={moved}")
    assert outcome.code == 0 and "grid, test: 6 images" in outcome.out, outcome.err
    assert (tmp_path / "grid" / "test.json").exists()


def read_corpus_of(config: Any) -> Any:
    from vse.build import build_corpus

    return build_corpus(config, "train")


def test_the_command(cli: Cli, make_run: MakeRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from vse.cli import main

    run = make_run()
    main(["export", str(run), str(tmp_path / "out"), "data.root=elsewhere"])
    assert capfd.readouterr().out == f"{tmp_path / 'out'}: written; vse.load('{tmp_path / 'out'}') reads it\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["data"]["root"] == "elsewhere"
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "out")])
    assert "error: " in capfd.readouterr().err


def test_evaluated_and_started_from(cli: Cli, exported: Path, tiny: list[str], data_folder: Path) -> None:
    """An exported model stands wherever a checkpoint does."""
    expected = load_checkpoint(exported / "model.safetensors")["model"]
    outcome = cli("train", *tiny, f"train.start_from={exported}", "train.epochs=1", f"data.root={data_folder}")
    assert outcome.code == 0, outcome.err
    run = Path(next(item for item in tiny if item.startswith("run.dir=")).partition("=")[2])
    assert load_checkpoint(run / "last.pt")["source"]["path"] == str(exported / "model.safetensors")
    assert load_checkpoint(run / "last.pt")["model"].keys() == expected.keys()
    outcome = cli("eval", exported, run, "--each")
    assert outcome.code == 0 and "my_model, test" in outcome.out, outcome.err


def test_an_official_checkpoint_and_its_vocabulary(tmp_path: Path) -> None:
    file, words = save_vse_infty(tmp_path / "model_best.pth"), words_file(tmp_path / "words.json", 29)
    export(file, tmp_path / "with", vocabulary=words)
    assert vse.load(tmp_path / "with").encode_texts("red dog").shape == (1, 1, 8)
    export(file, tmp_path / "without")
    assert isinstance(vse.load(tmp_path / "without").vocabulary, MissingVocabulary)
    assert "The vocabulary is not part of this model" in (tmp_path / "without" / "README.md").read_text()


# The card


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_with_metrics(cli: Cli, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("dive")
    assert cli("eval", run, "--bootstrap", 20).code == 0
    metrics = json.loads((run / "test.json").read_text())
    export(run, tmp_path / "my_dive")
    head, text = card_of(tmp_path / "my_dive")
    assert head["library_name"] == "vse" and "image-text-retrieval" in head["tags"] and "license" not in head
    results = head["model-index"][0]["results"][0]
    found = {metric["name"]: metric["value"] for metric in results["metrics"]}
    assert found["RSUM"] == metrics["rsum"] and found["T2I R@5"] == metrics["t2i"]["r5"] and len(found) == 7
    low, high = metrics["bootstrap"]["rsum"]
    assert "| my_dive |" in text and f"| {metrics['rsum']:.1f} [{low:.1f}, {high:.1f}] |" in text
    assert "as in DivE" in text and "@inproceedings{kim2023dive," in text and text.count("@") == 1 + text.count("R@")
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[0])
    config = load_model(run).config
    assert recipe["optim"] == config.model_dump()["optim"] and recipe["run"] == {"seed": 1, "precision": "bf16"}
    assert recipe["data"].keys() == {"sampling", "views", "transform", "vocabulary"}
    assert "12 numbers" in text and str(run) not in text and str(config.data.root) not in text


def test_a_card_without_metrics(exported: Path) -> None:
    head, text = card_of(exported)
    assert "model-index" not in head and "Not evaluated yet" in text and "chen2021vseinfty" in text


def test_what_the_card_says_of_use_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", card_of(exported)[1], flags=re.DOTALL)[0]
    assert "FOLDER" in code
    namespace: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(exported)), namespace)
    assert namespace["scores"].shape == (2, 2)


def test_a_system_is_not_called_after_its_loss() -> None:
    for name, system in (("vsepp/coco_region_bigru", "VSE++"), ("vse_infty/coco_region_bigru", "VSE∞")):
        assert [paper.system for paper in papers_of(read_config(name))] == [system]


def test_the_papers_are_those_of_the_citation_file() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    expected = {
        (
            reference["title"],
            reference["year"],
            " and ".join(f"{one['family-names']}, {one['given-names']}" for one in reference["authors"]),
            reference.get("journal") or reference["conference"]["name"],
        )
        for reference in references
    }
    assert {(paper.title, paper.year, paper.authors, paper.venue) for paper in PAPERS} == expected


# What must not happen


def test_folders_that_are_not_exported_to(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, problem in (("full", "is not empty"), ("file", "is a file")):
        with pytest.raises(InputError, match=f"{name}: {problem}; expected a new or an empty folder to export to"):
            export(run, tmp_path / name)
    with pytest.raises(InputError, match="below: cannot be written"):
        export(run, tmp_path / "file" / "below")
    assert names_in(tmp_path) == {"full/notes.txt", "file"}
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    assert names_in(tmp_path / "empty") == FILES


def test_nothing_is_left_of_an_export_that_fails(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vse.sharing.export as module

    def fails(path: Path, text: str, errors: str) -> None:
        raise InputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(module, "write_text", fails)  # of the card, after all else
    with pytest.raises(InputError, match="No space left"):
        export(make_run(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(make_run: MakeRun, tmp_path: Path) -> None:
    state = load_checkpoint(make_run() / "best.pt")
    state["model"]["image.encoder.fc.weight"][0, 0] = torch.nan
    torch.save({"format": "vse checkpoint", "version": 2, **state}, tmp_path / "nan.pt")
    with pytest.raises(InputError, match="nan.pt: image.encoder.fc.weight is not finite"):
        export(tmp_path / "nan.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: no such file; expected it beside the weights of an exported model"),
        ("config.json", b"{", "config.json: not valid JSON"),
        ("config.json", b"[" * 100_000, "config.json: not valid JSON"),
        ("config.json", b"\xff", "config.json: cannot be read"),
        ("config.json", b"[]", "config.json: not of an exported model; expected what `vse export` writes"),
        ("config.json", b'{"model_type": "bert"}', "config.json: not of an exported model"),
        ("config.json", b'{"format": "vse export", "version": 9}', "of version 9; this version of vse reads 1"),
        ("config.json", b'{"format": "vse export", "version": 1}', "an incomplete checkpoint: it lacks config"),
        ("model.safetensors", b"", "model.safetensors: truncated, or not a file of safetensors"),
        ("model.safetensors", b"x" * 100, "model.safetensors: truncated, or not a file of safetensors"),
        ("model.safetensors", None, "no best.pt or last.pt in this folder; expected a run folder, an exported model"),
    ],
)
def test_damaged_folders(copy: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        vse.load(copy)


def test_truncated_weights_and_weights_that_do_not_fit(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole, weights = file.read_bytes(), load_file(file)
    del weights["image.encoder.fc.weight"]
    save_file({key: value.clone() for key, value in weights.items()}, file)
    with pytest.raises(InputError, match="its weights do not fit this config: image.encoder.fc.weight is missing"):
        vse.load(copy)
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="model.safetensors: truncated"):
        vse.load(copy)


def test_a_strangers_config_names_no_code(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["config"]["model"]["similarity"] = {"name": "os:system"}
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="os:system"):
        vse.load(copy)


# The hub


class FakeHub:
    """Stands for the hub's download: it has one model, in two versions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[dict[str, Any]]()

    def download(self, **arguments: Any) -> str:
        self.calls.append(arguments)
        if arguments["repo_id"] == "someone/empty":
            return str(self.folder.parent)
        if arguments["repo_id"] != "someone/my_model" or arguments["revision"] not in (None, "v1", "refs/pr/2"):
            raise OSError("404 Client Error.\nRepository Not Found")
        return str(self.folder)


@pytest.fixture
def hub(exported: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(exported)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.download)
    return fake


def test_a_model_of_the_hub(hub: FakeHub, exported: Path) -> None:
    expected = vse.load(exported).encode_texts(TEXTS)
    for name, revision in (("", None), ("@v1", "v1"), ("@refs/pr/2", "refs/pr/2")):
        assert torch.equal(vse.load(f"hf://someone/my_model{name}").encode_texts(TEXTS), expected)
        assert hub.calls[-1]["repo_id"] == "someone/my_model" and hub.calls[-1]["revision"] == revision
    wanted = {"config.json", "model.safetensors", "tokenizer/tokenizer.json"}
    assert set(hub.calls[0]["allow_patterns"]) == wanted


def test_a_model_of_the_hub_is_evaluated(hub: FakeHub, cli: Cli, tmp_path: Path) -> None:
    data, before = write_precomp(tmp_path / "data"), names_in(hub.folder)
    outcome = cli("eval", "hf://someone/my_model", f"data.root={data}")
    assert outcome.code == 0 and outcome.out.startswith("someone/my_model, test: 10 images"), outcome.err
    assert names_in(hub.folder) == before  # the cache is left as it is


@pytest.mark.parametrize(
    "name", ["hf://", "hf://name", "hf://a/b/c", "hf://a/", "hf://a b/c", "hf://../c", "hf://a/b@", "hf://-a/b"]
)
def test_bad_names(name: str, hub: FakeHub) -> None:
    message = f"{name}: expected hf://owner/name or hf://owner/name@revision"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        vse.load(name)
    assert hub.calls == []


def test_what_the_hub_has_not(hub: FakeHub) -> None:
    with pytest.raises(InputError, match="^hf://someone/other: cannot be fetched from the hub .404 Client Error..$"):
        vse.load("hf://someone/other")
    with pytest.raises(InputError, match="hf://someone/empty: has no model.safetensors; expected a model that `vse"):
        vse.load("hf://someone/empty")


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"hf://a/b: needs the package huggingface_hub; pip install 'vse-retr.*\[hub"):
        vse.load("hf://a/b")


def test_the_card_of_a_model_of_clips(make_run: MakeRun) -> None:
    """Also of one that reads precomputed features of frames, as VSE∞'s does: the data's format tells."""
    loaded = load_model(make_run())
    of_format = {
        name: loaded._replace(config=loaded.config.model_copy(update={"data": data}))
        for name in FORMATS
        for data in [loaded.config.data.model_copy(update={"format": name})]
    }
    cards = {name: model_card("mine", one, {}) for name, one in of_format.items()}
    of_clips = {name for name, reader in FORMATS.items() if reader.__module__ == "vse.data.video_formats"}
    assert {name for name, card in cards.items() if "video-text retrieval" in card} == of_clips
    assert {name for name, card in cards.items() if "- video-text-retrieval" in card} == of_clips
    text = cards["msrvtt"]
    assert "image" not in text.split("## Data")[0].replace("image_", "").replace("encode_images", "")
    assert "numpy.random.randn(2, 20, 12))  # 20 frames each" in text and "Clips are precomputed features" in text
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    namespace: dict[str, Any] = {}
    exec(code.replace('vse.load("FOLDER")', "loaded.model"), {"loaded": loaded}, namespace)
    assert namespace["scores"].shape == (2, 2)
