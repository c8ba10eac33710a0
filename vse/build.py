"""From a config to objects; the only module that knows every table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from vse.aggregators import AGGREGATORS
from vse.components import at, check, construct, find, find_callable, make, naming
from vse.config import Config, OptimConfig, load_config
from vse.data.batches import Batch
from vse.data.clips import ClipTransform
from vse.data.corpus import SPLITS, Corpus, ImageSource, Kind
from vse.data.formats import FORMATS
from vse.data.subwords import Subwords
from vse.data.transforms import TRANSFORMS
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.data.word_vectors import read_vectors
from vse.encoders import ENCODERS
from vse.errors import InputError, close_match, first_line
from vse.losses import LOSSES, REGULARISERS, Criterion
from vse.model import Tower, VSEModel
from vse.optim import OPTIMISERS, SCHEDULES, Schedule, parameter_groups
from vse.similarity import SIMILARITIES

_TRANSFORMS = TRANSFORMS | {"clip": ClipTransform}
Words = Vocabulary | Subwords | MissingVocabulary
_TOWER_TABLES: dict[str, Any] = {"encoder": ENCODERS, "aggregator": AGGREGATORS}


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config and check every component in it against its constructor; the defaults are filled in.

    Raises InputError with one line.
    """
    return resolve(load_config(path, overrides))


def resolve(config: Config) -> Config:
    """Check every component and fill its arguments' defaults in."""
    content = config.model_dump()
    tables = {f"model.{side}.{kind}": t for side in ("image", "text") for kind, t in _TOWER_TABLES.items()}
    if config.data.transform is not None:
        tables["data.transform"] = _TRANSFORMS
    tables |= {"model.similarity": SIMILARITIES, "loss.ranking": LOSSES, "optim.schedule": SCHEDULES}
    for key, table in tables.items():
        component = at(config, key)
        called_with = {"model.similarity": ("a", "b"), "loss.ranking": ("scores", "positives")}.get(key, ())
        function = find(config, table, f"{key}.name", component.name)
        arguments = check(config, key, component.name, function, component.arguments, called_with)
        at(content, key).update(arguments)
    for name, term in config.loss.terms.items():
        function = find(config, REGULARISERS, f"loss.terms.{name}", name)
        arguments = check(config, f"loss.terms.{name}", name, function, term.arguments, ("image", "text"), ("weight",))
        content["loss"]["terms"][name].update(arguments)
    name = config.data.format
    function = find(config, FORMATS, "data.format", name)
    content["data"]["options"] = check(
        config, "data.options", name, function, config.data.options, ("root", "split"), ()
    )
    # Torch's own defaults are left to torch: they are many, and not this package's to freeze.
    function = find(config, OPTIMISERS, "optim.name", config.optim.name)
    check(config, "optim", config.optim.name, function, config.optim.arguments, beside=OptimConfig.model_fields)
    resolved = Config.model_validate(content)
    resolved._origin, resolved._trusted = config._origin, config._trusted
    return resolved


