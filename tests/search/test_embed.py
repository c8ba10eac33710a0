"""Indices of pictures, features and captions, whatever happens while they are made."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, Outcome, write_pictures
from PIL import Image
from processes import in_processes
from search_cases import with_config

import vse
from vse.build import read_config
from vse.checkpoints.native import save_checkpoint
from vse.data.formats import precomp
from vse.files import write_file
from vse.search import Index
from vse.search import embed as embedding
from vse.search.embed import embed
from vse.search.shards import Shards
from vse.training.trainer import Training

Command = Callable[..., Outcome]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on pictures that has learned nothing; its data lie beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "data", train=10, others=3)
    settings = [
        "data={format: karpathy, sampling: pair, options: {pictures: images}, workers: 0}",
        f"data.root={folder / 'data'}",
        "data.transform={name: square, size: 32, augment: false}",
        *("model.embed_dim=8", "train.batch_size=6", "eval.batch_size=3", f"run.dir={folder / 'run'}"),
    ]
    config = read_config(ROOT / "configs" / "demo_pictures.yaml", settings)
    (folder / "run").mkdir()
    save_checkpoint(folder / "run" / "best.pt", Training(config).run_state())
    (folder / "run" / "config.yaml").write_text(json.dumps(config.model_dump()))
    return folder / "run"


@pytest.fixture
def photos(pictures_run: Path, tmp_path: Path) -> Path:
    """A user's folder: 16 pictures in two folders, a hidden one, and files of other kinds."""
    folder = tmp_path / "photos"
    (folder / "beach" / "2019").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for number, file in enumerate(sorted((pictures_run.parent / "data" / "images").iterdir())):
        shutil.copy(file, folder / ("beach/2019" if number % 2 else "beach") / f"{number:02}.JPG")
    shutil.copy(file, folder / ".thumbnails" / "small.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


def files_of(index: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(index.iterdir()) if path.name != ".lock"}


def test_a_folder_of_pictures(pictures_run: Path, photos: Path, command: Command, tmp_path: Path) -> None:
    """Its embeddings are the model's, and a picture finds itself."""
    outcome = command("embed", pictures_run, photos, "--out", tmp_path / "index", "--shard", 5, "--float32")
    assert outcome.code == 0 and "finished: 16 images, 1 x 8 float32 numbers each" in outcome.out, outcome.err
    shards = Shards(tmp_path / "index")
    ids = [item.id for _, item in sorted(shards.items(np.arange(16)).items())]
    assert ids == sorted(ids, key=lambda name: ("2019" in name, name)) and "beach/2019/01.JPG" in ids
    model = vse.load(pictures_run)
    expected = model.encode_images([photos / name for name in ids])
    torch.testing.assert_close(shards.take(np.arange(16), torch.device("cpu")), expected, atol=1e-5, rtol=1e-5)
    assert [len(shard.embeddings) for shard in shards.shards] == [5, 5, 5, 1]

    query = photos / "beach" / "2019" / "07.JPG"
    found = command("search", tmp_path / "index", "--image", query, "--top", 3, "--json", tmp_path / "hits.json")
    assert found.code == 0 and found.out.splitlines()[0] == str(query), found.err
    content = json.loads((tmp_path / "hits.json").read_text())["results"]
    assert content[0]["query"] == content[0]["image"] == str(query) and len(content[0]["hits"]) == 3
    best = content[0]["hits"][0]
    assert best["rank"] == 1 and best["id"] == "beach/2019/07.JPG" and best["path"] == str(query)
    assert best["score"] == pytest.approx(1, abs=1e-5) and best["caption"] is None


def test_python_and_mixed_queries(pictures_run: Path, photos: Path, tmp_path: Path) -> None:
    """Texts and pictures in one list come back in its order, with the scores of the model's similarity."""
    embed(str(pictures_run), str(photos), tmp_path / "index", half=False)
    index = vse.search.Index.open(tmp_path / "index", device="cpu")
    with Image.open(photos / "beach" / "00.JPG") as picture:
        picture.load()
    queries = ["a red dog", photos / "beach" / "04.JPG", "two birds", picture]
    results = index.search(queries, top=16)
    assert [result.query for result in results] == ["a red dog", str(queries[1]), "two birds", "image 3"]
    assert [result.image for result in results] == [None, queries[1], None, None]
    assert results[1].hits[0].id == "beach/04.JPG" and results[3].hits[0].id == "beach/00.JPG"
    model = vse.load(pictures_run)
    for result, query in ((results[0], "a red dog"), (results[2], "two birds")):
        images = model.encode_images([hit.path for hit in result.hits])
        scores = model.similarity(images, model.encode_texts(query))[:, 0]
        assert [hit.score for hit in result.hits] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [hit.rank for hit in result.hits] == list(range(1, 17))
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert [hit.id for hit in index.search("a red dog", top=2)[0].hits] == [hit.id for hit in results[0].hits[:2]]
    with pytest.raises(ValueError, match="caption 0 is empty"):
        index.search("")


def test_half_precision(pictures_run: Path, photos: Path, tmp_path: Path) -> None:
    """It takes half the space, and changes scores in the fourth digit at most."""
    for name, half in (("half", True), ("single", False)):
        embed(str(pictures_run), str(photos), tmp_path / name, half=half)
    whole, rounded = (Index.open(tmp_path / name, device="cpu").search("a dog", 16)[0] for name in ("single", "half"))
    by_id = {hit.id: hit.score for hit in whole.hits}
    assert [hit.score for hit in rounded.hits] == pytest.approx([by_id[hit.id] for hit in rounded.hits], abs=5e-4)
    sizes = [(tmp_path / name / "00000.npy").stat().st_size - 128 for name in ("half", "single")]
    assert 2 * sizes[0] == sizes[1]


def test_damaged_pictures_are_left_out(
    pictures_run: Path, photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, the first ones on the terminal; the rest of their batch is embedded."""
    command("embed", pictures_run, photos, "--out", tmp_path / "whole", "--float32")
    for name in ("beach/02.JPG", "beach/2019/01.JPG", "beach/2019/03.JPG"):
        (photos / name).write_bytes((photos / name).read_bytes()[:70])
    monkeypatch.setattr(embedding, "_NAMED", 2)
    outcome = command("embed", pictures_run, photos, "--out", tmp_path / "index", "--shard", 4, "--float32")
    assert outcome.code == 0 and "finished: 13 images" in outcome.out and "3 could not be read" in outcome.out
    assert "left out: " in outcome.err and outcome.err.count("left out") == 2
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert [entry["id"] for entry in manifest["skipped"]] == ["beach/02.JPG", "beach/2019/01.JPG", "beach/2019/03.JPG"]
    assert "not a picture that can be read" in manifest["skipped"][0]["reason"]
    whole, some = Shards(tmp_path / "whole"), Shards(tmp_path / "index")
    place = {item.id: position for position, item in whole.items(np.arange(16)).items()}
    for position, item in some.items(np.arange(13)).items():
        ours = some.take(np.array([position]), torch.device("cpu"))
        theirs = whole.take(np.array([place[item.id]]), torch.device("cpu"))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert len(Index.open(tmp_path / "index").search("a dog", top=20)[0].hits) == 13


def test_nothing_but_damaged_pictures(pictures_run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no picture")
    outcome = command("embed", pictures_run, tmp_path / "photos", "--out", tmp_path / "index")
    assert outcome.code == 2 and "nothing could be read; the first is a.png: " in outcome.error


@pytest.mark.parametrize("write", [3, *(pytest.param(write, marks=pytest.mark.slow) for write in (1, 4, 6))])
def test_what_is_done_is_not_done_again(
    pictures_run: Path, photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Killed at any file of a shard; the same command goes on, and the result is the same to the bit."""
    (photos / "beach" / "02.JPG").write_text("no picture")
    arguments = ["embed", pictures_run, photos, "--shard", 5, "--out"]
    assert command(*arguments, tmp_path / "whole").code == 0
    written: list[Path] = []

    def killed(path: Path, content: Any) -> None:
        if len(written) == write:
            path.with_name(f".{path.name}.7.tmp").write_text("half a file")
            raise Killed
        written.append(path)
        write_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("vse.search.shards.write_file", killed)
        with pytest.raises(Killed):
            command(*arguments, tmp_path / "index")
    unfinished = command("search", tmp_path / "index", "a dog")
    assert "is not finished; give its `vse embed` command again, and it goes on" in unfinished.error
    there = (tmp_path / "index" / "00000.npy").exists()
    read: list[int] = []
    original_read = embedding._read_images

    def counted(images: Any, rows: np.ndarray) -> Any:
        read.extend(rows.tolist())
        return original_read(images, rows)

    monkeypatch.setattr(embedding, "_read_images", counted)
    assert command(*arguments, tmp_path / "index").code == 0
    assert sorted(read) == list(range(5 if there else 0, 16)) and there == (write > 3)
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")
    again = command(*arguments, tmp_path / "index")
    assert again.code == 0 and "finished: 15 images" in again.out and len(read) == (11 if there else 16)


@pytest.mark.slow
def test_kill_9(pictures_run: Path, photos: Path, command: Command, tmp_path: Path) -> None:
    """A real one, whenever it comes."""
    words = ["embed", pictures_run, photos, "--shard", 1, "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vse", *map(str, words), str(tmp_path / "index")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (tmp_path / "index" / "00002.npy").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert command(*words, tmp_path / "index").code == 0 and command(*words, tmp_path / "whole").code == 0
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


def test_processes_share_the_work(pictures_run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "beach" / "02.JPG").write_text("no picture")
    arguments: Any = {"half": False, "shard": 7}
    embed(str(pictures_run), str(photos), tmp_path / "one", ["run.device=cpu"], **arguments)
    several = tmp_path / "several"

    def share() -> None:
        embed(str(pictures_run), str(photos), several, ["run.device=cpu"], **arguments)

    in_processes(2, tmp_path, share)
    one, other = (Shards(folder) for folder in (tmp_path / "one", several))
    assert one.items(np.arange(15)) == other.items(np.arange(15))
    everything = [shards.take(np.arange(15), torch.device("cpu")) for shards in (one, other)]
    torch.testing.assert_close(*everything, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def features_run(make_run: Callable[..., Path]) -> Path:
    """A run with sets of four embeddings."""
    return make_run("dive", "model.image.aggregator.head_dim=4", "model.text.aggregator.head_dim=4")


def test_features_and_captions_of_a_config(
    features_run: Path, data_folder: Path, command: Command, tmp_path: Path
) -> None:
    """Images and captions of a run's data, searched with texts and with features."""
    run = with_config(features_run)
    corpus = precomp(str(data_folder), "test")
    images, captions = tmp_path / "images", tmp_path / "captions"
    assert command("embed", run, run, "--out", images, "run.device=cpu").code == 0
    outcome = command("embed", run, run, "--out", captions, "--captions", "--float32", "--shard", 20)
    assert outcome.code == 0 and "finished: 50 captions, 4 x 8 float32 numbers each" in outcome.out
    model = vse.load(run)
    features = [torch.from_numpy(corpus.images[row]) for row in range(10)]
    scores = model.similarity(model.encode_images(features), model.encode_texts(corpus.captions)).detach()

    found = Index.open(images, device="cpu").search(corpus.captions[:7], top=10)
    for column, result in enumerate(found):
        expected = {corpus.image_ids[row]: float(scores[row, column]) for row in range(10)}
        assert [hit.score for hit in result.hits] == pytest.approx([expected[hit.id] for hit in result.hits], abs=2e-3)
    assert found[0].hits[0].path is None
    first = {hit.id: hit.caption for hit in found[0].hits}
    assert first[corpus.image_ids[3]] == corpus.captions[corpus.image_of_caption.tolist().index(3)]

    np.save(tmp_path / "image.npy", corpus.images[3])
    printed = command("search", captions, "--image", tmp_path / "image.npy", "--top", 50, "--json", tmp_path / "x.json")
    assert printed.code == 0 and printed.out.splitlines()[0] == str(tmp_path / "image.npy")
    hits = json.loads((tmp_path / "x.json").read_text())["results"][0]["hits"]
    expected_scores = scores[3].sort(descending=True).values.tolist()
    assert [hit["score"] for hit in hits] == pytest.approx(expected_scores, abs=1e-5)
    assert {hit["caption"] for hit in hits} == set(corpus.captions)

    same = command("search", captions, corpus.captions[8], "--top", 1)
    assert same.code == 0 and corpus.captions[8] in same.out.splitlines()[1]


def test_several_splits(features_run: Path, data_folder: Path, command: Command, tmp_path: Path) -> None:
    run = with_config(features_run)
    words = ["embed", run, run, "--out", tmp_path / "index", "--split", "dev", "--split", "test", "--shard", 15]
    assert "finished: 20 images" in command(*words).out
    items = Shards(tmp_path / "index").items(np.arange(20))
    expected = [f"{split}/{label}" for split in ("dev", "test") for label in precomp(str(data_folder), split).image_ids]
    assert [items[position].id for position in range(20)] == expected


def test_sets_of_any_size(make_run: Callable[..., Path], data_folder: Path, tmp_path: Path) -> None:
    """Late interaction, as the evaluation scores it."""
    run = with_config(make_run("chan"))
    embed(run, run, tmp_path / "index", ["run.device=cpu"], captions=True, half=False, shard=13)
    index = Index.open(tmp_path / "index", device="cpu")
    assert index.shards.is_ragged and index.shards.places == index.shards.manifest["embeddings_per_item"][1]
    corpus, model = precomp(str(data_folder), "test"), vse.load(run)
    features = [torch.from_numpy(corpus.images[row]) for row in range(10)]
    texts, images = model.embed_texts(corpus.captions), model.embed_images(features)
    scores = model.similarity(images.embeddings, texts.embeddings, images.mask, texts.mask).detach()
    for row, result in enumerate(index.search(features, top=50)):
        assert [hit.score for hit in result.hits] == pytest.approx(scores[row].sort(descending=True).values.tolist())


def test_a_pretrained_model(tiny_clip: Path, photos: Path, command: Command, tmp_path: Path) -> None:
    """A config whose model needs no training; other weights under its name are noticed."""
    shutil.copytree(tiny_clip, tmp_path / "clip")
    models = [f"model.{side}.encoder.model={tmp_path / 'clip'}" for side in ("image", "text")]
    words = ["clip/f30k", photos, *models, "model.embed_dim=16"]
    outcome = command("embed", *words, "--out", tmp_path / "index", "data.workers=0")
    assert outcome.code == 0, outcome.err
    found = command("search", tmp_path / "index", "a red dog", "--top", "2")
    assert found.code == 0 and len(found.out.splitlines()) == 3, found.err
    weights = tmp_path / "clip" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\0\0\0\0"
    weights.write_bytes(bytes(content))
    changed = command("search", tmp_path / "index", "a red dog").error
    assert "clip/f30k: is not the checkpoint that" in changed


@pytest.fixture(scope="module")
def other_run(make_run: Callable[..., Path]) -> Path:
    return make_run("dive", "model.image.aggregator.head_dim=4", "model.text.aggregator.head_dim=4", "run.seed=2")


def test_another_model_or_list(
    pictures_run: Path, photos: Path, command: Command, tmp_path: Path, features_run: Path, other_run: Path
) -> None:
    """One line says what differs, of an index that is finished and of one that is not."""
    out = ["--out", tmp_path / "index"]
    run = tmp_path / "run"
    shutil.copytree(pictures_run, run)
    assert command("embed", run, photos, *out).code == 0
    for finished in (True, False):
        for words, what in (
            ([run, photos, *out, "--float32"], "dtype"),
            ([run, photos, *out, "data.transform.size=40"], "overrides"),
            ([run, photos, *out, "--shard", "3"], "--shard"),
            ([run, photos / "beach", *out], "list of items"),
            ([run, run, *out, "--captions"], "kind of items, list of items"),
        ):
            error = command("embed", *words).error
            assert f"made with another {what}; remove it with its shards, or choose another folder" in error
        if finished:
            (tmp_path / "index" / "manifest.json").rename(tmp_path / "index" / ".unfinished.json")
    assert command("embed", run, photos, *out).code == 0
    moved = run.rename(tmp_path / "moved")
    error = command("search", tmp_path / "index", "a dog").error
    assert f"was made with {(run / 'best.pt').resolve()}, which is not there; name the run with --run PATH" in error
    assert command("search", tmp_path / "index", "a dog", "--run", moved).code == 0
    error = command("search", tmp_path / "index", "a dog", "--run", other_run).error
    assert "is not the checkpoint that" in error and "(its SHA-256 is" in error
    error = command("embed", features_run, photos, *out).error
    assert "the model reads precomputed features, not pictures; name a config of such data" in error


def test_mistakes_are_one_line(
    pictures_run: Path, photos: Path, command: Command, tmp_path: Path, features_run: Path
) -> None:
    index = tmp_path / "index"
    assert command("embed", pictures_run, photos, "--out", index).code == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "page.json").write_text("{}")
    embed_to = ["embed", pictures_run, photos, "--out"]
    for words, message in (
        (["embed", pictures_run, tmp_path / "empty", "--out", tmp_path / "x"], "empty: no file in it ends in .jpg, "),
        (["embed", pictures_run, "dmeo", "--out", tmp_path / "x"], "dmeo: no such folder of pictures, config or run"),
        ([*embed_to, tmp_path / "mine"], "mine: holds letter.txt, which is not of an index; choose a new or empty"),
        ([*embed_to, tmp_path / "x", "--captions"], "photos: a folder of pictures has no captions; name a config or"),
        ([*embed_to, tmp_path / "x", "--shard", 0], "--shard must be at least 1, got 0"),
        ([*embed_to, tmp_path / "x", "--factory", "Flat"], "--factory and --queries need --approximate"),
        (["embed", pictures_run, photos], "the following arguments are required: --out"),
        (["search", index], "expected a text or --image FILE to search for; see vse search --help"),
        (["search", index, "  "], "expected a text or --image FILE to search for; see vse search --help"),
        (["search", index, "a dog", "--top", 0], "--top must be at least 1, got 0"),
        (["search", index, "a dog", "--candidates", 9], "--candidates needs --approximate, which is not given"),
        (["search", index, "--image", tmp_path / "no.jpg"], "no.jpg: no such picture"),
        (["search", index, "a dog", "--json", tmp_path / "page.json"], "page.json: is there already and holds no sea"),
        (["search", tmp_path / "empty", "a dog"], "no index in this folder; `vse embed RUN PICTURES --out"),
    ):
        outcome = command(*words)
        assert outcome.code == 2 and message in outcome.error, outcome.error
    run = with_config(features_run)
    assert command("embed", run, run, "--out", tmp_path / "features").code == 0
    np.save(tmp_path / "narrow.npy", np.zeros((3, 5)))
    (tmp_path / "text.npy").write_text("no array")
    for name, message in (
        ("a.jpg", "a.jpg: the model reads features; expected a .npy file (regions, width) of them"),
        ("narrow.npy", "narrow.npy: expected features (regions, 12), found an array (3, 5)"),
        ("text.npy", "text.npy: not a complete .npy file of numbers"),
    ):
        assert message in command("search", tmp_path / "features", "--image", tmp_path / name).error


def test_a_search_changes_no_file(pictures_run: Path, photos: Path, tmp_path: Path) -> None:
    embed(str(pictures_run), str(photos), tmp_path / "index")
    before = files_of(tmp_path / "index")
    Index.open(tmp_path / "index").search(["a dog", "a cat"])
    assert files_of(tmp_path / "index") == before
