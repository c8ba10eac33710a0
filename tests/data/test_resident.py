from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Outcome, read_jsonl, same_weights, weights_of, write_precomp

from vse.data import resident
from vse.data.batches import Batch, TrainingData
from vse.data.corpus import ArrayFeatures, Corpus, Features
from vse.data.formats import precomp
from vse.data.resident import FeatureTable, free_memory, indices_alone, place
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError

Cli = Callable[..., Outcome]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return precomp(str(write_precomp(tmp_path / "data")), "train")


def features(path: Path, array: np.ndarray, rows: list[int] | None = None) -> Features:
    np.save(path, array)
    return Features(path, None if rows is None else np.array(rows))


@pytest.fixture(params=[np.float16, np.float32])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Features:
    array = np.random.default_rng(0).standard_normal((600, 2, 3)).astype(request.param)
    return features(tmp_path / "x.npy", array, [*range(599, 0, -2)])


def test_every_place_gives_the_same_batch(corpus: Corpus) -> None:
    """On the device in float32, whatever is kept where."""
    assert isinstance(corpus.images, Features)
    half = features(corpus.images.path.with_name("half.npy"), np.load(corpus.images.path).astype(np.float16))
    captions = np.array([7, 3, 5, 100, 8])

    def batch(images: Features, read: object, finish: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        data = TrainingData(corpus, Vocabulary.build(corpus.captions), 0.0, seed=1, read=read)  # type: ignore[arg-type]
        made = data[0, captions]
        assert isinstance(made, Batch)
        return finish(made.to(CPU).images)

    for images, dtype in ((corpus.images, torch.float32), (half, torch.float16)):
        expected = batch(images, images.read, lambda image: image)
        assert expected.shape == (3, 6, 12) and expected.dtype == torch.float32
        for where in ("auto", "disk", "memory"):
            placed = place(images, where, CPU)
            assert torch.equal(batch(images, placed.read, placed.finish), expected), where
            assert placed.read(np.array([1]), 0).dtype == images.dtype  # type: ignore[union-attr]
        table = FeatureTable(images, CPU, dtype)
        assert torch.equal(batch(images, indices_alone, table), expected)


def test_a_table_holds_each_image_once(stored: Features) -> None:
    """In the order of the images, not of the file's rows; float16 rounds what the file has in float32."""
    table = FeatureTable(stored, CPU, torch.float16)
    assert table.values.shape == (300, 2, 3) and table.values.dtype == torch.float16
    indices = np.array([299, 0, 0, 17, 256])
    expected = torch.from_numpy(stored.read(indices))
    found = table(torch.from_numpy(indices))
    assert found.dtype == torch.float32 and torch.equal(found, expected.half().float())
    assert torch.equal(found, expected) == (stored.dtype == np.float16)
    exact = FeatureTable(stored, CPU, torch.float32)
    assert torch.equal(exact(torch.from_numpy(indices)), expected)


def test_a_value_that_float16_cannot_hold(tmp_path: Path) -> None:
    array = np.ones((3, 2, 2), np.float32)
    array[1, 1, 0] = -70_000
    images = features(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=r"x.npy: holds 70000, too large for float16, .* expected at most 65504, or"):
        FeatureTable(images, CPU, torch.float16)
    assert FeatureTable(images, CPU, torch.float32)(torch.tensor([1])).min() == -70_000


@pytest.mark.parametrize(
    ("where", "free", "table", "line"),
    [
        ("auto", 14_400, True, ""),  # 300 images of 24 bytes each are 7,200
        ("auto", 14_399, False, ""),
        ("disk", 10**9, False, ""),
        ("gpu", 8_000, True, ""),
        ("gpu", 7_999, False, "data.resident: gpu: the features take 0.00 GB, and 0.00 GB of GPU are free"),
    ],
)
def test_what_fits_goes_to_the_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    free: int,
    table: bool,
    line: str,
) -> None:
    images = features(tmp_path / "x.npy", np.ones((600, 2, 6), np.float16), [*range(0, 600, 2)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(resident, "FeatureTable", lambda *given: FeatureTable(given[0], CPU, given[2]))
    placed = place(images, where, CUDA)
    assert isinstance(placed.finish, FeatureTable) == table and placed.in_threads
    out = capsys.readouterr().out
    assert out.startswith(line) and out.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("where", "dtype", "expected"),
    [("auto", np.float32, torch.float32), ("auto", np.float16, torch.float16), ("gpu", np.float32, torch.float16)],
)
def test_only_gpu_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, dtype: type, expected: torch.dtype
) -> None:
    images = features(tmp_path / "x.npy", np.ones((6, 2, 6), dtype))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**12))
    monkeypatch.setattr(resident, "FeatureTable", lambda *given: SimpleNamespace(dtype=given[2]))
    assert place(images, where, CUDA).finish.dtype == expected  # type: ignore[attr-defined]


