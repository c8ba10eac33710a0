"""Where config files are found, and how their YAML is read."""

from pathlib import Path

import pytest
from helpers import ROOT

from vse.config_files import find_base, find_config, first_comment, lacks_space, parse_yaml
from vse.errors import InputError


def test_a_config_is_a_file_a_run_folder_or_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
    assert find_config("vse_infty/f30k_region_bigru").samefile(shipped) and find_config(shipped) == shipped
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_config("demo").samefile(ROOT / "configs" / "demo.yaml")  # a folder that is no run
    Path("demo", "config.yaml").write_text("")
    assert find_config("demo") == Path("demo", "config.yaml")
    Path("data").mkdir()
    for name, message in (
        ("data", "data: no config.yaml in this folder; expected a config file or a run folder"),
        ("vse_infty/f30k_region_bigur", "did you mean 'vse_infty/f30k_region_bigru'"),
        ("none.yaml", "none.yaml: no such config file$"),
    ):
        with pytest.raises(InputError, match=message):
            find_config(name)


def test_a_base_is_a_neighbour_or_a_shipped_config(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert find_base("demo", file).samefile(ROOT / "configs" / "demo.yaml")
    (tmp_path / "demo").write_text("")
    assert find_base("demo", file) == tmp_path / "demo"
    assert find_base("none.yaml", file) == tmp_path / "none.yaml"


def test_the_first_comment(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# VSE, small. \n# More.\n")
    assert first_comment(file) == "VSE, small."
    file.write_text("run: {}\n# More.\n")
    assert first_comment(file) == ""


def test_numbers_and_names_in_yaml() -> None:
    assert parse_yaml("[5e-4, 1.5, .5, 3, 2020-01-02, '1']", "here") == [5e-4, 1.5, 0.5, 3, "2020-01-02", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "here, line 2: not valid YAML: key 'a' is given twice"),
        ("{a:1}", "here, line 1: not valid YAML: a space is missing after the colon in 'a:1'"),
        ("a: 1\nb:\n  c:3\n  d: 4", "here, line 3: not valid YAML: a space is missing after the colon in 'c:3'"),
        ("a: [1", "here, line 1: not valid YAML: "),
    ],
)
def test_bad_yaml(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "here")


def test_a_missing_space() -> None:
    assert lacks_space("name:gpo") == "name" and lacks_space("  epochs:3") == "epochs"
    for text in ("name: gpo", "name:", "https://host", "C:\\data", "my_pool.module:Pool"):
        assert lacks_space(text) is None, text
