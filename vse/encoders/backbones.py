"""Backbones of pictures: they become the cells of a CNN's last feature map, or a transformer's patches."""

import inspect
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from vse.encoders.pretrained import load_transformer, read_pixels
from vse.errors import InputError, close_match, first_line, misfit
from vse.safe_load import is_state_dict, read_weights

_CAFFE = "caffe_"  # before a ResNet's name: the geometry of the networks converted from Caffe


Pixels = Literal["imagenet", "half", "clip", "caffe"]

_STATISTICS = {  # mean and standard deviation of the channels, in the range 0..255
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "half": ([127.5, 127.5, 127.5], [127.5, 127.5, 127.5]),
    "clip": ([122.7709383, 116.7460125, 104.09373615], [68.5005327, 66.6321579, 70.32316305]),
    "caffe": ([102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0]),  # blue, green, red
}


class Normalise(nn.Module):
    """RGB bytes of pictures to what a backbone was trained on; floats stay as they are.

    "imagenet", "half" (ViT) and "clip": minus mean, by standard deviation; "caffe": BGR, 0..255, minus the mean. On the
    device, for a whole batch at once. Shapes: (B, 3, height, width) -> the same, floats. Raises ValueError for another
    name, shape or type.

    >>> Normalise("imagenet")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 3, 8, 8])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, pixels: Pixels = "imagenet") -> None:
        super().__init__()
        if pixels not in get_args(Pixels):
            raise ValueError(f"pixels must be one of {get_args(Pixels)}, got {pixels!r}")
        self.flip = pixels == "caffe"
        for name, values in zip(("mean", "deviation"), _STATISTICS[pixels], strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Convert."""
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
    """When which stages of a backbone are trained.

    None in the first ``freeze_epochs`` epochs; then all or, with ``stage_epochs``, one more after every that many
    epochs, the last first (VSE∞'s and PVSE's recipes). Raises ValueError for a negative number, or for 0 stage epochs.
    """

    def __init__(self, freeze_epochs: int, stage_epochs: int | None) -> None:
        if freeze_epochs < 0:
            raise ValueError(f"freeze_epochs must not be negative, got {freeze_epochs}")
        if stage_epochs is not None and stage_epochs < 1:
            raise ValueError(f"stage_epochs must be at least 1, got {stage_epochs}")
        self.freeze_epochs, self.stage_epochs = freeze_epochs, stage_epochs

    def __call__(self, stages: list[list[nn.Parameter]], epoch: int) -> None:
        """Freeze what is not yet trained; epochs count from 0."""
        done = epoch - self.freeze_epochs
        trained = 0 if done < 0 else len(stages) if self.stage_epochs is None else 1 + done // self.stage_epochs
        for number, stage in enumerate(stages):
            for parameter in stage:
                parameter.requires_grad_(number < trained)


class ResNetBackbone(nn.Module):
    """A torchvision ResNet, ResNeXt or Wide ResNet without its pooling and classifier.

    ``name``: torchvision's, such as "resnext101_32x8d"; with "caffe_" before it, the stride of a stage sits in its
    first 1x1 convolution and the first pooling has no padding and counts what stands over (bottom-up attention's
    detector). Parameter names are torchvision's. BatchNorm uses its running statistics, unless ``train_norm``.

    Shapes: pictures (B, 3, height, width) -> cells (B, h * w, dim), row by row. Raises ValueError for an unknown name.

    >>> ResNetBackbone("resnet18")(torch.randn(2, 3, 224, 224)).shape
    torch.Size([2, 49, 512])
    """

    def __init__(self, name: str, train_norm: bool = False) -> None:
        super().__init__()
        self.train_norm = train_norm
        import torchvision

        plain, known = name.removeprefix(_CAFFE), resnets()
        if plain not in known:
            raise ValueError(f"backbone must be a torchvision ResNet, got {name!r} ({close_match(plain, known)})")
        net = torchvision.models.get_model(plain, weights=None)
        self.dim: int = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if plain != name:
            if not hasattr(net.layer2[0], "conv3"):
                raise ValueError(f"backbone {name!r}: only ResNets with bottlenecks (50 layers and more) have it")
            self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride

    architecture = None  # the name says it all

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Groups of parameters, the last first, as they are unfrozen."""
        layers = [list(layer.parameters()) for layer in (self.layer4, self.layer3, self.layer2, self.layer1)]
        return [*layers, [*self.conv1.parameters(), *self.bn1.parameters()]]

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """Set the mode; BatchNorm stays in evaluation, unless it is to be trained."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not self.train_norm:
                module.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Cells of a batch of pictures."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.flatten(2).transpose(1, 2)