def read_corpus(config: Config, split: str) -> Corpus:
    """Read one split of the config's data as it is stored, before any transform.

    Args:
        config: The config.
        split: The split.

    Raises:
        InputError: There is no such split, or something is missing or wrong; the file is named.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: {close_match(split, list(SPLITS))}")
    function = find_callable(config, FORMATS, "data.format", config.data.format)
    corpus: Corpus = function(config.data.root, split, **config.data.options)
    if not isinstance(corpus.images, ImageSource):  # of a format outside the package
        raise InputError(
            f"{config.source('data.format')}: data.format: {config.data.format} gives images as "
            f"{type(corpus.images).__name__}; expected a source of images, such as PictureFiles(paths)"
        )
    return corpus


def build_corpus(config: Config, split: str) -> Corpus:
    """Read one split of the config's data, fit for its model.

    Args:
        config: The config.
        split: The split.

    Raises:
        InputError: Something is missing or wrong, or the image encoder reads another kind; the file is named.
    """
    corpus = read_corpus(config, split)
    images = corpus.images
    name = config.model.image.encoder.name
    reads = _reads(config, "image", images.kind)
    if images.kind not in reads and reads[0] in get_args(Kind):  # what reads captions is refused as a tower
        raise InputError(
            f"model.image.encoder.name: {name} reads {' or '.join(reads)}, but {corpus.name} has {images.kind}"
        )
    if images.takes is None or (images.kind == "features" and config.data.transform is None):
        return corpus
    transform = build_transform(config, images.takes)
    return replace(corpus, images=images.transformed(transform, config.run.seed, config.data.workers))


def build_transform(config: Config, kind: str) -> Any:
    """Build the config's transform.

    Args:
        config: The config.
        kind: What it is for, "pictures" or "frames".

    Raises:
        InputError: The config has no transform, or one for something else.
    """
    if config.data.transform is None:
        known = close_match("", [name for name, transform in _TRANSFORMS.items() if transform.reads == kind])
        file = config._origin.get("data.transform", config._origin.get("", "config"))
        raise InputError(f"{file}: data.transform: missing, and {kind} need one ({known})")
    transform = make(config, _TRANSFORMS, "data.transform")
    made_for = getattr(transform, "reads", kind)  # a transform of another package need not say
    if made_for != kind:
        place = "data.transform.name"
        problem = f"{config.data.transform.name} is for {made_for}, but {config.data.format} has {kind}"
        raise InputError(f"{config.source(place)}: {place}: {problem}")
    return transform


def build_image_encoder(config: Config, gives: str) -> nn.Module:
    """The image tower's encoder alone, for "pictures" or "frames", with its published weights."""
    encoder, name = _build_encoder(config, "image", (gives,), {}, True), config.model.image.encoder.name
    if not hasattr(encoder, "backbone"):
        raise InputError(f"{config.source('model.image.encoder')}: model.image.encoder: {name} has no backbone")
    return encoder


def _reads(config: Config, side: str, otherwise: str) -> tuple[str, ...]:
    """What a tower's encoder reads; one that does not say reads anything."""
    key = f"model.{side}.encoder.name"
    reads = getattr(find(config, ENCODERS, key, getattr(config.model, side).encoder.name), "reads", otherwise)
    return (reads,) if isinstance(reads, str) else tuple(reads)


def build_vocabulary(config: Config, training: Corpus, state: dict[str, Any] | None = None) -> Vocabulary | Subwords:
    """Vocabulary of a run's ``state``, or the text model's own, or from the config's file, or of the training captions.

    Raises InputError when the caption augmentation needs a mask that the text model does not know.
    """
    if state is not None:
        saved = saved_vocabulary(state["vocabulary"])
        assert not isinstance(saved, MissingVocabulary)  # no run has been without one
        return saved
    key = "model.text.encoder"
    text = config.model.text.encoder
    if reads_pieces(config):
        if (file := config.data.vocabulary.file) is not None:
            place = "data.vocabulary.file"
            raise InputError(f"{config.source(place)}: {place}: {text.name} has its own vocabulary; got {file}")
        with naming(config, f"{key}.model"):
            pieces = Subwords.read(text.arguments["model"])
        if drop := text.arguments.get("drop"):
            lacks = "mask token to put in the place of words" if pieces.mask is None else "notion of words"
            if pieces.mask is None or len(np.unique(pieces.encode_words("two dogs")[1][1:-1])) < 2:
                raise InputError(
                    f"{config.source(f'{key}.drop')}: {key}.drop: the tokenizer of {text.arguments['model']} has no "
                    f"{lacks}; expected 0, got {drop}"
                )
        return pieces
    if config.data.vocabulary.file is not None:
        return Vocabulary.read(config.data.vocabulary.file)
    return Vocabulary.build(training.captions, config.data.vocabulary.min_count)


def image_width(*corpora: Corpus) -> int | None:
    """Return the width of the corpora's features, None for pictures and clips. Raises InputError when they differ."""
    first = corpora[0]
    for corpus in corpora:
        own, width = first.images.width, corpus.images.width
        if (own is None) != (width is None):
            raise InputError(f"{first.name} and {corpus.name}: one has features, the other has none")
        if own != width:
            raise InputError(f"{first.name} has features {own} wide, but {corpus.name} has them {width} wide")
    return first.images.width


def reads_pieces(config: Config) -> bool:
    """Whether the text encoder comes with its tokenizer."""
    return _reads(config, "text", "") == ("pieces",)


