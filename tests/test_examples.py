"""The examples run, and the user's own aggregator keeps the contract and trains."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Outcome

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet_feature_map", ["GPO torch.Size([2, 1, 512])", "torch.Size([2, 4, 256])", "torch.Size([2, 4, 7, 7])"]),
        ("transformer_hidden_states", ["GPO torch.Size([2, 1, 64])", "torch.Size([2, 4, 64])", "padding 0.0"]),
    ],
)
def test_imported_into_other_models(name: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert all(part in out for part in expected), out


def test_an_own_aggregator_ignores_padding() -> None:
    pool = runpy.run_path(str(EXAMPLES / "my_pool.py"))["MyPool"](6)
    features, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, False, True, False, False]])
    together = pool(features.masked_fill(~mask.unsqueeze(-1), torch.nan), mask).embeddings
    torch.testing.assert_close(pool(features[1:, [0, 2]]).embeddings[0], together[1])


def test_an_own_aggregator_trains(
    cli: Callable[..., Outcome], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    settings = [s for s in tiny[1:] if not s.startswith("optim.schedule")]
    outcome = cli("train", EXAMPLES / "my_pool.yaml", "data.format=precomp", *settings)
    assert outcome.code == 0, outcome.err
    assert cli("eval", tmp_path / "run").code == 0
    misspelt = cli("train", EXAMPLES / "my_pool.yaml", *settings, "model.image.aggregator.hidden=4")
    assert "unknown argument of my_pool:MyPool (did you mean 'hidden_dim'?)" in misspelt.error
