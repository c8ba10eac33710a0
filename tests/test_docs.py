"""What the pages list is what the package has, and what they link to is there."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from helpers import ROOT

from vse.aggregators import AGGREGATORS
from vse.build import read_config
from vse.config_files import shipped_configs
from vse.data.clips import ClipTransform
from vse.data.formats import FORMATS
from vse.data.transforms import TRANSFORMS
from vse.encoders import ENCODERS
from vse.evaluation.protocols import PROTOCOLS
from vse.losses import LOSSES, REGULARISERS
from vse.optim import OPTIMISERS, SCHEDULES
from vse.similarity import SIMILARITIES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "configs", "docs", "examples", "scripts", "tests", "vse")
TABLES: dict[str, Mapping[str, Any]] = {
    "Encoders": ENCODERS,
    "Aggregators": AGGREGATORS,
    "Similarities": SIMILARITIES,
    "Ranking losses": LOSSES,
    "Terms": REGULARISERS,
    "Optimisers": OPTIMISERS,
    "Schedules": SCHEDULES,
    "Transforms": {**TRANSFORMS, "clip": ClipTransform},
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of the same level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of each table row below a table's head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def codes(text: str) -> list[str]:
    """What stands between backticks in the text, outside of the fenced blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def components(title: str) -> dict[str, list[str]]:
    """The cells behind each name of a table in docs/components.md."""
    head, *body = rows(section(read("docs/components.md"), title))
    assert head[0] == "name" and head[-1] == "arguments"
    return {codes(name)[0]: cells for name, *cells in body}


@pytest.mark.parametrize("title", TABLES)
def test_every_component_is_listed_and_no_other(title: str) -> None:
    assert components(title).keys() == TABLES[title].keys()


@pytest.mark.parametrize("title", TABLES)
def test_the_arguments_are_those_of_the_constructors(title: str) -> None:
    """An argument's choice, as in `attention=inputs`, is tried below."""
    for name, (_, arguments) in components(title).items():
        known = inspect.signature(TABLES[title][name]).parameters
        for code in codes(arguments):
            if code not in TABLES[title]:
                assert code.partition("=")[0] in known, f"{title}, {name}: {code}"


@pytest.mark.parametrize("name", ["pie_net", "set_prediction"])
def test_the_settings_of_ablations_exist(name: str) -> None:
    settings = [code.split("=") for code in codes(components("Aggregators")[name][1]) if "=" in code]
    assert settings
    for key, value in settings:
        AGGREGATORS[name](in_dim=8, out_dim=8, num_embeddings=2, **{key: yaml.safe_load(value)})


def test_the_page_on_data_names_every_format() -> None:
    listed = set(codes(read("docs/data.md")))
    assert set(FORMATS) <= listed, set(FORMATS) - listed


def test_the_page_on_evaluation_names_every_protocol_and_no_other() -> None:
    table = rows(section(read("docs/evaluation.md"), "Protocols"))
    ends = next(number for number, row in enumerate(table) if row[0] == "option")
    assert sorted(code for name, *_ in table[1:ends] for code in codes(name)) == sorted(PROTOCOLS)


def test_the_readme_names_every_folder_of_configs() -> None:
    folders = {Path(name).parent.name for name in shipped_configs()} - {""}
    listed = {codes(name)[0].strip("/") for name, *_ in rows(section(read("README.md"), "Systems"))[1:]}
    assert listed == folders


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_linked_or_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (page.parent / link).exists(), link
    for code in codes(text):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./]*", code):
            assert (ROOT / code).exists(), code


def test_the_figure_is_well_formed() -> None:
    figure = ElementTree.parse(ROOT / "docs" / "images" / "architecture.svg").getroot()
    assert figure.tag == "{http://www.w3.org/2000/svg}svg"
    assert "docs/images/architecture.svg" in read("README.md")


def test_the_page_on_data_says_which_configs_read_glove() -> None:
    names = {name for name in shipped_configs() if read_config(name).data.vocabulary.vectors}
    text = section(read("docs/data.md"), "Captions, vocabularies and word vectors")
    assert "`pvse/`" in text
    expected = {f"pvse/{file.stem}" for file in (ROOT / "configs" / "pvse").iterdir()}
    for system in ("dive", "esa", "chan"):
        assert f"`{system}/*_region_bigru`" in text
        expected |= {f"{system}/{file.stem}" for file in (ROOT / "configs" / system).glob("*_region_bigru.yaml")}
    assert names == expected
