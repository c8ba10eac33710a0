import math
from collections.abc import Callable

import pytest
import torch
from similarity_cases import TWINS, make, slow_smooth_chamfer
from torch import Tensor
from torch.nn import functional as F

from vse.evaluation.score import score
from vse.similarity import SIMILARITIES, MatchProbability, chamfer, cosine, max_cosine, order, smooth_chamfer

Sets = tuple[Tensor, Tensor]


def sets(k: int = 3, size: int = 2) -> Sets:
    torch.manual_seed(0)
    return torch.randn(4, k, 6, dtype=torch.float64), torch.randn(5, size, 6, dtype=torch.float64)


every = pytest.mark.parametrize("name", SIMILARITIES)


@every
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 2), (1, 4)])
def test_it_equals_its_slow_twin(name: str, shape: tuple[int, int]) -> None:
    if name == "cosine" and shape != (1, 1):
        pytest.skip("compares single embeddings")
    a, b = (x.requires_grad_() for x in sets(*shape))
    expected = torch.stack([torch.stack([TWINS[name](x, y) for y in b]) for x in a])
    found = make(name)(a, b)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((s * weights).sum(), (a, b)) for s in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_one_embedding_makes_all_cosines_alike() -> None:
    a, b = sets(1, 1)
    for similarity in (max_cosine, chamfer, smooth_chamfer):
        torch.testing.assert_close(similarity(a, b), cosine(a, b))


def test_smooth_chamfer_tends_to_chamfer_and_stays_finite() -> None:
    a, b = (x.float() for x in sets())
    torch.testing.assert_close(smooth_chamfer(a, b, temperature=1e4), chamfer(a, b), atol=1e-3, rtol=0)
    for temperature in (1e-3, 1e6):
        scores = smooth_chamfer(a.requires_grad_(), b, temperature)
        assert scores.isfinite().all() and torch.autograd.grad(scores.sum(), a)[0].isfinite().all()
    for temperature in (0.5, 16.0, 39.9, 40.1):  # the cosines of opposite embeddings are as far from 1 as can be
        far = smooth_chamfer(a[:3], -a[:3], temperature)
        torch.testing.assert_close(far.double(), smooth_chamfer(a[:3].double(), -a[:3].double(), temperature))
        torch.testing.assert_close(far[0, 0].double(), slow_smooth_chamfer(a[0].double(), -a[0].double(), temperature))
    for wrong, needed in ((0, "positive"), (math.nan, "positive"), (math.inf, "finite")):
        with pytest.raises(ValueError, match=f"temperature must be {needed}, got {wrong}"):
            smooth_chamfer(a, b, temperature=wrong)


def test_match_probability_is_learned() -> None:
    a, b = (x.float() for x in sets())
    similarity = MatchProbability(scale=2.0, shift=-1.0)
    similarity(a, b).sum().backward()
    assert [float(p.detach()) for p in similarity.parameters()] == [2.0, -1.0]
    assert all(p.grad is not None and p.grad.abs() > 0 for p in similarity.parameters())
    c = (F.normalize(a, dim=-1)[:, None, :, None] * F.normalize(b, dim=-1)[None, :, None]).sum(-1)
    torch.testing.assert_close(similarity(a, b), torch.sigmoid(2 * c - 1).mean((2, 3)))


@every
def test_lengths_do_not_count_where_cosines_do(name: str) -> None:
    a, b = sets(1, 1)
    scaled = make(name)(a * 3.0, b * 0.2)
    assert torch.allclose(scaled, make(name)(a, b)) == (name != "order")


@every
def test_zero_embeddings_give_finite_gradients(name: str) -> None:
    a, b = torch.zeros(2, 1, 6, requires_grad=True), torch.zeros(3, 1, 6)
    similarity = MatchProbability() if name == "match_probability" else SIMILARITIES[name]
    scores = similarity(a, b)
    assert isinstance(scores, Tensor) and scores.isfinite().all()
    assert torch.autograd.grad(scores.sum(), a)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zero_embeddings_in_half_precision(dtype: torch.dtype) -> None:
    zero, other = torch.zeros(2, 1, 6, dtype=dtype), torch.ones(3, 1, 6, dtype=dtype)
    assert (cosine(zero, other) == 0).all()


