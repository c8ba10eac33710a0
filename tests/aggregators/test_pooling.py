import pytest
import torch
from aggregator_cases import sets, valid

from vse.aggregators import FirstElement, GlobalContext, KMaxPool, MaxPool, MeanPool


def test_poolings_equal_their_definitions() -> None:
    features, mask = sets()
    means = torch.stack([x.sum(0) / len(x) for x in valid(features, mask)])
    torch.testing.assert_close(MeanPool()(features, mask).embeddings[:, 0], means)
    maxima = torch.stack([torch.stack([column.max() for column in x.T]) for x in valid(features, mask)])
    torch.testing.assert_close(MaxPool()(features, mask).embeddings[:, 0], maxima)
    largest = [torch.stack([column.sort().values[-3:].mean() for column in x.T]) for x in valid(features, mask)]
    torch.testing.assert_close(KMaxPool(3)(features, mask).embeddings[:, 0], torch.stack(largest))
    first = torch.stack([x[0] for x in valid(features, mask)])
    assert torch.equal(FirstElement()(features, mask).embeddings[:, 0], first)


def test_k_max_limits() -> None:
    features, mask = sets()
    torch.testing.assert_close(KMaxPool(1)(features, mask).embeddings, MaxPool()(features, mask).embeddings)
    torch.testing.assert_close(KMaxPool(99)(features, mask).embeddings, MeanPool()(features, mask).embeddings)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        KMaxPool(0)


def test_global_context() -> None:
    features, mask = sets()
    context = torch.randn(4, 9, dtype=torch.float64)
    assert torch.equal(GlobalContext()(features, mask, context).embeddings[:, 0], context)
    mean = MeanPool()(features, mask).embeddings
    assert torch.equal(GlobalContext()(features, mask).embeddings, mean)
    with pytest.raises(ValueError, match=r"context must be \(4, C\), got shape \(3, 9\)$"):
        GlobalContext()(features, mask, context[:3])
