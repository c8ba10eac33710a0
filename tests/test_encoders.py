import pytest
import torch

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
    with pytest.raises(ValueError, match="regions must be 5 wide, got 4"):
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
