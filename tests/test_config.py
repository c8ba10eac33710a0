from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from vse.build import read_config
from vse.config import Config, config_changes, load_config, merge
from vse.errors import InputError

RECIPE = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"

MINIMAL = """
run: {dir: runs/x}
data: {format: precomp, root: data/x}
model:
  embed_dim: 8
  image: {encoder: {name: regions}, aggregator: {name: kmax, k: 3}}
  text: {encoder: {name: bigru}, aggregator: {name: gpo, hidden_dim: 16}}
optim: {lr: 5e-4}
train: {epochs: 2}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    return file


def test_defaults_are_filled_in(minimal: Path) -> None:
    config = read_config(minimal)
    assert config.optim.lr == 5e-4 and config.train.batch_size == 128
    assert config.model.text.aggregator.arguments.items() >= {"hidden_dim": 16, "position_dim": 32}.items()
    assert config.loss.ranking.arguments["mining"] == "hardest"
    resolved = yaml.safe_load(yaml.safe_dump(config.model_dump()))
    assert Config.model_validate(resolved).model_dump() == config.model_dump()


def test_config_is_frozen(minimal: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(minimal).train.epochs = 3


def test_base_is_inherited_key_by_key(minimal: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    middle, top = tmp_path / "sub" / "middle.yaml", tmp_path / "top.yaml"
    middle.write_text("base: ../minimal.yaml\ntrain: {epochs: 5}\nmodel: {text: {aggregator: {position_dim: 8}}}")
    top.write_text("base: sub/middle.yaml\nmodel: {image: {aggregator: {name: mean}}}")
    config = read_config(top)
    assert config.train.epochs == 5 and config.model.embed_dim == 8
    assert config.model.text.aggregator.arguments.items() >= {"hidden_dim": 16, "position_dim": 8}.items()
    assert config.model.image.aggregator.arguments == {}  # another component: not k of the old one
    assert "middle.yaml" in config.source("train.epochs") and "minimal.yaml" in config.source("optim.lr")


def test_a_name_override_starts_from_that_components_defaults(minimal: Path) -> None:
    config = read_config(minimal, ["model.text.aggregator.name=kmax", "model.text.aggregator.k=5"])
    assert config.model.text.aggregator.arguments == {"k": 5}
    swapped = read_config(minimal, ["model.text.aggregator.k=5", "model.text.aggregator.name=kmax"])
    assert swapped.model_dump() == config.model_dump()
    kept = read_config(minimal, ["optim.name=sgd", "optim.momentum=0.9"])
    assert kept.optim.lr == 5e-4 and kept.optim.arguments == {"momentum": 0.9}


@pytest.mark.parametrize(("text", "value"), [("5e-4", 5e-4), ("1E3", 1000.0), ("0.1", 0.1), ("1", 1.0), (".5", 0.5)])
def test_numbers(minimal: Path, text: str, value: float) -> None:
    assert load_config(minimal, [f"optim.lr={text}"]).optim.lr == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"override 'train.epoch=3': train.epoch: unknown key \(did you mean 'epochs'\?\)"),
        ("trian.epochs=3", r"trian: unknown key \(did you mean 'train'\?\)"),
        ("train.epochs", "override 'train.epochs': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("train..epochs=3", "expected key=value"),
        ("train.epochs=many", "'train.epochs=many': train.epochs: input should be a valid integer, got 'many'"),
        ("train.epochs=2.5", "train.epochs: input should be a valid integer, got 2.5"),
        ("train.epochs=true", "train.epochs: input should be a valid integer, got True"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, got 0"),
        ("train.batch_size=-4", "train.batch_size: input should be greater than or equal to 2, got -4"),
        ("train.clip_norm=0", "train.clip_norm: input should be greater than 0, got 0"),
        ("train.epochs=[1", "override 'train.epochs=.1', line 1: not valid YAML"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0, got -1"),
        ("optim.lr=.nan", "optim.lr: input should be"),
        ("run.precision=fp8", "run.precision: input should be 'fp32', 'tf32', 'bf16' or 'fp16', got 'fp8'"),
        ("model.embed_dim=0", "model.embed_dim: input should be greater than or equal to 2, got 0"),
        ("data.sampling=pairs", "data.sampling: input should be 'pair' or 'image', got 'pairs'"),
        ("data.format=precom", r"data.format: unknown name 'precom' \(did you mean 'precomp'\?\)"),
        ("data.options.colour=1", r"data.options.colour: unknown argument of precomp \(none are known\)"),
        (
            "model.image.aggregator.name=gop",
            r"model.image.aggregator.name: unknown name 'gop' \(did you mean 'gpo'\?\)",
        ),
        ("model.image.encoder.dropp=0.1", r"encoder.dropp: unknown argument of regions \(did you mean 'drop'\?\)"),
        ("model.image.encoder.drop=much", "model.image.encoder.drop: input should be a valid number, got 'much'"),
        ("model.image.encoder.in_dim=4", "encoder.in_dim: is filled in and cannot be set, got 4"),
        ("model.image.aggregator.k=three", "model.image.aggregator.k: input should be a valid integer, got 'three'"),
        ("model.text.aggregator.name=kmax", "model.text.aggregator.k: missing, and kmax needs it"),
        ("model.similarity.name=cosin", r"model.similarity.name: unknown name 'cosin' \(did you mean 'cosine'\?\)"),
        ("loss.ranking.marign=1", r"loss.ranking.marign: unknown argument of triplet \(did you mean 'margin'\?\)"),
        ("loss.ranking.mining=hard", "loss.ranking.mining: input should be 'hardest', 'all' or 'semihard', got 'hard'"),
        ("loss.terms.mmmd.weight=0.1", r"loss.terms.mmmd: unknown name 'mmmd' \(did you mean 'mmd'\?\)"),
        (
            "loss.terms.mmd={weight: 1, kernel: gauss}",
            "mmd.kernel: input should be 'rbf' or .*, got 'gauss'",
        ),
        ("loss.terms.mmd={kernel: rbf}", "loss.terms.mmd.weight: missing"),
        (
            "loss.terms.mmd={wieght: 0.1}",
            r"override 'loss.terms.mmd={wieght: 0.1}': loss.terms.mmd.wieght: unknown key \(did you mean 'weight'\?\)",
        ),
        ("loss.ranking={name: adaptive_contrastive, negatives: adaptiv}", "integer or input should be 'adaptive' or"),
        ("model.image.aggregator={name: pie_net}", "model.image.aggregator.num_embeddings: missing, and pie_net needs"),
        (
            "model.text.encoder.context=first",
            "context: input should be 'last', .* got 'first'",
        ),
        ("model.image.encoder.mlp=yes", "model.image.encoder.mlp: input should be 'input' or 'projection', got True"),
        ("loss.ranking={name: adaptive_contrastive, negatives: 1.5}", "negatives: .* got 1.5"),
        ("optim.name=sdg", r"optim.name: unknown name 'sdg' \(did you mean 'sgd'\?\)"),
        ("optim.beta=0.9", r"optim.beta: unknown argument of adamw \(did you mean 'betas'\?\)"),
        ("optim.schedule.name=step", "optim.schedule.milestones: missing, and step needs it"),
        ("model.image.aggregator.name=no_such_module:Pool", "No module named 'no_such_module'"),
        ("model.image.aggregator.name=math:Pool", "module math has no Pool"),
        ("model.image.aggregator.name=math:pi", "math:pi is not a class or function"),
        ("model.image.aggregator.name=:Pool", "expected a known name or my_package.module:Class, got ':Pool'"),
        ("model.image.aggregator.name=.pool:Pool", "expected a known name or my_package.module:Class"),
        ("loss.ranking.margin=.nan", "loss.ranking.margin: input should be a finite number, got nan"),
        ("optim.scheduler.name=step", r"unknown argument of adamw \(did you mean 'schedule'\?\)"),
        ("model.image.encoder.naem=x", r"unknown argument of regions \(did you mean 'name'\?\)"),
        ("optim.params=[1]", "optim.params: is filled in and cannot be set"),
        ("train.epochs={a: 1}", "override 'train.epochs={a: 1}': train.epochs: input should be a valid integer"),
        ("run.dir=", "override 'run.dir=': run.dir: input should be a valid string, got None"),
        ("train=", "override 'train=': train: expected a mapping of settings, got None"),
        ("train.epochs.x=3", "override 'train.epochs.x=3': train.epochs: input should be a valid integer"),
        ("optim.schedule.warmup_epochs=.inf", "warmup_epochs: input should be a finite number, got inf"),
        ("run.dir=''", "run.dir: string should have at least 1 character, got ''"),
        (
            "run.resume=no",
            "run.resume: input should be 'auto' or 'never', got False .YAML reads yes and on as True",
        ),
        ("model.image.aggregator=3", "model.image.aggregator: expected a mapping of settings, got 3"),
        ("model.image.aggregator=gop", r"model.image.aggregator.name: unknown name 'gop' \(did you mean 'gpo'\?\)"),
        ("model.image=gpo", "override 'model.image=gpo': model.image: expected a mapping of settings, got 'gpo'"),
        ("loss.terms=mmd", "override 'loss.terms=mmd': loss.terms: expected a mapping of settings, got 'mmd'"),
        ("train.queue=many", "train.queue: expected a mapping of settings, got 'many'"),
        ("model.image.aggregator={name:gpo}", "not valid YAML: a space is missing after the colon in 'name:gpo'"),
        ("model.image.aggregator=name:gpo", "aggregator: a space is missing after the colon in 'name:gpo'"),
        ("model.image=aggregator:gpo", "model.image: a space is missing after the colon in 'aggregator:gpo'"),
        ("optim.zzz=1", r"optim.zzz: unknown argument of adamw \(known: amsgrad, betas, capturable"),
    ],
)
def test_bad_overrides(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(minimal, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 1, epochs: 2}", "bad.yaml, line 1: not valid YAML: key 'epochs' is given twice"),
        ("train: {epochs: 1", "bad.yaml, line 1: not valid YAML"),
        ("- 1", "bad.yaml: expected a mapping of sections"),
        ("base: none.yaml", "bad.yaml: base: .*none.yaml: no such config file"),
        ("base: bad.yaml", "base: bad.yaml leads back to this file"),
        ("base: 3", "base: expected the path of a config file, got 3"),
        ("base: minimal.yaml\ntrain: {epochs: x}", "bad.yaml: train.epochs: input should be a valid integer, got 'x'"),
        ("base: minimal.yaml\nmodel: {image: {encoder: {naem: x}}}", "bad.yaml: model.image.encoder.naem: unknown arg"),
        ("base: minimal.yaml\nmodel: {image: 3}", "bad.yaml: model.image: expected a mapping of settings, got 3"),
        ("base: minimal.yaml\ntrain:\n  # epochs: 3", "bad.yaml: train: expected a mapping of settings, got None"),
        (
            "base: minimal.yaml\ntrain:\n  epochs: 3\n  batch_size:4",
            "bad.yaml, line 4: not valid YAML: a space is missing after the colon in 'batch_size:4'",
        ),
        (
            "base: minimal.yaml\nmodel:\n  image:\n    aggregator:\n      name:gpo",
            "bad.yaml: model.image.aggregator: a space is missing after the colon in 'name:gpo'",
        ),
        ("base: minimal.yaml\ntrain: &a {epochs: *a}", "bad.yaml"),
        ("train: {epochs: 1}", "bad.yaml: (run|data|model|optim): missing"),
    ],
)
def test_bad_files(minimal: Path, tmp_path: Path, text: str, message: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_config(bad)
    assert "\n" not in str(error.value)


def test_home_folder(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_config(minimal, ["data.root=~/f30k"]).data.root == "/somewhere/f30k"


def test_dates_are_names(minimal: Path) -> None:
    assert load_config(minimal, ["run.dir=2024-13-45"]).run.dir == "2024-13-45"


def test_an_error_in_a_base_names_the_base(minimal: Path, tmp_path: Path) -> None:
    minimal.write_text(MINIMAL.replace("epochs: 2", "epochs: two"))
    (tmp_path / "top.yaml").write_text("base: minimal.yaml\ntrain: {batch_size: 4}")
    with pytest.raises(InputError, match="minimal.yaml: train.epochs: input should be a valid integer, got 'two'"):
        read_config(tmp_path / "top.yaml")


def test_another_format_has_its_own_options(minimal: Path) -> None:
    """What the old format's were is not the new one's; data.transform can be taken away."""
    given = ["data.format=karpathy", "data.options.pictures=photos"]
    assert load_config(minimal, given).data.options == {"pictures": "photos"}
    demo = ROOT / "configs" / "demo_pictures.yaml"
    assert load_config(demo).data.options == {"pictures": True}
    assert load_config(demo, ["data.format=karpathy"]).data.options == {}
    assert load_config(demo, ["data.format=karpathy", "data.options.pictures=p"]).data.options == {"pictures": "p"}
    assert load_config(demo, ["data.format=synthetic"]).data.options == {"pictures": True}
    assert load_config(demo, ["data.transform=null"]).data.transform is None


def test_no_known_word_is_listed_twice(minimal: Path) -> None:
    with pytest.raises(InputError) as error:
        read_config(minimal, ["optim.zzz=1"])
    known = str(error.value).partition("known: ")[2].rstrip(")").split(", ")
    assert len(known) > 5 and len(known) == len(set(known))


def test_a_text_in_the_place_of_a_component_is_its_name(minimal: Path, tmp_path: Path) -> None:
    """On the command line and in a file; what is said about its arguments is said about the new component."""
    by_name = read_config(minimal, ["model.image.aggregator.name=mean", "optim.name=sgd", "data.transform.name=square"])
    short = read_config(minimal, ["model.image.aggregator=mean", "optim=sgd", "data.transform=square"])
    assert short.model_dump() == by_name.model_dump()
    assert short.source("model.image.aggregator.name") == "override 'model.image.aggregator=mean'"
    (tmp_path / "top.yaml").write_text("base: minimal.yaml\nmodel: {image: {aggregator: mean}}")
    assert read_config(tmp_path / "top.yaml").model.image.aggregator.name == "mean"
    (tmp_path / "below.yaml").write_text(MINIMAL.replace("{name: kmax, k: 3}", "mean"))
    assert read_config(tmp_path / "below.yaml").model.image.aggregator.arguments == {}
    own = ["model.image.aggregator=vse.aggregators:KMaxPool", "model.image.aggregator.k=2"]
    assert read_config(minimal, own).model.image.aggregator.arguments == {"k": 2}

    overrides = ["model.image.aggregator=set_prediction", "model.image.aggregator.num_embeddings=2"]
    for given in (overrides, overrides[::-1]):
        assert read_config(minimal, given).model.image.aggregator.arguments["num_embeddings"] == 2
    with pytest.raises(InputError, match="aggregator.hidden: unknown argument of set_prediction"):
        read_config(minimal, [overrides[0], "model.image.aggregator.hidden=2"])


def test_what_a_config_tells_of_its_settings(minimal: Path) -> None:
    config = read_config(minimal, ["model.text.aggregator={name: kmax, k: 2}", "train.epochs=4"])
    assert config.trusted and config.file == str(minimal)
    assert config.given("model.text") and config.given("model.text.aggregator.k") and config.given("optim.lr")
    assert not config.given("train.clip_norm") and not config.given("eval") and not config.given("model.te")
    assert config.value("model.text.aggregator.k") == 2 and config.value("data.options") == {}
    assert config.source("train.epochs") == "override 'train.epochs=4'" and config.source("eval") == str(minimal)
    assert str(config.error("train.epochs", "too few")) == "override 'train.epochs=4': train.epochs: too few"


def test_a_base_may_be_a_shipped_config(tmp_path: Path) -> None:
    """By its name; a file of that relative path comes first."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: vse_infty/f30k_region_bigru\ntrain: {epochs: 3}")
    config = load_config(mine)
    assert config.train.epochs == 3 and config.optim.lr == 5e-4
    assert load_config("vse_infty/f30k_region_bigru").model_dump() == load_config(RECIPE).model_dump()


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        *((key, False) for key in ("run.device=cpu", "run.dir=elsewhere", "run.log_steps=7", "run.save_minutes=1")),
        *((key, False) for key in ("train.epochs=9", "data.workers=0", "data.root=moved", "eval.batch_size=3")),
        *((key, False) for key in ("data.vocabulary.file=moved.json", "data.vocabulary.vectors=moved.txt")),
        *((key, False) for key in ("data.options.annotations=moved.json", "data.options.pictures=moved")),
        *((key, True) for key in ("train.batch_size=16", "train.clip_norm=1.0", "run.seed=5", "run.precision=bf16")),
        *((key, True) for key in ("optim.lr=1e-3", "data.sampling=image", "data.vocabulary.min_count=2")),
        *((key, True) for key in ("data.options.per_image=5", "model.embed_dim=16", "model.text.encoder.drop=0.1")),
        ("model.image.aggregator={name: mean}", True),
    ],
)
def test_what_may_change_when_a_run_is_resumed(minimal: Path, override: str, refused: bool) -> None:
    """Where files are, where and how long it runs; nothing that changes what is trained."""
    saved = read_config(minimal, ["data.format=karpathy"])
    changes = config_changes(saved.model_dump(), read_config(minimal, ["data.format=karpathy", override]))
    key = override.partition("=")[0]
    assert [change.startswith(key) for change in changes][:1] == ([True] if refused else [])


def test_the_model_that_a_run_started_from_may_move(minimal: Path) -> None:
    """A resumed run has its weights in its checkpoint."""
    encoder = "model.text.encoder={name: bert, model: %s}"
    saved = read_config(minimal, [encoder % "bert-base-uncased"])
    assert config_changes(saved.model_dump(), read_config(minimal, [encoder % "/models/bert"])) == []


def test_merging_leaves_the_base_alone() -> None:
    base = {"a": {"name": "x", "k": 1}, "b": 2}
    origin: dict[str, str] = {}
    assert merge(base, {"a": {"name": "y"}}, origin, "file") == {"a": {"name": "y"}, "b": 2}
    assert base == {"a": {"name": "x", "k": 1}, "b": 2} and origin == {"a.name": "file"}
