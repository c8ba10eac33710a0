"""Pictures through any backbone of the package `timm`."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.encoders.backbones import Normalise, SharedBatchNorm2d, Unfreezing, still_norms
from vse.encoders.grid import drop_cells
from vse.encoders.pretrained import Preprocessing, prune
from vse.encoders.regions import Context as Pooled
from vse.encoders.regions import Init, Locals, Mlp, Regions
from vse.errors import InputError, check_at_least, check_choice, check_probability, close_match, first_line, misfit
from vse.safe_load import is_state_dict, read_weights
from vse.sets import FeatureSet

Context = Literal["cls", "max", "mean"]


def _import_timm() -> Any:
    """The package, which is an extra."""
    try:
        import timm
    except ImportError:
        raise InputError("the encoder timm needs the package timm: pip install 'vse-retrieval[timm]'") from None
    return timm


def read_preprocessing(model: str, image_size: int | None = None) -> Preprocessing:
    """Read how the pictures of a model of ``timm`` are resized, cut and normalised.

    Args:
        model: The model's name, with or without the tag of its weights.
        image_size: Height and width of the pictures, in pixels; None for those that the model was published with.

    Returns:
        The steps.

    Raises:
        ValueError: There is no such model.
        vse.errors.InputError: The package is missing, or the model's pictures are not resized and cut.

    >>> read_preprocessing("resnet50.a1_in1k").resize
    235
    """
    timm = _import_timm()
    _check_name(model)
    steps = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    size = list(steps["input_size"][1:]) if image_size is None else [image_size, image_size]
    before = [math.floor(side / steps["crop_pct"]) for side in size]
    if steps["crop_mode"] not in ("center", "squash"):
        raise InputError(f"{model}: its pictures are cut in the way {steps['crop_mode']!r}; expected center or squash")
    if steps["crop_mode"] == "squash" or size[0] != size[1]:
        resize: int | list[int] = before
    else:
        resize = before[0]
    return Preprocessing(size, resize, steps["interpolation"], list(steps["mean"]), list(steps["std"]))


def _check_name(model: str) -> None:
    """Raise ValueError unless ``timm`` has a model, and weights with its tag if it has one."""
    timm = _import_timm()
    plain, _, tag = model.partition(".")
    known = timm.list_models()
    if plain not in known:
        raise ValueError(f"model must be one of timm's, got {model!r} ({_close(model, known)})")
    tagged = timm.list_models(plain, include_tags=True)
    if tag and model not in tagged:
        raise ValueError(f"timm has no weights {model!r} ({close_match(model, tagged)})")


def _close(model: str, known: list[str]) -> str:
    """The close match of a name among very many."""
    found = close_match(model, known)
    return found if found.startswith("did you mean") else "timm.list_models() has all names"


class TimmBackbone(nn.Module):
    """A model of ``timm`` without its pooling and classifier.

    Args:
        name: The model's name, such as "resnet50" or "vit_base_patch16_224.augreg_in21k", with or without the tag of
            its weights.
        weights: "pretrained" for the weights that timm downloads, a file of them, or None for random ones.
        image_size: Height and width of the pictures, for a model that reads one size only, such as most vision
            transformers; None for those that it was published with.
        train_norm: As in :class:`vse.encoders.Grid`.
        recompute: As in :class:`vse.encoders.Grid`.

    Inputs are pictures (B, 3, height, width); the result is their cells or patches (B, N, dim), row by row.

    Attributes:
        dim: Width of the cells.
        has_class_token: Whether the model has a class token, so that :meth:`encode` returns it.

    Raises:
        ValueError: The name is unknown, the model gives no cells, or an argument does not apply to it. In the call: it
            does not read pictures of that size.
        vse.errors.InputError: The package is missing, or the weights cannot be read.

    >>> TimmBackbone("resnet10t", weights=None)(torch.randn(2, 3, 64, 96)).shape
    torch.Size([2, 6, 512])
    """

    def __init__(
        self,
        name: str,
        weights: str | Literal["pretrained"] | None = "pretrained",
        image_size: int | None = None,
        train_norm: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        _check_name(name)
        if image_size is not None:
            check_at_least("image_size", image_size, 1)
        self.name, self.train_norm = name, train_norm
        published = timm.get_pretrained_cfg(name).to_dict()
        height, width = published["input_size"][1:] if image_size is None else (image_size, image_size)
        self.size: tuple[int, int] | None = (height, width) if published["fixed_input_size"] else None
        sizes = {} if self.size is None or image_size is None else {"img_size": image_size}
        self.net = _download(name, sizes) if weights == "pretrained" else _create(name, False, sizes)
        net: Any = self.net
        has_token = getattr(net, "cls_token", None) is not None
        self.others: int = getattr(net, "num_prefix_tokens", int(has_token))  # before the patches: [CLS], registers
        self.has_class_token = has_token and self.others > 0
        self.channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
        whole = set(self.net.state_dict())
        state = None if weights in ("pretrained", None) else _read_state(self.net, str(weights), published)
        self.dim = self._prune(height, width)
        if state is not None:
            _load_state(self.net, state, whole, str(weights))
        if train_norm:
            _share_norms(self.net, name)
        if recompute:
            self._compute_again()

    def _prune(self, height: int, width: int) -> int:
        """Remove what the cells and the class token do not depend on, and return the width of the cells."""
        self.net.eval()
        with torch.enable_grad():
            try:
                cells, token = self.encode(torch.zeros(1, 3, height, width))
            except AssertionError as error:
                raise ValueError(f"image_size {height} does not fit {self.name} ({first_line(error)})") from None
            prune(self.net, cells.sum() if token is None else cells.sum() + token.sum())
        return cells.shape[2]

    def _compute_again(self) -> None:
        net: Any = self.net
        if self.train_norm:
            raise ValueError("recompute does not go with train_norm: BatchNorm would count each batch twice")
        try:
            net.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ValueError(f"recompute: {self.name} cannot compute its activations again") from None

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Groups of parameters, the last first, as timm groups them: blocks of a transformer, stages of a CNN."""
        from timm.models import group_parameters

        net: Any = self.net
        named = dict(self.net.named_parameters())
        groups = group_parameters(self.net, net.group_matcher(coarse=True))
        return [[named[name] for name in groups[number]] for number in sorted(groups, reverse=True)]

    def train(self, mode: bool = True) -> "TimmBackbone":
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
        return self.encode(pictures)[0]

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode a batch of pictures.

        Args:
            pictures: Pictures (B, 3, height, width).

        Returns:
            Their cells (B, N, dim), row by row, and the class token (B, dim) or None.

        Raises:
            ValueError: The model does not read pictures of that size, or gives no cells.
        """
        if self.size is not None and pictures.shape[2:] != self.size:
            found, expected = (f"{height} x {width}" for height, width in (pictures.shape[2:], self.size))
            raise ValueError(f"{self.name} reads pictures of {expected} pixels, got {found}; set image_size")
        net: Any = self.net
        found = net.forward_features(pictures)
        if not isinstance(found, Tensor) or found.dim() not in (3, 4):
            raise ValueError(f"{self.name} gives no cells; expected a model with one feature map or with patches")
        if found.dim() == 3:
            return found[:, self.others :], found[:, 0] if self.has_class_token else None
        if self.channels_last:
            return found.flatten(1, 2), None
        return found.flatten(2).transpose(1, 2), None


def _create(name: str, pretrained: bool, sizes: dict[str, int]) -> nn.Module:
    """A model without its classifier."""
    try:
        net: nn.Module = _import_timm().create_model(name, pretrained=pretrained, num_classes=0, **sizes)
    except (AssertionError, TypeError) as error:
        if not sizes:
            raise
        raise ValueError(f"image_size {sizes['img_size']} does not fit {name} ({first_line(error)})") from None
    return net


def _download(name: str, sizes: dict[str, int]) -> nn.Module:
    """A model with the weights that timm downloads once."""
    if not _import_timm().is_model_pretrained(name):
        raise InputError(f"timm has no weights of {name}; pass a file, or null for random weights")
    try:
        return _create(name, True, sizes)
    except (OSError, RuntimeError) as error:
        problem = first_line(error)
        raise InputError(f"the weights of {name} cannot be downloaded ({problem}); pass a file instead") from None


def _read_state(net: nn.Module, file: str, published: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a file by timm's names, without those of the classifier."""
    path, content = read_weights(file, "the weights of a timm model")
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not content or not is_state_dict(content):
        raise InputError(f"{path}: expected a state dict")
    content = {key.removeprefix("module."): value for key, value in content.items()}
    convert: Callable[..., Any] | None = getattr(inspect.getmodule(type(net)), "checkpoint_filter_fn", None)
    if convert is not None:  # timm's own reading of other names, and of other sizes of pictures
        try:
            content = convert(content, net)
        except Exception as error:  # whatever it raises for the weights of another model
            raise InputError(f"{path}: does not fit the backbone: {first_line(error)}") from None
    classifiers = published["classifier"] or ()
    prefixes = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return {k: v for k, v in content.items() if not k.startswith(tuple(f"{prefix}." for prefix in prefixes))}


