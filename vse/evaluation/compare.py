"""Several runs, checkpoints or saved scores on one corpus: each, and their ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vse.build import build_corpus
from vse.checkpoints.load import load_model
from vse.checkpoints.native import find_checkpoint
from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.judgements import read_judgements
from vse.evaluation.protocols import bootstrap, check_samples
from vse.evaluation.score import (
    check_corpus,
    check_protocol,
    check_scores_file,
    ensemble,
    read_scores,
    report,
    save_scores,
    score_corpus,
)
from vse.evaluation.tables import Row, check_json_file, format_rows, format_table, label, mark, published_rows
from vse.runtime import pick_device


class Comparison(NamedTuple):
    """Metrics by name, and the same for reading."""

    metrics: dict[str, dict[str, Any]]
    tables: str
    markdown: str
    file: str  # where a run folder keeps the metrics


def compare(
    runs: Sequence[str],
    overrides: Sequence[str] = (),
    split: str = "test",
    protocol: str = "retrieval",
    *,
    vocabulary: Path | None = None,
    padding: str = "masked",
    cxc: Path | None = None,
    samples: int | None = None,
    published: bool = False,
    scores_file: Path | None = None,
) -> Comparison:
    """Evaluate each of ``runs`` and, of several, their ensemble.

    ``runs``: run folders, checkpoints, or files of saved scores, at least one of them no such file. ``vocabulary`` and
    ``padding`` as in :func:`vse.load`; among several, the vocabulary is for those that have none. ``cxc``: folder of
    CxC's judgements within images and within captions, for that protocol. ``samples`` adds bootstrap intervals,
    ``published`` the papers' numbers to the tables; ``scores_file`` keeps the (ensemble's) scores. Raises InputError
    when the corpora of two members are not the same.
    """
    plain = protocol in ("retrieval", "f30k", "coco_5k", "video")  # metrics among all images and captions
    kept = (split if plain else f"{split}_{protocol}") + "_released" * (padding == "released") + ".json"
    files = [run for run in runs if run.endswith(".npz")]
    _check_arguments(runs, files, protocol, cxc, samples, scores_file)
    if len(runs) == 1 and Path(runs[0]).is_dir():
        check_json_file(Path(runs[0]) / kept)
    if vocabulary is not None and not vocabulary.exists():
        raise InputError(f"{vocabulary}: no such file; expected a vocabulary")
    judgements = None if cxc is None else read_judgements(cxc)
    loaded = {}
    for run in (run for run in runs if run not in files):  # what can be wrong is told before anything is encoded
        model, config, file = load_model(run, overrides, vocabulary, padding, keep_own=len(runs) > 1)
        loaded[run] = model, config, file, build_corpus(config, split)
        check_corpus(model, loaded[run][-1])
    first, (_, config, _, corpus) = next(iter(loaded.items()))
    theirs = published_rows(protocol, config.data.format) if published else []
    for run, (*_, own) in loaded.items():
        _same(corpus, own, first, run)
    check_protocol(corpus, protocol)
    members = {run: read_scores(Path(run), corpus) for run in files}
    for run, (model, config, file, own) in loaded.items():
        model.to(pick_device(config.run.device))
        name = str(file)
        members[run] = score_corpus(model, own, config.eval.batch_size, config.run.precision, name=name)
    ordered = [members[run] for run in runs]
    if len(ordered) > 1:
        ordered.append(ensemble(ordered))
    results = {member.name: report(member, corpus, protocol, judgements) for member in ordered}
    if samples is not None:
        for name in ("coco_1k", "coco_5k") if protocol == "coco" else (protocol,):
            parts = bootstrap([member.scores for member in ordered], corpus.image_of_caption, name, samples)
            for member, intervals in zip(ordered, parts, strict=True):
                metrics = results[member.name]
                (metrics[name] if protocol == "coco" else metrics)["bootstrap"] = intervals
    if scores_file is not None:
        save_scores(scores_file, ordered[-1], corpus)
    size = f"{len(corpus.images):,} images, {len(corpus.captions):,} captions"
    if padding == "released":
        size += ", released padding"
    marks = {member.name: label(member.name, mark(member.models)) for member in ordered}
    tables = [format_table(metrics, f"{marks[name]}, {split}: {size}") for name, metrics in results.items()]
    rows = [*(Row(member.name, results[member.name], mark(member.models)) for member in ordered), *theirs]
    if theirs:
        tables.append(format_rows(rows))
    return Comparison(results, "\n\n".join(tables), format_rows(rows, markdown=True), kept)


def _check_arguments(
    runs: Sequence[str],
    files: Sequence[str],
    protocol: str,
    cxc: Path | None,
    samples: int | None,
    scores_file: Path | None,
) -> None:
    """Raise InputError for what does not go together, before anything is read."""
    if len(files) == len(runs):
        raise InputError(f"{runs[0] if runs else 'RUN'}: expected a run folder or checkpoint among the arguments")
    if cxc is not None and (protocol != "cxc" or files):
        problem = f"{files[0]} holds scores, no embeddings" if files else f"got --protocol {protocol}"
        raise InputError(f"--cxc is for models under --protocol cxc; {problem}")
    if samples is not None:
        check_samples(samples)
        if protocol in ("cxc", "eccv"):
            raise InputError(f"--bootstrap is for R@K of a corpus's own pairs; got --protocol {protocol}")
    places = [Path(run).resolve() if run in files else find_checkpoint(run).resolve() for run in runs]
    if len(set(places)) < len(runs):
        raise InputError(f"{', '.join(runs)}: the same one twice; expected different members")
    if scores_file is not None:
        check_scores_file(scores_file)
        if scores_file.resolve() in places:
            raise InputError(f"{scores_file}: is one of the members; expected another file for the scores")


def _same(first: Corpus, other: Corpus, name: str, other_name: str) -> None:
    """Raise InputError when two corpora differ in an id."""
    for what in ("image_ids", "caption_ids", "captions"):
        ours, theirs = list(getattr(first, what)), list(getattr(other, what))
        if ours != theirs:
            place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), "the end")
            raise InputError(f"{name} and {other_name}: their {what} differ from number {place} on")
