"""Which runs a study asks for: rows, each a config with settings of its own, times seeds."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from vse.build import read_config
from vse.config import Config, Section, Text, expectation
from vse.config_files import first_comment, parse_yaml, read_yaml, shipped_studies
from vse.data.corpus import SPLITS
from vse.errors import InputError, close_match
from vse.evaluation.protocols import Protocol, find_protocol, parts_of_protocol
from vse.evaluation.published import PUBLISHED
from vse.evaluation.tables import parts_of

_SET_BY_STUDY = ("run.seed", "run.dir")


def _published(value: Any) -> Any:
    """Check the key ``published``; its content is checked with the protocol."""
    if value is None or isinstance(value, str | dict):
        return value
    raise PydanticCustomError("published", "expected the name of a published result, or metrics such as {rsum: 498.1}")


class StudyRow(Section):
    """A row of a study's tables: a config and the settings in which it differs.

    Attributes:
        name: What the tables call it.
        config: A shipped config, or a file, relative to the study's.
        settings: Values by dotted key, such as ``{train.epochs: 5}``.
        published: The name of a result in :data:`vse.evaluation.published.PUBLISHED`, or the metrics themselves.
    """

    name: Text
    config: Text
    settings: dict[str, Any] = {}
    published: Annotated[str | dict[str, Any] | None, PlainValidator(_published)] = None


class StudyFile(Section):
    """The content of a study's file.

    Attributes:
        seeds: The seeds that each row is trained with.
        rows: The rows.
        baseline: The name of the row that all others are compared with; by default the first one.
        settings: Values by dotted key for all rows; a row's own settings win.
        split: The split that is evaluated.
        protocol: How it is evaluated, see :data:`vse.evaluation.protocols.PROTOCOLS`.
    """

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    rows: Annotated[list[StudyRow], Field(min_length=1)]
    baseline: Text | None = None
    settings: dict[str, Any] = {}
    split: Text = "test"
    protocol: Text = "retrieval"


class PlannedRun(NamedTuple):
    """One run of a study.

    Attributes:
        row: The name of its row.
        seed: Its seed.
        folder: Its run folder.
        source: The config that it is made of, as ``vse train`` takes it.
        overrides: The settings that differ from that config's, as ``key=value``.
        config: The resolved config.
    """

    row: str
    seed: int
    folder: Path
    source: str
    overrides: list[str]
    config: Config

    @property
    def name(self) -> str:
        """What messages call the run."""
        return f"{self.row}, seed {self.seed}"


class Study(NamedTuple):
    """A study, checked.

    Attributes:
        name: Its name.
        source: The file or the name of a shipped study, as the user gave it.
        title: What it is about: the first comment of its file.
        content: Its file.
        overrides: The settings of the command, for all rows.
        folder: Where runs and results go.
        runs: All runs, row by row.
    """

    name: str
    source: str
    title: str
    content: StudyFile
    overrides: list[str]
    folder: Path
    runs: list[PlannedRun]

    @property
    def protocol(self) -> Protocol:
        """The protocol of its evaluations."""
        return find_protocol(self.content.protocol)

    @property
    def baseline(self) -> str:
        """The name of the row that all others are compared with."""
        return self.content.baseline or self.content.rows[0].name


def find_study(name: str) -> Path:
    """Find the file that a user names.

    Args:
        name: A file, or the name of a shipped study.

    Returns:
        The file.

    Raises:
        InputError: There is no such file or shipped study.

    >>> find_study("demo").name
    'demo.yaml'
    """
    shipped = shipped_studies()
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    hint = "" if Path(name).suffix else f" ({close_match(name, list(shipped))})"
    raise InputError(f"{name}: no such study{hint}; `vse study --list` lists the shipped ones")


def read_study(name: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Study:
    """Read a study and plan its runs.

    Args:
        name: A file, or the name of a shipped study.
        overrides: Settings as ``key=value`` for all rows; they win over those of the file.
        folder: Where runs and results go; None for runs/studies and the study's name.

    Returns:
        The study, the config of each run resolved.

    Raises:
        InputError: The file or a config cannot be read, or a setting is wrong; the message names the file and the row.

    >>> len(read_study("demo").runs)
    8
    """
    file = find_study(name)
    content = _read(file)
    folder = Path("runs", "studies", file.stem) if folder is None else folder
    for override in overrides:
        if override.partition("=")[0] in _SET_BY_STUDY:
            raise InputError(f"override {override!r}: a study sets it; change the study's seeds, or pass --dir")
    runs = []
    for row in content.rows:
        try:
            runs += list(_plan_row(file, content, row, overrides, folder))
        except InputError as error:
            raise InputError(f"{file}: row {row.name!r}: {error}") from None
    return Study(file.stem, name, first_comment(file), content, list(overrides), folder, runs)


def _plan_row(
    file: Path, content: StudyFile, row: StudyRow, overrides: Sequence[str], folder: Path
) -> Iterator[PlannedRun]:
    """The runs of a row, one for each seed."""
    beside = file.parent / row.config
    source = str(beside) if beside.is_file() else row.config
    settings = [f"{key}={_as_yaml(value)}" for key, value in {**content.settings, **row.settings}.items()]
    for seed in content.seeds:
        place = folder / slug(row.name) / f"seed_{seed}"
        own = [*settings, *overrides, f"run.seed={seed}", f"run.dir={_as_yaml(str(place))}"]
        yield PlannedRun(row.name, seed, place, source, own, read_config(source, own))


def _as_yaml(value: Any) -> str:
    """Write a value as an override has it: a plain word as it is, everything else as JSON, which is YAML."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_yaml(value, "") == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def slug(name: str) -> str:
    """Turn a name into one that fits a folder.

    >>> slug("PIE-Net, K = 2"), slug("VSE++"), slug("VSE∞")
    ('pie_net_k_2', 'vsepp', 'vse_infty')
    """
    spelled = name.lower().replace("+", "p").replace("∞", "_infty")
    return re.sub(r"\W+", "_", spelled).strip("_")