def _load_state(net: nn.Module, state: dict[str, Tensor], whole: set[str], file: str) -> None:
    """Load weights into a model; ``whole`` are the names that it had before parts were removed."""
    own = net.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}  # not in older files
    state = {**counters, **{key: value for key, value in state.items() if key in own or key not in whole}}
    if problem := misfit(own, state):
        raise InputError(f"{Path(file).expanduser()}: does not fit the backbone: {problem}")
    net.load_state_dict(state)


class SharedBatchNormAct2d(SharedBatchNorm2d):
    """timm's BatchNorm that an activation follows, with the statistics of the global batch.

    Args:
        norm: The layer of timm that it replaces; parameters and activation are taken over.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of feature maps (B, C, height, width), and apply the activation.

        Returns:
            Maps of the same shape.
        """
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def _share_norms(net: nn.Module, name: str) -> None:
    """Let every BatchNorm of a model take the statistics of the global batch. Raises ValueError if there is none."""
    from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]

    found = {key: norm for key, norm in net.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
    if not found:
        raise ValueError(f"train_norm is for BatchNorm, and {name} has none")
    for key, norm in found.items():
        if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
            raise ValueError(f"train_norm: {name} has a {type(norm).__name__}; only BatchNorm of feature maps is known")
        if isinstance(norm, BatchNormAct2d):
            shared: SharedBatchNorm2d = SharedBatchNormAct2d(norm)
        else:
            shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
        shared.load_state_dict(norm.state_dict())
        parent, _, attribute = key.rpartition(".")
        setattr(net.get_submodule(parent), attribute, shared)


class Timm(nn.Module):
    """Pictures through any backbone of the package ``timm`` (Wightman 2019), and a linear layer.

    V = fc(X), where X are the cells of a CNN's last feature map or the patches of a vision transformer, row by row. The
    context is V of the class token, where the model has one.

    Args:
        dim: Width of V; filled in from ``model.embed_dim``.
        model: timm's name of the model, with or without the tag of its weights, such as "resnet50.a1_in1k".
        weights: "pretrained" for the weights that timm downloads, a file of them (PyTorch's or safetensors), or None
            for random ones.
        image_size: Height and width of the pictures, in pixels. None means those that the model was published with. The
            transform ``pretrained`` follows it, and so do the positions of a transformer.
        mlp: As in :class:`vse.encoders.Regions`.
        features: As in :class:`vse.encoders.Regions`: "projected", or "raw", which leaves the class token raw, too.
        context: "cls" for V of the class token, and no context for a model without one; or the "max" or the "mean" of
            V; or None.
        dropout: As in :class:`vse.encoders.Regions`.
        drop: As in :class:`vse.encoders.Grid`. The class token is never dropped.
        freeze_epochs: As in :class:`vse.encoders.Grid`.
        stage_epochs: As in :class:`vse.encoders.Grid`. The stages are those by which timm groups a model's parameters.
        train_norm: As in :class:`vse.encoders.Grid`. It is for any backbone with BatchNorm.
        init: As in :class:`vse.encoders.Regions`.
        recompute: As in :class:`vse.encoders.Grid`. It does not go with ``train_norm``.
        architecture: The model's name and normalisation from a checkpoint; filled in.

    Inputs are pictures (B, 3, height, width) of one size. RGB bytes are normalised as the model was trained; floats are
    taken as they are. The features are (B, N, dim), or (B, N, channels) when they are raw. The context is (B, dim),
    (B, channels) for a raw class token, or None.

    Raises:
        ValueError: A name or a choice is unknown or does not fit the model. In the call: the pictures have another
            shape or type, or there is a mask.
        vse.errors.InputError: The package is missing, or the weights cannot be read.

    >>> Timm(dim=1024, model="vit_tiny_patch16_224", weights=None)(torch.randn(2, 3, 224, 224)).features.shape
    torch.Size([2, 196, 1024])
    """

    reads: tuple[str, ...] = ("pictures",)

    def __init__(
        self,
        dim: int,
        model: str,
        weights: str | Literal["pretrained"] | None = "pretrained",
        image_size: int | None = None,
        mlp: Mlp | None = None,
        features: Locals = "projected",
        context: Context | None = "cls",
        dropout: float = 0.0,
        drop: float = 0.0,
        freeze_epochs: int = 0,
        stage_epochs: int | None = None,
        train_norm: bool = False,
        init: Init = "xavier",
        recompute: bool = False,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_probability("drop", drop)
        check_choice("context", context, (*get_args(Context), None))
        self.drop = drop
        self.unfreezing = Unfreezing(freeze_epochs, stage_epochs)
        if not architecture:
            steps = read_preprocessing(model, image_size)
            architecture = {"model": model, "mean": steps.mean, "std": steps.std}
        self.architecture = architecture
        self.normalise = Normalise((architecture["mean"], architecture["std"]))
        self.backbone = TimmBackbone(architecture["model"], weights, image_size, train_norm, recompute)
        pooled: Pooled | None = None if context == "cls" else context
        self.head = Regions(self.backbone.dim, dim, mlp, features, pooled, dropout, init=init)
        self.uses_token = context == "cls" and self.backbone.has_class_token
        self.dim, self.context_dim = self.head.dim, self.head.dim if self.uses_token else self.head.context_dim

    @staticmethod
    def preprocessing(model: str, image_size: int | None = None, **_: Any) -> Preprocessing:
        """Tell the transform ``pretrained`` how the pictures of a model are resized and cut.

        Args:
            model: As in the constructor.
            image_size: As in the constructor.

        Returns:
            The steps.
        """
        return read_preprocessing(model, image_size)

    def set_epoch(self, epoch: int) -> None:
        """Freeze the stages that are not trained in an epoch; epochs count from 0."""
        self.unfreezing(self.backbone.stages, epoch)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of pictures.

        Args:
            inputs: Pictures (B, 3, height, width).
            mask: None; pictures of one size have nothing to mask.

        Returns:
            Features (B, N, dim) or (B, N, channels), and a context or None.

        Raises:
            ValueError: The pictures have another shape or type, or there is a mask.
        """
        if mask is not None:
            raise ValueError("a batch of pictures takes no mask")
        cells, token = self.backbone.encode(self.normalise(inputs))
        if self.training and self.drop > 0:
            mask = drop_cells(cells, self.drop)
        if not self.uses_token or token is None:
            result: FeatureSet = self.head(cells, mask)
            return result
        kept = None if mask is None else F.pad(mask, (1, 0), value=True)
        projected = self.head(torch.cat([token[:, None], cells], dim=1), kept).features
        return FeatureSet(projected[:, 1:], mask, projected[:, 0])
