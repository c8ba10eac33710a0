"""The queue against brute force: every pair looked up by id, every loss written out query by query."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import Outcome, read_jsonl
from loss_cases import slow_contrastive
from torch import Tensor, nn

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint, save_checkpoint
from vse.data.batches import Batch
from vse.losses import AdaptiveContrastiveLoss, Criterion, InfoNCELoss, TripletLoss
from vse.sets import Aggregated
from vse.similarity import compare, cosine, max_cosine, max_sim
from vse.training.queue import EmbeddingQueue
from vse.training.run import Training

MARGIN = 0.2


class Sample(NamedTuple):
    """An image or a caption of the twin."""

    image: int
    vectors: Tensor  # (K, H), no padding


def slow_triplet(scores: Tensor, positives: Tensor, mining: str) -> Tensor:
    """The images' queries of the triplet loss, triplet by triplet."""
    costs = [torch.zeros((), dtype=scores.dtype)]
    for row, column in itertools.product(*map(range, scores.shape)):
        if positives[row, column]:
            others = [c for c in range(scores.shape[1]) if not positives[row, c]]
            found = [(MARGIN + scores[row, c] - scores[row, column]).clamp(min=0) for c in others]
            if mining == "hardest":
                found = [max(found, key=lambda cost: cost.item())] if found else []
            costs += [cost.clamp(max=MARGIN) if mining == "semihard" else cost for cost in found]
    return torch.stack(costs).sum()


def slow_adaptive(scores: Tensor, positives: Tensor) -> Tensor:
    """The images' queries of the adaptive objective, with its defaults."""
    known = [(float(scores[p].detach()), bool(positives[p])) for p in itertools.product(*map(range, scores.shape))]
    a = sum(score for score, is_positive in known if is_positive) / sum(is_positive for _, is_positive in known)
    u = sum(1.0 if is_positive else math.exp(-score) for score, is_positive in known) / len(known)

    def count(size: int) -> int:
        return max(1, min(size - 1, math.floor(size * math.cos((a + u) ** 1.25)) + 1))

    return slow_contrastive(scores, positives, 0.2, 0.05, count, enters=False)


def slow_info_nce(scores: Tensor, positives: Tensor) -> Tensor:
    return slow_contrastive(scores, positives, 0.0, 0.07, lambda size: size, enters=False)


Slow = Callable[[Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], Slow, float]] = {
    "all": (lambda: TripletLoss(mining="all"), lambda s, p: slow_triplet(s, p, "all"), 1.0),
    "hardest": (lambda: TripletLoss(mining="hardest"), lambda s, p: slow_triplet(s, p, "hardest"), 1.0),
    "semihard": (lambda: TripletLoss(mining="semihard"), lambda s, p: slow_triplet(s, p, "semihard"), 1.0),
    "info_nce": (InfoNCELoss, slow_info_nce, 0.5),
    "adaptive": (AdaptiveContrastiveLoss, slow_adaptive, 0.5),
}


def slow_loss(
    images: list[Sample], captions: list[Sample], similarity: Callable[..., Tensor], slow: Slow, weight: float
) -> Tensor:
    """A loss of some images and captions: scored pair by pair, positive where the ids are equal."""
    scores = torch.stack(
        [torch.stack([similarity(i.vectors[None], c.vectors[None])[0, 0] for c in captions]) for i in images]
    )
    positives = torch.tensor([[i.image == c.image for c in captions] for i in images])
    return weight * (slow(scores, positives) + slow(scores.T, positives.T))


def random_side(images: list[int], sizes: list[int]) -> tuple[Aggregated, list[Sample]]:
    """Sets of these sizes, padded with garbage that is masked; and the same sets without padding."""
    embeddings = torch.randn(len(images), max(sizes), 6, dtype=torch.float64)
    embeddings = (embeddings / embeddings.norm(dim=-1, keepdim=True)).requires_grad_()
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    sets = Aggregated(embeddings, mask=None if mask.all() else mask)
    return sets, [Sample(i, embeddings[n, :size]) for n, (i, size) in enumerate(zip(images, sizes, strict=True))]


def batch_of(images: list[int], captions: list[int]) -> Batch:
    row, column = torch.tensor(images), torch.tensor(captions)
    nothing = torch.empty(0)
    return Batch(nothing, None, nothing, nothing, row[:, None] == column, None, row, column)


class Untrained(nn.Module):
    """Stands in for a model where no tower is used."""


