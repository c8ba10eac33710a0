"""A training step never waits for a GPU, except where it has to.

The tests need no GPU. A whole step runs on the device "meta", whose tensors have shapes but no values, so that whatever
asks for a value raises: ``.item()``, a bool mask as an index, ``nonzero``, ``unique``, ``equal``, a packed sequence.
Copies from and to the CPU are found among the operations. Forward passes also run on fake CUDA tensors, which show the
types of mixed precision; their backward passes would need a driver.

What waits all the same, and why:

* clips of different lengths: how many real frames there are decides how many pictures the backbone gets;
* fp16: the scaler has to know whether a gradient has overflowed before the optimiser's step;
* a logged step, since its numbers are printed;
* a queue: how many positives it has is not known before.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, without_word_vectors, write_pictures
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental._config import patch as known_pairs  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vse import build
from vse.data.batches import Batch
from vse.encoders import Video
from vse.training.run import Training

GPU, META = torch.device("cuda", 0), torch.device("meta")
Put = Callable[[Tensor], Tensor]


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices; only single numbers may be read from the CPU, without a copy."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        kinds = {t.device.type for t in tensors if t.dim() or "copy" in operation.name()}
        assert len(kinds) < 2, f"{operation.name()} has tensors of {' and '.join(sorted(kinds))}"
        return result


def on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)


def on_fake_gpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def gru_without_cudnn(sequence: Tensor, start: Tensor, weights: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    """Shapes and types of a GRU; cuDNN's cannot be asked without a GPU."""
    assert sequence.dtype == start.dtype == weights[0].dtype == torch.float32
    states = (sequence @ weights[0].T + weights[2] + (start[0] @ weights[1].T + weights[3])[:, None]).chunk(3, -1)[0]
    return states, states[:, -1:].transpose(0, 1)


