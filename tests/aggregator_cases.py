"""What the tests of aggregators share: every aggregator by name, in the settings that matter, and small sets."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vse.aggregators import AGGREGATORS

DIM = 6
# Values of arguments that have no default, by argument name.
NEEDED: dict[str, Any] = {"k": 3, "dim": DIM, "in_dim": DIM, "out_dim": DIM, "num_embeddings": 2}
# Further settings of aggregators: "name, what is special about it" and the arguments.
VARIANTS: dict[str, dict[str, Any]] = {
    "gem, strong": {"power": 12.0},
    "fspool, few pieces": {"pieces": 2},
    "gpo, transformer": {"decoder": "transformer"},
    "gpo, mlp": {"decoder": "mlp"},
    "gpo, per dimension": {"per_dimension": True, "in_dim": DIM},
    "gpo, conditioned": {"conditioned": True, "in_dim": DIM},
    "gpo, conditioned per dimension": {
        "conditioned": True,
        "per_dimension": True,
        "in_dim": DIM,
        "decoder": "transformer",
    },
    "softmax_pool, torch": {"init": "torch"},
    "tokens, projected": {"in_dim": DIM, "out_dim": 9, "project": True},
    "self_attention, deep": {"depth": 2, "heads": 2},
    "gcn, deep": {"depth": 2},
    "seq2seq, wide": {"out_dim": 9},
    "pie_net, projected context": {"out_dim": 5, "project_context": True},
    "pie_net, no global": {"out_dim": 5, "use_global": False},
    "pie_net, no residual": {"use_residual": False},
    "pie_net, concatenated": {"out_dim": 2 * DIM, "combine": "concatenate"},
    "set_prediction, projected context": {"out_dim": 5, "project_context": True, "head_dim": 8},
    "set_prediction, inputs": {"attention": "inputs", "head_dim": 8},
    "set_prediction, transformer": {"attention": "inputs", "self_attention": True, "head_dim": 8},
    "set_prediction, own blocks": {"share_weights": False, "depth": 2, "heads": 2, "head_dim": 8},
    "set_prediction, sine": {"position": "sine", "head_dim": 8},
}
# Arguments that the small width of these tests asks for.
SMALL: dict[str, dict[str, Any]] = {"self_attention": {"heads": 3, "ff_mult": 2}}
# The result depends on the elements' order, so there is no permutation invariance.
POSITIONAL = {"first", "seq2seq", "seq2seq, wide", "set_prediction, sine"}
# They take features of any width.
ANY_WIDTH = {
    "global",
    "first",
    "mean",
    "max",
    "kmax",
    "gem",
    "gem, strong",
    "gpo",
    "gpo, transformer",
    "gpo, mlp",
    "tokens",
}
# Every element stays an embedding: their order is that of the elements, and masked places stay.
KEEPS_ELEMENTS = {"tokens", "tokens, projected"}
EVERY = [*AGGREGATORS, *VARIANTS]


def make(name: str, dtype: torch.dtype = torch.float64, **arguments: Any) -> nn.Module:
    """The aggregator of a name in ``EVERY``, always with the same weights; ``arguments`` go before its own."""
    torch.manual_seed(0)
    plain = name.split(",")[0]
    parameters = inspect.signature(AGGREGATORS[plain]).parameters.values()
    needed = {p.name: NEEDED[p.name] for p in parameters if p.default is p.empty and p.name in NEEDED}
    settings = {**needed, **SMALL.get(plain, {}), **VARIANTS.get(name, {}), **arguments}
    return AGGREGATORS[plain](**settings).to(dtype)


def sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four sets of 7 places with 7, 3, 1 and 4 real elements, in any places."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 7, DIM, generator=generator, dtype=torch.float64)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    for row, count in enumerate((7, 3, 1, 4)):
        mask[row, torch.randperm(7, generator=generator)[:count]] = True
    return features.to(dtype), mask


def embed(aggregator: nn.Module, features: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """The real embeddings (n, H) of each set."""
    result = aggregator(features, mask)
    return list(result.embeddings) if result.mask is None else valid(result.embeddings, result.mask)


def valid(features: Tensor, mask: Tensor) -> list[Tensor]:
    """The real elements (n, D) of each set."""
    return [row[real] for row, real in zip(features, mask, strict=True)]
