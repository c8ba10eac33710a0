"""Health of embedding sets, against slow twins."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vse.aggregators import SetPrediction
from vse.set_health import Similarity, constant_share, embeddings_used, set_health
from vse.similarity import MatchProbability, chamfer, max_cosine, order, smooth_chamfer


def sets(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_log_variance(embeddings: Tensor) -> float:
    lengths = [float((sum(sample) / len(sample)).norm()) for sample in embeddings]
    return math.log(sum(1 - length for length in lengths) / len(lengths))


def slow_effective_number(weights: list[float]) -> float:
    shares = [weight / sum(weights) for weight in weights if weight]
    return math.exp(-sum(share * math.log(share) for share in shares))


def slow_slots_used(mine: Tensor, theirs: Tensor) -> float:
    """Perplexity of the winners: mine[i] and theirs[i] are a positive pair."""
    wins = [0.0] * mine.shape[1]
    for a, b in zip(mine, theirs, strict=True):
        best = [max(float(x @ y) for y in b) for x in a]
        wins[best.index(max(best))] += 1
    return slow_effective_number(wins)


def slow_embeddings_used(similarity: Similarity, mine: Tensor, theirs: Tensor) -> float:
    """The derivative of each pair's score along every coordinate of each embedding, by differences."""
    weights, step = [0.0] * mine.shape[1], 1e-6
    for a, b in zip(mine.double(), theirs.double(), strict=True):
        for k in range(mine.shape[1]):
            slopes = []
            for axis in range(mine.shape[2]):
                moved = [a.clone(), a.clone()]
                moved[0][k, axis] += step
                moved[1][k, axis] -= step
                up, down = (similarity(side[None], b[None]).item() for side in moved)
                slopes.append((up - down) / (2 * step))
            weights[k] += math.sqrt(sum(slope**2 for slope in slopes))
    return slow_effective_number(weights)


def test_it_equals_its_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = sets(7, 4, 6), sets(20, 3, 6, seed=1)
    image_of_caption = torch.randint(0, 7, (20,), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr("vse.set_health._PAIRS", 6)
    pairs = image[image_of_caption]
    expected = {
        "image_log_variance": slow_log_variance(image),
        "text_log_variance": slow_log_variance(text),
        "image_slots_used": slow_slots_used(pairs, text),
        "text_slots_used": slow_slots_used(text, pairs),
    }
    health = set_health(image, text, image_of_caption)
    assert {name: float(value) for name, value in health.items()} == pytest.approx(expected, rel=1e-5)
    expected["image_embeddings_used"] = slow_embeddings_used(smooth_chamfer, pairs, text)
    expected["text_embeddings_used"] = slow_embeddings_used(lambda a, b: smooth_chamfer(b, a), text, pairs)
    health = set_health(image, text, image_of_caption, smooth_chamfer)
    assert {name: float(value) for name, value in health.items()} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("similarity", [max_cosine, chamfer, smooth_chamfer, MatchProbability(), order])
def test_embeddings_used_by_every_similarity(similarity: Similarity) -> None:
    image, text, image_of_caption = sets(3, 4, 5), sets(6, 2, 5, seed=1), torch.arange(6) // 2
    pairs = image[image_of_caption]
    with torch.no_grad():  # as in evaluation
        found = embeddings_used(similarity, image, text, image_of_caption)
    expected = (
        slow_embeddings_used(similarity, pairs, text),
        slow_embeddings_used(lambda a, b: similarity(b, a), text, pairs),
    )
    assert [float(value) for value in found] == pytest.approx(expected, rel=2e-3)


def test_the_best_pair_counts_winners_and_smooth_chamfer_all() -> None:
    """Slot 0 wins everywhere: nearly one embedding is used by "max", and at least 2.9 of 4 by Smooth-Chamfer."""
    image = torch.eye(8)[:4].repeat(10, 1, 1)
    text = F.normalize(image.clone() * torch.tensor([1.0, -1.0, -1.0, -1.0])[:, None] + 0.1, dim=-1)
    pairs = torch.arange(10)
    by_winners = set_health(image, text, pairs, max_cosine)
    assert float(by_winners["image_slots_used"]) == float(by_winners["image_embeddings_used"]) == 1
    by_chamfer = set_health(image, text, pairs, smooth_chamfer)
    assert float(by_chamfer["image_slots_used"]) == 1 and float(by_chamfer["image_embeddings_used"]) > 2.9


def test_an_untrained_set_prediction_uses_all_its_slots() -> None:
    torch.manual_seed(0)
    sides = []
    for count, dim in ((16, 32), (16, 24)):
        aggregator = SetPrediction(in_dim=dim, out_dim=64, num_embeddings=4, head_dim=16).eval()
        with torch.no_grad():
            sides.append(
                F.normalize(aggregator(torch.randn(count, 9, dim), context=torch.randn(count, 64)).embeddings, dim=-1)
            )
    health = set_health(sides[0], sides[1], torch.arange(16), smooth_chamfer)
    assert 3.8 < float(health["image_embeddings_used"]) <= 4 and 3.8 < float(health["text_embeddings_used"]) <= 4


def test_only_real_embeddings_count() -> None:
    """Sets of different sizes, with garbage in masked places, against the same sets without padding."""
    image, text, image_of_caption = sets(3, 4, 5), sets(6, 3, 5, seed=1), torch.arange(6) // 2
    image_mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])
    text_mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]] * 2)
    dirty, texts = (x.masked_fill(~m.unsqueeze(-1), torch.nan) for x, m in ((image, image_mask), (text, text_mask)))
    found = set_health(dirty, texts, image_of_caption, max_cosine, image_mask, text_mask)
    for name, embeddings, mask in (("image", image, image_mask), ("text", text, text_mask)):
        lengths = [float(own[real].mean(0).norm()) for own, real in zip(embeddings, mask, strict=True)]
        expected = math.log(sum(1 - length for length in lengths) / len(lengths))
        assert float(found[f"{name}_log_variance"]) == pytest.approx(expected, rel=1e-5)
    wins = {"image": [0.0] * 4, "text": [0.0] * 3}
    for caption, row in enumerate(image_of_caption):
        cosines = image[row, image_mask[row]] @ text[caption, text_mask[caption]].T
        best = divmod(int(cosines.argmax()), cosines.shape[1])
        wins["image"][best[0]] += 1
        wins["text"][best[1]] += 1
    for name, counts in wins.items():
        expected = slow_effective_number(counts)
        assert float(found[f"{name}_slots_used"]) == pytest.approx(expected, rel=1e-5)
        assert float(found[f"{name}_embeddings_used"]) == pytest.approx(expected, rel=1e-3)  # of "max": the winners


