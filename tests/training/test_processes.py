"""Several processes give what one gives: losses, gradient norms, health, weights and statistics, in float64."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers import ROOT, small_config, without_word_vectors, write_pictures
from processes import in_processes
from torch import Tensor

from vse.build import read_config
from vse.training.trainer import Training

STEPS = 3
TOLERANCE = 1e-9

SYSTEMS = ["vse_infty", "vse_2ad", "pvse", "dive"]
CASES: dict[str, tuple[str, list[str]]] = {
    "vse_infty": ("vse_infty", []),
    "vse_infty, all negatives": ("vse_infty", ["loss.ranking={name: triplet, mining: all, reduction: mean}"]),
    "vse_infty, semihard": ("vse_infty", ["loss.ranking={name: triplet, mining: semihard}"]),
    "vse_infty, InfoNCE": ("vse_infty", ["loss.ranking={name: info_nce}"]),
    "vse_infty, whole images": ("vse_infty", ["data.sampling=image", "train.batch_size=7"]),
    "vse_infty, order": ("vse_infty", ["model.similarity.name=order"]),
    "vse_2ad": ("vse_2ad", []),
    "vse_2ad, as in the paper": ("vse_2ad", ["loss.ranking.released=false"]),
    "vse_2ad, random negatives": ("vse_2ad", ["loss.ranking.negatives=random"]),
    "pvse": ("pvse", []),
    "pvse, chamfer": ("pvse", ["model.similarity={name: chamfer}", "loss.terms.mmd.kernel=exponential"]),
    "dive": ("dive", []),
    "dive, match probability": ("dive", ["model.similarity={name: match_probability}"]),
    "dive, matching": ("dive", ["model.similarity={name: assignment}", "loss.terms.global_discriminative.weight=0.1"]),
    "esa": ("esa", []),
    "chan": ("chan", ["model.embed_dim=16"]),
    "vse_infty, queue": ("vse_infty", ["train.queue={size: 17, start_epoch: 0}"]),
    "vse_infty, queue with momentum": ("vse_infty", ["train.queue={size: 17, momentum: 0.9, start_epoch: 0}"]),
    "chan, queue": ("chan", ["model.embed_dim=16", "train.queue={size: 17, start_epoch: 0}"]),
    "vse_infty, mining": ("vse_infty", ["train.mining={start_epoch: 0, negatives: 3}"]),
    "dive, pairs": ("dive", ["data.sampling=pair", "train.batch_size=13"]),
}


def settings_of(case: str, tiny: list[str]) -> list[str]:
    """A system's config made small, with nothing random and in batches that no number of processes divides."""
    system, changes = CASES[case]
    path, *settings = small_config(f"{system}/f30k_region_bigru.yaml", tiny)
    random = [f"model.{side}.encoder.{name}=0" for side in ("image", "text") for name in ("drop", "dropout")]
    random += [f"model.{side}.aggregator.dropout=0" for side in ("image", "text") if system in ("pvse", "dive")]
    settings = [setting for setting in settings if not any(setting.startswith(f"{c.split('=')[0]}=") for c in changes)]
    return [
        path,
        *settings,
        "run.precision=fp32",
        "train.epochs=1",
        "train.batch_size=11",
        "run.log_steps=1",
        *random,
        *changes,
    ]


def take_steps(settings: list[str]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Train for some steps in float64: what each of them logs, and the model's and the loss's state after them."""
    training = Training(read_config(settings[0], settings[1:]))
    training.model.double()
    training.criterion.double()
    for tower in (training.queue.slow if training.queue is not None else None) or ():
        tower.double()
    logged = []
    for epoch in range(training.config.train.epochs):
        training.epoch, training.step = epoch, 0
        training.start_epoch()
        for batch in itertools.islice(training.batches(), STEPS):
            found = training.train_step(batch._replace(images=batch.images.double()))
            logged.append({**found, **training.health})
            training.step += 1
    return logged, {**training.model.state_dict(), **training.criterion.state_dict(prefix="criterion.")}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def check_processes(settings: list[str], world: int, folder: Path) -> None:
    """Train in this process and in several, and compare everything."""
    logged, state = take_steps(settings)
    assert all(step["gradient_norm"] > 0 for step in logged)

    def check() -> None:
        own_logged, own_state = take_steps(settings)
        for own, one in zip(own_logged, logged, strict=True):
            check_equal(own, one)
        check_equal(own_state, state)

    in_processes(world, folder, check)


@pytest.mark.parametrize(
    ("case", "world"),
    [(case, 2) for case in CASES]
    + [pytest.param(case, 3, marks=pytest.mark.slow) for case in SYSTEMS[1:]]
    + [(SYSTEMS[0], 3)],
)
def test_processes_train_as_one(case: str, world: int, tiny: list[str], tmp_path: Path) -> None:
    check_processes(settings_of(case, tiny), world, tmp_path)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_backbones_batchnorm_has_the_global_statistics(world: int, tmp_path: Path) -> None:
    """PVSE's recipe for pictures, its CNN small and trained from the second epoch on."""
    write_pictures(tmp_path / "data", train=9, others=2)
    settings = ["model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null", "train.batch_size=7"]
    settings += [
        "model.image.encoder.freeze_epochs=1",
        "train.epochs=2",
        "data.transform={name: crop, size: 32, resize: 36}",
    ]
    settings += ["run.precision=fp32", "model.image.aggregator.dropout=0", "model.text.aggregator.dropout=0"]
    settings += ["data.options.per_image=null", "model.embed_dim=8", "data.vocabulary.min_count=1", "data.workers=0"]
    settings += [f"data.root={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}", "run.log_steps=1"]
    file = ROOT / "configs" / "pvse" / "coco_resnet152_bigru.yaml"
    check_processes([str(file), *settings, *without_word_vectors(file)], world, tmp_path)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("case", [*SYSTEMS, "esa", "chan", "vse_infty, queue with momentum"])
def test_chunks_train_as_whole_batches(case: str, world: int, tiny: list[str], tmp_path: Path) -> None:
    settings = settings_of(case, tiny)
    logged, state = take_steps(settings)

    def check() -> None:
        own_logged, own_state = take_steps([*settings, "train.micro_batch=3"])
        for own, one in zip(own_logged, logged, strict=True):
            check_equal(own, one)
        check_equal(own_state, state)

    in_processes(world, tmp_path, check)