def move(training: Training, put: Put) -> None:
    """Put the model and the optimiser of a run elsewhere."""
    parts: list[nn.Module] = [training.model, training.criterion]
    if training.queue is not None and training.queue.slow is not None:
        parts += training.queue.slow
    if training.average is not None:
        parts.append(training.average.model)
    for module in itertools.chain.from_iterable(part.modules() for part in parts):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(put(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = put(buffer)
    training.device = training.model.device
    training.optimiser = build.build_optimiser(training.config, training.model, training.criterion)


def move_batch(batch: Batch, put: Put) -> Batch:
    return Batch._make(None if tensor is None else put(tensor) for tensor in batch)


@contextlib.contextmanager
def without_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block in which nothing looks for the device of a random generator or of autocast."""
    with monkeypatch.context() as patch:
        for place in ("vse.runtime.keep_random_state", "vse.training.health.keep_random_state"):
            patch.setattr(place, lambda _: contextlib.nullcontext())
        patch.setattr(torch, "manual_seed", lambda _: None)
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
        yield


def start(config: Path, folder: Path, *overrides: str) -> Training:
    small = {"run.dir": folder / "run", "run.device": "cpu", "data.workers": 0, "data.vocabulary.min_count": 1}
    small |= {"model.embed_dim": 8, "model.text.encoder.word_dim": 6, "train.batch_size": 8}
    settings = [f"{key}={value}" for key, value in small.items() if "word_dim" not in key or "bert" not in str(config)]
    training = Training(build.read_config(config, [*settings, *without_word_vectors(config), *overrides]))
    training.start_epoch()
    training.step = 1  # neither the first nor a logged one, in which numbers are read
    assert not training.is_logged
    return training


def step_without_values(training: Training, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Take a whole step on the device "meta"."""
    batch = next(training.batches())
    assert not batch.token_mask.all(), "a batch without padding shows nothing"
    move(training, on_meta)
    batch = move_batch(batch, on_meta)
    with without_devices(monkeypatch), OneDevice():
        return training.train_step(batch)


@pytest.mark.parametrize("name", ["vse_infty", "chan"])
def test_a_step_with_a_queue_waits_for_its_positives_alone(
    name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for known here, as if all pairs were positive, nothing else has to be asked for."""
    queue = "train.queue={size: 20, momentum: 0.9, start_epoch: 0}"
    training = start(ROOT / "configs" / name / "f30k_region_bigru.yaml", tmp_path, f"data.root={data_folder}", queue)
    step_without_values(training, monkeypatch)
    assert training.queue is not None and training.queue.captions is not None
    assert training.queue.captions.embeddings.device == META
    batch = move_batch(next(training.batches()), on_meta)
    with without_devices(monkeypatch), OneDevice(), pytest.raises(NotImplementedError, match="nonzero"):
        training.train_step(batch)
    with known_pairs(meta_nonzero_assume_all_nonzero=True), without_devices(monkeypatch), OneDevice():
        training.train_step(batch)


REGIONS = [f"{system}/f30k_region_bigru" for system in ("vse_infty", "vse_2ad", "pvse", "dive", "vsepp", "esa", "chan")]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("name", REGIONS)
def test_a_step_of_region_models(
    name: str, epoch: int, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In epoch 0 a loss that warms up has all negatives."""
    training = start(ROOT / "configs" / f"{name}.yaml", tmp_path, f"data.root={data_folder}")
    training.epoch = epoch
    training.start_epoch()
    losses = step_without_values(training, monkeypatch)
    assert all(value.device == META for value in losses.values())


@pytest.mark.parametrize(
    "loss", ["ranking={name: info_nce}", "ranking={name: adaptive_contrastive, negatives: random}"]
)
def test_a_step_with_another_loss(
    loss: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ROOT / "configs/vse_infty/f30k_region_bigru.yaml"
    step_without_values(start(config, tmp_path, f"data.root={data_folder}", f"loss.{loss}"), monkeypatch)


def test_a_step_with_an_average(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ROOT / "configs/vse_infty/f30k_region_bigru.yaml"
    for steps in (0, 1):  # the first one copies
        training = start(config, tmp_path, f"data.root={data_folder}", "optim.ema=0.9")
        assert training.average is not None
        training.average.steps = steps
        step_without_values(training, monkeypatch)
        assert training.average.steps == steps + 1


def test_a_step_with_a_matching(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MaxMatch's similarity and terms."""
    settings = ["model.similarity={name: assignment, value: exponential}"]
    settings += [f"loss.terms.{name}.weight=0.25" for name in ("global_discriminative", "intra_set_divergence")]
    config = ROOT / "configs/dive/f30k_region_bigru.yaml"
    step_without_values(start(config, tmp_path, f"data.root={data_folder}", *settings), monkeypatch)


@pytest.mark.parametrize("coding", ["hard_words", "hard_regions", "soft_regions"])
def test_a_step_with_another_coding(
    coding: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ROOT / "configs/chan/f30k_region_bigru.yaml"
    for pooling in ("mean", "softmax"):
        settings = f"model.similarity={{name: chan, coding: {coding}, pooling: {pooling}}}"
        term = "loss.terms={mmd: {weight: 0.1}}"  # it sees sets of different sizes, too
        step_without_values(start(config, tmp_path / pooling, f"data.root={data_folder}", settings, term), monkeypatch)


def test_a_step_of_a_grid_model(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet and BERT, both trained."""
    settings = {
        "data.root": write_pictures(tmp_path / "pictures"),
        "data.transform.size": 64,
        "model.image.encoder.backbone": "resnet18",
        "model.image.encoder.weights": "null",
        "model.image.encoder.pixels": "imagenet",
        "model.text.encoder.model": tiny_bert,
        "loss.ramp_epoch": "null",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    training = start(ROOT / "configs/vse_infty/coco_grid_wsl_bert.yaml", tmp_path, *overrides)
    training.epoch = 2
    training.start_epoch()
    assert all(parameter.requires_grad for parameter in training.model.parameters())
    step_without_values(training, monkeypatch)


@pytest.mark.parametrize("name", REGIONS)
def test_bfloat16_reaches_no_gru(name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, cuDNN would compute a GRU in float16, which has no place in bfloat16 training."""
    overrides = f"data.root={data_folder}", "run.precision=bf16"
    training = start(ROOT / "configs" / f"{name}.yaml", tmp_path, *overrides)
    batch = next(training.batches())
    types: set[torch.dtype] = set()

    class Types(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            types.update(t.dtype for t in tree_leaves(result) if isinstance(t, Tensor))
            return result

    monkeypatch.setattr(torch, "gru", gru_without_cudnn)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with FakeTensorMode():
        move(training, on_fake_gpu)
        batch = move_batch(batch, on_fake_gpu)
        with OneDevice(), Types():
            *_, scores = training.forward(batch)
    assert scores.device == GPU and scores.dtype == torch.float32
    assert torch.bfloat16 in types and torch.float16 not in types


def test_what_waits_is_found() -> None:
    """The test of the tests: each of these would wait for a GPU."""
    number, many, mask = (torch.ones(shape, device=META) for shape in ((), (4,), (4,)))
    mask = mask.bool()
    sequence = torch.ones(2, 3, 4, device=META)
    waits: list[Callable[[], object]] = [
        lambda: number.item(),
        lambda: bool(number > 0),
        lambda: many[mask],
        lambda: mask.nonzero(),
        lambda: many.unique(),
        lambda: torch.equal(many, many + 1),
        lambda: many.cpu(),
        lambda: torch.arange(4.0).to(META),
        lambda: many.repeat_interleave(mask.long()),
        lambda: nn.utils.rnn.pack_padded_sequence(sequence, mask.long()[:2].cpu(), batch_first=True),
    ]
    with OneDevice():
        for wait in waits:
            with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
                wait()


def test_clips_of_different_lengths_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(operation.name())
            if operation.name() == "aten::index.Tensor":
                assert all(i.dtype != torch.bool for i in args[1] if i is not None), "a bool mask as an index waits"
            return operation(*args, **(kwargs or {}))

    encoder = Video(dim=4, backbone="resnet18").eval()
    mask = torch.tensor([[True, True], [True, False]])
    monkeypatch.setattr("vse.encoders.video.check_mask", lambda *_, **__: None)  # looks at values on a CPU alone
    with Calls(), torch.no_grad():
        encoder._encode_frames(torch.zeros(2, 2, 3, 32, 32), mask)
    assert calls.count("aten::nonzero") == 1 and "aten::_local_scalar_dense" not in calls
