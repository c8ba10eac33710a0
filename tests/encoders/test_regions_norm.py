"""BatchNorm of the region encoder sees the real regions alone."""

import pytest
import torch
from torch import Tensor, nn

from vse.encoders import Regions


def slow_regions(encoder: Regions, inputs: Tensor, mask: Tensor, norm: nn.BatchNorm1d) -> list[Tensor]:
    """The features of the real regions, from one flat list of them."""
    flat = torch.stack([inputs[row, place] for row, place in mask.nonzero().tolist()])
    projected = encoder.fc(flat)
    read = flat if encoder.mlp == "input" else projected
    features = projected + encoder.out(norm(encoder.hidden(read)).relu())
    return list(features.split([int(count) for count in mask.sum(1)]))


@pytest.mark.parametrize("mlp", ["input", "projection"])
def test_padding_does_not_enter_the_batch_statistics(mlp: str) -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, mlp=mlp).double().train()  # type: ignore[arg-type]
    norm = nn.BatchNorm1d(4).double().train()
    inputs, mask = torch.randn(3, 6, 5, dtype=torch.float64) + 2, torch.rand(3, 6) < 0.5
    mask[:, 1] = True
    assert not mask.all()
    result = encoder(inputs, mask)
    for row, expected in enumerate(slow_regions(encoder, inputs, mask, norm)):
        torch.testing.assert_close(result.features[row, mask[row]], expected)
    torch.testing.assert_close(encoder.norm.running_mean, norm.running_mean)
    torch.testing.assert_close(encoder.norm.running_var, norm.running_var)


def test_dropped_regions_do_not_enter_the_batch_statistics() -> None:
    torch.manual_seed(0)
    encoder = Regions(in_dim=5, dim=8, drop=0.5).double().train()
    norm = nn.BatchNorm1d(4).double().train()
    inputs = torch.randn(3, 6, 5, dtype=torch.float64) + 2
    result = encoder(inputs)
    assert result.mask is not None and not result.mask.all()
    for row, expected in enumerate(slow_regions(encoder, inputs, result.mask, norm)):
        torch.testing.assert_close(result.features[row, result.mask[row]], expected)
    torch.testing.assert_close(encoder.norm.running_mean, norm.running_mean)
