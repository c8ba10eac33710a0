"""The encoder of clips."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributions import check_module, gru
from torch import Tensor

from vse.aggregators import GPO
from vse.encoders import Regions, Video
from vse.model import Tower
from vse.sets import lengths_to_mask


@pytest.fixture
def clip_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 3, 32, 32, generator=generator), lengths_to_mask(torch.tensor([4, 2, 1]))


@pytest.mark.parametrize("context", ["last", "last_step", "max", "mean"])
@pytest.mark.parametrize("features", [False, True])
def test_padding_and_batch_mates_change_nothing(
    features: bool, context: Any, clip_batch: tuple[Tensor, Tensor]
) -> None:
    inputs, mask = clip_batch
    if features:
        inputs = inputs.mean((3, 4))
    torch.manual_seed(0)
    encoder = Video(8, in_dim=3 if features else None, backbone="resnet18", context=context).eval()
    result = encoder(inputs, mask)
    assert result.context is not None and result.context.shape == (3, 8)
    assert encoder.dim == result.features.shape[2] == (3 if features else 512) and encoder.context_dim == 8
    garbage = inputs.clone()
    garbage[~mask] = math.nan
    again = encoder(garbage, mask)
    assert again.context is not None
    assert torch.equal(again.features, result.features) and torch.equal(again.context, result.context)
    for row, length in enumerate(mask.sum(1)):
        alone = encoder(inputs[row : row + 1, :length])
        assert alone.context is not None
        torch.testing.assert_close(result.features[row, :length], alone.features[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.context[row], alone.context[0], atol=1e-5, rtol=0)


def test_masked_frames_get_no_gradient(clip_batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = clip_batch
    garbage = inputs.masked_fill(~mask[..., None, None, None], math.nan).requires_grad_()
    encoder = Video(8, backbone="resnet18")
    result = encoder(garbage, mask)
    assert result.context is not None
    (result.features.sum() + result.context.sum()).backward()
    assert garbage.grad is not None and not garbage.grad[~mask].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_frames_are_pooled_cells(clip_batch: tuple[Tensor, Tensor]) -> None:
    inputs, mask = clip_batch
    encoder = Video(8, backbone="resnet18").eval()
    expected = torch.stack([encoder.backbone(encoder.normalise(clip)).mean(1) for clip in inputs])
    torch.testing.assert_close(encoder(inputs).features, expected, atol=1e-5, rtol=0)
    pixels = (inputs * 40 + 128).clamp(0, 255).byte()
    torch.testing.assert_close(
        encoder(pixels).features,
        torch.stack([encoder(encoder.normalise(clip)[None]).features[0] for clip in pixels]),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_frames_are_averaged_cell_by_cell(lengths: list[int] | None) -> None:
    """Of four cells each, as the backbone gives them for the frame alone; nothing stands behind a clip's end."""
    torch.manual_seed(0)
    encoder = Video(dim=8, backbone="resnet18").eval()
    frames = torch.randn(2, 3, 3, 64, 64)
    mask = None if lengths is None else lengths_to_mask(torch.tensor(lengths), 3)
    with torch.no_grad():
        features = encoder(frames, mask).features
        for clip in range(2):
            for frame in range(3 if lengths is None else lengths[clip]):
                cells = encoder.backbone(frames[clip, frame][None])[0]
                assert cells.shape == (4, 512)
                torch.testing.assert_close(features[clip, frame], cells.mean(0), atol=1e-4, rtol=1e-4)
    assert lengths is None or not features[1, 1:].any()


def test_dropout_acts_on_the_context() -> None:
    result = Video(64, in_dim=3, dropout=0.5).train()(torch.randn(20, 4, 3))
    assert result.context is not None and abs((result.context == 0).float().mean() - 0.5) < 0.1


def test_freezing_a_clips_backbone() -> None:
    encoder = Video(8, backbone="resnet18", freeze_epochs=1)
    for epoch in (0, 1):
        encoder.set_epoch(epoch)
        assert all(p.requires_grad == (epoch == 1) for p in encoder.backbone.parameters())
        assert all(p.requires_grad for p in encoder.gru.parameters())
    Video(8, in_dim=4).set_epoch(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Video(7, in_dim=3), "dim must be even to concatenate two directions, got 7"),
        (lambda: Video(8, in_dim=3, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Video(8, in_dim=3, context="first"), "context must be one of"),  # type: ignore[arg-type]
        (lambda: Video(8, backbone="resnet18", freeze_epochs=-1), "freeze_epochs must be at least 0, got -1"),
        (lambda: Video(8, in_dim=3)(torch.zeros(2, 4, 5)), "features must be 3 wide, got 5"),
        (lambda: Video(8, backbone="resnet18")(torch.zeros(2, 3, 32, 32)), r"got \(2, 3, 32, 32\)"),
        (
            lambda: Video(8, backbone="resnet18")(torch.zeros(2, 4, 5, 32, 32)),
            r"pictures must be \(B, 3, height, width\)",
        ),
        (lambda: Video(8, in_dim=3)(torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool)), "has no element"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("train_norm", [False, True])
def test_batch_norm_of_a_frozen_backbone(train_norm: bool, clip_batch: tuple[Tensor, Tensor]) -> None:
    """PVSE trains with the statistics of the batch while the CNN is frozen; padding is not among them."""
    encoder = Video(8, backbone="resnet18", freeze_epochs=1, train_norm=train_norm).train()
    encoder.set_epoch(0)
    inputs, mask = clip_batch
    norm: Any = encoder.backbone.bn1
    before = norm.running_mean.clone()
    encoder(inputs.masked_fill(~mask[..., None, None, None], math.nan), mask)
    assert norm.running_mean.isfinite().all() and torch.equal(norm.running_mean, before) is not train_norm


def test_initialisation() -> None:
    """PVSE's GRU starts as torch has it; of precomputed features nothing else is learned."""
    torch.manual_seed(0)
    check_module(Video(80, in_dim=30), gru(40))


def test_every_parameter_is_used() -> None:
    encoder = Video(8, in_dim=3)
    result = encoder(torch.randn(2, 4, 3))
    assert result.context is not None
    result.context.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_gpo_over_frames_ignores_padding() -> None:
    """VSE∞ on frame features is its region model: the mask is all there is to it."""
    torch.manual_seed(0)
    tower = Tower(Regions(6, 8), GPO()).eval()
    clips = [torch.randn(n, 6) for n in (4, 2)]
    padded = torch.zeros(2, 4, 6)
    padded[0], padded[1, :2] = clips
    together = tower(padded, lengths_to_mask(torch.tensor([4, 2]))).embeddings
    for row, clip in enumerate(clips):
        torch.testing.assert_close(tower(clip[None]).embeddings[0], together[row], atol=1e-5, rtol=0)
