import pytest
import torch
from aggregator_cases import DIM, sets

from vse.aggregators import Tokens, traits_of


def test_the_elements_are_the_embeddings() -> None:
    features, mask = sets()
    result = Tokens()(features, mask)
    assert torch.equal(result.embeddings[mask], features[mask]) and result.mask is mask
    assert torch.equal(Tokens()(features).embeddings, features)


def test_a_projection_is_one_layer_for_all() -> None:
    features, mask = sets()
    tokens = Tokens(DIM, 9, project=True).double()
    assert tokens.project is not None and traits_of(tokens).out_dim == 9
    torch.testing.assert_close(tokens(features, mask).embeddings[mask], tokens.project(features[mask]))
    assert traits_of(Tokens(DIM, 9)).out_dim is None and not list(Tokens(DIM, 9).parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="project needs in_dim and out_dim, got None and 4"):
        Tokens(out_dim=4, project=True)
    with pytest.raises(ValueError, match="out_dim must be at least 1, got 0"):
        Tokens(4, 0, project=True)
