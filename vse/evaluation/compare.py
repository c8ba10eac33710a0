"""Evaluate several runs, checkpoints or files of scores on one corpus: each of them, and their ensemble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vse.build import build_corpus
from vse.checkpoints.load import Loaded, load_model
from vse.checkpoints.native import find_checkpoint
from vse.config_files import find_config, names_config
from vse.data.corpus import Corpus
from vse.distributed import is_main, world_size
from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap, check_samples
from vse.evaluation.encode import CorpusEmbeddings, check_corpus
from vse.evaluation.ensemble import check_scores_file, ensemble, read_scores, save_scores
from vse.evaluation.json_file import check_json_file, write_json
from vse.evaluation.judgements import read_judgements
from vse.evaluation.protocols import PROTOCOLS, Protocol, check_protocol, find_protocol, parts_of_protocol, report
from vse.evaluation.published import Published, published_results, published_rows
from vse.evaluation.score import CorpusScores, embed_corpus, nan_names, score_embeddings, single_embedding_rsums
from vse.evaluation.tables import Row, format_rows, format_table, label, mark, parts_of
from vse.runtime import pick_device


class Comparison(NamedTuple):
    """Metrics of each member and of the ensemble by name, and the same for reading.

    Attributes:
        metrics: The metrics of each member and of the ensemble, by name.
        tables: Tables for the terminal.
        markdown: One Markdown table of all results.
        files: The files where :meth:`write` keeps the metrics.
    """

    metrics: dict[str, dict[str, Any]]
    tables: str
    markdown: str
    files: tuple[Path, ...]

    def write(self) -> None:
        """Write the metrics to each of ``files``; a single result stands there without its name."""
        for path in self.files:
            write_json(path, self.metrics if len(self.metrics) > 1 else next(iter(self.metrics.values())))


class _Trained(NamedTuple):
    """A trained model, and the corpus as its own config describes it."""

    run: str  # as the user named it
    loaded: Loaded
    corpus: Corpus


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
    json_file: Path | None = None,
) -> Comparison:
    """Evaluate each of some members and, when there are several, their ensemble.

    Whatever can be wrong with the arguments is found before anything is encoded.

    Args:
        runs: Run folders, checkpoints, configs of pretrained models, or files of saved scores (``.npz``); at least one
            of them is not a file of scores.
        overrides: Settings as ``key=value`` that differ from the runs' own.
        split: The split to evaluate.
        protocol: The name of one of :data:`vse.evaluation.protocols.PROTOCOLS`.
        vocabulary: A vocabulary file for a checkpoint that came without one, see :func:`vse.load`. Of several members,
            only those that have none take it.
        padding: "masked" or "released", see :func:`vse.load`.
        cxc: The folder of CxC's judgements within images and within captions, for the protocol that can use them.
        samples: The number of bootstrap samples; None for no intervals.
        published: Whether the tables show the papers' numbers, too.
        scores_file: Where to save the scores, with several members those of the ensemble; None for nowhere.
        json_file: Where :meth:`Comparison.write` should write the metrics, beside the folder of a single run.

    Returns:
        The metrics, and tables of them. Of several processes the main one reports; the others, which have encoded their
        share, return an empty comparison.

    Raises:
        InputError: An argument, a file or a checkpoint is not what it should be, or the members' corpora differ.
    """
    rules = find_protocol(protocol)
    files = _files_to_write(runs, split, rules, padding, json_file)
    _check_arguments(runs, rules, cxc, samples)
    if padding == "released" and world_size() > 1:
        raise InputError("--padding released follows the official batches; evaluate with one process, without torchrun")
    _check_files(runs, files, vocabulary, scores_file)
    judgements = None if cxc is None else read_judgements(cxc)

    trained = [_load(run, overrides, split, vocabulary, padding, len(runs) > 1) for run in runs if not _is_scores(run)]
    _check_same_corpus(trained)
    corpus, data_format = trained[0].corpus, trained[0].loaded.config.data.format
    check_protocol(rules, corpus)
    papers = published_results(rules, data_format) if published else []

    embeddings = {one.run: _encode(one) for one in trained}
    if not is_main():
        return Comparison({}, "", "", ())
    with nan_names(corpus):
        members = _score_members(runs, trained, embeddings, corpus)
        if len(members) > 1:
            members.append(ensemble(members))
        if scores_file is not None:  # before they are ranked, which then uses the same matrix
            save_scores(scores_file, members[-1], corpus)
    results = {member.name: report(member, corpus, rules, judgements) for member in members}
    if samples is not None:
        _add_intervals(results, members, corpus, rules, samples)

    title = f"{split}: {len(corpus.images):,} images, {len(corpus.captions):,} captions"
    if padding == "released":
        title += ", released padding"
    tables, markdown = _format(results, members, corpus, rules, title, papers)
    return Comparison(results, tables, markdown, files)


def _is_scores(run: str) -> bool:
    """Whether a member is a file of saved scores."""
    return run.endswith(".npz")


def _files_to_write(
    runs: Sequence[str], split: str, protocol: Protocol, padding: str, json_file: Path | None
) -> tuple[Path, ...]:
    """Where the metrics go: the file that the user names, and the folder of a single run."""
    files = [] if json_file is None else [json_file]
    if len(runs) == 1 and Path(runs[0]).is_dir():
        name = split if protocol.plain else f"{split}_{protocol.name}"
        if padding == "released":
            name += "_released"
        files.append(Path(runs[0]) / f"{name}.json")
    return tuple(files)


def _check_arguments(runs: Sequence[str], protocol: Protocol, cxc: Path | None, samples: int | None) -> None:
    """Raise InputError for arguments that do not go together."""
    saved = [run for run in runs if _is_scores(run)]
    if len(saved) == len(runs):
        raise InputError(f"{runs[0] if runs else 'RUN'}: expected a run folder or checkpoint among the arguments")
    if cxc is not None:
        suited = " or ".join(name for name, other in PROTOCOLS.items() if other.judgements)
        if not protocol.judgements:
            raise InputError(f"--cxc is for --protocol {suited}, got --protocol {protocol.name}")
        if saved:
            raise InputError(f"--cxc needs the embeddings of each member, but {saved[0]} holds scores alone")
    if samples is not None:
        check_samples(samples)
        if not protocol.bootstrap:
            raise InputError(f"--bootstrap is for R@K of a corpus's own pairs, not for --protocol {protocol.name}")


def _check_files(runs: Sequence[str], files: Sequence[Path], vocabulary: Path | None, scores_file: Path | None) -> None:
    """Raise InputError for members that are missing or given twice, and for files that cannot be read or written."""
    places = [_place(run).resolve() for run in runs]
    if len(set(places)) < len(runs):
        raise InputError(f"{', '.join(runs)}: two of them are the same; expected different members")
    if scores_file is not None:
        check_scores_file(scores_file)
        if scores_file.resolve() in places:
            raise InputError(f"{scores_file}: is one of the members; expected another file for the scores")
    for path in files:
        check_json_file(path)
    if vocabulary is not None and not vocabulary.exists():
        raise InputError(f"{vocabulary}: no such file; expected a vocabulary")


def _place(run: str) -> Path:
    """The file that a member is read from."""
    if _is_scores(run):
        return Path(run)
    return find_config(run) if names_config(run) else find_checkpoint(run)


def _load(
    run: str, overrides: Sequence[str], split: str, vocabulary: Path | None, padding: str, keep_own: bool
) -> _Trained:
    """Load a member that is a model, and find its corpus."""
    loaded = load_model(run, overrides, vocabulary, padding, keep_own=keep_own)
    corpus = build_corpus(loaded.config, split)
    check_corpus(loaded.model, corpus)
    return _Trained(run, loaded, corpus)


def _check_same_corpus(trained: Sequence[_Trained]) -> None:
    """Raise InputError when the corpora of two members differ in an id or a caption."""
    first = trained[0]
    for other in trained[1:]:
        for what in ("image_ids", "caption_ids", "captions"):
            ours, theirs = list(getattr(first.corpus, what)), list(getattr(other.corpus, what))
            if ours != theirs:
                place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), "the end")
                raise InputError(f"{first.run} and {other.run}: their {what} differ from number {place} on")


def _encode(trained: _Trained) -> CorpusEmbeddings:
    """A model's embeddings of its corpus."""
    config = trained.loaded.config
    model = trained.loaded.model.to(pick_device(config.run.device))
    return embed_corpus(model, trained.corpus, config.eval.batch_size, config.eval.precision)


