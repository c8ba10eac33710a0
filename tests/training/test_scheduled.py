from torch import nn

from vse.encoders import Grid, Video
from vse.losses import TripletLoss
from vse.training.scheduled import Scheduled, set_epoch


class Outside(nn.Module):
    """A module from outside the package."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_whatever_has_the_method_is_told() -> None:
    outside, loss = Outside(), TripletLoss(warmup_epochs=1)
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(outside, loss))
    for epoch in (0, 1):
        set_epoch(model.modules(), epoch)
        assert loss.warming_up == (epoch == 0)
    assert outside.epochs == [0, 1]


def test_the_packages_own_follow_the_convention() -> None:
    assert isinstance(TripletLoss(), Scheduled)
    assert isinstance(Grid(4, "resnet18", train_norm=True), Scheduled)
    assert isinstance(Video(4, in_dim=4), Scheduled)
    assert not isinstance(nn.Linear(1, 1), Scheduled)
