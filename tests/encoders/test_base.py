"""What an encoder tells of itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vse.encoders import ENCODERS, BiGRU, Grid, Regions, Video
from vse.encoders.base import EncoderTraits, traits_of
from vse.sets import FeatureSet

KINDS = {"features", "pictures", "frames", "words", "subwords"}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_tells_what_it_reads(name: str) -> None:
    """Its class does: the data is prepared before the encoder is built."""
    reads = traits_of(ENCODERS[name]).reads
    assert reads and isinstance(ENCODERS[name].reads, tuple)  # type: ignore[attr-defined]
    assert set(reads) <= KINDS


def test_an_encoder_that_tells_nothing_has_the_defaults() -> None:
    assert traits_of(nn.Identity()) == traits_of(nn.Identity) == EncoderTraits()
    known = {name: value for name, value in EncoderTraits()._asdict().items() if value is not None}
    assert known == {"reads": (), "drop": 0.0, "keep_ends": False, "pretrained": False}


def test_traits_of_our_encoders() -> None:
    regions = traits_of(Regions(12, 8, context="max", drop=0.2))
    assert (regions.reads, regions.dim, regions.context_dim, regions.in_dim) == (("features",), 8, 8, 12)
    assert regions.backbone is None and regions.embedding is None and regions.architecture is None
    encoder = BiGRU(9, 6, 4, features="words", drop=0.3, keep_ends=True)
    words = traits_of(encoder)
    assert (words.reads, words.dim, words.context_dim, words.in_dim) == (("words",), 4, 6, None)
    assert (words.drop, words.keep_ends, words.max_length) == (0.3, True, None)
    assert words.embedding is encoder.embedding
    grid = Grid(8, "resnet18")
    assert traits_of(grid).backbone is grid.backbone and traits_of(grid).context_dim is None
    assert traits_of(Video(8, in_dim=5)).in_dim == 5 and traits_of(Video(8, in_dim=5)).backbone is None


class Foreign(nn.Module):
    """An encoder of somebody else, with attributes that happen to have the names of traits."""

    reads = "pictures"

    def __init__(self) -> None:
        super().__init__()
        self.dim = np.int64(7)
        self.drop = nn.Dropout(0.1)
        self.embedding = nn.Linear(2, 2)
        self.keep_ends = "yes"
        self.architecture = "resnet"

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        return FeatureSet(torch.zeros(len(inputs), 1, 7), mask)


def test_attributes_of_another_type_are_no_traits() -> None:
    assert traits_of(Foreign()) == EncoderTraits(reads=("pictures",), dim=7)


def test_a_list_of_kinds_is_a_tuple() -> None:
    encoder = nn.Identity()
    encoder.reads = ["frames", "features"]  # type: ignore[assignment]
    assert traits_of(encoder).reads == ("frames", "features")
