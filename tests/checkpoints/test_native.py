import copy
import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Outcome

import vse
from vse.checkpoints.native import find_checkpoint, load_checkpoint, save_checkpoint, training_state
from vse.errors import InputError

PARTS = {"vocabulary": [], "architectures": {}, "in_dim": 1}


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {**PARTS, "model": {"w": torch.arange(3)}, "config": {"lr": 1e-3}})
    state = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(state["model"]["w"], torch.arange(3)) and state["config"] == {"lr": 1e-3}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """As on a full disk: a limit on file sizes makes the write itself fail."""
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"model": {"w": torch.zeros(3)}})
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"last.pt: cannot be written \(File too large\); the previous"):
            save_checkpoint(file, {"model": {"w": torch.zeros(1_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"model": {"w": torch.randn(1000)}})
    whole = (tmp_path / "a.pt").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut.pt: (truncated|damaged)"):
            load_checkpoint(tmp_path / "cut.pt")


def test_damage_in_the_middle_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"model": {"w": torch.randn(10_000)}})
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[20_000:20_100] = bytes(100)
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError, match="a.pt: damaged: the checksum"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_archives_of_all_kinds(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", method) as archive:
        archive.writestr("data", bytes(range(256)) * 40)
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[60:64] = b"\xff\x00\xff\xaa"
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError, match="a.pt: (truncated|damaged|cannot be read .[A-Z])"):
        load_checkpoint(tmp_path / "a.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "opt": "x"}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt: not a checkpoint of .* \(found: epoch, opt\)"):
        load_checkpoint(tmp_path / "other.pt")
    save_checkpoint(tmp_path / "part.pt", {"model": {}, "config": {}})
    with pytest.raises(InputError, match="part.pt: .* incomplete .*: it lacks vocabulary, architectures, in_dim"):
        load_checkpoint(tmp_path / "part.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="text.pt: cannot be read as weights .*; expected a checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    with pytest.raises(InputError, match="none.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_versions(tmp_path: Path) -> None:
    """The first had its number in its format and not yet all fields; what is newer than this package is refused."""
    state = {"model": {"w": torch.arange(3)}, "config": {}, "vocabulary": [], "in_dim": 1}
    torch.save({"format": "vse checkpoint 1", **state}, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["architectures"] == {}
    torch.save({"format": "vse checkpoint 1", **state, "step": 3}, tmp_path / "last.pt")
    found = load_checkpoint(tmp_path / "last.pt")
    assert found["history"] == [] and found["start"] == {}
    for version in (3, None, "2"):
        torch.save({"format": "vse checkpoint", "version": version, **state}, tmp_path / "new.pt")
        with pytest.raises(InputError, match=f"new.pt: a checkpoint of version {version}; this .* reads 1 to 2"):
            load_checkpoint(tmp_path / "new.pt")


def test_a_run_state_has_all_its_fields(tmp_path: Path) -> None:
    state: dict[str, Any] = {**PARTS, "config": {}, "model": {}}
    fields = ["best", "criterion", "epoch", "history", "optimiser", "random", "scaler", "start", "step"]
    whole = {**state, **dict.fromkeys([*fields, "train_captions"], 0)}
    later: dict[str, Any] = dict.fromkeys(["source", "queue", "confused", "evaluated", "average", "digests"])
    assert training_state(whole, tmp_path) == {**whole, **later, "epoch_loss": (0.0, 0)}
    for field in fields:
        with pytest.raises(InputError, match=rf"holds no training state \(no {field}\)"):
            training_state({key: value for key, value in whole.items() if key != field}, tmp_path)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, how: str) -> None:
    file, target = tmp_path / "evil.pt", tmp_path / "created"
    if how == "torch":
        torch.save({"model": Hostile(target)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(InputError, match="evil.pt: .*expected a checkpoint of vse"):
        load_checkpoint(file)
    assert not target.exists()


def test_find_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no best.pt or last.pt in this folder"):
        find_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no such run folder or checkpoint"):
        find_checkpoint(tmp_path / "none")
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).touch()
        assert find_checkpoint(tmp_path).name == name
    assert find_checkpoint(tmp_path / "last.pt") == tmp_path / "last.pt"


@pytest.fixture
def trained(cli: Callable[..., Outcome], tiny: list[str], tmp_path: Path) -> Path:
    assert cli("train", *tiny, "train.epochs=1", "model.similarity.name=match_probability").code == 0
    return tmp_path / "run"


def change(file: Path, **changes: Any) -> None:
    """Rewrite a checkpoint with other content; None takes a key out."""
    state = {**torch.load(file, weights_only=True), **changes}
    torch.save({key: value for key, value in state.items() if value is not None}, file)


def test_a_checkpoint_chooses_no_function(
    cli: Callable[..., Outcome], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its config names is called, so it may name modules of the package's kind, and nothing else."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = load_checkpoint(trained / "best.pt")["config"]
    evil = {"name": "subprocess:Popen", "args": ["touch", str(tmp_path / "pwned")]}
    attacks: list[tuple[tuple[str, ...], Any]] = [
        (("model", "text", "aggregator"), evil),
        (("model", "similarity"), evil),
        (("model", "similarity"), {"name": "numpy.f2py.__main__:main"}),
        (("model", "image", "encoder"), {"name": "os:system", "command": f"touch {tmp_path / 'pwned'}"}),
        (("data",), {**config["data"], "format": "torch.hub:load", "root": "a/b", "options": {"source": "github"}}),
    ]
    for place, value in attacks:
        changed = copy.deepcopy(config)
        section = changed
        for key in place[:-1]:
            section = section[key]
        section[place[-1]] = value
        change(trained / "best.pt", config=changed)
        error = cli("eval", trained).error
        assert "best.pt" in error and "the checkpoint names" in error and "; pass" in error
        if place != ("data",):
            with pytest.raises(InputError, match="the checkpoint names"):
                vse.load(trained / "best.pt")
    assert not (tmp_path / "pwned").exists()
    changed = copy.deepcopy(config)
    changed["model"]["similarity"] = {"name": "vse.similarity:chamfer"}
    model = load_checkpoint(trained / "best.pt")["model"]
    others = {key: value for key, value in model.items() if not key.startswith("similarity.")}
    change(trained / "best.pt", config=changed, model=others)
    assert "the checkpoint names" in cli("eval", trained).error
    assert cli("eval", trained, "model.similarity.name=vse.similarity:chamfer").code == 0  # the user says so


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocabulary", 5), ("vocabulary", [1, 2]), ("vocabulary", {}), ("in_dim", "12"), ("model", 3), ("config", [])],
)
def test_parts_of_another_kind(cli: Callable[..., Outcome], trained: Path, key: str, value: Any) -> None:
    change(trained / "best.pt", **{key: value})
    assert f"best.pt: a damaged checkpoint: the content of {key} is not valid" in cli("eval", trained).error


@pytest.mark.parametrize("key", ["epoch", "step", "best", "scaler", "random", "criterion", "optimiser"])
def test_incomplete_training_state(cli: Callable[..., Outcome], tiny: list[str], trained: Path, key: str) -> None:
    change(trained / "last.pt", **{key: None})
    error = cli("train", *tiny, "model.similarity.name=match_probability").error
    assert f"last.pt: holds no training state (no {key}); expected the last.pt of a run" in error


def test_another_similarity_in_evaluation(cli: Callable[..., Outcome], trained: Path) -> None:
    """With or without parameters of its own; what is given is what is used."""
    results = {}
    for name, settings in {
        "own": [],
        "same": ["model.similarity={name: match_probability, scale: -5.0}"],
        "max": ["model.similarity.name=max"],
        "smooth": ["model.similarity={name: smooth_chamfer, temperature: 4.0}"],
    }.items():
        assert cli("eval", trained, *settings).code == 0
        results[name] = json.loads((trained / "test.json").read_text())["rsum"]
    assert results["own"] != results["same"]  # a negative scale turns the ranking round
    model = load_checkpoint(trained / "best.pt")["model"]
    change(trained / "best.pt", model={**model, "similarity.scale": torch.tensor(-5.0)})
    outcome = cli("eval", trained, "model.similarity.name=match_probability")  # the run's own, and what it has learned
    assert json.loads((trained / "test.json").read_text())["rsum"] == results["same"]
    assert "has learned is not used" not in outcome.err
    outcome = cli("eval", trained, "model.similarity={name: match_probability, scale: 5.0}")
    assert "best.pt: model.similarity is another one, so what the run's has learned is not used" in outcome.err
    error = cli("eval", trained, "model.similarity={name: smooth_chamfer, temperature: 0}").error
    assert "temperature: 0}': model.similarity: temperature must be positive, got 0" in error


@pytest.mark.parametrize("slot", ["model.similarity", "model.image.aggregator", "model.text.aggregator"])
def test_a_checkpoint_reads_and_fetches_no_weights(
    slot: str, cli: Any, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever component it names in whatever place."""
    assert cli("train", *tiny, "train.epochs=1").code == 0
    fetched: list[object] = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **_: fetched.append(a))
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **_: fetched.append(a))
    for arguments in (
        {"name": "vse.encoders:Grid", "dim": 8, "backbone": "resnet18", "weights": "imagenet"},
        {"name": "vse.encoders:Grid", "dim": 8, "backbone": "evil/repo", "weights": "pretrained"},
        {"name": "vse.encoders:Bert", "dim": 8, "model": "evil/repo"},
    ):
        state = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
        place = state["config"]
        for part in slot.split(".")[:-1]:
            place = place[part]
        place[slot.split(".")[-1]] = arguments
        torch.save(state, tmp_path / "evil.pt")
        with pytest.raises(InputError):
            vse.load(tmp_path / "evil.pt")
    assert not fetched