STEPS = [([0, 1, 2], [0, 0, 1, 2]), ([3, 4, 1], [3, 4, 1]), ([5, 0, 6], [5, 0, 6, 6]), ([7, 2], [7, 2, 2])]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sets", ["vectors", "sets", "ragged"])
@pytest.mark.parametrize("size", [2, 4, 5, 100])
def test_every_loss_beside_the_queue_equals_brute_force(name: str, sets: str, size: int) -> None:
    """Images come back while they are queued, so there are positives between batch and queue in both directions."""
    torch.manual_seed(size)
    make, slow, weight = CASES[name]
    similarity = {"vectors": cosine, "sets": max_cosine, "ragged": max_sim}[sets]
    queue = EmbeddingQueue(Untrained(), size, start_epoch=0)  # type: ignore[arg-type]
    queue.set_epoch(0)
    criterion = Criterion(make().double())
    old_images: list[Sample] = []
    old_captions: list[Sample] = []
    for step, (images, captions) in enumerate(STEPS):
        sizes = {"vectors": [1] * 9, "sets": [3] * 9, "ragged": [2, 1, 3 + step, 2]}[sets]
        image, image_twin = random_side(images, sizes[: len(images)])
        text, text_twin = random_side(captions, sizes[: len(captions)])
        batch = batch_of(images, captions)
        scores = compare(similarity, image.embeddings, text.embeddings, image.mask, text.mask)
        found = criterion.rank_all(queue.tables(similarity, batch, image, text, scores))
        wide = slow_loss(image_twin, text_twin + old_captions, similarity, slow, weight)
        high = slow_loss(image_twin + old_images, text_twin, similarity, slow, weight)
        expected = (wide + high) / 2
        torch.testing.assert_close(found, expected)
        leaves = image.embeddings, text.embeddings
        for own, twin in zip(
            torch.autograd.grad(found, leaves, retain_graph=True), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(own, twin)
        queue.add(batch, image, text)
        old_images = [Sample(i, v.detach()) for i, v in [*old_images, *image_twin]][-size:]
        old_captions = [Sample(i, v.detach()) for i, v in [*old_captions, *text_twin]][-size:]
        assert queue.images is not None and queue.images.image.tolist() == [i for i, _ in old_images]
        assert queue.captions is not None and queue.captions.image.tolist() == [i for i, _ in old_captions]
        assert queue.captions.embeddings.untyped_storage().nbytes() == queue.captions.embeddings.nbytes


def test_a_queued_caption_of_the_same_image_is_no_negative() -> None:
    """It scores highest of all; taken as a negative, it would cost the margin and more."""
    queue = EmbeddingQueue(Untrained(), 4, start_epoch=0)  # type: ignore[arg-type]
    queue.set_epoch(0)
    near, far = torch.eye(4)[:2, None], torch.eye(4)[2:, None]
    queue.add(batch_of([7, 8], [7, 8]), Aggregated(far), Aggregated(near))
    image = Aggregated(near)
    text = Aggregated(torch.nn.functional.normalize(near + 0.1 * far, dim=-1))
    scores = cosine(image.embeddings, text.embeddings)
    same, other = (batch_of(ids, ids) for ids in ([7, 8], [1, 2]))
    losses = [TripletLoss()(*queue.tables(cosine, batch, image, text, scores)[0]) for batch in (same, other)]
    assert losses[0] == 0 and losses[1] > 0.3


def test_the_queue_is_filled_from_the_start_and_used_later() -> None:
    queue = EmbeddingQueue(Untrained(), 4, start_epoch=2)  # type: ignore[arg-type]
    batch, sets = batch_of([0, 1], [0, 1]), Aggregated(torch.eye(2)[:, None])
    for epoch in range(4):
        queue.set_epoch(epoch)
        shapes = [tuple(table.scores.shape) for table in queue.tables(cosine, batch, sets, sets, torch.eye(2))]
        assert shapes == [[(2, 2)], [(2, 2)], [(2, 6), (6, 2)], [(2, 6), (6, 2)]][epoch]
        queue.add(batch, sets, sets)


def steps_of(settings: list[str], *more: str) -> Training:
    training = Training(read_config(settings[0], [*settings[1:], *more]))
    training.start_epoch()
    return training


def test_a_run_queues_what_its_steps_have_embedded(tiny: list[str]) -> None:
    """The logged loss of each step is that of the batches before it, by the corpus's own ids."""
    training = steps_of(tiny, "train.queue={size: 1000, start_epoch: 0}", "loss.ranking.warmup_epochs=0")
    seen: list[tuple[Batch, Aggregated, Aggregated]] = []
    forward = training.forward

    def spy(batch: Batch) -> tuple[Aggregated, Aggregated, Tensor]:
        image, text, scores = forward(batch)
        seen.append((batch, image, text))
        return image, text, scores

    training.forward = spy  # type: ignore[method-assign]
    captions = training.train_corpus.image_of_caption
    keys = list(training.sampler)
    images_twin: list[Sample] = []
    captions_twin: list[Sample] = []
    for number, batch in enumerate(itertools.islice(training.batches(), 4)):
        found = training.train_step(batch)["ranking"]
        training.step += 1
        _, image, text = seen[-1]
        ids = captions[keys[number][1]]
        own_images = [Sample(i, v.detach()) for i, v in zip(sorted({*ids.tolist()}), image.embeddings, strict=True)]
        own_captions = [Sample(i, v.detach()) for i, v in zip(ids.tolist(), text.embeddings, strict=True)]
        slow = CASES["hardest"][1]
        wide = slow_loss(own_images, own_captions + captions_twin, cosine, slow, 1.0)
        high = slow_loss(own_images + images_twin, own_captions, cosine, slow, 1.0)
        torch.testing.assert_close(found, (wide + high) / 2, rtol=1e-4, atol=1e-4)
        images_twin, captions_twin = images_twin + own_images, captions_twin + own_captions


def test_the_plateau_is_that_of_the_batch_beside_the_queue(tiny: list[str]) -> None:
    """Equal scores cost the margin for each pair and direction, of the batch and of the queue."""
    more = ["train.queue={size: 1000, start_epoch: 0}", "loss.ranking.warmup_epochs=0", "run.log_steps=1"]
    training = steps_of(tiny, *more)
    for number, batch in enumerate(itertools.islice(training.batches(), 3)):
        old = training.queue.captions.image if training.queue and training.queue.captions else torch.empty(0)
        old_images = training.queue.images.image if training.queue and training.queue.images else torch.empty(0)
        training.train_step(batch)
        training.step += 1
        assert batch.image_of_row is not None and batch.image_of_column is not None
        own = len(batch.image_of_column)
        captions = sum(int(image) in batch.image_of_row.tolist() for image in old)
        images = sum(batch.image_of_column.tolist().count(int(image)) for image in old_images)
        assert float(training.health["plateau"]) == pytest.approx(MARGIN * (4 * own + 2 * captions + 2 * images) / 2)
        assert number == 0 or len(old) > 0


def test_slow_towers_follow_the_trained_ones(tiny: list[str]) -> None:
    training = steps_of(tiny, "train.queue={size: 50, momentum: 0.75}")
    assert training.queue is not None and training.queue.slow is not None
    expected = {name: p.detach().clone() for name, p in training.model.text.named_parameters()}
    for batch in itertools.islice(training.batches(), 3):
        training.train_step(batch)
        for name, parameter in training.model.text.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    for name, parameter in training.queue.slow.text.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
        assert not parameter.requires_grad
    last = training.on_device(batch)
    assert training.queue.captions is not None
    with torch.no_grad():
        keys = training.queue.slow.text(last.tokens, last.token_mask).embeddings
    torch.testing.assert_close(training.queue.captions.embeddings[-len(keys) :], keys)


def test_momentum_zero_keeps_the_trained_towers_themselves(tiny: list[str]) -> None:
    training = steps_of(tiny, "train.queue={size: 50, momentum: 0.0}")
    training.train_step(next(training.batches()))
    assert training.queue is not None and training.queue.slow is not None
    for slow, trained in zip(training.queue.slow, (training.model.image, training.model.text), strict=True):
        for own, new in zip(slow.state_dict().values(), trained.state_dict().values(), strict=True):
            assert torch.equal(own, new)


def test_a_run_saved_before_there_were_queues_goes_on(cli: Callable[..., Outcome], tiny: list[str]) -> None:
    assert cli("train", *tiny, "train.epochs=1").code == 0
    last = Path(read_config(tiny[0], tiny[1:]).run.dir) / "last.pt"
    state = load_checkpoint(last)
    del state["queue"], state["confused"]
    for name in ("queue", "mining"):
        del state["config"]["train"][name]
    save_checkpoint(last, state)
    outcome = cli("train", *tiny)
    assert outcome.code == 0, outcome.err
    assert [r["epoch"] for r in read_jsonl(last.parent / "metrics.jsonl") if "dev" in r] == [1, 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.queue={size: 0}", "train.queue.size"),
        ("train.queue={size: 8, momentum: 1.0}", "train.queue.momentum"),
        ("train.mining={every: 0}", "train.mining.every"),
    ],
)
def test_bad_settings(cli: Callable[..., Outcome], tiny: list[str], setting: str, message: str) -> None:
    assert message in cli("train", *tiny, setting).error


def test_a_queue_cannot_change_during_a_run(cli: Callable[..., Outcome], tiny: list[str]) -> None:
    assert cli("train", *tiny, "train.epochs=1").code == 0
    assert "train.queue" in cli("train", *tiny, "train.queue={size: 8}").error
