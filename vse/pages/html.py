"""Build HTML by code: elements that escape what is put into them, tables, and the frame of a page."""

import html
from collections.abc import Sequence
from pathlib import Path

from vse.errors import InputError
from vse.files import check_target, write_text

_START = b"<!doctype html>"
_VOID = {"meta", "br", "wbr"}

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --page: #ffffff; --card: #f5f6f8; --line: #d5d9df;
  --right: #1a7f37; --word: 255, 140, 0; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0538a; --c4: #a87900;
  --c5: #3a9bd1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a2a9b3; --page: #16181b; --card: #212428; --line: #3a3f46; --right: #4cc26a;
    --c0: #56b4e9; --c1: #ff8b4a; --c2: #2fc79a; --c3: #e08fc0; --c4: #e6b84c; --c5: #8ccbf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .2rem 0; } h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .5rem; } p { margin: .4rem 0; }
.soft, figcaption, small { color: var(--soft); } small, figcaption, .soft { font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .8rem 0; } a { color: var(--c0); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } td small { display: block; }
figure { margin: 0; } svg { display: block; max-width: 100%; height: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem; }
.charts figcaption b { color: var(--ink); display: block; }
.chart { width: 100%; } .chart text { fill: var(--soft); font-size: 12px; }
.chart .grid { stroke: var(--line); stroke-width: 1; } .chart polyline { fill: none; stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; } .legend svg { display: inline-block; width: 2rem;
  height: .7rem; vertical-align: middle; margin-right: .3rem; }
.query { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; margin: .8rem 0;
  break-inside: avoid; }
.found { display: grid; grid-template-columns: minmax(8rem, 15rem) 1fr; gap: 1rem; }
.found.looked { grid-template-columns: minmax(8rem, 13rem) minmax(8rem, 13rem) 1fr; }
.hits { list-style: none; margin: 0; padding: 0; }
.hits li { padding: .2rem 0; display: grid; grid-template-columns: 1.9rem 1fr auto; gap: .4rem; }
.score { color: var(--soft); font-size: .875rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.right { font-weight: 600; } .mark { color: var(--right); font-weight: 700; white-space: nowrap; }
.hits li.late { border-top: 1px dashed var(--line); grid-template-columns: auto 1fr auto; }
.pictures { display: grid; gap: .7rem; margin: .6rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8rem), 1fr)); }
.picture { border-radius: .3rem; overflow: hidden; width: 100%; }
.hit.right .picture { outline: .2rem solid var(--right); }
.missing { border: 1px dashed var(--line); border-radius: .3rem; color: var(--soft); font-size: .8rem;
  padding: 1.2rem .4rem; text-align: center; }
.parts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); gap: .8rem;
  margin-top: .8rem; border-top: 1px solid var(--line); padding-top: .2rem; }
