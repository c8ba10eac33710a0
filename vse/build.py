"""Build the objects that a config describes; the only module that knows every table."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from vse.aggregators import AGGREGATORS
from vse.aggregators.base import traits_of as traits_of_aggregator
from vse.components import (
    NamedComponent,
    build_component,
    check_arguments,
    component_at,
    construct,
    errors_at,
    find_callable,
    find_component,
)
from vse.config import Config, OptimConfig, load_config
from vse.console import say
from vse.contracts import check_corpus, check_images
from vse.data.clips import ClipTransform
from vse.data.corpus import SPLITS, Corpus, Kind
from vse.data.formats import FORMATS
from vse.data.subwords import Subwords
from vse.data.transforms import TRANSFORMS, kind_of
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.data.word_vectors import read_vectors
from vse.encoders import ENCODERS
from vse.encoders.base import EncoderTraits
from vse.encoders.base import traits_of as traits_of_encoder
from vse.encoders.pretrained import Preprocessing, read_preprocessing
from vse.errors import InputError, close_match
from vse.losses import LOSSES, REGULARISERS, Criterion, InfoNCELoss
from vse.model import Tower, VSEModel
from vse.optim import OPTIMISERS, SCHEDULES, Schedule, is_below, layer_factors, parameter_groups
from vse.similarity import SIMILARITIES

_TRANSFORMS = TRANSFORMS | {"clip": ClipTransform}
Words = Vocabulary | Subwords | MissingVocabulary


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, check every component against its constructor, and fill in the defaults.

    Args:
        path: A config file, a run folder, or the name of a shipped config.
        overrides: Settings that differ from the file's, such as "train.epochs=5".

    Returns:
        The resolved config.

    Raises:
        InputError: A file cannot be read, or a setting is wrong. The message names the file or override, the full key,
            what was given and what was expected.

    >>> read_config("demo", ["model.image.aggregator.name=mean"]).model.image.aggregator.name
    'mean'
    """
    return resolve(load_config(path, overrides))


def resolve(config: Config) -> Config:
    """Check every component of a config and fill in the defaults of its arguments.

    Raises:
        InputError: As :func:`read_config`.

    Args:
        config: A config whose sections have been checked, but not the arguments of its components.

    Returns:
        A config in which every argument of every component has a value, except those of the optimiser. The settings
        keep their origin.
    """
    content = config.model_dump()
    for component, table, inputs in _components(config):
        function = find_component(component, table)
        is_built_first = inspect.isclass(function) and component.name_key != "data.format"
        arguments = check_arguments(component, function, 0 if is_built_first else inputs, _beside(component))
        settings = content
        for part in component.key.split("."):
            settings = settings[part]
        settings.update(arguments)
    # The defaults of torch's optimisers are not filled in: a config should not freeze them.
    optimiser = component_at(config, "optim")
    check_arguments(optimiser, find_component(optimiser, OPTIMISERS), beside=OptimConfig.model_fields)
    return config.replaced(content)


def complete(config: Config, saved: Mapping[str, Any] | None = None) -> Config:
    """Write into a config what its transform ``pretrained`` takes from the image encoder's model.

    Args:
        config: The config, resolved.
        saved: The config of the run that goes on, as a plain dict. Its settings are taken, and no file is read.

    Returns:
        The config with the sizes of the pictures; as it is with another transform, or where they are given.

    Raises:
        InputError: The model's preprocessing cannot be read.
    """
    transform, image = config.data.transform, config.model.image.encoder.arguments
    if transform is None or transform.name != "pretrained" or transform.arguments.get("size") is not None:
        return config
    content = config.model_dump()
    if saved is not None:
        content["data"]["transform"] = saved["data"]["transform"]
        return config.replaced(content)
    steps = _preprocessing(config, transform.arguments.get("model"), image)
    found = {"size": steps.size, "resize": steps.resize, "resample": steps.resample}
    content["data"]["transform"] |= {key: value for key, value in found.items() if transform.arguments.get(key) is None}
    return config.replaced(content)


def _preprocessing(config: Config, model: str | None, image: Mapping[str, Any]) -> Preprocessing:
    """What a model was published with: the one that the transform names, or else the image encoder's."""
    own = encoder_traits(config, "image").preprocessing
    if model is None and own is not None:
        with errors_at(config, "model.image.encoder", image):
            found: Preprocessing = own(**image)
        return found
    model = model or image.get("model") or image.get("backbone")
    if model is None:
        raise config.error("data.transform.model", "missing: the image encoder names no model")
    return read_preprocessing(model)


