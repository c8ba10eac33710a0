"""The results that the papers print and that their released checkpoints give, for comparison with one's own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.protocols import PROTOCOLS, Protocol, parts_of_protocol
from vse.evaluation.tables import Row, mark


class Published(NamedTuple):
    """A published result; metrics that the paper does not print are missing.

    Attributes:
        protocol: The name of a protocol.
        system: The system's name in the tables.
        metrics: The metrics, as the protocol gives them.
        models: The number of models; more than 1 for an ensemble.
        data: The value of ``data.format``, where the protocol alone does not say what the data are; otherwise None.
        one_caption: Whether it was evaluated with one caption of each image or clip.
    """

    protocol: str
    system: str
    metrics: dict[str, Any]
    models: int = 1
    data: str | None = None
    one_caption: bool = False


def _recalls(i2t: str, t2i: str, **rest: Any) -> dict[str, Any]:
    """Metrics of "R@1/R@5/R@10", or with "/MedR/nMR" after them, for both directions."""
    names = ("r1", "r5", "r10", "medr", "nmr")
    sides = {"i2t": i2t, "t2i": t2i}
    return {
        **{side: dict(zip(names, map(float, text.split("/")), strict=False)) for side, text in sides.items()},
        **rest,
    }


def _pvse_clips(data: str, system: str, i2t: str, t2i: str) -> Published:
    """A result of PVSE's on clips: its code keeps the last caption of each."""
    return Published("video", system, _recalls(i2t, t2i), data=data, one_caption=True)


_VSE, _DIVE, _PVSE = "VSE∞ (CVPR 2021)", "DivE (CVPR 2023)", "PVSE (CVPR 2019)"
_ESA, _CHAN = "ESA (TCSVT 2023)", "CHAN (CVPR 2023)"
_BIGRU, _BERT, _WSL = "regions, BiGRU", "regions, BERT", "WSL grid, BERT"

PUBLISHED = (
    Published("f30k", f"{_VSE}, {_BIGRU}", _recalls("76.5/94.2/97.7", "56.4/83.4/89.9", rsum=498.1)),
    Published("f30k", f"{_VSE}, {_BERT}", {"rsum": 513.5}),
    Published("f30k", f"{_VSE}, {_WSL}", {"rsum": 550.9}),
    Published("f30k", f"{_VSE}, {_WSL}", {"rsum": 555.1}, 2),
    Published("f30k", f"{_DIVE}, {_BIGRU}", {"rsum": 500.8}),
    Published("f30k", f"{_DIVE}, {_WSL}", _recalls("90.6", "75.9")),
    Published("f30k", f"{_ESA}, {_BIGRU}", _recalls("82.6/95.9/98.1", "61.1/85.9/91.1", rsum=514.7)),
    Published("f30k", f"{_ESA}, {_BIGRU}", _recalls("83.1/96.3/98.7", "62.4/87.2/92.5", rsum=520.2), 2),
    Published("f30k", f"{_ESA}, {_BERT}", _recalls("84.0/96.3/98.7", "64.7/87.8/92.3", rsum=523.8)),
    Published("f30k", f"{_ESA}, {_BERT}", _recalls("84.6/96.6/98.6", "66.3/88.8/93.1", rsum=528.0), 2),
    Published("f30k", f"{_CHAN}, {_BIGRU}", _recalls("79.7/94.5/97.3", "60.2/85.3/90.7", rsum=507.8)),
    Published("f30k", f"{_CHAN}, {_BERT}", _recalls("80.6/96.1/97.8", "63.9/87.5/92.6", rsum=518.5)),
    Published("coco_1k", f"{_PVSE}, ResNet-152, K = 1", _recalls("66.7/91.0/96.2", "53.5/85.1/92.7")),
    Published("coco_1k", f"{_PVSE}, ResNet-152", _recalls("69.2/91.6/96.6", "55.2/86.5/93.7")),
    Published("coco_1k", f"{_VSE}, {_BIGRU}", _recalls("78.5/96.0/98.7", "61.7/90.3/95.6", rsum=520.8)),
    Published("coco_1k", f"{_VSE}, {_BERT}", {"rsum": 527.5}),
    Published("coco_1k", f"{_VSE}, {_WSL}", {"rsum": 545.4}),
    Published("coco_1k", f"{_VSE}, {_WSL}", {"rsum": 548.1}, 2),
    Published("coco_1k", f"{_DIVE}, {_BIGRU}", {"rsum": 524.6}),
    Published("coco_1k", f"{_DIVE}, {_BIGRU}", {"rsum": 528.0}, 2),
    Published("coco_1k", f"{_DIVE}, {_WSL}", {"rsum": 547.5}),
    Published("coco_1k", f"{_DIVE}, {_WSL}", {"rsum": 549.9}, 2),
    Published("coco_1k", f"{_ESA}, {_BIGRU}", _recalls("79.6/96.5/98.7", "63.5/90.9/96.1", rsum=525.3)),
    Published("coco_1k", f"{_ESA}, {_BIGRU}", {"rsum": 527.6}, 2),
    Published("coco_1k", f"{_ESA}, {_BERT}", _recalls("80.3/96.5/99.0", "65.2/91.6/96.3", rsum=528.9)),
    Published("coco_1k", f"{_ESA}, {_BERT}", {"rsum": 531.9}, 2),
    Published("coco_1k", f"{_CHAN}, {_BIGRU}", _recalls("79.7/96.7/98.7", "63.8/90.4/95.8", rsum=525.0)),
    Published("coco_1k", f"{_CHAN}, {_BERT}", _recalls("81.4/96.9/98.9", "66.5/92.1/96.7", rsum=532.5)),
    Published("coco_5k", f"{_PVSE}, ResNet-152", _recalls("45.2/74.3/84.5", "32.4/63.0/75.0")),
    Published("coco_5k", f"{_VSE}, {_BIGRU}", {"rsum": 421.9}),
    Published("coco_5k", f"{_VSE}, {_BERT}", {"rsum": 434.3}),
    Published("coco_5k", f"{_VSE}, {_WSL}", {"rsum": 468.9}),
    Published("coco_5k", f"{_VSE}, {_WSL}", {"rsum": 474.8}, 2),
    Published("coco_5k", f"{_DIVE}, {_BIGRU}", {"rsum": 430.7}),
    Published("coco_5k", f"{_DIVE}, {_BIGRU}", {"rsum": 437.8}, 2),
    Published("coco_5k", f"{_DIVE}, {_WSL}", {"rsum": 474.9}),
    Published("coco_5k", f"{_DIVE}, {_WSL}", {"rsum": 482.0}, 2),
    Published("coco_5k", f"{_ESA}, {_BIGRU}", _recalls("58.2/84.8/91.8", "41.2/71.4/82.2", rsum=429.6)),
    Published("coco_5k", f"{_ESA}, {_BIGRU}", {"rsum": 433.5}, 2),
    Published("coco_5k", f"{_ESA}, {_BERT}", _recalls("59.2/85.6/92.8", "43.0/73.1/83.6", rsum=437.3)),
    Published("coco_5k", f"{_ESA}, {_BERT}", {"rsum": 443.0}, 2),
    Published("coco_5k", f"{_CHAN}, {_BIGRU}", _recalls("60.2/85.9/92.4", "41.7/71.5/81.7", rsum=433.4)),
    Published("coco_5k", f"{_CHAN}, {_BERT}", _recalls("59.8/87.2/93.3", "44.9/74.5/84.2", rsum=443.9)),
    Published("cxc", f"{_VSE}, {_WSL}", {**_recalls("67.9", "53.6"), "i2i": {"r1": 51.3}, "t2t": {"r1": 46.7}}),
    Published("cxc", _DIVE, _recalls("72.3", "55.5")),
    Published("eccv", _DIVE, {"i2t": {"map_at_r": 36.0}, "t2i": {"map_at_r": 51.0}}),
    Published("video", f"{_VSE}, frame features", {"rsum": 174.7}, data="msrvtt"),
    Published("video", f"{_VSE}, frame features", {"rsum": 403.9}, data="vatex"),
    _pvse_clips("tgif", _PVSE, "2.32/7.49/11.94/162/0.01", "2.17/7.76/12.25/155/0.01"),
    _pvse_clips("tgif", f"{_PVSE}, released", "3.28/9.87/15.56/115", "3.01/9.70/14.85/109"),
    _pvse_clips("mrw", _PVSE, "0.16/0.68/1.80/1586/0.32", "0.16/0.60/1.83/1573/0.37"),
    _pvse_clips("mrw", f"{_PVSE}, released", "0.18/0.62/1.18/1624/0.32", "0.20/0.70/1.16/1552/0.31"),
)


