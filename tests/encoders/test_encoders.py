from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vse.encoders import BiGRU, Regions
from vse.encoders.regions import drop_elements


def test_regions_ignore_padding_and_batch_mates() -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8).double().eval()
    inputs, mask = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(3, 4) < 0.5
    mask[:, 1] = True
    together = encoder(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert together.context is None and torch.equal(together.mask, mask)
    for row in range(3):
        alone = encoder(inputs[row : row + 1, mask[row]])
        torch.testing.assert_close(alone.features[0], together.features[row, mask[row]])


def test_regions_train_on_real_elements_only() -> None:
    """Padding, NaN included, reaches neither the gradients nor the running statistics."""
    torch.manual_seed(0)
    inputs, mask = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(3, 4) < 0.5
    mask[:, 1] = True
    states = []
    for garbage in (0.0, torch.nan):
        torch.manual_seed(1)
        encoder = Regions(in_dim=5, dim=8).double().train()
        out = encoder(inputs.masked_fill(~mask.unsqueeze(-1), garbage), mask)
        out.features[mask].square().sum().backward()
        states.append([*(p.grad for p in encoder.parameters()), encoder.norm.running_mean, encoder.norm.running_var])
    for clean, dirty in zip(*states, strict=True):
        assert dirty is not None and torch.equal(clean, dirty)


def test_regions_initialisation() -> None:
    encoder = Regions(in_dim=2048, dim=1024)
    bound = (6 / (2048 + 1024)) ** 0.5
    assert 0.99 * bound < encoder.fc.weight.abs().max() <= bound and (encoder.fc.bias == 0).all()


def test_regions_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, drop=0.3)
    inputs = torch.randn(500, 20, 5)
    result = encoder.train()(inputs)
    assert result.mask is not None and 0.68 < result.mask.float().mean() < 0.72
    assert encoder.eval()(inputs).mask is None


def test_dropping_keeps_real_elements_and_at_least_one() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1000, 6, dtype=torch.bool)
    mask[:, [1, 4]] = True
    kept = drop_elements(mask.shape, mask, 0.9, mask.device)
    assert not (kept & ~mask).any() and kept.any(1).all()
    assert 0.15 < (kept.sum(1) == 2).float().mean() * 20 < 0.35  # both stay with probability 0.01


@pytest.mark.parametrize("mask_given", [True, False])
def test_bigru_ignores_padding_and_batch_mates(mask_given: bool) -> None:
    torch.manual_seed(0)
    encoder = BiGRU(vocab_size=9, dim=6, word_dim=4).double()
    lengths = [2, 5, 1] if mask_given else [5, 5, 5]
    tokens = torch.full((3, 5), 10**6)  # garbage, no word id
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(0, 9, (length,))
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    together = encoder(tokens, mask if mask_given else None)
    assert together.context is not None and together.context.shape == (3, 6)
    for row, length in enumerate(lengths):
        alone = encoder(tokens[row : row + 1, :length])
        torch.testing.assert_close(alone.features[0], together.features[row, :length])
        torch.testing.assert_close(alone.context[0], together.context[row])


def test_bigru_averages_its_directions() -> None:
    torch.manual_seed(0)
    encoder = BiGRU(vocab_size=9, dim=6, word_dim=4)
    tokens = torch.randint(0, 9, (1, 5))
    states = encoder.gru(encoder.embedding(tokens))[0]
    torch.testing.assert_close(encoder(tokens).features, (states[..., :6] + states[..., 6:]) / 2)
    last = (states[:, -1, :6] + states[:, 0, 6:]) / 2
    torch.testing.assert_close(encoder(tokens).context, last)
    assert encoder.embedding.weight.abs().max() <= 0.1


