from helpers import metrics_of, random_scores, ranks_of
from outline import Outline

from vse.evaluation.bootstrap import bootstrap
from vse.pages.results import health_table, metrics_table


def cells(outline: Outline) -> list[list[str]]:
    rows = [[*outline.find("th", within=row), *outline.find("td", within=row)] for row in outline.find("tr")]
    return [[outline.text(cell) for cell in row] for row in rows]


def test_the_metrics_and_their_intervals() -> None:
    scores, image_of_caption = random_scores(20)
    metrics = metrics_of(scores, image_of_caption)
    interval = bootstrap([[ranks_of(scores, image_of_caption)]], 100)[0]
    outline = Outline(metrics_table({**metrics, "bootstrap": interval}, clips=False))
    head, images, captions = cells(outline)
    assert head == ["", "R@1", "R@5", "R@10", "MedR", "MeanR"]
    low, high = interval["i2t"]["r1"]
    assert images[:2] == ["Image to text", f"{metrics['i2t']['r1']:.1f}{low:.1f} – {high:.1f}"]
    assert images[4:] == [f"{metrics['i2t'][key]:.1f}" for key in ("medr", "meanr")]
    assert captions[0] == "Text to image" and captions[3].startswith(f"{metrics['t2i']['r10']:.1f}")
    low, high = interval["rsum"]
    paragraphs = [outline.text(place) for place in outline.find("p")]
    assert paragraphs[0] == f"RSUM {metrics['rsum']:.1f} ({low:.1f} to {high:.1f})"
    assert "100 samples of the images" in paragraphs[1]
    plain = Outline(metrics_table(metrics_of(scores, image_of_caption, clips=True), clips=True))
    assert cells(plain)[0][-1] == "nMR" and cells(plain)[1][0] == "Video to text"
    assert not plain.find("small")
    clips = {**metrics_of(scores, image_of_caption, clips=True), "bootstrap": interval}
    low, high = interval["i2t"]["r1"]
    expected = f"{clips['i2t']['r1']:.2f}{low:.2f} – {high:.2f}"  # an interval has the digits of its number
    assert cells(Outline(metrics_table(clips, clips=True)))[1][1] == expected


def test_the_health_of_sets() -> None:
    sets = {
        "image_log_variance": -2.125,
        "image_embeddings_used": 3.96,
        "image_rsum": [100.0, 120.5],
        "start": {"image_log_variance": -1.0},
    }
    table = health_table(sets)
    assert table is not None and cells(Outline(table)) == [
        ["", "image sets"],
        ["log within-set variance", "-2.12"],
        ["… before training", "-1.00"],
        ["embeddings used", "4.0"],
        ["RSUM of embedding 1 alone", "100.0"],
        ["RSUM of embedding 2 alone", "120.5"],
    ]
    both = {**sets, "text_log_variance": -3.0, "text_embeddings_used": 1.0, "image_rsum": [float(n) for n in range(36)]}
    table = health_table(both)
    assert table is not None and cells(Outline(table))[-1] == ["RSUM of each embedding alone", "0.0 – 35.0", "–"]
    assert health_table({}) is None
