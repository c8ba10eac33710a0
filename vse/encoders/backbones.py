"""Backbones turn a picture into the cells of a CNN's last feature map or a vision transformer's patches."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vse.distributed import world_size
from vse.encoders.pretrained import compute_again, load_transformer, read_pixels
from vse.errors import InputError, check_at_least, check_choice, close_match, first_line, misfit
from vse.safe_load import is_state_dict, read_weights
from vse.sets import join_statistics, normalise, set_statistics, update_running

_CAFFE = "caffe_"  # before a ResNet's name: the geometry of the networks converted from Caffe

Pixels = Literal["imagenet", "half", "clip", "caffe"]

_STATISTICS = {  # mean and standard deviation of the channels, in the range 0..255
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "half": ([127.5, 127.5, 127.5], [127.5, 127.5, 127.5]),
    "clip": ([122.7709383, 116.7460125, 104.09373615], [68.5005327, 66.6321579, 70.32316305]),
    "caffe": ([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0]),  # blue, green, red
}


class Normalise(nn.Module):
    """Normalises RGB bytes as a backbone was trained; floats stay as they are.

    It runs on the model's device for a whole batch at once, so that only bytes are copied there.

    Args:
        pixels: How the backbone was trained. For "imagenet", "half" (ViT) and "clip", the mean of each RGB channel is
            subtracted and the result is divided by the standard deviation. For "caffe", the channels are BGR in 0..255,
            and only the mean is subtracted. Or the mean and the standard deviation of the RGB channels in 0..1.

    Inputs are pictures (B, 3, height, width); the result has their shape and is of floats.

    Raises:
        ValueError: The name is unknown. In the call: the pictures have another shape or type.

    >>> Normalise("imagenet")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 3, 8, 8])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, pixels: Pixels | tuple[list[float], list[float]] = "imagenet") -> None:
        super().__init__()
        if isinstance(pixels, str):
            check_choice("pixels", pixels, get_args(Pixels))
            mean, deviation = _STATISTICS[pixels]
        else:
            mean, deviation = ([255 * value for value in values] for values in pixels)
        self.flip = pixels == "caffe"
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalise a batch of pictures."""
        if pictures.dim() != 4 or pictures.shape[1] != 3 or not _is_picture(pictures.dtype):
            found = f"{pictures.dtype} {tuple(pictures.shape)}"
            raise ValueError(f"pictures must be (B, 3, height, width), bytes or floats, got {found}")
        if pictures.is_floating_point():
            return pictures
        values = (pictures.flip(-3) if self.flip else pictures).to(self.mean.dtype)
        return (values - self.mean) / self.deviation


def _is_picture(kind: torch.dtype) -> bool:
    return kind.is_floating_point or kind == torch.uint8


def resnets() -> list[str]:
    """Return the names of torchvision's ResNets and their kin."""
    import torchvision

    return [n for n in torchvision.models.list_models(torchvision.models) if "resne" in n and "quant" not in n]


class Unfreezing:
    """Unfreezes a backbone stage by stage (the recipes of VSE∞ and PVSE).

    Args:
        freeze_epochs: Number of epochs in which no stage is trained.
        stage_epochs: Number of epochs after which one more stage is trained, the last first. With None all stages are
            trained as soon as the backbone is no longer frozen.

    Raises:
        ValueError: ``freeze_epochs`` is negative, or ``stage_epochs`` is below 1.

    >>> Unfreezing(freeze_epochs=1, stage_epochs=None)([list(nn.Linear(2, 2).parameters())], epoch=0)
    """

    def __init__(self, freeze_epochs: int, stage_epochs: int | None) -> None:
        check_at_least("freeze_epochs", freeze_epochs, 0)
        if stage_epochs is not None:
            check_at_least("stage_epochs", stage_epochs, 1)
        self.freeze_epochs, self.stage_epochs = freeze_epochs, stage_epochs

    def __call__(self, stages: list[list[nn.Parameter]], epoch: int) -> None:
        """Freeze the stages that are not yet trained.

        Args:
            stages: Groups of parameters, in the order in which they are unfrozen.
            epoch: Number of the epoch, counted from 0.
        """
        trained = self._count_trained(len(stages), epoch)
        for number, stage in enumerate(stages):
            for parameter in stage:
                parameter.requires_grad_(number < trained)

    def _count_trained(self, stages: int, epoch: int) -> int:
        if epoch < self.freeze_epochs:
            return 0
        if self.stage_epochs is None:
            return stages
        return 1 + (epoch - self.freeze_epochs) // self.stage_epochs


class SharedBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm of pictures; across processes, with the statistics of the global batch, also on a CPU.

    Attributes:
        repeats: Whether the maps are those of an earlier call, so that the running statistics know them already.

    >>> SharedBatchNorm2d(4)(torch.randn(2, 4, 3, 3)).shape
    torch.Size([2, 4, 3, 3])
    """

    repeats = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of feature maps (B, C, height, width).

        Returns:
            The normalised maps, of the same shape.
        """
        if not self.training or (world_size() == 1 and not self.repeats):
            return super().forward(input)
        if world_size() == 1:
            assert self.running_mean is not None and self.running_var is not None
            running = self.running_mean.clone(), self.running_var.clone()  # what is kept for the backward pass is alike
            return nn.functional.batch_norm(input, *running, self.weight, self.bias, True, 0.0, self.eps)
        cells = input.flatten(2).transpose(1, 2)
        statistics = join_statistics([set_statistics(cells, None)])
        if not self.repeats:
            update_running(self, statistics)
        return normalise(self, cells, statistics).transpose(1, 2).reshape(input.shape)


@contextlib.contextmanager
def _repeating(module: nn.Module) -> Iterator[None]:
    """A block in which a module computes once more what it has computed: running statistics stay as they are."""
    norms = [norm for norm in module.modules() if isinstance(norm, SharedBatchNorm2d)]
    for norm in norms:
        norm.repeats = True
    try:
        yield
    finally:
        for norm in norms:
            norm.repeats = False


def run_and_forget(block: nn.Module, maps: Tensor) -> Tensor:
    """Run a block that forgets its activations and computes them again in the backward pass (Chen et al. 2016).

    Args:
        block: The block. Its BatchNorm layers are :class:`SharedBatchNorm2d`.
        maps: What it reads.

    Returns:
        What the block gives. Gradients and running statistics are those of a plain call.
    """
    found: Tensor = checkpoint(
        block, maps, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _repeating(block))
    )
    return found


def still_norms(backbone: nn.Module) -> None:
    """Set the BatchNorm layers of a backbone to evaluation, in which they use their running statistics."""
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class ResNetBackbone(nn.Module):
    """A torchvision ResNet, ResNeXt or Wide ResNet without its pooling and classifier.

    Parameter names are torchvision's.

    Args:
        name: torchvision's name, such as "resnext101_32x8d". The prefix "caffe_" selects the geometry of bottom-up
            attention's detector: the stride of a stage is in its first 1x1 convolution, and the first pooling has no
            padding but keeps incomplete windows.
        train_norm: Whether BatchNorm runs in training mode when the backbone does. Otherwise it always uses its running
            statistics.
        recompute: Whether each block's activations are computed again in the backward pass. That takes a third more
            time and a fraction of the memory.

    Inputs are pictures (B, 3, height, width); the result is their cells (B, h * w, dim), row by row.

    Raises:
        ValueError: The name is unknown, or "caffe_" does not apply to it.

    >>> ResNetBackbone("resnet18")(torch.randn(2, 3, 224, 224)).shape
    torch.Size([2, 49, 512])
    """

    architecture = None  # the name is enough to build it

    def __init__(self, name: str, train_norm: bool = False, recompute: bool = False) -> None:
        super().__init__()
        import torchvision

        self.train_norm, self.recompute = train_norm, recompute
        plain, known = name.removeprefix(_CAFFE), resnets()
        if plain not in known:
            raise ValueError(f"backbone must be a torchvision ResNet, got {name!r} ({close_match(plain, known)})")
        net = torchvision.models.get_model(plain, weights=None, norm_layer=SharedBatchNorm2d)
        self.dim: int = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if plain != name:
            if not isinstance(net.layer2[0], torchvision.models.resnet.Bottleneck):
                problem = "only ResNets with bottlenecks (50 layers and more) have this geometry"
                raise ValueError(f"backbone {name!r}: {problem}")
            self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Groups of parameters, the last first, as they are unfrozen."""
        layers = [list(layer.parameters()) for layer in (self.layer4, self.layer3, self.layer2, self.layer1)]
        return [*layers, [*self.conv1.parameters(), *self.bn1.parameters()]]

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """Set the mode; BatchNorm stays in evaluation, unless it is to be trained.

        Args:
            mode: Whether to train; False sets evaluation.

        Returns:
            The backbone itself.
        """
        super().train(mode)
        if not self.train_norm:
            still_norms(self)
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Cells of a batch of pictures."""
        if pictures.is_cuda:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                forgets = self.recompute and torch.is_grad_enabled() and _is_trained(block, x)
                x = run_and_forget(block, x) if forgets else block(x)
        return x.flatten(2).transpose(1, 2)