def test_without_room_in_memory_it_is_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = features(tmp_path / "x.npy", np.ones((1000, 20, 1000), np.float16))
    monkeypatch.setattr(resident, "free_memory", lambda: 40_000_000)
    placed = place(images, "memory", CPU)
    expected = "memory: the features take 0.04 GB, and 0.04 GB of memory are free, of which 90% may be taken"
    assert expected in capsys.readouterr().out
    assert images._stamp is not None and placed.read.__self__._stamp == images._stamp  # type: ignore[attr-defined]


def test_free_memory() -> None:
    free = free_memory()
    assert free is None or 1e6 < free < 1e15


def test_features_in_memory_do_not_need_the_file(stored: Features) -> None:
    kept = place(stored, "memory", CPU)
    expected = stored.read(np.arange(300))
    stored.path.unlink()
    assert np.array_equal(kept.read(np.arange(300), 0), expected)
    with pytest.raises(InputError, match="has changed while it was in use"):
        stored.read(np.arange(2))


def test_what_cannot_be_kept(corpus: Corpus) -> None:
    own = ArrayFeatures(np.zeros((5, 2, 3), np.uint8))
    for where in ("gpu", "memory"):
        with pytest.raises(InputError, match=f"data.resident: {where} needs the features of the format precomp; got"):
            place(own, where, CPU)
    placed = place(own, "auto", CPU)
    assert not placed.in_threads and np.array_equal(placed.read(np.array([1]), 0), own.read(np.array([1])))
    with pytest.raises(InputError, match="data.resident: gpu needs a GPU, but run.device is cpu"):
        place(corpus.images, "gpu", CPU)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_run_is_the_same_from_everywhere(
    cli: Cli, tiny: list[str], corpus_folder: Path, tmp_path: Path, dtype: type
) -> None:
    """From disk and memory, with and without threads, bit by bit; it may go on with another choice."""
    file = corpus_folder / "precomp" / "train_ims.npy"
    np.save(file, np.load(file).astype(dtype))
    settings: dict[str, list[list[str]]] = {
        "disk": [["train.epochs=2"]],
        "memory": [["train.epochs=2", "data.resident=memory", "data.workers=2"]],
        "both": [
            ["train.epochs=1", "data.resident=memory"],
            ["train.epochs=2", "data.resident=auto", "data.workers=1"],
        ],
    }
    for name, parts in settings.items():
        for part in parts:
            assert cli("train", *tiny, "run.device=cpu", f"run.dir={tmp_path / name}", *part).code == 0
    for name in ("memory", "both"):
        assert same_weights(weights_of(tmp_path / name), weights_of(tmp_path / "disk"))
    dev = [[r for r in read_jsonl(tmp_path / name / "metrics.jsonl") if "dev" in r] for name in settings]
    assert dev[0] == dev[1] == dev[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["auto", "gpu"])
def test_features_on_a_gpu(stored: Features, where: str) -> None:
    placed = place(stored, where, CUDA)
    indices = np.array([299, 0, 0, 17])
    assert np.array_equal(placed.read(indices, 0), indices)
    found = placed.finish(torch.from_numpy(indices).pin_memory().to(CUDA, non_blocking=True))
    expected = torch.from_numpy(stored.read(indices))
    assert found.is_cuda and torch.equal(found.cpu(), expected.half().float() if where == "gpu" else expected)
