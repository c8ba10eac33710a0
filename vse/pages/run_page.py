"""The page of a trained model: its metrics, its curves, its weights, and what it answers to some queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from vse.build import build_corpus
from vse.checkpoints.load import Loaded, load_model
from vse.checkpoints.native import find_checkpoint
from vse.config_files import names_config
from vse.console import show_progress
from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.blocks import transpose
from vse.evaluation.bootstrap import bootstrap
from vse.evaluation.encode import check_corpus
from vse.evaluation.protocols import PROTOCOLS, report
from vse.evaluation.score import CorpusScores, embed_corpus, nan_names, score_embeddings, single_embedding_rsums
from vse.pages.cards import Card, caption_card, image_card
from vse.pages.charts import Chart, draw
from vse.pages.curves import learning_curves
from vse.pages.exhibit import Exhibit
from vse.pages.figures import PictureFigure, WordFigure, check_figures, save_figures
from vse.pages.html import Markup, check_page, page, section, tag, write_page
from vse.pages.looks import Boxes, Cells, find_layout, look
from vse.pages.pictures import find_pictures
from vse.pages.queries import Choice, answer, choose
from vse.pages.rank_weights import weight_chart
from vse.pages.results import health_table, metrics_table
from vse.runtime import pick_device

_BOOTSTRAP = 1000  # samples of the images
_DRAWN = 50_000_000  # captions in all samples together: of a large corpus there are fewer samples
_TOP = 5  # answers that are shown
_OWN = 3  # answers of a single embedding that are shown
_WEIGHED = 64  # images, and captions, over which weights by rank are averaged
_SEED = 0
_GROUPS = {
    "sampled": "Drawn at random",
    "best": "Best: the right answer leads by the largest margin",
    "worst": "Worst: the right answer is the farthest down",
}


def show_run(
    run: str,
    overrides: Sequence[str] = (),
    split: str = "test",
    queries: int = 20,
    out: Path | None = None,
    figures: Path | None = None,
    grid: tuple[int, int] | None = None,
    vocabulary: Path | None = None,
) -> str:
    """Write the page of a trained model.

    Args:
        run: A run folder, a checkpoint, or a config of a pretrained model.
        overrides: Settings as ``key=value`` that differ from the run's own.
        split: The split that is shown.
        queries: The number of images, and of captions, that are drawn at random; a quarter as many are the best and the
            worst.
        out: The file to write; by default show.html in the run folder.
        figures: A folder for the figures as PNG and SVG, or None.
        grid: The rows and columns of the grid, if an image's regions are the cells of one.
        vocabulary: A vocabulary file for a checkpoint that came without one.

    Returns:
        A line that says what was written.

    Raises:
        InputError: An argument, a file or the checkpoint is not what it should be; the message names it.
    """
    if queries < 1:
        raise InputError(f"--queries must be at least 1, got {queries}")
    target = _target(run, out)
    check_page(target)
    if figures is not None:
        check_figures(figures)
    loaded = load_model(run, overrides, vocabulary)
    corpus = build_corpus(loaded.config, split)
    check_corpus(loaded.model, corpus)
    model = loaded.model.to(pick_device(loaded.config.run.device))
    layout = find_layout(loaded.config, model, corpus, grid)
    embeddings = embed_corpus(model, corpus, loaded.config.eval.batch_size, loaded.config.eval.precision)
    exhibit = Exhibit(model, corpus, embeddings, layout, find_pictures(loaded.config, corpus, split))
    scored = score_embeddings(embeddings, corpus, run)

    charts = [*learning_curves(loaded.file.parent / "metrics.jsonl"), *_weight_charts(exhibit)]
    sections, drawn = _sections(exhibit, loaded, scored, charts, queries)
    title = f"{Path(run).resolve().name}, {split}"
    head = [tag("h1", title), tag("p", _about(loaded, corpus), class_="soft"), _contents()]
    write_page(target, page(title, *head, *sections, exhibit.gallery.content()))
    line = f"{target}: written, {target.stat().st_size / 1e6:.1f} MB"
    if figures is not None:
        line += f"\n{figures}: {save_figures(figures, [*charts, *drawn])} figures, each as PNG and SVG"
    return line


def _target(run: str, out: Path | None) -> Path:
    """Where the page goes."""
    if out is not None:
        return out
    if names_config(run):
        raise InputError(f"{run}: is no run folder that the page could be written to; name it with --out FILE")
    return find_checkpoint(run).with_name("show.html")


def _about(loaded: Loaded, corpus: Corpus) -> str:
    """The line below the title."""
    model = loaded.config.model
    sides = [f"{side.encoder.name} + {side.aggregator.name}" for side in (model.image, model.text)]
    sizes = f"{len(corpus.images):,} images, {len(corpus.captions):,} captions"
    return f"{loaded.file}; images: {sides[0]}; captions: {sides[1]}; similarity: {model.similarity.name}; {sizes}"


_SECTIONS = {
    "metrics": "Metrics",
    "curves": "Learning curves",
    "weights": "Weights by rank",
    "sets": "Embedding sets",
    "captions": "Images ask for captions",
    "images": "Captions ask for images",
    "config": "Config",
}


def _contents() -> Markup:
    return tag("nav", *(tag("a", title, href=f"#{label}") for label, title in _SECTIONS.items()))


def _sections(
    exhibit: Exhibit, loaded: Loaded, scored: CorpusScores, charts: Sequence[Chart], queries: int
) -> tuple[list[Markup], list[PictureFigure | WordFigure]]:
    """The page's sections, and the figures of where the embeddings look."""
    metrics = _metrics(exhibit, loaded, scored)
    curves = [draw(chart) for chart in charts if not chart.name.startswith("weights_")]
    weights = [draw(chart) for chart in charts if chart.name.startswith("weights_")]
    health = health_table(metrics.get("sets", {}))
    no_curves = "There is no metrics.jsonl with numbers beside the checkpoint."
    no_weights = "Only gpo and adaptive weigh the ranks of sorted values; this model has neither."
    asking = [_queries(exhibit, scored, side, queries) for side in ("image", "text")]
    yaml_text = yaml.safe_dump(loaded.config.model_dump(), sort_keys=False, allow_unicode=True)
    content: dict[str, list[str]] = {
        "metrics": [metrics_table(metrics, exhibit.corpus.video)],
        "curves": [tag("div", *curves, class_="charts") if curves else tag("p", no_curves)],
        "weights": [tag("div", *weights, class_="charts") if weights else tag("p", no_weights)],
        "sets": [health if health is not None else tag("p", "Images and captions have one embedding each.")],
        "captions": asking[0][0],
        "images": asking[1][0],
        "config": [tag("details", tag("summary", "All settings"), tag("pre", yaml_text))],
    }
    sections = [section(label, title, *content[label]) for label, title in _SECTIONS.items()]
    return sections, [*asking[0][1], *asking[1][1]]