def _is_trained(block: nn.Module, maps: Tensor) -> bool:
    """Whether a block takes part in the backward pass."""
    return maps.requires_grad or any(parameter.requires_grad for parameter in block.parameters())


class TransformerBackbone(nn.Module):
    """A vision model of ``transformers``, whose last hidden states of the patches are the result.

    Such models are ViT, DeiT, DINOv2, the vision halves of CLIP and SigLIP, Swin and others. Learned positions are
    interpolated to other picture sizes where the model can.

    Args:
        name: As in :func:`vse.encoders.pretrained.load_transformer`.
        weights: As in :func:`vse.encoders.pretrained.load_transformer`.
        architecture: As in :func:`vse.encoders.pretrained.load_transformer`.
        cls: Whether the result begins with the [CLS] token. Registers and a distillation token are always left out.
        recompute: As in :class:`ResNetBackbone`, for each layer.

    Inputs are pictures (B, 3, height, width); the result is their patches (B, N, dim), row by row, after [CLS] with
    ``cls``.

    Raises:
        ValueError: The model has no [CLS] token although ``cls`` is True, or cannot compute activations again although
            ``recompute`` is True. In the call: the model does not take
            pictures of that size, or its tokens are not a few special ones followed by the patches.

    >>> TransformerBackbone("google/vit-base-patch16-224")(torch.randn(2, 3, 224, 224)).shape
    torch.Size([2, 196, 768])
    """

    def __init__(
        self,
        name: str,
        weights: Literal["pretrained"] | None = "pretrained",
        architecture: dict[str, Any] | None = None,
        cls: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.architecture = load_transformer(name, weights, architecture, "vision")
        if recompute:
            compute_again(self.net)
        self.cls = cls
        config: Any = self.net.config
        self.dim: int = config.hidden_size
        self.merges = hasattr(config, "depths")  # Swin merges patches, and has no other tokens
        self.others = 2 + getattr(config, "num_register_tokens", 0)  # at most: [CLS], distillation, registers
        if cls and self.merges:
            raise ValueError(f"cls: {config.model_type} has no [CLS] token")
        patch = getattr(config, "patch_size", 1)
        self.patch = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
        can = "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if can else {}

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Groups of parameters: the layers (Swin: stages), the last first, then the parameters outside of layers."""
        blocks = next((m for m in self.net.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
        groups = [list(block.parameters()) for block in reversed(blocks)]
        inside = {id(p) for group in groups for p in group}
        return [*groups, [p for p in self.net.parameters() if id(p) not in inside]]

    def forward(self, pictures: Tensor) -> Tensor:
        """Patches of a batch of pictures."""
        hidden: Tensor = self.net(pixel_values=pictures, **self.options, return_dict=True).last_hidden_state
        if self.merges:
            return hidden
        patches = (pictures.shape[2] // self.patch[0]) * (pictures.shape[3] // self.patch[1])
        name, others = self.architecture["model_type"], hidden.shape[1] - patches
        if not 0 <= others <= self.others:
            raise ValueError(f"{name} gives {hidden.shape[1]} tokens for {patches} patches; they cannot be told apart")
        if self.cls and others == 0:
            raise ValueError(f"cls: {name} has no [CLS] token")
        if self.cls:
            return torch.cat([hidden[:, :1], hidden[:, -patches:]], dim=1)
        return hidden[:, -patches:]


def make_backbone(
    name: str,
    weights: str | None,
    architecture: dict[str, Any] | None,
    train_norm: bool,
    pixels: Pixels,
    cls: bool = False,
    recompute: bool = False,
) -> ResNetBackbone | TransformerBackbone:
    """Make a backbone by name, and warn if ``pixels`` is not the normalisation that the model was published with.

    Args:
        name: A name that :class:`ResNetBackbone` knows, or a model of ``transformers``: a folder or
            "organisation/model".
        weights: As in :class:`vse.encoders.Grid`.
        architecture: The architecture of a model of ``transformers`` that a checkpoint holds, which replaces ``name``.
        train_norm: Whether a ResNet's BatchNorm runs in training mode.
        pixels: How the pictures are normalised, see :class:`Normalise`.
        cls: Whether a transformer's [CLS] token comes before the patches.
        recompute: Whether activations are computed again in the backward pass.

    Returns:
        The backbone, with its weights.

    Raises:
        ValueError: An argument does not apply to a backbone of that kind.
        InputError: Weights or a model cannot be read.
    """
    if _is_resnet(name, architecture):
        if cls:
            raise ValueError(f"cls is for a vision transformer's [CLS] token, and {name} has none")
        return _make_resnet(name, weights, train_norm, recompute)
    if weights not in ("pretrained", None):
        raise ValueError(f"weights of {name}, a model of transformers, must be pretrained or null, got {weights!r}")
    if train_norm:
        raise ValueError(f"train_norm is for the BatchNorm of torchvision's backbones, not for {name}")
    if architecture is None:
        _compare_pixels(name, pixels)
    return TransformerBackbone(name, "pretrained" if weights else None, architecture, cls, recompute)


def _is_resnet(name: str, architecture: dict[str, Any] | None) -> bool:
    """Whether a name means a model of torchvision. A misspelt name does too, so that the error suggests those."""
    if name.removeprefix(_CAFFE) in resnets():
        return True
    return architecture is None and "/" not in name and not Path(name).is_dir()


def _make_resnet(name: str, weights: str | None, train_norm: bool, recompute: bool) -> ResNetBackbone:
    """A ResNet with its published weights."""
    backbone = ResNetBackbone(name, train_norm, recompute)
    if weights == "pretrained":
        raise ValueError(f"weights of the torchvision backbone {name} must be a file, imagenet or null")
    if weights == "imagenet":
        load_imagenet_weights(backbone, name)
    elif weights is not None:
        load_backbone_weights(backbone, weights)
    return backbone


def _compare_pixels(name: str, pixels: Pixels) -> None:
    """Warn when a model was published with another normalisation of its pictures."""
    published = read_pixels(name)
    if published is None:
        return
    fits = [kind for kind, own in _STATISTICS.items() if np.allclose(255 * np.array(published), own, atol=0.6)]
    if pixels not in fits:
        own = f"pixels: {fits[0]}" if fits else f"mean {published[0]} and standard deviation {published[1]}"
        print(f"warning: {name} was trained with {own}, but the config has pixels: {pixels}", file=sys.stderr)


def load_imagenet_weights(backbone: ResNetBackbone, name: str) -> None:
    """Load torchvision's ImageNet weights, which torchvision downloads once.

    Args:
        backbone: The backbone to fill.
        name: Its name.

    Raises:
        InputError: There are none for this backbone, or they cannot be downloaded.
    """
    import torchvision

    if name.startswith(_CAFFE):
        raise InputError(f"weights 'imagenet' do not have the geometry of {name}; expected a file")
    try:
        published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        problem = first_line(error)
        raise InputError(f"weights 'imagenet' cannot be downloaded ({problem}); pass a file instead") from None
    backbone.load_state_dict({key: published.get(key, value) for key, value in backbone.state_dict().items()})


def load_backbone_weights(backbone: ResNetBackbone, file: str | Path) -> None:
    """Load published weights: torchvision's and WSL's files, or a dict of ``base`` and ``top`` states (BUTD).

    No code in the file is executed.

    Args:
        backbone: The backbone to fill.
        file: The file of weights.

    Raises:
        InputError: The file is missing, holds no weights, or does not fit; the first keys that do not fit are named.
    """
    path, content = read_weights(file, "the backbone's published weights")
    state = _torchvision_names(content)
    if state is None:
        raise InputError(f"{path}: expected a state dict, or a dict of 'base' and 'top' states")
    own = backbone.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}  # not in older files
    state = {**counters, **{key: value for key, value in state.items() if not key.startswith("fc.")}}
    if problem := misfit(own, state):
        raise InputError(f"{path}: does not fit the backbone: {problem}")
    backbone.load_state_dict(state)


# The parts of a ResNet as VSE∞'s code splits it, in torchvision's names.
SPLIT = {"base.0.": "conv1.", "base.1.": "bn1.", "base.4.": "layer1.", "base.5.": "layer2.", "base.6.": "layer3."} | {
    "top.0.": "layer4."
}


def _torchvision_names(content: Any) -> dict[str, Tensor] | None:
    """A state dict with torchvision's names; None when the content is not a state dict."""
    if not isinstance(content, dict):
        return None
    if {"base", "top"} <= set(content):
        if not all(is_state_dict(content[part]) for part in ("base", "top")):
            return None
        parts = {f"{part}.{key}": value for part in ("base", "top") for key, value in content[part].items()}
        prefixes = {key: next((p for p in SPLIT if key.startswith(p)), "") for key in parts}
        return {SPLIT.get(p, "") + key.removeprefix(p): parts[key] for key, p in prefixes.items()}
    content = content.get("state_dict", content)
    if not content or not is_state_dict(content):
        return None
    return {key.removeprefix("module."): value for key, value in content.items()}
