"""Reads a page of HTML strictly, for the tests of pages."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br"}


class Outline(HTMLParser):
    """What a page holds; every element must be closed where it belongs.

    Attributes:
        elements: Each element's name, attributes and text, the text of the elements inside it included.
        parents: The place of each element's parent in ``elements``; -1 for the outermost.
    """

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.parents: list[int] = []
        self._open: list[int] = []
        self.feed(content)
        self.close()
        assert not self._open, "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        self.parents.append(self._open[-1] if self._open else -1)
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open[-1]][0] == tag, f"</{tag}> closes {self.elements[self._open[-1]][0]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def text(self, place: int) -> str:
        return "".join(self.elements[place][2])

    def find(self, tag: str, kind: str = "", within: int = -1) -> list[int]:
        """The places of the elements of a name and a class, inside another one."""
        found = []
        for place, (name, attributes, _) in enumerate(self.elements):
            classes = attributes.get("class", "").split()
            if name == tag and (not kind or kind in classes) and (within < 0 or self._is_inside(place, within)):
                found.append(place)
        return found

    def _is_inside(self, place: int, outer: int) -> bool:
        while place >= 0:
            if place == outer:
                return True
            place = self.parents[place]
        return False

    def links(self) -> set[str]:
        """What the page loads or links to."""
        names = ("href", "src", "xlink:href", "action", "data", "srcset", "poster")
        return {attributes[name] for _, attributes, _ in self.elements for name in names if name in attributes}

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes, _ in self.elements if "id" in attributes]


def check_alone(path: Path) -> Outline:
    """Read a page that needs no other file: its links lead into itself, and nothing in it is run."""
    content = path.read_text(encoding="utf-8")
    outline = Outline(content)
    ids = outline.ids()
    assert len(set(ids)) == len(ids)
    for link in outline.links():
        assert link.startswith("data:image/") or (link[0] == "#" and link[1:] in ids), link[:80]
    assert (
        not outline.find("script") and not outline.find("link") and "@import" not in content and "url(" not in content
    )
    assert not any(name.startswith("on") for _, attributes, _ in outline.elements for name in attributes)
    assert outline.find("title") and ("viewport" in {a.get("name") for n, a, _ in outline.elements if n == "meta"})
    return outline
