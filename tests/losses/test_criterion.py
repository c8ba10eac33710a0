import torch
from loss_cases import batch
from torch import Tensor, nn

from vse.losses import Criterion, TripletLoss
from vse.sets import Aggregated


def test_the_ramp_rises_over_one_epoch() -> None:
    scores, positives = batch("pairs")
    image, text = Aggregated(torch.ones(7, 1, 3)), Aggregated(torch.ones(7, 1, 3))
    criterion = Criterion(TripletLoss(), ramp_epoch=2)
    full = TripletLoss()(scores, positives)
    for time, factor in ((0.0, 1), (1.75, 1), (2.0, 0), (2.25, 0.25), (2.75, 0.75), (3.0, 1), (3.5, 1)):
        criterion.set_time(time)
        parts = criterion(scores, positives, image, text)
        torch.testing.assert_close(parts["total"], factor * full)
        assert parts["ranking"] == full  # the log keeps what the loss is
    plain = Criterion(TripletLoss())
    plain.set_time(0.5)
    assert plain(scores, positives, image, text)["total"] == full


class Spread(nn.Module):
    """A regulariser with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Aggregated, text: Aggregated) -> Tensor:
        return self.scale * (image.embeddings.mean() + text.embeddings.mean())


def test_criterion_adds_weighted_terms_and_names_them() -> None:
    scores, positives = batch("pairs")
    image, text = Aggregated(torch.ones(7, 1, 3)), Aggregated(torch.ones(7, 1, 3) * 2)
    criterion = Criterion(TripletLoss(), {"spread": (0.5, Spread()), "constant": (2.0, lambda i, t: torch.ones(()))})
    parts = criterion(scores, positives, image, text)
    assert set(parts) == {"total", "ranking", "spread", "constant"}
    assert parts["spread"].item() == 6 and parts["ranking"] == TripletLoss()(scores, positives)
    torch.testing.assert_close(parts["total"], parts["ranking"] + 0.5 * 6 + 2)
    assert len(list(criterion.parameters())) == 1
