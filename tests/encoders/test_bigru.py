"""Word vectors and their bidirectional GRU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributions import Start, check_module, check_start, gru, xavier
from torch import Tensor

from vse.encoders import BiGRU


def sequences(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Token ids with garbage behind each sequence, and their mask."""
    tokens = torch.full((len(lengths), max(lengths)), 10**6)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(0, 9, (length,))
    return tokens, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mask_given", [True, False])
def test_padding_and_batch_mates_change_nothing(mask_given: bool) -> None:
    torch.manual_seed(0)
    encoder = BiGRU(vocab_size=9, dim=6, word_dim=4).double()
    lengths = [2, 5, 1] if mask_given else [5, 5, 5]
    tokens, mask = sequences(lengths)
    together = encoder(tokens, mask if mask_given else None)
    assert together.context is not None and together.context.shape == (3, 6)
    for row, length in enumerate(lengths):
        alone = encoder(tokens[row : row + 1, :length])
        torch.testing.assert_close(alone.features[0], together.features[row, :length])
        torch.testing.assert_close(alone.context[0], together.context[row])


@pytest.mark.parametrize("directions", ["average", "concatenate"])
@pytest.mark.parametrize("features", ["states", "words"])
@pytest.mark.parametrize("context", ["last", "last_step", "max", "mean"])
def test_choices_equal_their_definitions(directions: Any, features: Any, context: Any) -> None:
    """Sample by sample, each with torch's GRU alone."""
    torch.manual_seed(0)
    encoder = BiGRU(9, 6, 4, directions, features, context).double()
    tokens, mask = sequences([2, 5, 1])
    result = encoder(tokens, mask)
    assert result.features.shape == (3, 5, encoder.dim) and result.context.shape == (3, encoder.context_dim)
    units = 6 if directions == "average" else 3
    for row in range(3):
        words = encoder.embedding(tokens[row, mask[row]])
        forward, backward = encoder.gru(words.unsqueeze(0))[0][0].split(units, 1)

        def join(a: Tensor, b: Tensor) -> Tensor:
            return (a + b) / 2 if directions == "average" else torch.cat([a, b], -1)

        states = join(forward, backward)
        expected = {
            "last": join(forward[-1], backward[0]),
            "last_step": states[-1],
            "max": states.amax(0),
            "mean": states.mean(0),
        }[context]
        torch.testing.assert_close(result.context[row], expected)
        torch.testing.assert_close(result.features[row, mask[row]], states if features == "states" else words)


WORD_STARTS: dict[str, Start] = {"uniform": ("uniform", 0.1), "normal": ("normal", 1.0), "xavier": xavier(700, 60)}


@pytest.mark.parametrize("word_init", WORD_STARTS)
@pytest.mark.parametrize(("directions", "units"), [("average", 40), ("concatenate", 20)])
def test_initialisation(word_init: Any, directions: Any, units: int) -> None:
    """VSE∞ and VSE-2AD: ±0.1. PVSE without GloVe: Xavier. What GloVe lacks in PVSE and DivE: N(0, 1)."""
    torch.manual_seed(0)
    encoder = BiGRU(700, 40, 60, directions, word_init=word_init)
    check_module(encoder, {"embedding.weight": WORD_STARTS[word_init], **gru(units)})


def test_the_initialisations_differ() -> None:
    """Else the test of them could not fail."""
    torch.manual_seed(0)
    check_start(BiGRU(700, 40, 60).embedding.weight, WORD_STARTS["uniform"])
    for word_init in WORD_STARTS:
        for other in WORD_STARTS.keys() - {word_init}:
            with pytest.raises(AssertionError):
                check_start(BiGRU(700, 40, 60, word_init=word_init).embedding.weight, WORD_STARTS[other])  # type: ignore[arg-type]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("word_init", WORD_STARTS)
def test_word_vectors_may_stay_as_they_start(freeze: bool, word_init: Any) -> None:
    encoder = BiGRU(9, 6, 4, freeze_words=freeze, word_init=word_init)
    assert encoder.embedding.weight.requires_grad is not freeze
    assert all(p.requires_grad for p in encoder.gru.parameters())


def test_dropout_acts_on_words_and_context() -> None:
    torch.manual_seed(0)
    encoder = BiGRU(9, 64, 32, features="words", dropout=0.5)
    tokens = torch.ones(2, 3, dtype=torch.long)
    result = encoder(tokens)
    assert result.context is not None
    assert (result.features == 0).float().mean() > 0.3 and (result.context == 0).float().mean() > 0.3
    assert not (encoder.eval()(tokens).features == 0).any()


def test_every_parameter_is_used() -> None:
    encoder = BiGRU(9, 6, 4)
    encoder(*sequences([2, 5, 1])).features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiGRU(9, 6, directions="sum"), "directions must be one of .*, got 'sum'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 6, features="chars"), "features must be one of .*, got 'chars'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 6, context="first"), "context must be one of .*, got 'first'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 6, word_init="glove"), "word_init must be one of .*, got 'glove'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 7, directions="concatenate"), "dim must be even to concatenate two directions, got 7"),
        (lambda: BiGRU(9, 6, dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
        (lambda: BiGRU(9, 6, drop=1.0), r"drop must be in \[0, 1\), got 1.0"),
        (lambda: BiGRU(9, 6, word_dim=0), "word_dim must be at least 1, got 0"),
        (lambda: BiGRU(0, 6), "vocab_size must be at least 1, got 0"),
        (lambda: BiGRU(9, 6)(torch.randn(2, 3)), r"tensor of ids, got torch.float32 \(2, 3\)"),
        (
            lambda: BiGRU(9, 6)(torch.ones(1, 2, dtype=torch.long), torch.tensor([[False, True]])),
            "sample 0: a sequence needs a prefix mask",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