def _score_members(
    runs: Sequence[str], trained: Sequence[_Trained], embeddings: dict[str, CorpusEmbeddings], corpus: Corpus
) -> list[CorpusScores]:
    """The scores of each member, in the order in which the user gave them."""
    scored = {run: read_scores(Path(run), corpus) for run in runs if _is_scores(run)}
    for one in trained:
        scored[one.run] = _score_model(one, embeddings[one.run])
    return [scored[run] for run in runs]


def _score_model(trained: _Trained, embeddings: CorpusEmbeddings) -> CorpusScores:
    """Score a model's corpus, look at each embedding of its sets alone, and recall how the sets were at the start."""
    scored = score_embeddings(embeddings, trained.corpus, name=str(trained.loaded.file))
    sets = {**scored.sets, **single_embedding_rsums(embeddings, trained.corpus.image_of_caption)}
    return replace(scored, sets={**sets, "start": trained.loaded.start} if trained.loaded.start else sets)


def _add_intervals(
    results: dict[str, dict[str, Any]],
    members: Sequence[CorpusScores],
    corpus: Corpus,
    protocol: Protocol,
    samples: int,
) -> None:
    """Put bootstrap intervals beside the metrics of each member, for each part of the protocol."""
    for name, part in parts_of_protocol(protocol).items():
        intervals = bootstrap([member.ranks(corpus.image_of_caption, part.folds) for member in members], samples)
        for member, own in zip(members, intervals, strict=True):
            parts_of(results[member.name])[name]["bootstrap"] = own


def _format(
    results: dict[str, dict[str, Any]],
    members: Sequence[CorpusScores],
    corpus: Corpus,
    protocol: Protocol,
    title: str,
    papers: Sequence[Published],
) -> tuple[str, str]:
    """Tables for a terminal, and one in Markdown."""
    rows = [Row(member.name, results[member.name], mark(member.models)) for member in members]
    tables = [format_table(row.metrics, f"{label(row.name, row.mark)}, {title}") for row in rows]
    published, left_out = published_rows(papers, protocol, corpus)
    if published:
        tables.append(format_rows([*rows, *published]))
    if left_out:
        tables.append(left_out)
    return "\n\n".join(tables), format_rows([*rows, *published], markdown=True)
