"""docs/config.md is what the code says, and the code says something of every setting."""

import inspect
import re
from typing import Literal

import pytest
from helpers import ROOT
from pydantic import BaseModel

from vse.build import read_config
from vse.cli import main
from vse.components import NEVER_GIVEN
from vse.config import Section, flatten
from vse.config_page import TABLES, Setting, Table, arguments_of, config_page, settings_of

PAGE = ROOT / "docs" / "config.md"


def rows(text: str) -> dict[str, list[str]]:
    """The cells behind the name in each row of the tables of a text."""
    found = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, flags=re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


def part(title: str, level: str = "##") -> str:
    """What stands below a heading."""
    text = config_page()
    found = re.search(rf"^{level} {re.escape(title)}\n(.*?)(?=^##+ |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def test_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    main(["docs-config"])
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, "run: vse docs-config > docs/config.md"


def test_every_setting_of_a_config_has_a_row() -> None:
    """Whatever a resolved config holds, its components' own arguments aside."""
    listed = rows(config_page())
    overrides = ["train.queue={size: 64}", "train.mining={every: 1}", "data.transform=square"]
    found = {re.sub(r"\.name$", "", key) for key in flatten(read_config("demo", overrides).model_dump())}
    components = [key for table in TABLES for key in table.keys if key not in ("data.format", "optim")]
    inside = ("data.options.", *(f"{key}." for key in components))
    expected = {key for key in found if not key.startswith(inside)} - {"optim.name"}
    assert len(expected) > 40 and expected <= listed.keys(), expected - listed.keys()
    for name, cells in listed.items():
        assert len(cells) == 3 and all(cells), name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_argument_of_every_component_has_a_row(table: Table) -> None:
    page = config_page()
    for name, entry in table.entries.items():
        section = page[page.index(f"\n## {table.title}\n") :]
        section = re.split(r"\n##+ ", section[section.index(f"\n### `{name}`\n") + 5 :])[0]
        parameters = list(inspect.signature(entry).parameters.values())
        own = parameters if inspect.isclass(entry) else parameters[table.inputs :]
        expected = {p.name for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - NEVER_GIVEN
        assert rows(section).keys() - {"weight"} == expected, name


def test_what_the_rows_say() -> None:
    listed = rows(config_page())
    assert listed["train.epochs"] == ["whole number, at least 1", "required", "Number of epochs."]
    assert listed["train.clip_norm"][:2] == ["number, above 0 or null", "`2.0`"]
    assert listed["run.resume"][:2] == ["`auto`, `never`", "`auto`"]
    assert listed["run.seed"][:2] == ["whole number, at least 0", "`1`"]
    assert listed["train.freeze"][:2] == ["list of text", "`[]`"]
    assert listed["train.queue"][:2] == ["mapping or null", "`null`"]
    assert listed["model.similarity"][:2] == ["name", "`cosine`"]
    assert listed["model.image.encoder"][:2] == ["name", "required"]
    assert listed["data.transform"][:2] == ["name or null", "`null`"]
    assert listed["optim"][:2] == ["name", "`adamw`"]
    assert rows(part("`smooth_chamfer`", "###"))["temperature"] == ["number", "`16.0`", "The factor t of the cosines."]
    assert rows(part("`mmd`", "###"))["weight"][:2] == ["number, at least 0", "required"]
    assert "It has no arguments." in part("`mean`", "###")


def test_what_a_docstring_says_elsewhere_is_said_here() -> None:
    page = config_page()
    assert "As in" not in page and ":class:" not in page and "``" not in page and "None" not in page
    linear = rows(part("`linear`", "###"))
    assert linear["final"][2] == "The factor at the end." and linear["warmup_epochs"][2].startswith(
        "The time in epochs"
    )


def test_a_setting_without_a_description_is_named() -> None:
    class Silent(Section):
        """A section.

        Attributes:
            said: Something.
        """

        said: Literal["a"] | None = None
        unsaid: int = 3

    class Quiet(BaseModel):
        """A section without any."""

        unsaid: int = 3

    settings = settings_of(Silent, "x.")
    assert next(settings) == Setting("x.said", "`a` or null", "`null`", "Something.")
    for unsaid in (settings, settings_of(Quiet, "x.")):
        with pytest.raises(ValueError, match=r"unsaid has no description; write one under Args: or Attributes: in the"):
            list(unsaid)

    def part_without(scores: float, positives: float, k: int = 3) -> float:
        """A loss."""
        return scores * positives * k

    with pytest.raises(ValueError, match=r"part_without\(k\) has no description"):
        list(arguments_of(part_without, 2))
