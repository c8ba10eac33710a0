"""A frame's feature is the mean of its cells."""

import pytest
import torch

from vse.encoders import Video
from vse.sets import lengths_to_mask


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
