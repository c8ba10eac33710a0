import math

import pytest
import torch
from torch import nn

from vse.optim import Cosine, Linear, Plateau, Schedule, Step, layer_factors, parameter_groups


def test_longest_prefix_gives_the_factor() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2), "c": nn.Linear(2, 2)}), "ab": nn.Linear(2, 2)})
    groups = parameter_groups(model.named_parameters(), 0.1, {"a": 0.5, "a.b": 0.0})
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert [rates[id(p)] for _, p in model.named_parameters()] == pytest.approx([0.0, 0.0, 0.05, 0.05, 0.1, 0.1])
    with pytest.raises(ValueError, match="'a.d' begins no parameter's name"):
        parameter_groups(model.named_parameters(), 0.1, {"a.d": 1.0})


def test_layers_and_what_comes_before_them_decay() -> None:
    """As in BEiT: decay^(L + 1 - l) for layer l = 1..L of each encoder, decay^(L + 1) before them, 1 elsewhere."""
    names = [
        *("image.encoder.net.patches", "image.encoder.net.layers.0.a", "image.encoder.net.layers.1.layer_norm.a"),
        *("image.encoder.net.norm", "image.aggregator.a", "text.encoder.table", "text.encoder.bert.layer.0.a"),
        "text.encoder.linear.a",
    ]
    found = layer_factors(names, 0.5)
    assert [found.get(name, 1.0) for name in names] == [0.125, 0.25, 0.5, 1.0, 1.0, 0.25, 0.5, 1.0]
    parameters = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    groups = parameter_groups(parameters, 0.1, {"image.encoder": 0.1, "image.encoder.net.norm": 3.0}, found)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    expected = [0.00125, 0.0025, 0.005, 0.3, 0.1, 0.025, 0.05, 0.1]
    assert [rates[id(p)] for _, p in parameters] == pytest.approx(expected)
    with pytest.raises(ValueError, match="no encoder has numbered layers"):
        layer_factors(["image.encoder.layer1.0.a", "text.encoder.gru"], 0.5)


def test_step() -> None:
    schedule = Step(milestones=[2, 4], factor=0.1)
    assert [schedule(t) for t in (0, 1.99, 2, 3.5, 4, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_rises_in_a_straight_line_and_its_first_step_counts() -> None:
    schedule = Schedule(warmup_epochs=1)
    assert [schedule(n / 4, 1 / 4) for n in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert Schedule()(0.0) == 1


def test_cosine_and_linear() -> None:
    cosine, linear = Cosine(epochs=10, final=0.1, warmup_epochs=2), Linear(epochs=10, warmup_epochs=2)
    for time in (2, 3, 6, 9.5, 10, 12):
        done = min(1, (time - 2) / 8)
        assert cosine(time) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        assert linear(time) == pytest.approx(1 - done)
    assert cosine(1) == pytest.approx(0.5)


def test_against_torch() -> None:
    """One cosine cycle equals torch's scheduler, step by step."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20)
    for step in range(20):
        assert Cosine(epochs=4)(step / 5) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="^warmup_epochs must be at least 0, got -1"):
        Schedule(warmup_epochs=-1)
    with pytest.raises(ValueError, match="^milestones must be at least 0, got -1"):
        Step(milestones=[2, -1])
    with pytest.raises(ValueError, match="^factor must be positive, got 0"):
        Step(milestones=[2], factor=0)


@pytest.mark.parametrize("schedule", [Cosine, Linear])
def test_rates_never_turn_negative(schedule: type[Cosine]) -> None:
    for final in (-1.0, 2.0):
        with pytest.raises(ValueError, match=r"final must be in \[0, 1\], got"):
            schedule(epochs=3, final=final)
    with pytest.raises(ValueError, match="warmup_epochs must be below the 3 epochs of training, got 3"):
        schedule(epochs=3, warmup_epochs=3)


def test_plateau_against_torch() -> None:
    """The rate falls when RSUM stagnates, as torch's scheduler in mode "max" does it; not while RSUM rises."""
    history = [10, 20, 30, 30, 29, 28, 27, 31, 30, 30, 30, 30, 30, 30, 30, 30]
    schedule = Plateau(factor=0.5, patience=2)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", factor=0.5, patience=2, threshold=0)
    for epoch, rsum in enumerate(history):
        assert schedule(epoch) == pytest.approx(optimiser.param_groups[0]["lr"])
        schedule.history.append(rsum)
        theirs.step(rsum)
    assert schedule(len(history)) < 0.2
    rising = Plateau(factor=0.5, patience=0)
    rising.history = list(range(1, 20))
    assert rising(20) == 1
    with pytest.raises(ValueError, match=r"^factor must be in \(0, 1\), got 1.0"):
        Plateau(factor=1.0)
    with pytest.raises(ValueError, match="^patience must be at least 0, got -1"):
        Plateau(patience=-1)


def test_no_milestones_is_a_constant_rate() -> None:
    assert Step(milestones=[])(100.0) == 1