def saved_vocabulary(state: Any) -> Words:
    """Vocabulary from what a checkpoint holds of it."""
    if isinstance(state, dict) and "rows" in state:
        return MissingVocabulary(**state)
    try:
        return Subwords(**state) if isinstance(state, dict) else Vocabulary(state)
    except ValueError as error:
        raise InputError(f"the checkpoint's vocabulary: {error}") from None


def build_model(config: Config, in_dim: int | None, vocabulary: Words, state: dict[str, Any] | None = None) -> VSEModel:
    """Model of a config, for features ``in_dim`` wide or, without, for pictures.

    With the ``state`` of a checkpoint it will get its weights from there: no file of published ones is read.
    """
    fresh = state is None
    known: Any = {"image": None, "text": None} if state is None else state.get("architectures", {})
    given: dict[str, Any] = {} if in_dim is None else {"in_dim": in_dim}
    gives: tuple[str, ...] = ("pieces" if isinstance(vocabulary, Subwords) else "words",)
    if isinstance(vocabulary, MissingVocabulary):
        gives = ("words", "pieces")
    tokens = {"vocab_size": len(vocabulary), "architecture": known.get("text", {})}
    image = _build_tower(
        config,
        "image",
        ("features",) if given else ("pictures", "frames"),
        {**given, "architecture": known.get("image", {})},
        fresh,
    )
    text = _build_tower(config, "text", gives, tokens, fresh)
    if isinstance(vocabulary, Subwords):
        vocabulary.cut(getattr(text.encoder, "max_length", None))
    transform = None if config.data.transform is None else make(config, _TRANSFORMS, "data.transform")
    model = VSEModel(image, text, make(config, SIMILARITIES, "model.similarity"), vocabulary, transform)
    if fresh:
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"model.{name}: the weights that it starts from are not finite")
    if fresh and config.data.vocabulary.vectors is not None:
        _fill_word_vectors(config, config.data.vocabulary.vectors, model, vocabulary)
    return model


def _fill_word_vectors(config: Config, file: str, model: VSEModel, vocabulary: Words) -> None:
    """Put a file's word vectors into the text encoder's table."""
    table = getattr(model.text.encoder, "embedding", None)
    if not isinstance(table, nn.Embedding) or not isinstance(vocabulary, Vocabulary):
        key, name = "data.vocabulary.vectors", config.model.text.encoder.name
        raise InputError(f"{config.source(key)}: {key}: {name} has no table of words to fill")
    vectors, found = read_vectors(file, vocabulary.words, table.embedding_dim)
    with torch.no_grad():
        rows = torch.from_numpy(found)
        table.weight[rows.to(table.weight.device)] = torch.from_numpy(vectors)[rows].to(table.weight)
    print(f"{file}: vectors of {found.sum():,} of {len(found):,} words ({100 * found.mean():.1f} %)")


def evaluation_state(config: Config, model: VSEModel, in_dim: int | None) -> dict[str, Any]:
    """What a checkpoint holds for evaluation: no other file is needed."""
    assert model.vocabulary is not None
    return {
        "config": config.model_dump(),
        "vocabulary": model.vocabulary.state,
        "architectures": _architectures(model),
        "in_dim": in_dim,
        "model": model.state_dict(),
    }


def _architectures(model: VSEModel) -> dict[str, Any]:
    """What a checkpoint must know of encoders that a file other than the config describes."""
    encoders = {"image": model.image.encoder, "text": model.text.encoder}
    found = {side: getattr(encoder, "architecture", None) for side, encoder in encoders.items()}
    return {side: architecture for side, architecture in found.items() if architecture is not None}


def build_criterion(config: Config) -> Criterion:
    """Ranking loss and weighted terms of a config; a weight of 0 leaves a term out."""
    terms = {}
    for name, term in config.loss.terms.items():
        if not term.weight:
            continue
        function = find(config, REGULARISERS, f"loss.terms.{name}", name)
        terms[name] = (term.weight, construct(config, f"loss.terms.{name}", function, term.arguments))
    return Criterion(make(config, LOSSES, "loss.ranking"), terms, config.loss.ramp_epoch)


