"""The cards of queries: what is asked, what the model answers, and where each embedding looks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vse.pages.exhibit import Exhibit
from vse.pages.figures import PictureFigure, WordFigure
from vse.pages.html import Markup, tag
from vse.pages.looks import Look, draw_look
from vse.pages.pictures import SMALL
from vse.pages.queries import Answers, Hit
from vse.pages.shaded_words import shade_words, word_weights

_MOST_WORDS = 18  # of a caption whose regions are shown one by one
MARK = "✓ right"


class Card(NamedTuple):
    """A query on the page, and the figures that it contains.

    Attributes:
        content: The card.
        figures: The same looks for matplotlib.
    """

    content: Markup
    figures: list[PictureFigure | WordFigure]


def image_card(exhibit: Exhibit, image: int, answers: Answers, own: Sequence[Answers]) -> Card:
    """Make the card of an image that asks for captions.

    Args:
        exhibit: The model and its corpus.
        image: The index of the image.
        answers: The model's answers.
        own: The answers of each embedding alone; empty for single embeddings.

    Returns:
        The card.
    """
    label = f"image {exhibit.corpus.image_ids[image]}"
    picture = tag("figure", exhibit.show_image(image), tag("figcaption", label), class_="look")
    late = [hit for hit in answers.right[:1] if hit not in answers.top]
    hits = caption_list(exhibit, answers.top, late)
    places = tag("p", _places(answers.right, len(exhibit.corpus.captions), "caption"), class_="soft")
    parts, figures = _image_parts(exhibit, image, own)
    if len(parts) == 1:  # a single embedding: its look stands beside the picture
        return Card(tag("article", _beside(picture, parts[0], tag("div", hits, places)), class_="query"), figures)
    content = [_beside(picture, tag("div", hits, places)), *_row(parts)]
    if exhibit.matches_words and answers.right:
        words, figure = _word_parts(exhibit, image, answers.right[0].item)
        content, figures = [*content, *words], [figure]
    return Card(tag("article", *content, class_="query"), figures)


def caption_card(exhibit: Exhibit, caption: int, answers: Answers, own: Sequence[Answers]) -> Card:
    """Make the card of a caption that asks for images.

    Args:
        exhibit: The model and its corpus.
        caption: The index of the caption.
        answers: The model's answers.
        own: The answers of each embedding alone; empty for single embeddings.

    Returns:
        The card.
    """
    places = tag("p", _places(answers.right, len(exhibit.corpus.images), "image"), class_="soft")
    late = [hit for hit in answers.right if hit not in answers.top]
    hits = picture_list(exhibit, [*answers.top, *late])
    parts, figures = _caption_parts(exhibit, caption, own)
    if len(parts) == 1:  # a single embedding: its look is the caption itself
        return Card(tag("article", parts[0], places, hits, class_="query"), figures)
    asked = tag("p", exhibit.corpus.captions[caption], class_="caption")
    return Card(tag("article", asked, places, hits, *_row(parts, "parts asked"), class_="query"), figures)


def _beside(*columns: Markup) -> Markup:
    """Columns of a card: the picture, perhaps the look of a single embedding, and the answers."""
    return tag("div", *columns, class_="found looked" if len(columns) == 3 else "found")


def caption_list(exhibit: Exhibit, hits: Sequence[Hit], late: Sequence[Hit] = ()) -> Markup:
    """List captions with their places and scores; the right ones are marked.

    Args:
        exhibit: The model and its corpus.
        hits: The captions.
        late: Captions from farther down, which stand below a line.

    Returns:
        The list.
    """
    captions = exhibit.corpus.captions
    items = [_caption_hit(captions[hit.item], hit) for hit in hits]
    items += [_caption_hit(captions[hit.item], hit, late=True) for hit in late]
    return tag("ol", *items, class_="hits")


def _caption_hit(caption: str, hit: Hit, late: bool = False) -> Markup:
    mark = [Markup(" "), tag("span", MARK, class_="mark")] if hit.right else []
    score = tag("span", f"{hit.score:.3f}", class_="score")
    text = tag("span", caption, *mark)
    kind = "right" if hit.right else "wrong"
    place = tag("span", f"{hit.place:,}.", class_="score")
    return tag("li", place, text, score, class_=f"{kind} late" if late else kind)


def picture_list(exhibit: Exhibit, hits: Sequence[Hit]) -> Markup:
    """Show images with their places and scores; the right ones are marked.

    Args:
        exhibit: The model and its corpus.
        hits: The images.

    Returns:
        The pictures.
    """
    figures = []
    for hit in hits:
        mark = [Markup(" "), tag("span", MARK, class_="mark")] if hit.right else []
        caption = tag(
            "figcaption", f"{hit.place:,}.", *mark, Markup(" "), tag("span", f"{hit.score:.3f}", class_="score")
        )
        kind = "hit right" if hit.right else "hit wrong"
        figures.append(tag("figure", exhibit.show_image(hit.item, SMALL), caption, class_=kind))
    return tag("div", *figures, class_="pictures")


def _places(right: Sequence[Hit], total: int, what: str) -> str:
    """Where the right answers are."""
    if not right:
        return f"It has no {what}."
    places = [f"{hit.place:,}" for hit in right]
    told = places[0] if len(places) == 1 else f"{', '.join(places[:-1])} and {places[-1]}"
    return f"Right {what}{'s' if len(places) > 1 else ''} at {told} of {total:,}."


def _image_parts(
    exhibit: Exhibit, image: int, own: Sequence[Answers]
) -> tuple[list[Markup], list[PictureFigure | WordFigure]]:
    """For each embedding of an image, where it looks and its nearest captions."""
    found = None if exhibit.matches_words else exhibit.look_at_image(image)
    _, thumbnail = exhibit.under_look(image)
    parts, titles = [], _titles(found, own)
    for place, title in enumerate(titles):
        content: list[Markup] = [tag("h4", title)] if title else []
        if found is not None and place < len(found.weights):
            weights = found.weights[place]
            content.append(
                draw_look(weights, exhibit.layout, image, thumbnail, f"{title or found.kind} over the image")
            )
            content.append(tag("small", _most(weights, found)))
        if own:
            content.append(caption_list(exhibit, own[place].top))
        parts.append(tag("div", *content))
    if found is None:
        return parts, []
    labels = [title or found.kind for title in titles]
    return parts, [_picture_figure(exhibit, "image", image, found.weights, labels)]


def _picture_figure(exhibit: Exhibit, kind: str, image: int, weights: torch.Tensor, labels: list[str]) -> PictureFigure:
    """The figure of weights over an image."""
    name = f"{kind}_{_file_name(exhibit.corpus.image_ids[image])}"
    picture = exhibit.gallery.picture(exhibit.under_look(image)[0])
    return PictureFigure(name, picture, exhibit.layout, image, weights, labels)


def _caption_parts(
    exhibit: Exhibit, caption: int, own: Sequence[Answers]
) -> tuple[list[Markup], list[PictureFigure | WordFigure]]:
    """For each embedding of a caption, the words that it looks at and its nearest images."""
    found = None if exhibit.matches_words else exhibit.look_at_caption(caption)
    text, vocabulary = exhibit.corpus.captions[caption], exhibit.model.vocabulary
    parts = []
    for place, title in enumerate(_titles(found, own)):
        content: list[Markup] = [tag("h4", title)] if title else []
        if found is not None and place < len(found.weights):
            content += shade_words(vocabulary, text, found.weights[place])
        if own:
            content.append(picture_list(exhibit, own[place].top))
        parts.append(tag("div", *content))
    figures: list[PictureFigure | WordFigure] = []
    if found is not None and (rows := [word_weights(vocabulary, text, row.tolist()) for row in found.weights])[0]:
        names = [name for name, _, _ in rows[0]]
        weights = torch.tensor([[weight for _, weight, _ in row] for row in rows])
        figures.append(WordFigure(f"caption_{_file_name(exhibit.corpus.caption_ids[caption])}", names, weights))
    return parts, figures


def _titles(found: Look | None, own: Sequence[Answers]) -> list[str]:
    """The titles of the parts of a card: one for each embedding, or for each map of attention where they differ."""
    maps = 0 if found is None else len(found.weights)
    if own:
        return [f"embedding {place + 1}" for place in range(len(own))]
    return [f"map {place + 1}" for place in range(maps)] if maps > 1 else [""] * maps


def _row(parts: Sequence[Markup], kind: str = "parts") -> list[Markup]:
    return [tag("div", *parts, class_=kind)] if parts else []


def _most(weights: torch.Tensor, found: Look) -> str:
    return f"largest {found.kind} {float(weights.max()):.0%} (equal shares: {1 / len(weights):.0%})"


def _word_parts(exhibit: Exhibit, image: int, caption: int) -> tuple[list[Markup], PictureFigure]:
    """For each word of a right caption, its attention to the regions of the image."""
    text = exhibit.corpus.captions[caption]
    match = exhibit.model.match(torch.from_numpy(exhibit.item(image)), text)
    attention, words = match.attention[:_MOST_WORDS].float().cpu(), match.words[:_MOST_WORDS]
    _, thumbnail = exhibit.under_look(image)
    parts = []
    for place, word in enumerate(words):
        drawing = draw_look(attention[place], exhibit.layout, image, thumbnail, f"“{word}” over the image")
        note = tag("small", f"cosine {float(match.cosine[place]):.2f}, region {int(match.region[place]) + 1}")
        parts.append(tag("div", tag("b", word), drawing, note))
    title = tag("p", f"Where the words of “{text}” look:", class_="soft")
    return [title, *_row(parts, "parts words")], _picture_figure(exhibit, "words_of_image", image, attention, words)


def _file_name(label: object) -> str:
    """An id as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in str(label))[:80]
