"""Numbers that the papers print, and those of their released checkpoints, to stand beside one's own."""

from typing import Any, NamedTuple


class Published(NamedTuple):
    """A result of a paper's; what it does not print is missing."""

    setting: str  # a protocol's name, or a data set of clips
    system: str
    metrics: dict[str, Any]  # as vse.metrics.retrieval_metrics gives them
    models: int = 1  # more: an ensemble


def _recalls(i2t: str, t2i: str, **rest: Any) -> dict[str, Any]:
    """Metrics of "R@1/R@5/R@10", or with "/MedR/nMR" after them, for both directions."""
    names = ("r1", "r5", "r10", "medr", "nmr")
    sides = {"i2t": i2t, "t2i": t2i}
    return {
        **{side: dict(zip(names, map(float, text.split("/")), strict=False)) for side, text in sides.items()},
        **rest,
    }


_VSE, _DIVE, _PVSE = "VSE∞ (CVPR 2021)", "DivE (CVPR 2023)", "PVSE (CVPR 2019)"
_BIGRU, _BERT, _WSL = "regions, BiGRU", "regions, BERT", "WSL grid, BERT"

PUBLISHED = (
    Published("f30k", f"{_VSE}, {_BIGRU}", _recalls("76.5/94.2/97.7", "56.4/83.4/89.9", rsum=498.1)),
    Published("f30k", f"{_VSE}, {_BERT}", {"rsum": 513.5}),
    Published("f30k", f"{_VSE}, {_WSL}", {"rsum": 550.9}),
    Published("f30k", f"{_VSE}, {_WSL}", {"rsum": 555.1}, 2),
    Published("f30k", f"{_DIVE}, {_BIGRU}", {"rsum": 500.8}),
    Published("f30k", f"{_DIVE}, {_WSL}", _recalls("90.6", "75.9")),
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
    Published("coco_5k", f"{_PVSE}, ResNet-152", _recalls("45.2/74.3/84.5", "32.4/63.0/75.0")),
    Published("coco_5k", f"{_VSE}, {_BIGRU}", {"rsum": 421.9}),
    Published("coco_5k", f"{_VSE}, {_BERT}", {"rsum": 434.3}),
    Published("coco_5k", f"{_VSE}, {_WSL}", {"rsum": 468.9}),
    Published("coco_5k", f"{_VSE}, {_WSL}", {"rsum": 474.8}, 2),
    Published("coco_5k", f"{_DIVE}, {_BIGRU}", {"rsum": 430.7}),
    Published("coco_5k", f"{_DIVE}, {_BIGRU}", {"rsum": 437.8}, 2),
    Published("coco_5k", f"{_DIVE}, {_WSL}", {"rsum": 474.9}),
    Published("coco_5k", f"{_DIVE}, {_WSL}", {"rsum": 482.0}, 2),
    Published("cxc", f"{_VSE}, {_WSL}", {**_recalls("67.9", "53.6"), "i2i": {"r1": 51.3}, "t2t": {"r1": 46.7}}),
    Published("cxc", _DIVE, _recalls("72.3", "55.5")),
    Published("eccv", _DIVE, {"i2t": {"map_at_r": 36.0}, "t2i": {"map_at_r": 51.0}}),
    Published("tgif", _PVSE, _recalls("2.32/7.49/11.94/162/0.01", "2.17/7.76/12.25/155/0.01")),
    Published("tgif", f"{_PVSE}, released", _recalls("3.28/9.87/15.56/115", "3.01/9.70/14.85/109")),
    Published("mrw", _PVSE, _recalls("0.16/0.68/1.80/1586/0.32", "0.16/0.60/1.83/1573/0.37")),
    Published("mrw", f"{_PVSE}, released", _recalls("0.18/0.62/1.18/1624/0.32", "0.20/0.70/1.16/1552/0.31")),
)