def _components(config: Config) -> Iterator[tuple[NamedComponent, Mapping[str, Any], int]]:
    """The components of a config, the table of each, and the number of inputs that it gets if it is a function."""
    for side in ("image", "text"):
        yield component_at(config, f"model.{side}.encoder"), ENCODERS, 0
        yield component_at(config, f"model.{side}.aggregator"), AGGREGATORS, 0
    if config.data.transform is not None:
        yield component_at(config, "data.transform"), _TRANSFORMS, 0
    yield component_at(config, "model.similarity"), SIMILARITIES, 2  # the embeddings of images and captions
    yield component_at(config, "loss.ranking"), LOSSES, 2  # scores and positives
    yield component_at(config, "optim.schedule"), SCHEDULES, 0
    for name in config.loss.terms:
        yield _term(config, name), REGULARISERS, 2  # what the towers return
    yield _data_format(config), FORMATS, 2  # root and split


def _beside(component: NamedComponent) -> tuple[str, ...]:
    """The keys that share a mapping with a component's arguments."""
    if component.key.startswith("loss.terms."):
        return ("weight",)
    return () if component.key == "data.options" else ("name",)


def _term(config: Config, name: str) -> NamedComponent:
    """A regularising term, whose name is its key."""
    key = f"loss.terms.{name}"
    return NamedComponent(config, key, key, name, config.loss.terms[name].arguments)


def _data_format(config: Config) -> NamedComponent:
    """The function that reads the data; its arguments are in data.options."""
    return NamedComponent(config, "data.options", "data.format", config.data.format, config.data.options)


def read_corpus(config: Config, split: str) -> Corpus:
    """Read one split of the config's data as it is stored, before any transform.

    Args:
        config: The config.
        split: The split.

    Returns:
        The corpus.

    Raises:
        InputError: There is no such split, or a file is missing or damaged; the message names it.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: {close_match(split, list(SPLITS))}")
    function = find_callable(_data_format(config), FORMATS)
    if ":" not in config.data.format:
        return function(config.data.root, split, **config.data.options)
    with errors_at(config, "data.format"):
        corpus: Corpus = function(config.data.root, split, **config.data.options)
        check_corpus(config.data.format, corpus)
    return corpus


def build_corpus(config: Config, split: str) -> Corpus:
    """Read one split of the config's data as its model needs it, through the transform if there is one.

    Args:
        config: The config.
        split: The split.

    Returns:
        The corpus.

    Raises:
        InputError: As :func:`read_corpus`, or the image encoder does not read images of this kind.
    """
    corpus = read_corpus(config, split)
    images = corpus.images
    name = config.model.image.encoder.name
    reads = _reads(config, "image", images.kind)
    if images.kind not in reads and reads[0] in get_args(Kind):  # an encoder of captions is refused by _build_encoder
        raise InputError(
            f"model.image.encoder.name: {name} reads {' or '.join(reads)}, but {corpus.name} has {images.kind}"
        )
    if images.takes is not None and (images.kind != "features" or config.data.transform is not None):
        transform = build_transform(config, images.takes)
        corpus = replace(corpus, images=images.transformed(transform, config.run.seed, config.data.workers))
    if ":" in config.data.format:
        with errors_at(config, "data.format"):
            check_images(corpus.images)
    return corpus


def build_transform(config: Config, kind: str) -> Any:
    """Build the config's transform.

    Args:
        config: The config.
        kind: What the transform must read, "pictures" or "frames".

    Returns:
        The transform.

    Raises:
        InputError: The config has no transform, or its transform reads the other kind.
    """
    if config.data.transform is None:
        known = close_match("", [name for name, transform in _TRANSFORMS.items() if transform.reads == kind])
        raise config.error("data.transform", f"missing, and {kind} need one ({known})")
    transform = build_component(config, _TRANSFORMS, "data.transform")
    made_for = kind_of(transform, kind)
    if made_for != kind:
        problem = f"{config.data.transform.name} is for {made_for}, but {config.data.format} has {kind}"
        raise config.error("data.transform.name", problem)
    return transform


def build_image_encoder(config: Config, gives: str) -> nn.Module:
    """Build only the encoder of the image tower, with its published weights.

    Args:
        config: The config, resolved.
        gives: What the data consists of, "pictures" or "frames".

    Returns:
        The encoder, which has a backbone.

    Raises:
        InputError: The encoder does not read such data, or has no backbone.
    """
    encoder = _build_encoder(config, "image", (gives,), {}, from_file=True)
    if traits_of_encoder(encoder).backbone is None:
        raise config.error("model.image.encoder", f"{config.model.image.encoder.name} has no backbone")
    return encoder


def _reads(config: Config, side: str, otherwise: str) -> tuple[str, ...]:
    """What a tower's encoder reads; an encoder that does not say reads what it is given."""
    others = ("words", "subwords") if side == "image" else ("features", "pictures", "frames")
    reads = encoder_traits(config, side).reads or (otherwise,)
    own = tuple(kind for kind in reads if kind not in others)  # a two-tower model reads something on either side
    return own or reads


