from pathlib import Path

import pytest
from outline import Outline, check_alone

from vse.errors import InputError
from vse.pages.html import Markup, check_page, join, page, section, table, tag, write_page


def test_what_is_put_in_is_escaped() -> None:
    assert tag("p", "<script>", title='"&') == '<p title="&quot;&amp;">&lt;script&gt;</p>'
    assert join("<", Markup("<br>")) == "&lt;<br>"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("line", stroke_width=2, class_="x") == '<line stroke-width="2" class="x"></line>'


def test_a_page_is_whole(tmp_path: Path) -> None:
    body = section("a", "A & B", table(["<x>", "y"], [["1", tag("small", "2")]]), tag("a", "up", href="#a"))
    write_page(tmp_path / "a.html", page("T < U", body))
    outline = check_alone(tmp_path / "a.html")
    assert outline.text(outline.find("title")[0]) == "T < U"
    assert [outline.text(cell) for cell in outline.find("th") + outline.find("td")] == ["<x>", "y", "1", "2"]
    style = outline.text(outline.find("style")[0])
    for needed in ("@media print", "max-width", "prefers-color-scheme: dark"):
        assert needed in style
    assert style.count("{") == style.count("}")


def test_the_reader_is_strict() -> None:
    with pytest.raises(AssertionError, match="closes b"):
        Outline("<p><b></p></b>")
    with pytest.raises(AssertionError, match="left open"):
        Outline("<p>")


def test_only_pages_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.html"
    path.write_text("my notes")
    with pytest.raises(InputError, match="notes.html: is there already and is no HTML page; expected a new file"):
        check_page(path)
    assert path.read_text() == "my notes"
    path.write_text(page("old"))
    write_page(path, page("new"))
    assert "new" in path.read_text()
    with pytest.raises(InputError, match="no such folder"):
        check_page(tmp_path / "missing" / "a.html")
