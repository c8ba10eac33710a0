"""Late interaction: what the contract over all similarities does not say."""

import pytest
import torch
from torch.nn import functional as F

from vse.similarity import chan, max_sim


def test_words_look_for_regions_and_regions_for_words() -> None:
    regions = torch.eye(4)[None, :3]  # three regions
    words = torch.stack([torch.eye(4)[0], torch.eye(4)[0], torch.eye(4)[3]])[None]  # two are seen, one is not
    assert max_sim(regions, words).item() == 2 and max_sim(regions, words, query="image").item() == 1
    assert max_sim(regions, words, reduction="mean").item() == pytest.approx(2 / 3)
    assert chan(regions, words, pooling="sum").item() == 2
    assert chan(regions, words, coding="hard_regions", pooling="sum").item() == 1


def test_exchanging_the_sides_exchanges_the_codings() -> None:
    a, b = torch.randn(3, 5, 6), torch.randn(4, 2, 6)
    torch.testing.assert_close(chan(a, b, coding="hard_regions"), chan(b, a).T)
    torch.testing.assert_close(max_sim(a, b, query="image"), max_sim(b, a).T)


def test_log_sum_exp_has_no_factor() -> None:
    """One word: the score is its cosine divided by the temperature; a hundred alike are log 100 more."""
    region, word = F.normalize(torch.randn(2, 1, 1, 8), dim=-1)
    cosine = (region * word).sum()
    torch.testing.assert_close(chan(region, word), (cosine / 0.1).view(1, 1))
    many = chan(region, word.expand(1, 100, 8))
    torch.testing.assert_close(many, (cosine / 0.1 + torch.tensor(100.0).log()).view(1, 1))


def test_sharp_temperatures_do_not_overflow() -> None:
    a, b = torch.randn(3, 5, 6), torch.randn(4, 2, 6)
    for pooling, expected in (("lse", "max"), ("softmax", "max")):
        sharp = chan(a, b, pooling=pooling, pooling_temperature=1e-5)  # type: ignore[arg-type]
        scale = 1e-5 if pooling == "lse" else 1.0
        torch.testing.assert_close(sharp * scale, chan(a, b, pooling=expected), atol=1e-4, rtol=0)  # type: ignore[arg-type]
    assert chan(a, b, coding="soft_regions", coding_temperature=1e-5).isfinite().all()


def test_words_that_cancel_have_a_finite_gradient() -> None:
    """The mixture of two opposite words is zero where a region attends to both alike."""
    words = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).requires_grad_()
    region = torch.tensor([[[0.0, 1.0]]]).requires_grad_()
    scores = chan(region, words, coding="soft_regions", pooling="mean")
    assert scores.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(scores.sum(), (region, words)))


def test_bad_arguments() -> None:
    a = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="coding must be one of .*, got 'VHA'"):
        chan(a, a, coding="VHA")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pooling must be one of .*, got 'min'"):
        chan(a, a, pooling="min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="coding_temperature must be positive, got 0"):
        chan(a, a, coding_temperature=0)
    with pytest.raises(ValueError, match="pooling_temperature must be positive, got -1"):
        chan(a, a, pooling_temperature=-1)
    with pytest.raises(ValueError, match="query must be one of 'image' or 'text', got 'words'"):
        max_sim(a, a, query="words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be one of 'sum' or 'mean', got 'max'"):
        max_sim(a, a, reduction="max")  # type: ignore[arg-type]