def encoder_traits(config: Config, side: str) -> EncoderTraits:
    """Return what the class of a side's encoder tells of it, before it is built.

    Args:
        config: The config, resolved.
        side: "image" or "text".

    Returns:
        The attributes, with their defaults.

    >>> encoder_traits(config, "text").reads
    ('words',)
    """
    return traits_of_encoder(find_component(component_at(config, f"model.{side}.encoder"), ENCODERS))


def build_vocabulary(config: Config, training: Corpus | None = None) -> Vocabulary | Subwords:
    """Build the vocabulary of a new run.

    A text model brings its own. Otherwise the config's file is read, or else the vocabulary is built from the training
    captions.

    Args:
        config: The config, resolved.
        training: The training corpus; None where the text model surely brings its own.

    Returns:
        The vocabulary.

    Raises:
        InputError: The file cannot be read, or the caption augmentation needs a mask that the text model does not have.
    """
    file = config.data.vocabulary.file
    text = config.model.text.encoder
    if reads_subwords(config):
        if file is not None:
            raise config.error("data.vocabulary.file", f"{text.name} has its own vocabulary; got {file}")
        try:
            subwords = Subwords.read(text.arguments["model"])
        except ValueError as error:
            raise config.error("model.text.encoder.model", str(error)) from None
        check_augmentation(config, subwords)
        return subwords
    if file is not None:
        return Vocabulary.read(file)
    assert training is not None
    return Vocabulary.build(training.captions, config.data.vocabulary.min_count)


def check_augmentation(config: Config, subwords: Subwords) -> None:
    """Check that a tokenizer can be used with the caption augmentation of a config.

    Args:
        config: The config, resolved.
        subwords: The tokenizer.

    Raises:
        InputError: The tokenizer has no mask token, or does not say which subwords belong to one word.
    """
    text = config.model.text.encoder
    drop = text.arguments.get("drop")
    if not drop:
        return
    lacks = ""
    if subwords.mask is None:
        lacks = "mask token to put in the place of words"
    elif len(np.unique(subwords.split("two dogs")[1][1:-1])) < 2:
        lacks = "notion of words"
    if lacks:
        model = text.arguments["model"]
        problem = f"the tokenizer of {model} has no {lacks}; expected 0, got {drop}"
        raise config.error("model.text.encoder.drop", problem)


def image_width(*corpora: Corpus) -> int | None:
    """Return the width that the images of several corpora share.

    Args:
        corpora: The corpora, at least one.

    Returns:
        The width of their features; None for pictures and clips.

    Raises:
        InputError: The widths differ, or only some of the corpora have features.
    """
    first = corpora[0]
    for corpus in corpora:
        own, width = first.images.width, corpus.images.width
        if (own is None) != (width is None):
            raise InputError(f"{first.name} and {corpus.name}: one has features, the other has none")
        if own != width:
            raise InputError(f"{first.name} has features {own} wide, but {corpus.name} has them {width} wide")
    return first.images.width


def reads_subwords(config: Config) -> bool:
    """Whether the text encoder comes with its tokenizer."""
    return _reads(config, "text", "words") == ("subwords",)


