"""torch.compile without a graph break and torch.export, for every aggregator, similarity and loss, in any size."""

from typing import Any

import aggregator_cases
import loss_cases
import pytest
import similarity_cases
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from vse.losses import LOSSES
from vse.sequences import GRUWeights, _states_as_one, _weights, read_forwards

FIXED_SIZE = {"cosine", "assignment"}  # cosine compares single embeddings; the steps of a matching depend on its size


QUICK = {"gpo", "set_prediction", "smooth_chamfer"}  # what has been hard to compile; -m slow runs all


def quick_or_slow(names: Any) -> list[Any]:
    """Cases (name, masked) of every name; those that take long are marked."""
    cases = [(name, masked) for name in names for masked in (True, False)]
    return [case if case[0] in QUICK and case[1] else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def check(module: nn.Module, shapes: Any, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    """Compiled in one graph and exported with one batch, the module gives its own results for another."""
    expected = module(*second)
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(*first), module(*first))
    torch.testing.assert_close(compiled(*second), expected)
    exported = export(module, first, dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(*second), expected)


class Embeddings(nn.Module):
    """The embeddings alone: what else an aggregator returns may be None."""

    def __init__(self, aggregator: nn.Module) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch of sets."""
        return self.aggregator(features, mask).embeddings


@pytest.mark.parametrize(("name", "masked"), quick_or_slow(aggregator_cases.EVERY))
def test_aggregators(name: str, masked: bool) -> None:
    features, mask = aggregator_cases.sets()
    more, more_mask = torch.randn(6, 5, aggregator_cases.DIM, dtype=torch.float64), torch.rand(6, 5) < 0.5
    more_mask[:, 2] = True
    sizes = {0: Dim("samples"), 1: Dim("elements")}
    check(
        Embeddings(aggregator_cases.make(name)).eval(),
        {"features": sizes, "mask": sizes if masked else None},
        (features, mask if masked else None),
        (more, more_mask if masked else None),
    )


class Scores(nn.Module):
    """A similarity as a module, which torch.export asks for."""

    def __init__(self, similarity: Any) -> None:
        super().__init__()
        self.similarity = similarity

    def forward(self, a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None) -> Tensor:
        """Compare two sides."""
        return self.similarity(a, b, a_mask, b_mask)


@pytest.mark.parametrize(("name", "masked"), quick_or_slow(similarity_cases.EVERY))
def test_similarities(name: str, masked: bool) -> None:
    a, b, a_mask, b_mask = similarity_cases.masked_sets(name)
    masks = (a_mask, b_mask) if masked else (None, None)
    left, right = {0: Dim("images")}, {0: Dim("captions")}
    if name.split(",")[0] in FIXED_SIZE:
        second = (a[:2], b[1:], *((a_mask[:2], b_mask[1:]) if masked else masks))
    else:
        left, right = {**left, 1: Dim("left")}, {**right, 1: Dim("right")}
        second = (b, a, *masks[::-1])
    shapes = {"a": left, "b": right, "a_mask": left if masked else None, "b_mask": right if masked else None}
    check(Scores(similarity_cases.make(name)), shapes, (a, b, *masks), second)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, known: bool) -> None:
    """With and without the places of the positive pairs."""
    batches = []
    for case in ("ragged", "pairs"):
        scores, positives = loss_cases.batch(case)
        batches.append((scores, positives, positives.nonzero().T if known else None))
    sizes = {0: Dim("images"), 1: Dim("captions")}
    shapes = {"scores": sizes, "positives": sizes, "pairs": {1: Dim("pairs")} if known else None}
    check(LOSSES[name]().double(), shapes, *batches)


def test_the_gru_as_one_operation() -> None:
    """Its states, and its gradients as torch finds them for the plain GRU."""
    torch.manual_seed(0)
    gru = GRUWeights(3, 5).double()
    sequence = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    weights = _weights(gru, "")
    torch.library.opcheck(_states_as_one, (sequence, weights))
    results = []
    for states in (read_forwards(gru, sequence), _states_as_one(sequence, weights)):
        results.append([states, *torch.autograd.grad(states.sin().sum(), [sequence, *weights])])
    torch.testing.assert_close(*results)


def test_the_weights_are_those_of_torchs_gru() -> None:
    """Names, order and initialisation, so that checkpoints and seeds give the same as before."""
    torch.manual_seed(0)
    expected = nn.GRU(3, 5, bidirectional=True)
    torch.manual_seed(0)
    found = GRUWeights(3, 5, bidirectional=True)
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)


def test_a_compiled_gpo_has_the_gradients_of_a_plain_one() -> None:
    gpo = aggregator_cases.make("gpo")
    features, mask = aggregator_cases.sets()
    results = []
    for call in (gpo, torch.compile(gpo, fullgraph=True, backend="aot_eager", dynamic=True)):
        total = call(features, mask).embeddings.sin().sum()
        results.append(torch.autograd.grad(total, list(gpo.parameters())))
    torch.testing.assert_close(*results)