def published_results(protocol: Protocol, data_format: str) -> list[Published]:
    """Find what the papers print under a protocol.

    Args:
        protocol: The protocol.
        data_format: The data's ``data.format``; it matters where a protocol is for more than one data set.

    Returns:
        The results, of all parts of the protocol.

    Raises:
        InputError: The papers print nothing under this protocol, or nothing on these data.
    """
    names = [part.name for part in parts_of_protocol(protocol).values()]
    under = [result for result in PUBLISHED if result.protocol in names]
    found = [result for result in under if result.data in (None, data_format)]
    if found:
        return found
    if under:
        known = ", ".join(dict.fromkeys(str(result.data) for result in under))
        problem = f"the papers have no numbers for protocol {protocol.name} on {data_format}; expected the data {known}"
    else:
        printed = {result.protocol for result in PUBLISHED}
        known = ", ".join(name for name, other in PROTOCOLS.items() if printed & {name, *other.parts})
        problem = f"the papers have no numbers for protocol {protocol.name}; expected {known}"
    raise InputError(f"--published: {problem}")


def published_rows(results: Sequence[Published], protocol: Protocol, corpus: Corpus) -> tuple[list[Row], str]:
    """Choose the published results that are comparable with one's own on a corpus.

    Results on one caption of each image or clip are not comparable with those on a corpus that has several.

    Args:
        results: The results of :func:`published_results`.
        protocol: The protocol.
        corpus: The corpus that one's own results are on.

    Returns:
        Rows for :func:`vse.evaluation.tables.tables_of`, and one line that says what was left out and why, which is
        empty when nothing was.
    """
    single = len(corpus.captions) == len(corpus.images)
    rows = []
    for result in results:
        if result.one_caption and not single:
            continue
        metrics = {result.protocol: result.metrics} if protocol.parts else result.metrics
        rows.append(Row(result.system, metrics, f"published, {mark(result.models)}"))
    if len(rows) == len(results):
        return rows, ""
    evaluated = f"the published results are on one caption per clip, but {corpus.name} has several"
    return rows, f"Not shown: {evaluated}; add data.options.captions=last to compare with them."
