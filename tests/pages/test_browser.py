"""Pages in a real browser, on a desktop, on a phone and on paper: pytest -m browser."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import write_precomp
from PIL import Image

from vse.cli import main
from vse.pages.search import search_page
from vse.search.results import Hit, Result

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"desktop": 1100, "phone": 500}  # Chromium's windows are at least 500 wide

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> str:
    """The command of the browser: VSE_BROWSER, one that is installed, or Playwright's."""
    given = os.environ.get("VSE_BROWSER")
    found = [given] if given else [path for name in BROWSERS if (path := shutil.which(name))]
    found += map(str, sorted(Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome")))
    if not found:
        pytest.skip(f"no browser found; install one of {', '.join(BROWSERS)}, or name one in VSE_BROWSER")
    return found[0]


@pytest.fixture(scope="module")
def pages(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run with embedding sets, and a page of a search."""
    folder = tmp_path_factory.mktemp("pages")
    root = write_precomp(folder / "data")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for image in range(10):
        noise = rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((300, 200)).save(root / "images" / f"{1000 + image}.jpg")
    words = [str(make_run("pvse")), f"data.root={root}", "--grid", "2x3", "--queries", "4"]
    main(["show", *words, "--out", str(folder / "run.html")])
    found = (Hit(n + 1, 0.9 - n / 10, str(n), root / "images" / f"{1000 + n}.jpg", "a red dog") for n in range(6))
    hits = tuple(found)
    results = [Result("a dog", None, hits), Result("1001.jpg", root / "images" / "1001.jpg", hits)]
    search_page(results, folder / "search.html")
    return {name: folder / f"{name}.html" for name in ("run", "search")}


def run_browser(browser: str, *arguments: str) -> str:
    """What the browser prints, without network."""
    fixed = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    done = subprocess.run([browser, *fixed, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("name", ["run", "search"])
def test_screens(name: str, device: str, browser: str, pages: dict[str, Path], tmp_path: Path) -> None:
    """Something is drawn over the whole width, and nothing is cut off at the right edge."""
    picture, width = tmp_path / "screen.png", WIDTHS[device]
    size = f"--window-size={width},2400"
    run_browser(browser, size, f"--screenshot={picture}", pages[name].as_uri())
    with Image.open(picture) as screen:
        assert screen.size == (width, 2400)
        pixels = np.asarray(screen.convert("L"))
    background = pixels[0, 0]
    drawn = (pixels != background).any(0)
    assert drawn[: width // 2].any() and drawn[width // 2 :].any()
    assert not drawn[-4:].any()  # the margin


@pytest.mark.parametrize("name", ["run", "search"])
def test_the_page_is_no_wider_than_a_phone(name: str, browser: str, pages: dict[str, Path], tmp_path: Path) -> None:
    """The browser's own measure, of a copy that tells it."""
    tell = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    copy = tmp_path / "copy.html"
    copy.write_text(pages[name].read_text().replace("</body>", tell))
    text = run_browser(browser, "--window-size=500,900", "--dump-dom", copy.as_uri())
    title = text.partition("<title>")[2].partition("</title>")[0]
    inner, outer = title.split(" of ")
    assert int(inner) <= int(outer), title


def test_paper(browser: str, pages: dict[str, Path], tmp_path: Path) -> None:
    paper = tmp_path / "run.pdf"
    run_browser(browser, f"--print-to-pdf={paper}", "--no-pdf-header-footer", pages["run"].as_uri())
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