.parts.words { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
.parts h4 { margin: .4rem 0 .2rem; } .parts .hits { font-size: .875rem; margin-top: .3rem; }
.parts .hits li { grid-template-columns: 1.3rem 1fr auto; } .parts .score { font-size: .8rem; }
.parts .pictures { grid-template-columns: repeat(3, 1fr); gap: .4rem; }
.parts .missing { font-size: .7rem; padding: .4rem .2rem; }
.caption { font-size: 1.1rem; margin: 0 0 .3rem; } .parts .caption { font-size: .95rem; }
.word { background: rgba(var(--word), var(--a)); border-radius: .2rem; padding: .05rem .15rem; line-height: 1.8;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.end { color: var(--soft); font-size: .8em; font-style: italic; }
.gallery { position: absolute; width: 0; height: 0; overflow: hidden; }
pre { overflow-x: auto; font-size: .8rem; background: var(--card); padding: .8rem; border-radius: .4rem; }
@media (max-width: 40rem) {
  body { padding: .6rem; } th, td { padding: .3rem; } table { font-size: .875rem; } td small { font-size: .75rem; }
  .found { grid-template-columns: 1fr; } .found > .look { max-width: 18rem; }
  .found.looked { grid-template-columns: 1fr 1fr; gap: .6rem; } .found.looked > :last-child { grid-column: 1 / 3; }
  .parts { grid-template-columns: repeat(2, 1fr); } .parts.words { grid-template-columns: repeat(3, 1fr); }
  .parts.asked { grid-template-columns: 1fr; } td:first-child { white-space: normal; }
  .parts .hits li { grid-template-columns: 1fr auto; } .parts .hits li > :first-child { display: none; }
  .found .pictures, article > .pictures { grid-template-columns: repeat(3, 1fr); } }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --page: #fff; --card: #fff; --line: #bbb; --right: #0a5c22;
    --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0538a; --c4: #a87900; --c5: #3a9bd1; }
  html { font-size: 8pt; } body { max-width: none; font-size: 8pt; padding: 0; } nav, details { display: none; }
  h2, h3, h2 + .soft { break-after: avoid; } figure, tr { break-inside: avoid; }
  .charts { grid-template-columns: repeat(3, 1fr); } .parts { grid-template-columns: repeat(4, 1fr); }
  .found { grid-template-columns: 3cm 1fr; } .found.looked { grid-template-columns: 3cm 3cm 1fr; }
  .parts > div > .picture { max-width: 2.8cm; } .pictures { grid-template-columns: repeat(6, 1fr); }
  .query { margin: .5rem 0; padding: .5rem; } .hits li { padding: .1rem 0; } }
"""


class Markup(str):
    """Text that is HTML already and is not escaped again."""


def tag(name: str, /, *children: str, **attributes: str | int | float) -> Markup:
    """Make an element.

    Args:
        name: The element's name.
        children: What it contains. Plain strings are escaped; :class:`Markup` is taken as it is.
        attributes: Its attributes. An underscore stands for a hyphen, and one at the end is left out: ``class_``.

    Returns:
        The element.

    >>> tag("td", "a < b", class_="x")
    '<td class="x">a &lt; b</td>'
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """Put parts behind each other.

    Args:
        parts: The parts. Plain strings are escaped; :class:`Markup` is taken as it is.

    Returns:
        All of them.

    >>> join(Markup("<br>"), "&")
    '<br>&amp;'
    """
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Make a table that can be scrolled sideways on a narrow screen.

    Args:
        head: The titles of the columns.
        rows: The cells of each row.

    Returns:
        The table.
    """
    first = tag("tr", *(tag("th", title, scope="col") for title in head))
    others = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", tag("thead", first), tag("tbody", *others)), class_="scroll")


def section(label: str, title: str, *content: str) -> Markup:
    """Make a section with a heading, to which the page's contents can link.

    Args:
        label: Its id.
        title: Its heading.
        content: What stands below.

    Returns:
        The section.
    """
    return tag("section", tag("h2", title), *content, id=label)


def page(title: str, *body: str) -> str:
    """Make a whole page that needs no other file.

    Args:
        title: Its title.
        body: What it shows.

    Returns:
        The file's content.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="vse"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return _START.decode() + "\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


def check_page(path: Path) -> None:
    """Check that a page can be written to a file, before it is made.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be written, or it holds something other than a page.
    """
    check_target(path)
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as file:
            if file.read(len(_START)).lower() != _START:
                raise InputError(
                    f"{path}: is there already and is no HTML page; expected a new file, or a page to replace"
                )


def write_page(path: Path, content: str) -> None:
    """Write a page, completely or not at all.

    Args:
        path: The file; see :func:`check_page` for what it may hold already.
        content: The page, from :func:`page`. Characters that UTF-8 does not have, which are in the names of some files,
            are written with a backslash.

    Raises:
        InputError: The file cannot be written, or it holds something other than a page.
    """
    check_page(path)
    write_text(path, content, errors="backslashreplace")
