"""Region features from torchvision's Faster R-CNN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import clip_boxes_to_image, nms

from vse.errors import InputError, close_match, first_line, misfit
from vse.safe_load import is_state_dict, read_weights

_PROPOSALS = 1000  # of the region proposal network
_OVERLAP = 0.5  # boxes that overlap a better one by more come last


class Detector(nn.Module):
    """Finds the best boxes of a picture, of any class, and their features (Anderson et al. 2018, with another net).

    Each region proposal is adjusted for its best class. Boxes that overlap a better one by more than 0.5 come last. The
    first boxes are kept, and the box head computes their features. Only pictures of the same size share a batch, so
    that the features of a picture do not depend on the size of another.

    Args:
        name: One of torchvision's Faster R-CNNs.
        weights: A file; "coco", which torchvision downloads; or None for random weights.
        boxes: Number of boxes per picture.
        size: The length in pixels to which a picture's shorter side is resized.

    Raises:
        ValueError: The name is unknown.
        InputError: The weights are missing or do not fit, or a number is out of its range.

    >>> Detector(weights=None)([torch.zeros(3, 480, 640, dtype=torch.uint8)])["ims"].shape
    (1, 36, 1024)
    """

    def __init__(
        self, name: str = "fasterrcnn_resnet50_fpn", weights: str | None = "coco", boxes: int = 36, size: int = 800
    ) -> None:
        super().__init__()
        known = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
        if name not in known:
            raise ValueError(
                f"detector must be one of torchvision's Faster R-CNNs, got {name!r} ({close_match(name, known)})"
            )
        if not 1 <= boxes <= _PROPOSALS or size < 32:
            raise InputError(f"boxes must be 1 to {_PROPOSALS} and size at least 32, got {boxes} and {size}")
        self.settings, self.weights = {"name": name, "boxes": boxes, "size": size}, weights
        self.boxes = boxes
        make = getattr(detection, name)
        options: dict[str, Any] = {"min_size": size, "max_size": size * 5 // 3, "rpn_post_nms_top_n_test": _PROPOSALS}
        try:
            self.net = make(weights="COCO_V1" if weights == "coco" else None, weights_backbone=None, **options)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"weights 'coco' cannot be downloaded ({first_line(error)}); name a file of them instead"
            ) from None
        if weights is not None and weights != "coco":
            self._load(weights)

    def _load(self, file: str) -> None:
        path, state = read_weights(file, "the detector's published weights")
        if not is_state_dict(state):
            raise InputError(f"{path}: expected a state dict")
        own = self.net.state_dict()
        counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        if problem := misfit(own, {**counters, **state}):
            raise InputError(f"{path}: does not fit the detector: {problem}")
        if not all(value.isfinite().all() for value in state.values()):
            raise InputError(f"{path}: its weights are not finite")
        self.net.load_state_dict({**counters, **state})
        if counters and not set(counters) & set(state):  # of a frozen BatchNorm, whose eps was 0
            for module in self.net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0

    def forward(self, pictures: list[Tensor], names: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Detect regions in some pictures, without gradients.

        Args:
            pictures: Bytes (3, height, width) each.
            names: The pictures' names, for messages.

        Returns:
            "ims" (n, boxes, 1024), the features; "boxes" (n, boxes, 4), left, top, right and bottom in the picture's
            pixels; "scores" and "labels" (n, boxes); "sizes" (n, 2), width and height.

        Raises:
            InputError: A picture is too narrow.
        """
        for number, picture in enumerate(pictures):
            short, long = sorted(picture.shape[1:])
            if short * self.net.transform.max_size < long:
                name = names[number] if names else f"picture {number}"
                raise InputError(f"{name}: {long} x {short} pixels are too narrow for the detector")
        parts: list[dict[str, np.ndarray]] = [{} for _ in pictures]
        sizes = [tuple(picture.shape[1:]) for picture in pictures]
        for size in dict.fromkeys(sizes):
            alike = [i for i, other in enumerate(sizes) if other == size]
            for i, found in zip(alike, self._detect(torch.stack([pictures[i] for i in alike])), strict=True):
                parts[i] = found
        return {key: np.stack([part[key] for part in parts]) for key in parts[0]}

    @torch.no_grad()
    def _detect(self, pictures: Tensor) -> list[dict[str, np.ndarray]]:
        """Boxes of pictures of one size, in float32: half precision would put boxes on a grid of 2 to 8 pixels."""
        with torch.autocast(pictures.device.type, enabled=False):
            return self._detect_exactly(pictures)

    def _detect_exactly(self, pictures: Tensor) -> list[dict[str, np.ndarray]]:
        height, width = pictures.shape[2:]
        images, _ = self.net.transform(list(pictures.float() / 255))
        maps = self.net.backbone(images.tensors)
        proposals, _ = self.net.rpn(images, maps)
        heads, shapes = self.net.roi_heads, images.image_sizes
        logits, moves = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, shapes)))
        counts = [len(p) for p in proposals]
        moved = heads.box_coder.decode(moves, proposals).split(counts)
        chosen = [
            self._choose(boxes, scores, shape)
            for boxes, scores, shape in zip(moved, logits.softmax(-1).split(counts), shapes, strict=True)
        ]
        features = heads.box_head(heads.box_roi_pool(maps, [boxes for boxes, _, _ in chosen], shapes))
        found = []
        for (boxes, scores, labels), values, shape in zip(
            chosen, features.split([len(b) for b, _, _ in chosen]), shapes, strict=True
        ):
            scale = boxes.new_tensor([width / shape[1], height / shape[0]] * 2)
            found.append(
                {
                    "ims": values.float().cpu().numpy(),
                    "boxes": (boxes * scale).float().cpu().numpy(),
                    "scores": scores.float().cpu().numpy(),
                    "labels": labels.cpu().numpy().astype(np.int16),
                    "sizes": np.array([width, height], dtype=np.int32),
                }
            )
        return found

    def _choose(self, boxes: Tensor, scores: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best boxes with their scores and labels, the best first: those that overlap a better one last."""
        scores, labels = scores[:, 1:].float().max(1)  # class 0 is the background
        labels = labels + 1
        boxes = clip_boxes_to_image(boxes[torch.arange(len(boxes)), labels].float(), shape)
        kept = nms(boxes, scores, _OVERLAP)
        rest = torch.ones_like(scores, dtype=torch.bool)
        rest[kept] = False
        others = rest.nonzero()[:, 0]
        order = torch.cat([kept, others[scores[others].argsort(descending=True, stable=True)]])[: self.boxes]
        if len(order) < self.boxes:  # a picture with few proposals: the last one again
            order = torch.cat([order, order[-1:].expand(self.boxes - len(order))])
        return boxes[order], scores[order], labels[order]