def test_no_parameter_gets_a_gradient() -> None:
    similarity = MatchProbability()
    image, text = sets(3, 2, 5).requires_grad_(), sets(3, 2, 5, seed=1)
    health = set_health(image, text, torch.arange(3), similarity)
    assert image.grad is None and similarity.scale.grad is None
    assert not any(value.requires_grad for value in health.values())


def test_a_score_that_depends_on_nothing() -> None:
    """A similarity without a gradient, such as one that counts, must not end an evaluation."""
    health = set_health(sets(3, 2, 5), sets(3, 2, 5), torch.arange(3), lambda a, b: torch.zeros(len(a), len(b)))
    assert float(health["image_embeddings_used"]) == 1


def test_single_embeddings_have_no_set() -> None:
    one, four = sets(5, 1, 6), sets(5, 4, 6)
    assert set_health(one, one, torch.arange(5), max_cosine) == {}
    assert set(set_health(one, four, torch.arange(5))) == {"text_log_variance", "text_slots_used"}
    more = set(set_health(one, four, torch.arange(5), max_cosine))
    assert more == {"text_log_variance", "text_slots_used", "text_embeddings_used"}


def test_the_ends_of_the_scale() -> None:
    collapsed = sets(5, 1, 6).expand(5, 4, 6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).expand(5, 2, 2)
    health = set_health(collapsed, collapsed, torch.arange(5), smooth_chamfer)
    assert health["image_log_variance"] < -14 and health["image_slots_used"] == 1
    assert float(health["image_embeddings_used"]) == pytest.approx(4)  # equal embeddings have equal weights
    assert set_health(opposite, opposite, torch.arange(5))["text_log_variance"] == 0


def test_constant_share() -> None:
    residual = (
        torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0.0, -1.0])[:, None]
    )
    constant = total = 0.0
    for k in range(3):
        mean = [sum(float(residual[i, k, h]) for i in range(7)) / 7 for h in range(5)]
        constant += sum(value**2 for value in mean)
        total += sum(float(residual[i, k, h]) ** 2 for i in range(7) for h in range(5)) / 7
    assert float(constant_share(residual)) == pytest.approx(constant / total)
    assert float(constant_share(residual[:1].expand(9, 3, 5))) == pytest.approx(1)
    assert float(constant_share(torch.stack([residual[0], -residual[0]]))) == pytest.approx(0)
    assert float(constant_share(torch.zeros(4, 3, 5))) == 0
    assert constant_share(residual.bfloat16()).dtype == torch.float32


def test_masked_places_win_nothing_where_all_cosines_are_negative() -> None:
    """One caption has its only embedding in the first place, the other its best one in the second."""
    image = torch.tensor([[[1.0, 0.0]]])
    text = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]], [[-1.0, 0.0], [-0.6, 0.8]]])
    mask = torch.tensor([[True, False], [True, True]])
    found = set_health(image, text, torch.zeros(2, dtype=torch.long), text_mask=mask)
    assert float(found["text_slots_used"]) == pytest.approx(2)
