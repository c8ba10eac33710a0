import pytest
import torch
from torch import nn

from vse.aggregators import GPO, AdaptivePool, MeanPool
from vse.aggregators.softmax_pool import SoftmaxPool
from vse.pages.rank_weights import TOGETHER, element_shares, rank_weights, weight_chart

POOLINGS: dict[str, nn.Module] = {
    "gpo": GPO(),
    "per_dimension": GPO(per_dimension=True, in_dim=6),
    "conditioned": GPO(conditioned=True, in_dim=6),
    "adaptive": AdaptivePool(6),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", POOLINGS)
def test_the_weights_give_the_embedding(name: str) -> None:
    """The sum over the ranks of weight times sorted value is what the aggregator returns."""
    features, aggregator = torch.randn(3, 5, 6), POOLINGS[name].eval()
    weights = rank_weights(aggregator, features)[TOGETHER]
    ranked = features.sort(dim=1, descending=True).values
    torch.testing.assert_close((weights * ranked).sum(1), aggregator(features).embeddings[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_shares_are_mean_weights_of_the_elements(name: str) -> None:
    features, aggregator = torch.randn(2, 4, 6), POOLINGS[name].eval()
    weights, shares = rank_weights(aggregator, features)[TOGETHER], element_shares(aggregator, features)
    assert shares is not None
    for sample in range(2):
        for element in range(4):
            total = 0.0
            for d in range(6):
                rank = int((features[sample, :, d] > features[sample, element, d]).sum())
                total += float(weights[sample, rank, d])
            assert float(shares[sample, element]) == pytest.approx(total / 6, abs=1e-6)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_softmax_pool_has_shares_and_no_ranks() -> None:
    features, aggregator = torch.randn(2, 4, 6), SoftmaxPool(6)
    torch.testing.assert_close(element_shares(aggregator, features), aggregator.weigh(features, None).mean(2))
    assert rank_weights(aggregator, features) == {}
    assert element_shares(MeanPool(), features) is None and weight_chart("text", "tokens", MeanPool(), []) is None


def test_gpo_has_a_line_for_each_of_several_sizes() -> None:
    gpo = GPO().eval()
    chart = weight_chart("image", "regions", gpo, [torch.randn(8, 6)] * 3)
    assert chart is not None and [line.name for line in chart.lines] == ["2 regions", "4 regions", "8 regions"]
    expected = gpo.rank_weights(torch.zeros(1, 4, 6), None)[0].tolist()
    assert list(chart.lines[1].y) == pytest.approx(expected) and list(chart.lines[1].x) == [1, 2, 3, 4]
    captions = [torch.randn(size, 6) for size in (3, 9, 4, 5, 6, 3, 7)]
    chart = weight_chart("text", "tokens", gpo, captions)
    assert chart is not None and [len(line.x) for line in chart.lines] == [3, 5, 6, 9]


def test_adaptive_pooling_shows_its_levels() -> None:
    adaptive = AdaptivePool(6)
    samples = [torch.randn(size, 6) for size in (3, 4, 4)]
    chart = weight_chart("text", "tokens", adaptive, samples)
    assert chart is not None and [line.name for line in chart.lines] == [TOGETHER, "token level", "embedding level"]
    ranked = torch.stack(samples[1:]).sort(dim=1, descending=True).values
    assert list(chart.lines[2].y) == pytest.approx(ranked.softmax(1).mean((0, 2)).tolist())
    balance = adaptive.levels(torch.stack(samples[1:]), None)[1].mean(0)[0]
    assert f"4 tokens (token level counts {float(balance.detach()):.0%})" in chart.title
