from collections.abc import Callable
from typing import Literal

import pytest
import torch
from loss_cases import sides
from torch import Tensor

from vse.losses import (
    diversity_loss,
    global_discriminative_loss,
    intra_set_divergence_loss,
    mmd_loss,
    uniformity_loss,
)
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


def slow_global(vectors: list[Tensor], contexts: Tensor, scale: float, margin: float) -> Tensor:
    total = []
    for sample, g in zip(vectors, contexts, strict=True):
        near = [v @ g / (v.norm() * g.norm()) for v in sample]
        total.append(torch.stack([torch.exp(scale * (c - margin)) for c in near]).mean())
    return torch.stack(total).mean()


def slow_divergence(vectors: list[Tensor], scale: float, margin: float) -> Tensor:
    total = []
    for sample in vectors:
        v = [x / x.norm() for x in sample]
        pairs = [torch.exp(scale * (v[j] @ v[k] - margin)) for j in range(len(v)) for k in range(len(v)) if j != k]
        total.append(torch.stack(pairs).mean() if pairs else torch.zeros((), dtype=sample.dtype))
    return torch.stack(total).mean()


def test_the_terms_of_maxmatch_equal_their_slow_twins() -> None:
    image, text = sides()
    both = (image, text)
    found = global_discriminative_loss(image, text, 0.4, 0.6)
    expected = [slow_global(list(s.embeddings), s.context, 0.4, 0.6) for s in both if s.context is not None]
    torch.testing.assert_close(found, sum(expected))
    found = global_discriminative_loss(image, text, 0.4, 0.6, "residual")
    assert image.residual is not None and text.residual is not None
    expected = [slow_global(list(s.residual), s.context, 0.4, 0.6) for s in both if s.residual is not None]  # type: ignore[arg-type]
    torch.testing.assert_close(found, sum(expected))
    found = intra_set_divergence_loss(image, text, 0.4, 0.6)
    torch.testing.assert_close(found, sum(slow_divergence(list(s.embeddings), 0.4, 0.6) for s in both))
    found = intra_set_divergence_loss(image, text, 0.4, 0.6, "residual")
    expected = [slow_divergence(list(s.residual), 0.4, 0.6) for s in both if s.residual is not None]
    torch.testing.assert_close(found, sum(expected))


TERMS: list[Callable[..., Tensor]] = [
    diversity_loss,
    uniformity_loss,
    mmd_loss,
    global_discriminative_loss,
    intra_set_divergence_loss,
]


@pytest.mark.parametrize("term", TERMS)
def test_masked_embeddings_do_not_count(term: Callable[..., Tensor]) -> None:
    """Sets of different sizes, in any places, give what each side's sample gives on its own, averaged."""
    generator = torch.Generator().manual_seed(0)
    masks = [
        torch.tensor([[True, False, True], [True, True, True], [False, True, False]]),
        torch.tensor([[True, True]] * 2),
    ]
    masks[1][1, 0] = False
    full, alone = [], []
    for mask in masks:
        e, r = (torch.randn(*mask.shape, 5, dtype=torch.float64, generator=generator) for _ in range(2))
        context = torch.randn(len(mask), 5, dtype=torch.float64, generator=generator)
        own = [(e[i][mask[i]], r[i][mask[i]], context[i]) for i in range(len(mask))]
        alone.append([Aggregated(a[None], residual=b[None], context=c[None]) for a, b, c in own])
        hole = ~mask.unsqueeze(-1)
        dirty = e.masked_fill(hole, torch.nan).requires_grad_(), r.masked_fill(hole, torch.nan).requires_grad_()
        full.append(Aggregated(dirty[0], residual=dirty[1], mask=mask, context=context))
    found = term(*full)
    if term is mmd_loss:
        x, y = (torch.cat([s.embeddings[0] for s in samples]) for samples in alone)
        expected = slow_mmd(x, y, "rbf", 0.5)
    else:  # the sum of two sides, each a mean over its samples
        one = [torch.stack([term(s, s) / 2 for s in samples]).mean() for samples in alone]
        expected = one[0] + one[1]
    torch.testing.assert_close(found, expected)
    found.backward()
    for side, mask in zip(full, masks, strict=True):
        for tensor in (side.embeddings, side.residual):
            assert tensor is not None and (tensor.grad is None or not tensor.grad[~mask].any())
            assert tensor.grad is None or tensor.grad.isfinite().all()


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
    assert intra_set_divergence_loss(image, text) == 0
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


@pytest.mark.parametrize("term", TERMS)
def test_regularisers_have_right_gradients(term: Callable[..., Tensor]) -> None:
    image, text = sides()
    assert image.residual is not None
    inputs = (image.embeddings.requires_grad_(), image.residual.requires_grad_())

    def both(e: Tensor, r: Tensor) -> Tensor:
        return term(Aggregated(e, residual=r, context=image.context), text) + 0 * (e.sum() + r.sum())

    assert torch.autograd.gradcheck(both, inputs)


def test_regularisers_judge_half_precision_in_float32() -> None:
    halves = [Aggregated(*(None if part is None else part.bfloat16() for part in s)) for s in sides()]  # type: ignore[arg-type]
    for term in TERMS:
        assert term(*halves).dtype == torch.float32


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
    with pytest.raises(ValueError, match="the image aggregator gives no context; set_prediction does"):
        global_discriminative_loss(without_residual, text)
    for term in (global_discriminative_loss, intra_set_divergence_loss):
        with pytest.raises(ValueError, match="scale must be positive, got 0"):
            term(image, text, scale=0)
        with pytest.raises(ValueError, match="vectors must be one of 'embeddings' or 'residual', got 'slots'"):
            term(image, text, vectors="slots")  # type: ignore[arg-type]