def build_model(
    config: Config, in_dim: int | None, vocabulary: Words, architectures: Mapping[str, dict[str, Any]] | None = None
) -> VSEModel:
    """Build the model of a config.

    Args:
        config: The config, resolved.
        in_dim: Width of the features that the image tower reads, None for pictures.
        vocabulary: What turns captions into token ids.
        architectures: The architecture that a checkpoint holds of an encoder, by side, "image" or "text". A side with
            an entry, even {}, will get its weights from the checkpoint, so no file of published weights is read for it.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: The components do not fit together, or the weights that they start from are not finite.
    """
    known = architectures or {}
    gives_image = ("pictures", "frames") if in_dim is None else ("features",)
    gives_text: tuple[str, ...] = ("subwords",) if isinstance(vocabulary, Subwords) else ("words",)
    if isinstance(vocabulary, MissingVocabulary):
        gives_text = ("words", "subwords")
    features: dict[str, Any] = {"architecture": known.get("image")}
    if in_dim is not None:
        features["in_dim"] = in_dim
    tokens = {"vocab_size": len(vocabulary), "architecture": known.get("text")}
    image = _build_tower(config, "image", gives_image, features, from_file="image" not in known)
    text = _build_tower(config, "text", gives_text, tokens, from_file="text" not in known)
    if isinstance(vocabulary, Subwords):
        vocabulary.cut(traits_of_encoder(text.encoder).max_length)
    transform = None if config.data.transform is None else build_component(config, _TRANSFORMS, "data.transform")
    similarity = build_component(config, SIMILARITIES, "model.similarity")
    model = VSEModel(image, text, similarity, vocabulary, transform)
    if len(known) < 2:  # a side is initialised at random or from a file
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"model.{name}: the weights that it starts from are not finite")
    if "text" not in known and config.data.vocabulary.vectors is not None:
        fill_word_vectors(config, config.data.vocabulary.vectors, model, vocabulary)
    return model


def fill_word_vectors(config: Config, file: str, model: VSEModel, vocabulary: Words) -> None:
    """Put a file's word vectors into the table of the text encoder, and print how many words it has.

    Args:
        config: The config, for messages.
        file: The file of word vectors.
        model: The model whose table is filled. Words that the file lacks keep their vectors.
        vocabulary: The model's vocabulary.

    Raises:
        InputError: The text encoder has no table of words, or the file cannot be read.
    """
    table = traits_of_encoder(model.text.encoder).embedding
    if table is None or not isinstance(vocabulary, Vocabulary):
        problem = f"{config.model.text.encoder.name} has no table of words to fill"
        raise config.error("data.vocabulary.vectors", problem)
    vectors, found = read_vectors(file, vocabulary.words, table.embedding_dim)
    with torch.no_grad():
        rows = torch.from_numpy(found)
        table.weight[rows.to(table.weight.device)] = torch.from_numpy(vectors)[rows].to(table.weight)
    say(f"{file}: vectors of {found.sum():,} of {len(found):,} words ({100 * found.mean():.1f} %)")


def build_criterion(config: Config, model: VSEModel | None = None) -> Criterion:
    """Build the ranking loss and the weighted terms of a config; a weight of 0 leaves a term out.

    Args:
        config: The config, resolved.
        model: The model, whose encoders may know the temperature of a published model.

    Returns:
        The criterion.

    Raises:
        InputError: A component does not take its arguments.
    """
    terms = {}
    for name, settings in config.loss.terms.items():
        if settings.weight:
            term = _term(config, name)
            function = find_callable(term, REGULARISERS)
            terms[name] = (settings.weight, construct(config, term.key, function, term.arguments))
    ranking = build_component(config, LOSSES, "loss.ranking", forced=_own_scale(config, model))
    return Criterion(ranking, terms, config.loss.ramp_epoch)


def _own_scale(config: Config, model: VSEModel | None) -> dict[str, float]:
    """The temperature and bias of the encoders' published model, if the config's loss asks for them."""
    if config.loss.ranking.arguments.get("temperature") != "pretrained":
        return {}
    traits = None if model is None else traits_of_encoder(model.image.encoder)
    if traits is None or traits.logit_scale is None:
        name = config.model.image.encoder.name
        raise config.error("loss.ranking.temperature", f"{name} has no logit scale of its own; expected a number")
    temperature = 1 / traits.logit_scale
    if config.loss.ranking.name == "info_nce":  # CLIP's own limit, which its published scales have reached
        temperature = max(temperature, InfoNCELoss.lowest)
    return {"temperature": temperature, "bias": traits.logit_bias or 0.0}