@every
def test_a_corpus_is_scored_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are those of one piece, and no block holds more than it may."""
    torch.manual_seed(0)
    size = 1 if name == "cosine" else 3
    images, captions = torch.randn(11, size, 6), torch.randn(13, size, 6)
    similarity = make(name)
    if isinstance(similarity, torch.nn.Module):
        similarity.float()
    whole = score(similarity, images, captions)
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 17 * size * size)
    monkeypatch.setattr("vse.similarity.pooled._BLOCK", 2 * size * 4 * size * 6)
    blocks = []

    def watched(a: Tensor, b: Tensor) -> Tensor:
        blocks.append((len(a), len(b)))
        return similarity(a, b)

    torch.testing.assert_close(score(watched, images, captions), whole)
    assert blocks == [(rows, columns) for rows in (3, 4, 4) for columns in (3, 3, 3, 4)]


@every
def test_bad_shapes(name: str) -> None:
    a, b = sets(1, 1)
    with pytest.raises(
        ValueError, match=r"expected \(A, K, H\) and \(C, L, H\) with one H, nothing empty, got \(4, 1, 5\)"
    ):
        make(name)(a[..., :5], b)
    with pytest.raises(ValueError, match=r"expected \(A, K, H\) and \(C, L, H\)"):
        make(name)(a[:, 0], b)
    with pytest.raises(ValueError, match="nothing empty, got"):
        make(name)(a[:, :0], b)


def test_cosine_compares_single_embeddings() -> None:
    with pytest.raises(ValueError, match="cosine compares single embeddings, got K = 3 and L = 2"):
        cosine(*sets())


def test_order_holds_few_pairs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = sets()
    whole = order(a, b)
    sizes = []
    norm = torch.linalg.vector_norm

    def watched(x: Tensor, dim: int) -> Tensor:
        sizes.append(x.numel())
        return norm(x, dim=dim)

    monkeypatch.setattr(torch.linalg, "vector_norm", watched)
    limit = 2 * 3 * 5 * 2 * 6  # two of a's four samples
    monkeypatch.setattr("vse.similarity.pooled._BLOCK", limit)
    assert torch.equal(order(a, b), whole) and sizes == [limit, limit]


def test_unit_vectors_are_left_alone() -> None:
    """Scores of a tower's embeddings are plain products, gradients included."""
    a, b = (F.normalize(x, dim=-1).requires_grad_() for x in sets(1, 1))
    scores = cosine(a, b)
    assert torch.equal(scores, a[:, 0] @ b[:, 0].T)
    expected = b[:, 0].sum(0).expand(4, 6)
    torch.testing.assert_close(torch.autograd.grad(scores.sum(), a)[0][:, 0], expected)
    assert order(a, b).shape == (4, 5) and math.isfinite(order(a, b).sum().item())


@pytest.mark.parametrize("temperature", [16.0, 39.0, 41.0, 60.0, 100.0, 1000.0])
def test_smooth_chamfer_of_opposite_embeddings(temperature: float) -> None:
    """All cosines are -1, and exp(-2 t) is 0 in float32 from t = 52 on: score and gradient stay finite and right."""
    torch.manual_seed(0)
    a = F.normalize(torch.randn(5, 1, 6), dim=-1).expand(5, 3, 6).clone().requires_grad_()
    scores = smooth_chamfer(a, -a.detach(), temperature)
    exact = smooth_chamfer(a.detach().double(), -a.detach().double(), temperature)
    torch.testing.assert_close(scores.detach().double(), exact, atol=2e-6, rtol=1e-5)
    expected = torch.full((5,), -1 + math.log(3) / temperature)
    torch.testing.assert_close(scores.detach().diagonal(), expected, atol=2e-6, rtol=1e-5)
    assert torch.autograd.grad(scores.sum(), a)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smooth_chamfer_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 3, 16), dim=-1).to(dtype) for n in (4, 5))
    found, expected = smooth_chamfer(a, b), smooth_chamfer(a.double(), b.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("similarity", [cosine, max_cosine, chamfer])
def test_lengths_close_to_one_are_normalised(similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Only rounding, up to 1e-5, is left alone; a length that is off by more changes no score."""
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 1, 6, dtype=torch.float64), dim=-1) for n in (4, 5))
    exact = a[:, 0] @ b[:, 0].T
    for length in (1 + 2e-5, 1 - 2e-5, 0.999, 1.001, 0.5, 1.1):
        torch.testing.assert_close(similarity(a * length, b), exact, rtol=0, atol=1e-12)
        torch.testing.assert_close(similarity(a, b * length), exact, rtol=0, atol=1e-12)
    for length in (1 + 5e-6, 1 - 5e-6):
        torch.testing.assert_close(similarity(a * length, b), exact * length, rtol=0, atol=1e-12)


def test_scores_of_a_towers_embeddings_are_plain_products() -> None:
    """Length 1 but for float32's rounding: the scores are plain products, to the last bit."""
    torch.manual_seed(0)
    a, b = (torch.randn(n, 1, 1024) for n in (50, 60))
    a, b = (x / (x.norm(dim=-1, keepdim=True) + 1e-8) for x in (a, b))
    assert torch.equal(cosine(a, b), a[:, 0] @ b[:, 0].T)