def check_fit(config: Config, model: VSEModel, criterion: Criterion, batch: Batch) -> None:
    """Raise InputError when encoders, aggregators, similarity and loss do not fit together, as a batch tells."""
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a loss may draw random numbers
        with naming(config, "model.image"):
            try:
                image = model.image(batch.images, batch.image_mask)
            except RuntimeError as error:
                if batch.images.dim() < 4:
                    raise
                height, width = batch.images.shape[-2:]
                raise ValueError(f"takes no pictures of {height} x {width} ({first_line(error)})") from None
        with naming(config, "model.text"):
            text = model.text(batch.tokens, batch.token_mask)
        with naming(config, "model.similarity", config.model.similarity.arguments):
            scores = model.similarity(image.embeddings, text.embeddings)
        with naming(config, "loss.ranking", config.loss.ranking.arguments):
            criterion.ranking(scores, batch.positives)
        for name, (_, term) in criterion.terms.items():
            with naming(config, f"loss.terms.{name}", config.loss.terms[name].arguments):
                term(image, text)


def build_optimiser(config: Config, model: VSEModel, criterion: Criterion) -> torch.optim.Optimizer:
    """Optimiser over the model's and the criterion's parameters, grouped by learning-rate factor."""
    named = [*model.named_parameters(), *((f"loss.{name}", p) for name, p in criterion.named_parameters())]
    named = [(name, p) for name, p in named if p.requires_grad]
    try:
        factors = {prefix: factor for prefix, factor in config.optim.factors.items() if factor is not None}
        groups = parameter_groups(named, config.optim.lr, factors)
    except ValueError as error:
        raise InputError(f"{config.source('optim.factors')}: optim.factors: {error}") from None
    settings = {"params": groups, "lr": config.optim.lr, "weight_decay": config.optim.weight_decay}
    optimiser: torch.optim.Optimizer = make(config, OPTIMISERS, "optim", settings)
    return optimiser


def build_schedule(config: Config) -> Schedule:
    """Learning-rate schedule of a config."""
    schedule: Schedule = make(config, SCHEDULES, "optim.schedule", {"epochs": config.train.epochs})
    return schedule


def _build_tower(config: Config, side: str, gives: tuple[str, ...], widths: dict[str, Any], fresh: bool) -> Tower:
    """One tower, its widths filled in from the data and ``model.embed_dim``."""
    key = f"model.{side}"
    tower = getattr(config.model, side)
    embed_dim = config.model.embed_dim
    encoder = _build_encoder(config, side, gives, widths, fresh)
    widths = {"in_dim": encoder.dim, "out_dim": embed_dim, "dim": encoder.dim}
    aggregator = make(config, AGGREGATORS, f"{key}.aggregator", widths)
    width = getattr(aggregator, "out_dim", encoder.dim)
    if getattr(aggregator, "returns_context", False):
        width = getattr(encoder, "context_dim", None) or encoder.dim
    if width != embed_dim:
        given = [k for k in ("encoder.dim", "encoder.features", "aggregator.name") if f"{key}.{k}" in config._origin]
        place = f"{key}.{given[0] if given else 'aggregator.name'}"
        raise InputError(
            f"{config.source(place)}: {place}: {tower.aggregator.name} keeps the width of the encoder's features, "
            f"{width}, but model.embed_dim is {embed_dim}"
        )
    if side == "text" and getattr(aggregator, "grid", None) is not None:
        place = f"{key}.aggregator.grid"
        raise InputError(f"{config.source(place)}: {place}: is for a picture's cells, but the text tower has tokens")
    return Tower(encoder, aggregator)


def _build_encoder(config: Config, side: str, gives: tuple[str, ...], widths: dict[str, Any], fresh: bool) -> Any:
    """A tower's encoder, its widths filled in."""
    key = f"model.{side}"
    tower = getattr(config.model, side)
    embed_dim = config.model.embed_dim
    reads = _reads(config, side, gives[0])
    if not set(reads) & set(gives):
        raise InputError(
            f"{config.source(f'{key}.encoder.name')}: {key}.encoder.name: {tower.encoder.name} reads "
            f"{' or '.join(reads)}, but the {side} tower is given {' or '.join(gives)}"
        )
    instead = {} if fresh else {"weights": None}
    encoder = make(config, ENCODERS, f"{key}.encoder", {**widths, "dim": embed_dim}, instead)
    if not hasattr(encoder, "dim"):
        source = config.source(f"{key}.encoder.name")
        raise InputError(f"{source}: {key}.encoder.name: {tower.encoder.name} is no encoder: it has no attribute dim")
    return encoder
