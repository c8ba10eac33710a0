"""Scores at the ends of the number range, and the papers' values as the defaults."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vse.aggregators import AGGREGATORS
from vse.encoders import ENCODERS
from vse.encoders.backbones import Normalise
from vse.losses import LOSSES, REGULARISERS, AdaptiveContrastiveLoss, InfoNCELoss, TripletLoss
from vse.similarity import SIMILARITIES, chamfer, cosine, max_cosine, smooth_chamfer


@pytest.mark.parametrize("temperature", [39.0, 60.0, 100.0, 1000.0])
def test_smooth_chamfer_of_opposite_embeddings(temperature: float) -> None:
    """A cosine of -1 is as far from 1 as can be: exp(-2 t) is 0 in float32 from a temperature of 52 on."""
    torch.manual_seed(0)
    one = F.normalize(torch.randn(5, 1, 6), dim=-1).expand(5, 3, 6)
    found = smooth_chamfer(one, -one, temperature)
    assert found.isfinite().all()
    exact = smooth_chamfer(one.double(), -one.double(), temperature)
    torch.testing.assert_close(found.double(), exact, atol=2e-6, rtol=1e-5)
    expected = -1 + math.log(3) / temperature  # of a set of equal embeddings and the opposite one
    torch.testing.assert_close(found.diagonal(), torch.full((5,), expected), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smooth_chamfer_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 3, 16), dim=-1).to(dtype) for n in (4, 5))
    found, expected = smooth_chamfer(a, b), smooth_chamfer(a.double(), b.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("factor", [0.9, 0.999, 0.9999, 1.0001, 1.001, 1.1])
def test_embeddings_that_nearly_have_length_one_are_normalised(factor: float) -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 1, 64), dim=-1) for n in (50, 60))
    for similarity in (cosine, max_cosine, chamfer):
        torch.testing.assert_close(similarity(factor * a, b), similarity(a, b), atol=1e-6, rtol=3e-6)


def test_rounding_does_not_make_a_tower_s_embeddings_longer() -> None:
    """Length 1 but for float32's rounding: the scores are plain products, to the last bit."""
    torch.manual_seed(0)
    a, b = (torch.randn(n, 1, 1024) for n in (50, 60))
    a, b = (x / (x.norm(dim=-1, keepdim=True) + 1e-8) for x in (a, b))
    assert torch.equal(cosine(a, b), a[:, 0] @ b[:, 0].T)


