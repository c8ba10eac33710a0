"""Pages of runs: what they hold, for every kind of model and of data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, Outcome, write_precomp
from outline import Outline, check_alone
from PIL import Image

from vse.build import build_corpus
from vse.checkpoints.load import load_model
from vse.cli import main
from vse.evaluation.encode import encode_corpus

MakeRun = Callable[..., Path]
SECTIONS = ["metrics", "curves", "weights", "sets", "captions", "images", "config"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of features with pictures of eight of its ten test images, and a caption that looks like HTML."""
    root = write_precomp(tmp_path_factory.mktemp("pictured") / "data")
    (root / "images").mkdir()
    for image in range(8):
        Image.new("RGB", (60, 40), (30 * image, 90, 120)).save(root / "images" / f"{1000 + image}.jpg")
    captions = root / "precomp" / "test_caps.txt"
    lines = captions.read_text().splitlines()
    lines = [f"{line} <script>alert(1)</script> & more" for line in lines]
    captions.write_text("\n".join(lines) + "\n")
    return root


def show(capfd: pytest.CaptureFixture[str], *words: object) -> Outcome:
    capfd.readouterr()
    code = 0
    try:
        main(["show", *map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Outcome(code, *capfd.readouterr())


def cards(outline: Outline, section: str, group: str) -> list[int]:
    place = next(n for n, (_, attributes, _) in enumerate(outline.elements) if attributes.get("id") == section)
    return outline.find("article", within=outline.find("div", group, place)[0])


SYSTEMS = ["vse_infty", "vse_2ad", "vsepp", "esa", "pvse", "dive", "chan"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_kind_of_model(
    system: str, make_run: MakeRun, pictured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model.{side}.aggregator.head_dim=4" for side in ("image", "text")] if system == "dive" else []
    run = make_run(system, *settings)
    outcome = show(capfd, run, f"data.root={pictured}", "--queries", 4, "--grid", "2x3", "--out", tmp_path / "a.html")
    assert outcome.code == 0, outcome.err
    assert "a.html: written, 0." in outcome.out
    outline = check_alone(tmp_path / "a.html")
    sections = [outline.elements[place][1]["id"] for place in outline.find("section")]
    assert sections == SECTIONS
    for section in ("captions", "images"):
        sizes = {group: len(cards(outline, section, group)) for group in ("sampled", "best", "worst")}
        assert sizes == {"sampled": 4, "best": 1, "worst": 1}
    check_marks(outline)
    text = "".join(outline.text(place) for place in outline.find("body"))
    assert "<script>alert(1)</script> & more" in text
    assert ("embedding 2" in text) == (system in ("pvse", "dive"))
    assert ("log within-set variance" in text) == (system in ("pvse", "dive", "chan"))
    assert bool(outline.find("polyline")) == (system in ("vse_infty", "vse_2ad"))
    assert ("Where the words of" in text) == (system == "chan")
    assert ("Where the model looks: the less weight a cell has" in text) == (system != "vsepp")
    assert ("The words that the model looks at are shaded" in text) == (system not in ("vsepp", "chan"))
    looks = [n for n in outline.find("image") if "pixelated" in outline.elements[n][1].get("style", "")]
    assert bool(looks) == (system != "vsepp")
    assert "The queries are chosen from the 8 images that have pictures" in text


def check_marks(outline: Outline) -> None:
    """Right answers say so in words, and each query names the place of its right answers."""
    articles = outline.find("article")
    assert len(articles) == 12
    for article in articles:
        right = [n for tag in ("li", "figure") for n in outline.find(tag, "right", article)]
        wrong = [n for tag in ("li", "figure") for n in outline.find(tag, "wrong", article)]
        assert right and wrong
        assert all("✓ right" in outline.text(place) for place in right)
        assert not any("✓" in outline.text(place) for place in wrong)
        assert "Right " in outline.text(article)


def test_the_answers_are_the_models(
    make_run: MakeRun, data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The captions of each card, in order, and which are marked: as the score matrix has them."""
    run = make_run("vse_infty")
    assert show(capfd, run, "--queries", 10, "--out", tmp_path / "a.html").code == 0
    loaded = load_model(run)
    corpus = build_corpus(loaded.config, "test")
    similarity, images, captions = encode_corpus(loaded.model, corpus, 256, progress=False)
    scores = similarity(images, captions).numpy()
    outline = check_alone(tmp_path / "a.html")
    assert "No pictures of these images were found" in outline.text(outline.find("body")[0])
    seen, lines = set(), 0
    for article in cards(outline, "captions", "sampled"):
        label = outline.text(outline.find("figcaption", within=article)[0]).removeprefix("image ")
        image = list(corpus.image_ids).index(label)
        order = np.argsort(-scores[image], kind="stable")[:5]
        items = outline.find("li", within=article)
        late = outline.find("li", "late", article)  # the right answer, where it is not among the first five
        assert late == items[5:]
        lines += len(late)
        for caption, item in zip(order, items, strict=False):
            right = corpus.image_of_caption[caption] == image
            assert corpus.captions[caption] in outline.text(item)
            assert f"{scores[image, caption]:.3f}" in outline.text(item) and ("✓" in outline.text(item)) == right
        seen.add(image)
    assert seen == set(range(10)) and lines


@pytest.mark.slow  # the command of docs/show.md does the same
def test_figures_are_saved(
    make_run: MakeRun, pictured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Charts, and where the embeddings of each query look."""
    pytest.importorskip("matplotlib")
    words = [make_run("vse_infty"), f"data.root={pictured}", "--queries", 1, "--out", tmp_path / "a.html"]
    outcome = show(capfd, *words, "--figures", tmp_path / "new" / "figures")
    assert outcome.code == 0, outcome.err
    files = sorted(path.name for path in (tmp_path / "new" / "figures").iterdir())
    assert files == sorted(f"{Path(name).stem}.{ending}" for name in files[::2] for ending in ("png", "svg"))
    assert f"figures: {len(files) // 2} figures, each as PNG and SVG" in outcome.out
    assert {name.split("_")[0] for name in files} == {"image", "caption", "weights"}


def trained(config: str, folder: Path, *settings: str) -> Path:
    """A run on rendered pictures or clips."""
    run = folder / "run"
    small = [f"run.dir={run}", f"data.root={folder / 'world'}", "data.workers=0", "model.embed_dim=8"]
    main(["train", str(ROOT / "configs" / config), *small, *settings, "train.epochs=1", "train.batch_size=8"])
    return run


def test_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The cells lie over what the transform leaves of the picture; the learning curves are there."""
    world = "data.options={pictures: true, train_scenes: 12, eval_scenes: 4}"
    crop = ["data.transform.name=crop", "data.transform.size=64", "data.transform.resize=64"]
    run = trained("demo_pictures.yaml", tmp_path, world, *crop)
    outcome = show(capfd, run, "--queries", 1)
    assert outcome.code == 0, outcome.err
    outline = check_alone(run / "show.html")
    text = outline.text(outline.find("body")[0])
    assert "RSUM on dev: best" in text and "no picture" not in text and "the darker it is" in text
    pictures = [n for n in outline.find("image") if "id" in outline.elements[n][1]]
    shades = [n for n in outline.find("image") if "id" not in outline.elements[n][1]]
    cards_of_images = [card for group in ("sampled", "best", "worst") for card in cards(outline, "captions", group)]
    assert len(shades) == len(cards_of_images) == 3 and len(pictures) > 4  # more than the files: some as they are read


@pytest.mark.slow
def test_clips(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Their first frames stand for them, and their frames have bars."""
    run = trained("demo_video.yaml", tmp_path, "data.options={train_scenes: 8, eval_scenes: 4}")
    outcome = show(capfd, run, "--queries", 1)
    assert outcome.code == 0, outcome.err
    outline = check_alone(run / "show.html")
    text = outline.text(outline.find("body")[0])
    assert "Video to text" in text and "no picture" not in text and "a bar is the weight" in text
    assert len(outline.find("image")) == 4


def test_a_page_is_replaced_and_nothing_else(
    make_run: MakeRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(make_run("vse_infty"), run)
    for _ in range(2):
        assert show(capfd, run / "best.pt", "--queries", 1).code == 0
    assert check_alone(run / "show.html").find("article")
    (run / "mine.html").write_text("notes")
    outcome = show(capfd, run, "--out", run / "mine.html")
    assert outcome.code == 2 and "is there already and is no HTML page" in outcome.error
    assert (run / "mine.html").read_text() == "notes"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "--queries", "0"), "--queries must be at least 1, got 0"),
        (("RUN", "--grid", "5"), "--grid: expected rows x columns such as 7x7, got 5"),
        (("RUN", "--grid", "5x5"), "--grid 5x5: has 25 cells, but"),
        (("RUN", "--out", "nowhere/a.html"), "nowhere: no such folder; expected a folder for a.html"),
        (("RUN", "model.embed_dims=3"), "model.embed_dims: unknown key"),
        (("missing",), "missing: no such run folder or checkpoint"),
        (("clip/f30k",), "clip/f30k: is no run folder that the page could be written to; name it with --out FILE"),
    ],
)
def test_mistakes(
    words: tuple[str, ...],
    message: str,
    make_run: MakeRun,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = make_run("vse_infty")
    monkeypatch.chdir(tmp_path)
    outcome = show(capfd, *(run if word == "RUN" else word for word in words))
    assert outcome.code == 2 and message in outcome.error
    assert not (run / "show.html").exists()


def test_figures_need_matplotlib(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = show(capfd, make_run("vse_infty"), "--out", tmp_path / "a.html", "--figures", tmp_path / "figures")
    assert outcome.error == "error: --figures needs matplotlib; install it with pip install 'vse-retrieval[figures]'"


def test_a_pretrained_model_needs_no_run(tiny_clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Zero-shot: there are no curves, and nothing says where it looks."""
    settings = ["data.format=synthetic", f"data.root={tmp_path / 'world'}", "data.workers=0", "model.embed_dim=16"]
    settings += [f"model.{side}.encoder.model={tiny_clip}" for side in ("image", "text")]
    settings.append("data.options={pictures: true, train_scenes: 4, eval_scenes: 4}")
    outcome = show(capfd, "clip/f30k", *settings, "--queries", 1, "--out", tmp_path / "a.html")
    assert outcome.code == 0, outcome.err
    outline = check_alone(tmp_path / "a.html")
    text = outline.text(outline.find("body")[0])
    assert "There is no metrics.jsonl with numbers beside the checkpoint." in text and "no picture" not in text
    assert len(outline.find("article")) == 6
