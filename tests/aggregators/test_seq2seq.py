import pytest
import torch
from aggregator_cases import DIM, sets, valid
from torch import Tensor

from vse.aggregators import Seq2Seq
from vse.sequences import GRUWeights


def slow_gru(gru: GRUWeights, elements: Tensor) -> Tensor:
    """The last state of a GRU, step by step."""
    weight = gru.state_dict()
    state = torch.zeros(gru.hidden_size, dtype=elements.dtype)
    for x in elements:
        from_input = (weight["weight_ih_l0"] @ x + weight["bias_ih_l0"]).chunk(3)
        from_state = (weight["weight_hh_l0"] @ state + weight["bias_hh_l0"]).chunk(3)
        reset, update = (torch.sigmoid(i + h) for i, h in zip(from_input[:2], from_state[:2], strict=True))
        new = torch.tanh(from_input[2] + reset * from_state[2])
        state = (1 - update) * new + update * state
    return state


def test_it_equals_its_definition() -> None:
    torch.manual_seed(0)
    net = Seq2Seq(DIM, 5).double()
    features, mask = sets()
    expected = torch.stack([slow_gru(net.gru, x) for x in valid(features, mask)])
    torch.testing.assert_close(net(features, mask).embeddings[:, 0], expected)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="in_dim must be at least 1, got 0"):
        Seq2Seq(0, 5)
    with pytest.raises(ValueError, match="out_dim must be at least 1, got 0"):
        Seq2Seq(DIM, 0)