def build_optimiser(config: Config, model: VSEModel, criterion: Criterion) -> torch.optim.Optimizer:
    """Build the optimiser of the model's and the criterion's parameters, in one group for each learning rate.

    Args:
        config: The config, resolved.
        model: The model.
        criterion: The criterion; its parameters are called "loss.*" in ``optim.factors``.

    Returns:
        The optimiser.

    Raises:
        InputError: A prefix in ``optim.factors`` fits no parameter's name, or ``optim.layer_decay`` finds no layers.
    """
    named = [*model.named_parameters(), *((f"loss.{name}", p) for name, p in criterion.named_parameters())]
    decay, decays = config.optim.layer_decay, None
    if decay is not None:
        try:
            decays = layer_factors([name for name, _ in model.named_parameters()], decay)
        except ValueError as error:
            raise config.error("optim.layer_decay", str(error)) from None
    factors = {prefix: factor for prefix, factor in config.optim.factors.items() if factor is not None}
    try:
        groups = parameter_groups(named, config.optim.lr, factors, decays)
    except ValueError as error:
        raise config.error("optim.factors", str(error)) from None
    settings = {"params": groups, "lr": config.optim.lr, "weight_decay": config.optim.weight_decay}
    others = {"foreach", "capturable", "differentiable"} & set(config.optim.arguments)
    if model.device.type in ("cpu", "cuda") and not others:
        settings["fused"] = True  # one pass over the parameters, where the optimiser has it
    optimiser: torch.optim.Optimizer = build_component(config, OPTIMISERS, "optim", settings)
    return optimiser


def freeze(config: Config, model: VSEModel) -> None:
    """Freeze the parameters that ``train.freeze`` names by prefix.

    Args:
        config: The config, resolved.
        model: The model.

    Raises:
        InputError: A prefix fits no parameter's name.
    """
    prefixes, named = config.train.freeze, dict(model.named_parameters())
    check_prefixes(config, "train.freeze", prefixes, named)
    for name, parameter in named.items():
        if any(is_below(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)


def check_prefixes(config: Config, key: str, prefixes: Iterable[str], names: Iterable[str]) -> None:
    """Check that each prefix of parameter names that a config gives begins one.

    Args:
        config: The config.
        key: The setting that holds the prefixes.
        prefixes: The prefixes.
        names: The names of the parameters.

    Raises:
        InputError: A prefix fits no name; the message has the close match.
    """
    names = list(names)
    for prefix in prefixes:
        if not any(is_below(name, prefix) for name in names):
            parts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)}
            problem = f"{prefix!r} begins no parameter's name ({close_match(prefix, list(parts))})"
            raise config.error(key, problem)


def build_schedule(config: Config) -> Schedule:
    """Build the learning-rate schedule of a config."""
    schedule: Schedule = build_component(config, SCHEDULES, "optim.schedule", {"epochs": config.train.epochs})
    return schedule


def _build_tower(config: Config, side: str, gives: tuple[str, ...], widths: dict[str, Any], from_file: bool) -> Tower:
    """Build one tower, its widths filled in from the data and ``model.embed_dim``."""
    key = f"model.{side}"
    encoder = _build_encoder(config, side, gives, widths, from_file)
    told = traits_of_encoder(encoder)
    offered = {"in_dim": told.dim, "out_dim": config.model.embed_dim, "dim": told.dim}
    aggregator = build_component(config, AGGREGATORS, f"{key}.aggregator", offered)
    traits = traits_of_aggregator(aggregator)
    width = traits.out_dim or told.dim
    if traits.returns_context:
        width = told.context_dim or told.dim
    if width != config.model.embed_dim:
        raise _width_error(config, key, width)
    if side == "text" and traits.grid is not None:
        raise config.error(f"{key}.aggregator.grid", "is for the cells of a picture, but the text tower has tokens")
    with errors_at(config, key):
        return Tower(encoder, aggregator)


def _width_error(config: Config, key: str, width: int | None) -> InputError:
    """The error for a tower whose embeddings do not have the model's width; it names the key that is likely wrong."""
    likely = [f"{key}.encoder.dim", f"{key}.encoder.features"]
    place = next((place for place in likely if config.given(place)), f"{key}.aggregator.name")
    name = config.value(f"{key}.aggregator.name")
    return config.error(
        place,
        f"{name} keeps the width of the encoder's features, {width}, but model.embed_dim is {config.model.embed_dim}",
    )


def _build_encoder(config: Config, side: str, gives: tuple[str, ...], widths: dict[str, Any], from_file: bool) -> Any:
    """Build a tower's encoder; ``from_file`` says whether to read the published weights that the config names."""
    key = f"model.{side}.encoder"
    name = config.value(f"{key}.name")
    reads = _reads(config, side, gives[0])
    if not set(reads) & set(gives):
        problem = f"{name} reads {' or '.join(reads)}, but the {side} tower is given {' or '.join(gives)}"
        raise config.error(f"{key}.name", problem)
    offered = {**widths, "dim": config.model.embed_dim, "side": side}
    encoder = build_component(config, ENCODERS, key, offered, {} if from_file else {"weights": None})
    if traits_of_encoder(encoder).dim is None:
        raise config.error(f"{key}.name", f"{name} is not an encoder: it has no attribute dim")
    return encoder
