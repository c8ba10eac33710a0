"""A queue of past embeddings, with which every batch is compared as well (cross-batch memory)."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vse.data.batches import Batch
from vse.losses import ScoreTable
from vse.model import Tower, VSEModel
from vse.sets import Aggregated, widen
from vse.similarity import compare
from vse.training.scheduled import set_epoch


class Queued(NamedTuple):
    """Past embedding sets of one side, the oldest first.

    Attributes:
        embeddings: (M, K, H), without gradients.
        mask: (M, K), True on real embeddings; None when all are real.
        image: (M,) the corpus's index of the image, or of the caption's image.
    """

    embeddings: Tensor
    mask: Tensor | None
    image: Tensor


class SlowTowers(NamedTuple):
    """Copies of the towers that follow the trained ones slowly."""

    image: Tower
    text: Tower


class EmbeddingQueue:
    """The last images and captions that were trained on, as further candidates of every batch.

    Cross-batch memory (XBM, Wang et al. 2020), for any ranking loss L of scores and positives. With S the scores of the
    batch, S_q those of its images and the queued captions, and S^q those of the queued images and its captions:

    loss = (L([S, S_q]) + L([S; S^q])) / 2

    So the batch's images are ranked against its own and the queued captions, and its captions against its own and the
    queued images. Like XBM's, the loss also keeps the part of the batch alone. Which pairs are positive follows from
    the images' indices: a queued caption of an image in the batch is a positive, and like any positive it is itself a
    query, against the batch's images. Two queued samples are never compared. Gradients reach the batch alone.

    With ``momentum`` m the queue is filled by slow towers, s <- m s + (1 - m) w after each step (MoCo, He et al. 2020),
    in evaluation mode. The batch itself is always embedded by the trained towers, which differs from MoCo, whose
    positives come from the slow side.

    Args:
        model: The model that is trained.
        size: Number of images, and of captions, that are kept. The oldest leave first.
        momentum: m, from 0 to below 1; None keeps what the trained towers gave, and costs no further encoding.
        start_epoch: The first epoch, counted from 0, in which the loss sees the queue. It is filled from the start.

    >>> queue = EmbeddingQueue(model, size=4096)
    """

    def __init__(self, model: VSEModel, size: int, momentum: float | None = None, start_epoch: int = 1) -> None:
        self.size, self.momentum, self.start_epoch = size, momentum, start_epoch
        self.images: Queued | None = None
        self.captions: Queued | None = None
        self.slow: SlowTowers | None = None
        if momentum is not None:
            towers = (copy.deepcopy(tower).eval().requires_grad_(False) for tower in (model.image, model.text))
            self.slow = SlowTowers(*towers)
        self.is_used = False

    def set_epoch(self, epoch: int) -> None:
        """Prepare for an epoch; epochs count from 0."""
        self.is_used = epoch >= self.start_epoch
        for tower in self.slow or ():
            set_epoch(tower.modules(), epoch)
            tower.eval().requires_grad_(False)

    def tables(
        self, similarity: Callable[..., Tensor], batch: Batch, image: Aggregated, text: Aggregated, scores: Tensor
    ) -> list[ScoreTable]:
        """Compare a batch with the queue.

        Args:
            similarity: The model's similarity.
            batch: The batch of A images and C captions.
            image: The embeddings of all its images.
            text: The embeddings of all its captions.
            scores: Their scores (A, C).

        Returns:
            The tables whose ranking losses are averaged: (A, C + M) with M queued captions and (A + N, C) with N queued
            images; the batch's own alone when the queue is empty or not used yet.
        """
        images, captions = self.images, self.captions
        if not self.is_used or images is None or captions is None:
            return [ScoreTable(scores, batch.positives, batch.pairs)]
        assert batch.image_of_row is not None and batch.image_of_column is not None  # the loader knows them
        right = compare(similarity, image.embeddings, captions.embeddings, image.mask, captions.mask)
        below = compare(similarity, images.embeddings, text.embeddings, images.mask, text.mask)
        right_positives = batch.image_of_row.unsqueeze(1) == captions.image
        below_positives = images.image.unsqueeze(1) == batch.image_of_column
        return [
            ScoreTable(torch.cat([scores, right], 1), torch.cat([batch.positives, right_positives], 1)),
            ScoreTable(torch.cat([scores, below], 0), torch.cat([batch.positives, below_positives], 0)),
        ]

    def add(self, batch: Batch, image: Aggregated, text: Aggregated) -> None:
        """Add a batch; the oldest samples leave when there are more than ``size`` of a side.

        Args:
            batch: The batch.
            image: The embeddings of all its images.
            text: The embeddings of all its captions.
        """
        assert batch.image_of_row is not None and batch.image_of_column is not None
        new_images = Queued(image.embeddings.detach(), image.mask, batch.image_of_row)
        new_captions = Queued(text.embeddings.detach(), text.mask, batch.image_of_column)
        self.images = _append(self.images, new_images, self.size)
        self.captions = _append(self.captions, new_captions, self.size)

    @torch.no_grad()
    def follow(self, model: VSEModel) -> None:
        """Move the slow towers, if there are any, towards the model's; buffers are copied.

        Args:
            model: The model that is trained.
        """
        if self.slow is None or self.momentum is None:
            return
        for slow, trained in zip(self.slow, (model.image, model.text), strict=True):
            for own, new in zip(slow.parameters(), trained.parameters(), strict=True):
                own.lerp_(new, 1 - self.momentum)
            for own_buffer, new_buffer in zip(slow.buffers(), trained.buffers(), strict=True):
                own_buffer.copy_(new_buffer)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs: plain dicts of tensors."""
        return {
            "images": None if self.images is None else self.images._asdict(),
            "captions": None if self.captions is None else self.captions._asdict(),
            "slow": None if self.slow is None else nn.ModuleList(self.slow).state_dict(),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a saved state.

        Args:
            state: What :meth:`state` has returned.
            device: Where the embeddings are kept.
        """
        self.images, self.captions = (_queued(state[side], device) for side in ("images", "captions"))
        if self.slow is not None:
            nn.ModuleList(self.slow).load_state_dict(state["slow"])


def _queued(saved: dict[str, Tensor | None] | None, device: torch.device) -> Queued | None:
    """One side of a saved queue."""
    if saved is None:
        return None
    return Queued(**{name: None if part is None else part.to(device) for name, part in saved.items()})  # type: ignore[arg-type]


def _append(old: Queued | None, new: Queued, size: int) -> Queued:
    """The last ``size`` samples of both; sets that differ in size are padded to the largest."""
    new = Queued(*(None if part is None else part[-size:] for part in new))  # type: ignore[arg-type]
    if old is None:
        return Queued(*(None if part is None else part.clone() for part in new))  # type: ignore[arg-type]
    first = max(0, len(old.image) + len(new.image) - size)
    old = Queued(*(None if part is None else part[first:] for part in old))  # type: ignore[arg-type]
    places = max(old.embeddings.shape[1], new.embeddings.shape[1])
    if old.mask is not None or new.mask is not None or old.embeddings.shape[1] != new.embeddings.shape[1]:
        old, new = _widened(old, places), _widened(new, places)
    mask = None if old.mask is None or new.mask is None else torch.cat([old.mask, new.mask])
    return Queued(torch.cat([old.embeddings, new.embeddings]), mask, torch.cat([old.image, new.image]))


def _widened(side: Queued, places: int) -> Queued:
    """The same sets with more places, and with a mask."""
    wide = widen(Aggregated(side.embeddings, mask=side.mask), places)
    return Queued(wide.embeddings, wide.mask, side.image)