class TransformerBackbone(nn.Module):
    """A vision model of ``transformers``: the patches among its last hidden states, without [CLS] and registers.

    ViT, DeiT, DINOv2, CLIP's and SigLIP's vision halves, Swin and others of their kind; arguments as in
    :func:`vse.encoders.pretrained.load_transformer`. Learned positions are interpolated to other picture sizes where
    the model can.

    Shapes: pictures (B, 3, height, width) -> patches (B, N, dim), row by row. Raises ValueError for pictures of a size
    that the model does not take, and for a model whose tokens are not the patches after a few others.

    >>> TransformerBackbone("google/vit-base-patch16-224")(torch.randn(2, 3, 224, 224)).shape
    torch.Size([2, 196, 768])
    """

    def __init__(
        self, name: str, weights: Literal["pretrained"] | None = "pretrained", architecture: Any = None
    ) -> None:
        super().__init__()
        self.net, self.architecture = load_transformer(name, weights, architecture, "vision")
        config: Any = self.net.config
        self.dim: int = config.hidden_size
        self.merges = hasattr(config, "depths")  # Swin: fewer tokens than patches, and nothing else among them
        self.others = 2 + getattr(config, "num_register_tokens", 0)  # [CLS], distillation, registers: at most
        patch = getattr(config, "patch_size", 1)
        self.patch = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
        can = "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if can else {}

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Groups of parameters, the last first: each layer (Swin's stages), then all that is in none."""
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
        if not 0 <= hidden.shape[1] - patches <= self.others:
            name = self.architecture["model_type"]
            raise ValueError(f"{name} gives {hidden.shape[1]} tokens for {patches} patches; they cannot be told apart")
        return hidden[:, -patches:]


def make_backbone(
    name: str, weights: str | None, architecture: dict[str, Any] | None, train_norm: bool, pixels: Pixels
) -> ResNetBackbone | TransformerBackbone:
    """Backbone by name: torchvision's, or a model of ``transformers``, a folder or "organisation/model".

    Raises ValueError for ``weights`` that are not that kind's, and for ``pixels`` that are not the model's.
    """
    if name.removeprefix(_CAFFE) in resnets() or not (architecture is not None or "/" in name or Path(name).is_dir()):
        backbone = ResNetBackbone(name, train_norm)
        if weights == "pretrained":
            raise ValueError(f"weights of the torchvision backbone {name} must be a file, imagenet or null")
        if weights == "imagenet":
            load_imagenet_weights(backbone, name)
        elif weights is not None:
            load_backbone_weights(backbone, weights)
        return backbone
    if weights not in ("pretrained", None):
        raise ValueError(f"weights of {name}, a model of transformers, must be pretrained or null, got {weights!r}")
    if train_norm:
        raise ValueError(f"train_norm is for the BatchNorm of torchvision's backbones, not for {name}")
    published = read_pixels(name) if architecture is None else None
    if published is not None and not np.allclose(255 * np.array(published), _STATISTICS[pixels], atol=0.6):
        fits = [k for k, own in _STATISTICS.items() if np.allclose(255 * np.array(published), own, atol=0.6)]
        raise ValueError(f"pixels must be {fits[0] if fits else published} for {name}, as it says, got {pixels!r}")
    return TransformerBackbone(name, "pretrained" if weights else None, architecture)


def load_imagenet_weights(backbone: ResNetBackbone, name: str) -> None:
    """Load torchvision's ImageNet weights, which it downloads once. Raises InputError when it has or gets none."""
    import torchvision

    if name.startswith(_CAFFE):
        raise InputError(f"weights 'imagenet' are of torchvision's geometry, not {name}'s; expected a file")
    try:
        published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        problem = first_line(error)
        raise InputError(f"weights 'imagenet' cannot be downloaded ({problem}); a file may be named") from None
    backbone.load_state_dict({key: published.get(key, value) for key, value in backbone.state_dict().items()})


def load_backbone_weights(backbone: ResNetBackbone, file: str | Path) -> None:
    """Load published weights: torchvision's and WSL's files, or a dict of ``base`` and ``top`` states (BUTD).

    Nothing in the file is executed. Raises InputError that names the file, and the first keys that do not fit.
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
    """State dict under torchvision's names; None when it is none."""
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