def test_bad_inputs() -> None:
    regions, bigru = Regions(in_dim=5, dim=8), BiGRU(vocab_size=9, dim=6)
    with pytest.raises(ValueError, match="features must be 5 wide, got 4"):
        regions(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=r"tensor of ids, got torch.float32 \(2, 3\)"):
        bigru(torch.randn(2, 3))
    with pytest.raises(ValueError, match="sample 0: a sequence needs a prefix mask"):
        bigru(torch.ones(1, 2, dtype=torch.long), torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\), got 1.0"):
        Regions(in_dim=5, dim=8, drop=1.0)
    with pytest.raises(ValueError, match="in_dim must be at least 1 and dim at least 2, got 5 and 1"):
        Regions(in_dim=5, dim=1)
    with pytest.raises(ValueError, match="sizes must be at least 1, got vocab_size 9, dim 6, word_dim 0"):
        BiGRU(vocab_size=9, dim=6, word_dim=0)


def sequences(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Token ids with garbage behind each sequence, and their mask."""
    tokens = torch.full((len(lengths), max(lengths)), 10**6)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(0, 9, (length,))
    return tokens, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("directions", ["average", "concatenate"])
@pytest.mark.parametrize("features", ["states", "words"])
@pytest.mark.parametrize("context", ["last", "last_step", "max", "mean"])
def test_bigru_choices_equal_their_definitions(directions: Any, features: Any, context: Any) -> None:
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


@pytest.mark.parametrize("mlp", ["input", "projection", None])
@pytest.mark.parametrize("features", ["projected", "raw"])
@pytest.mark.parametrize("context", ["max", "mean"])
def test_region_choices_equal_their_definitions(mlp: Any, features: Any, context: Any) -> None:
    torch.manual_seed(0)
    encoder = Regions(5, 8, mlp, features, context).double().eval()
    inputs, mask = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(3, 4) < 0.5
    mask[:, 1] = True
    result = encoder(inputs.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert result.features.shape == (3, 4, encoder.dim) and result.context.shape == (3, encoder.context_dim)
    for row in range(3):
        x = inputs[row, mask[row]]
        v = encoder.fc(x)
        if mlp is not None:
            hidden = encoder.hidden(x if mlp == "input" else v)
            v = v + encoder.out(torch.nn.BatchNorm1d.forward(encoder.norm, hidden).relu())
        torch.testing.assert_close(result.context[row], v.amax(0) if context == "max" else v.mean(0))
        torch.testing.assert_close(result.features[row, mask[row]], v if features == "projected" else x)


def test_dropout_acts_where_the_papers_have_it() -> None:
    torch.manual_seed(0)
    regions, mask = torch.ones(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    raw = Regions(5, 64, None, "raw", "mean", dropout=0.5)(regions, mask)
    assert torch.equal(raw.features, regions) and raw.context is not None and (raw.context == 0).float().mean() > 0.3
    projected = Regions(5, 64, None, "projected", "mean", dropout=0.5)(regions, mask)
    assert (projected.features == 0).float().mean() > 0.3
    torch.testing.assert_close(projected.context, projected.features.mean(1))
    text = BiGRU(9, 64, 32, features="words", dropout=0.5)
    words = text(torch.ones(2, 3, dtype=torch.long))
    assert (words.features == 0).float().mean() > 0.3 and (words.context == 0).float().mean() > 0.3
    assert not (text.eval()(torch.ones(2, 3, dtype=torch.long)).features == 0).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regions(5, 8, "both"), r"mlp must be one of \('input', 'projection', None\), got 'both'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, features="fc"), "features must be one of .*, got 'fc'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, context="last"), "context must be one of .*, got 'last'"),  # type: ignore[arg-type]
        (lambda: Regions(5, 8, features="raw"), "context must be 'max' or 'mean' when the features are raw"),
        (lambda: Regions(5, 8, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: BiGRU(9, 6, directions="sum"), "directions must be one of .*, got 'sum'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 6, features="chars"), "features must be one of .*, got 'chars'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 6, context="first"), "context must be one of .*, got 'first'"),  # type: ignore[arg-type]
        (lambda: BiGRU(9, 7, directions="concatenate"), "dim must be even to concatenate two directions, got 7"),
        (lambda: BiGRU(9, 6, dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_choices(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