def _metrics(exhibit: Exhibit, loaded: Loaded, scored: CorpusScores) -> dict[str, Any]:
    """What ``vse eval --bootstrap`` reports."""
    corpus = exhibit.corpus
    metrics = report(scored, corpus, PROTOCOLS["retrieval"])
    samples = min(_BOOTSTRAP, max(100, _DRAWN // len(corpus.captions)))
    metrics["bootstrap"] = bootstrap([[scored.ranks(corpus.image_of_caption)]], samples)[0]
    if "sets" in metrics:
        alone = single_embedding_rsums(exhibit.embeddings, corpus.image_of_caption)
        metrics["sets"] = {**metrics["sets"], **alone, "start": loaded.start}
    return metrics


def _weight_charts(exhibit: Exhibit) -> list[Chart]:
    """Charts of the weights by rank of both sides, where they have them."""
    corpus, draw_of = exhibit.corpus, np.random.default_rng(_SEED)
    images = draw_of.permutation(len(corpus.images))[:_WEIGHED].tolist()
    captions = draw_of.permutation(len(corpus.captions))[:_WEIGHED].tolist()
    charts = []
    what = "frames" if corpus.video else "regions"
    for side, name, items in (("image", what, images), ("text", "tokens", captions)):
        tower = exhibit.model.image if side == "image" else exhibit.model.text
        if weight_chart(side, name, tower.aggregator, [_features(exhibit, side, items[0])]) is not None:
            bar = show_progress(items, len(items), f"weights by rank of {side}s", " items", delay=2)
            samples = [_features(exhibit, side, item) for item in bar]
            chart = weight_chart(side, name, tower.aggregator, samples)
            charts += [chart] if chart is not None else []
    return charts


def _features(exhibit: Exhibit, side: str, item: int) -> Tensor:
    """The features (N, D) that are aggregated of an image or a caption."""
    if side == "text":
        return look(exhibit.model.text, exhibit.tokens(item))[1]
    return look(exhibit.model.image, torch.from_numpy(exhibit.item(item))[None])[1]


def _queries(
    exhibit: Exhibit, scored: CorpusScores, side: str, count: int
) -> tuple[list[str], list[PictureFigure | WordFigure]]:
    """The cards of one direction's queries, by group."""
    corpus, found = exhibit.corpus, scored.ranks(exhibit.corpus.image_of_caption)[0]
    blocks = exhibit.blocks if side == "image" else transpose(exhibit.blocks)
    ranks = (found.i2t if side == "image" else found.t2i).numpy()
    positives = [exhibit.positives(side, query) for query in range(len(ranks))]
    allowed, note = _allowed(exhibit, side)
    with nan_names(corpus):
        choice = choose(blocks, ranks, positives, allowed, count, _SEED)
        cards = _cards(exhibit, side, choice, [positives[query] for group in choice for query in group])
    content: list[str] = [tag("p", note, class_="soft")] if note else []
    for (group, title), own in zip(_GROUPS.items(), choice, strict=True):
        shown = [cards[group, query].content for query in own]
        content.append(tag("div", tag("h3", title), *shown, class_=f"group {group}"))
    return content, [figure for card in cards.values() for figure in card.figures]


def _allowed(exhibit: Exhibit, side: str) -> tuple[np.ndarray, str]:
    """Which queries may be shown: those of images with pictures, where there are any; and a note on that."""
    corpus = exhibit.corpus
    there = np.array(sorted(exhibit.pictures), dtype=np.int64)
    note = _look_note(exhibit, side)
    if not len(there):
        there = np.arange(len(corpus.images))
        note = f"No pictures of these images were found. {note}".strip()
    elif len(there) < len(corpus.images):
        note = f"The queries are chosen from the {len(there):,} images that have pictures. {note}".strip()
    if side == "image":
        return there, note
    return np.flatnonzero(np.isin(corpus.image_of_caption, there)), note


def _look_note(exhibit: Exhibit, side: str) -> str:
    """How to read the looks."""
    found = exhibit.look_at_image(0) if side == "image" else exhibit.look_at_caption(0)
    if found is None and not (side == "image" and exhibit.matches_words):
        return ""
    if side == "text":
        return "The words that the model looks at are shaded by their weight."
    if isinstance(exhibit.layout, Cells):
        return "Where the model looks: the less weight a cell has, the darker it is."
    if isinstance(exhibit.layout, Boxes):
        return "Where the model looks: boxes around the five regions with the most weight, thicker for more weight."
    return "Where the model looks: a bar is the weight of an element; nothing says where the elements are."


def _cards(exhibit: Exhibit, side: str, choice: Choice, positives: Sequence[np.ndarray]) -> dict[tuple[str, int], Card]:
    """A card for each chosen query, by its group and index."""
    blocks = exhibit.blocks if side == "image" else transpose(exhibit.blocks)
    keys = [(group, query) for group, own in choice._asdict().items() for query in own]
    queries = [query for _, query in keys]
    answers = answer(blocks, queries, positives, _TOP)
    own = exhibit.own_answers(side, queries, _OWN)
    make = image_card if side == "image" else caption_card
    title = "images" if side == "image" else "captions"
    cards = {}
    for place, key in enumerate(show_progress(keys, len(keys), f"looking at {title}", " queries", delay=2)):
        cards[key] = make(exhibit, key[1], answers[place], [each[place] for each in own])
    return cards