def _read(file: Path) -> StudyFile:
    """Read and check a study's file, all but the configs that it names."""
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a mapping with rows and seeds, got {type(content).__name__}")
    try:
        study = StudyFile.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise InputError(f"{file}: {_explain(error)}") from None
    names = [row.name for row in study.rows]
    folders = [slug(name) for name in names]
    for number, (name, own) in enumerate(zip(names, folders, strict=True)):
        if not own:
            raise InputError(f"{file}: row {name!r}: expected a name with a letter or a digit")
        if own in folders[:number]:
            raise InputError(f"{file}: rows {names[folders.index(own)]!r} and {name!r} would share the folder {own}")
    if len(set(study.seeds)) < len(study.seeds):
        raise InputError(f"{file}: seeds: expected different numbers, got {study.seeds}")
    if study.baseline is not None and study.baseline not in names:
        raise InputError(f"{file}: baseline: {study.baseline!r} is no row ({close_match(study.baseline, names)})")
    if study.split not in SPLITS:
        raise InputError(f"{file}: split: {study.split!r} ({close_match(study.split, list(SPLITS))})")
    try:
        protocol = find_protocol(study.protocol)
        for row in study.rows:
            published_metrics(row, protocol)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return study


def _explain(error: ValidationError) -> str:
    """One line for the first problem: the place in the file, what was found and what was expected."""
    order = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda problem: order.get(problem["type"], 1))
    *place, key = first["loc"]
    in_row = bool(place) and place[0] == "rows" and len(place) > 1
    where = f"row {int(place[1]) + 1}: " if in_row else ""
    if not in_row and place:
        key = ".".join(map(str, [*place, key]))
    if first["type"] == "extra_forbidden":
        known = list((StudyRow if in_row else StudyFile).model_fields)
        return f"{where}{key}: unknown key ({close_match(str(key), known)})"
    if first["type"] == "missing":
        return f"{where}{key}: missing"
    return f"{where}{key}: {expectation([first['msg']], first['input'])}"


def published_metrics(row: StudyRow, protocol: Protocol) -> dict[str, Any]:
    """Find the published metrics of a row.

    Args:
        row: The row.
        protocol: The study's protocol.

    Returns:
        The metrics, in the shape that the protocol gives them; {} where nothing is published.

    Raises:
        InputError: No single model's result under this protocol has the row's name, or the metrics are none.

    >>> row = StudyRow(name="GPO", config="demo", published="VSE∞ (CVPR 2021), regions, BiGRU")
    >>> published_metrics(row, find_protocol("f30k"))["rsum"]
    498.1
    """
    parts = [part.name for part in parts_of_protocol(protocol).values()]
    if isinstance(row.published, dict):
        if set(parts_of(row.published)) <= ({""} if not protocol.parts else set(parts)) and parts_of(row.published):
            return row.published
        expected = "i2t, t2i or rsum" if not protocol.parts else f"{' or '.join(parts)}, and in it i2t, t2i or rsum"
        raise InputError(f"row {row.name!r}: published: expected {expected}, got {row.published}")
    if row.published is None:
        return {}
    single = [result for result in PUBLISHED if result.protocol in parts and result.models == 1]
    found = {result.protocol: result.metrics for result in single if result.system == row.published}
    if not found:
        hint = close_match(row.published, [result.system for result in single])
        raise InputError(f"row {row.name!r}: published: {row.published!r}: no such result ({hint})")
    return found if protocol.parts else next(iter(found.values()))


def share(runs: Sequence[PlannedRun], only: str | None) -> list[PlannedRun]:
    """Choose the runs of one of several machines.

    Args:
        runs: All runs.
        only: Which share of how many, such as "1/3"; None for all runs.

    Returns:
        Every n-th run. All shares together are all runs.

    Raises:
        InputError: ``only`` is no share.

    >>> share(["a", "b", "c"], "1/2")
    ['a', 'c']
    """
    if only is None:
        return list(runs)
    found = re.fullmatch(r"(\d+)/(\d+)", only)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--only: expected a share such as 1/3, got {only}")
    return list(runs[int(found[1]) - 1 :: int(found[2])])