def random_batch(seed: int) -> tuple[Tensor, Tensor]:
    """Scores of all sizes, and many to many positives."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(x) for x in torch.randint(3, 30, (2,), generator=generator))
    positives = torch.rand(rows, columns, generator=generator) < 0.3
    positives[0, 0] = True
    scores = torch.rand(rows, columns, generator=generator) * 1.4 - 0.4
    return scores + 0.5 * torch.rand((), generator=generator) * positives, positives


def test_the_number_of_negatives_in_many_batches() -> None:
    """Positives count as 0 in the uniformity, which rarely changes n: in every sixth batch or so."""
    loss = AdaptiveContrastiveLoss()
    for seed in range(100):
        scores, positives = random_batch(seed)
        matches = scores[positives].tolist()
        alignment = sum(matches) / len(matches)
        others = [math.exp(-score) for score in scores[~positives].tolist()]
        uniformity = (sum(others) + len(matches)) / scores.numel()
        for table, right in ((scores, positives), (scores.T, positives.T)):
            candidates = table.shape[1]
            exact = candidates * math.cos(max(0.0, alignment + uniformity) ** 1.25)
            if abs(exact - round(exact)) > 1e-4:  # else rounding decides
                expected = min(max(math.floor(exact) + 1, 1), candidates - 1)
                assert int(loss.count_negatives(table, right)) == expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_scores(name: str, dtype: torch.dtype) -> None:
    """Nothing is computed in half precision: the loss is that of the same scores in float32, to the last bit."""
    for seed in range(5):
        scores, positives = random_batch(seed)
        half = scores.to(dtype).requires_grad_()
        found, expected = (LOSSES[name]()(x, positives) for x in (half, half.detach().float()))
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert torch.autograd.grad(found, half)[0].isfinite().all()


DEFAULTS: dict[str, dict[str, Any]] = {
    "loss triplet": {"margin": 0.2, "mining": "hardest", "reduction": "sum", "warmup_epochs": 0},
    "loss adaptive_contrastive": {"gamma": 1.25, "margin": 0.2, "temperature": 0.05, "negatives": "adaptive"},
    "loss info_nce": {"temperature": 0.07, "learnable": True},
    "term mmd": {"kernel": "rbf", "gamma": 0.5},
    "similarity smooth_chamfer": {"temperature": 16.0},
    "similarity match_probability": {"scale": 1.0, "shift": 0.0},
    "encoder regions": {"mlp": "input", "features": "projected", "context": None, "dropout": 0.0, "drop": 0.0},
    "encoder bigru": {
        **{"word_dim": 300, "directions": "average", "features": "states", "context": "last", "dropout": 0.0},
        **{"drop": 0.0, "keep_ends": False, "freeze_words": False},
    },
    "encoder grid": {
        **{"weights": None, "mlp": None, "features": "projected", "context": None, "dropout": 0.0, "drop": 0.0},
        **{"freeze_epochs": 0, "stage_epochs": None, "train_norm": False, "pixels": "imagenet"},
    },
    "encoder video": {"context": "last", "dropout": 0.0, "freeze_epochs": 0, "train_norm": False},
    "encoder bert": {"weights": "pretrained", "context": None, "dropout": 0.0, "drop": 0.0},
    "aggregator gpo": {"position_dim": 32, "hidden_dim": 32},
    "aggregator gem": {"power": 3.0, "eps": 1e-6},
    "aggregator fspool": {"pieces": 20},
    "aggregator pie_net": {"hidden_dim": None, "dropout": 0.0},
    "aggregator set_prediction": {
        **{"num_embeddings": 4, "depth": 4, "heads": 4, "head_dim": 512, "ff_mult": 4, "dropout": 0.0},
        **{"position": "none", "grid": None, "share_weights": True, "attention": "slots"},
    },
}
TABLES: dict[str, dict[str, Any]] = {
    "loss": LOSSES,
    "term": REGULARISERS,
    "similarity": SIMILARITIES,
    "encoder": ENCODERS,
    "aggregator": AGGREGATORS,
}


@pytest.mark.parametrize("place", DEFAULTS)
def test_the_papers_values_are_the_defaults(place: str) -> None:
    """Configs leave them out, so another default changes a published system without a word."""
    kind, name = place.split()
    parameters = inspect.signature(TABLES[kind][name]).parameters
    assert {key: parameters[key].default for key in DEFAULTS[place]} == DEFAULTS[place]


def test_nothing_is_released_by_default() -> None:
    positives = torch.eye(4, dtype=torch.bool)
    scores = torch.full((4, 4), -0.5).masked_fill(positives, 0.3)
    loss = AdaptiveContrastiveLoss(negatives=2)(scores, positives)
    assert loss == AdaptiveContrastiveLoss(negatives=2, released=False)(scores, positives)
    assert loss != AdaptiveContrastiveLoss(negatives=2, released=True)(scores, positives)
    assert TripletLoss().warming_up is False and InfoNCELoss().log_temperature.requires_grad


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("imagenet", [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (10 / 255 - 0.406) / 0.225]),
        ("half", [200 / 127.5 - 1, 100 / 127.5 - 1, 10 / 127.5 - 1]),
        (
            "clip",
            [
                (200 / 255 - 0.48145466) / 0.26862954,
                (100 / 255 - 0.4578275) / 0.26130258,
                (10 / 255 - 0.40821073) / 0.27577711,
            ],
        ),
        ("caffe", [10 - 102.9801, 100 - 115.9465, 200 - 122.7717]),
    ],
)
def test_pixels_of_each_kind(pixels: Any, expected: list[float]) -> None:
    """The published means and deviations, channel by channel; Caffe's are blue, green and red."""
    picture = torch.tensor([200, 100, 10], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 4)
    found = Normalise(pixels)(picture)
    torch.testing.assert_close(found, torch.tensor(expected)[None, :, None, None].expand(1, 3, 2, 4))
