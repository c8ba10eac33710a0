from collections.abc import Callable
from typing import Literal

import pytest
import torch
from loss_cases import sides
from torch import Tensor

from vse.losses import diversity_loss, mmd_loss, uniformity_loss
from vse.sets import Aggregated


def slow_diversity(residuals: Tensor) -> Tensor:
    total = []
    for sample in residuals:
        size = len(sample)
        entries = [
            (sample[i] @ sample[j] / (sample[i].norm() * sample[j].norm()) - float(i == j)) ** 2
            for i in range(size)
            for j in range(size)
        ]
        total.append(torch.stack(entries).sum().sqrt() / size**2)
    return torch.stack(total).mean()


def slow_uniformity(residuals: Tensor) -> Tensor:
    total = []
    for sample in residuals:
        r = [x / x.norm() for x in sample]
        pairs = [torch.exp(-2 * (r[i] - r[j]).square().sum()) for i in range(len(r)) for j in range(i + 1, len(r))]
        total.append(torch.stack(pairs).mean())
    return torch.stack(total).mean()


def slow_mmd(x: Tensor, y: Tensor, kernel: str, gamma: float) -> Tensor:
    def k(a: Tensor, b: Tensor) -> Tensor:
        squared = (a - b).square().sum()
        return torch.exp(-gamma * (squared if kernel == "rbf" else squared.sqrt()))

    def mean(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([k(a, b) for a in left for b in right]).mean()

    return mean(x, x) - 2 * mean(x, y) + mean(y, y)


def test_regularisers_equal_their_slow_twins() -> None:
    image, text = sides()
    assert image.residual is not None and text.residual is not None
    torch.testing.assert_close(
        diversity_loss(image, text), slow_diversity(image.residual) + slow_diversity(text.residual)
    )
    torch.testing.assert_close(
        uniformity_loss(image, text), slow_uniformity(image.residual) + slow_uniformity(text.residual)
    )
    x, y = image.embeddings.flatten(0, 1), text.embeddings.flatten(0, 1)
    kernels: list[Literal["rbf", "exponential"]] = ["rbf", "exponential"]
    for kernel in kernels:
        expected = slow_mmd(x, y, kernel, 0.3)
        torch.testing.assert_close(mmd_loss(image, text, kernel, 0.3), expected, atol=1e-6, rtol=1e-6)


def test_one_embedding_has_nothing_to_spread() -> None:
    image, text = sides(1, 1)
    assert uniformity_loss(image, text) == 0
    assert diversity_loss(image, text).abs() < 1e-12


@pytest.mark.parametrize("kernel", ["rbf", "exponential"])
def test_mmd_of_equal_sets_is_zero_with_a_zero_gradient(kernel: Literal["rbf", "exponential"]) -> None:
    points = torch.randn(3, 2, 5, dtype=torch.float64).requires_grad_()
    same = Aggregated(points), Aggregated(points)
    loss = mmd_loss(*same, kernel)
    assert abs(loss.item()) < 1e-6
    collapsed = torch.ones(3, 2, 5, requires_grad=True)
    for x in (points, collapsed):
        gradient = torch.autograd.grad(mmd_loss(Aggregated(x), Aggregated(x.detach()), kernel), x)[0]
        assert gradient.isfinite().all() and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("term", [diversity_loss, uniformity_loss, mmd_loss])
def test_regularisers_have_right_gradients(term: Callable[..., Tensor]) -> None:
    image, text = sides()
    assert image.residual is not None
    inputs = (image.embeddings.requires_grad_(), image.residual.requires_grad_())

    def both(e: Tensor, r: Tensor) -> Tensor:
        return term(Aggregated(e, residual=r), text) + 0 * (e.sum() + r.sum())

    assert torch.autograd.gradcheck(both, inputs)


def test_regularisers_judge_half_precision_in_float32() -> None:
    image, text = (Aggregated(s.embeddings.bfloat16(), residual=s.residual.bfloat16()) for s in sides())  # type: ignore[union-attr]
    for term in (diversity_loss, uniformity_loss, mmd_loss):
        assert term(image, text).dtype == torch.float32  # type: ignore[operator]


def test_bad_arguments() -> None:
    image, text = sides()
    without_residual = Aggregated(torch.ones(2, 1, 3))
    with pytest.raises(ValueError, match="kernel must be one of 'rbf' or 'exponential', got 'gauss'"):
        mmd_loss(image, text, kernel="gauss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gamma must be positive, got 0.0"):
        mmd_loss(image, text, gamma=0.0)
    with pytest.raises(ValueError, match="embeddings must be equally wide, got 5 and 3"):
        mmd_loss(image, without_residual)
    with pytest.raises(ValueError, match="the image aggregator gives no residual"):
        diversity_loss(without_residual, text)
    with pytest.raises(ValueError, match="the text aggregator gives no residual"):
        uniformity_loss(image, without_residual)
