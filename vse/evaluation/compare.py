"""Evaluate several runs, checkpoints or files of scores on one corpus: each of them, and perhaps their ensemble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vse.build import build_corpus
from vse.checkpoints.hub import PREFIX
from vse.checkpoints.load import Loaded, load_model
from vse.checkpoints.native import find_checkpoint
from vse.config_files import find_config, names_config
from vse.data.corpus import Corpus
from vse.distributed import is_main, world_size
from vse.errors import InputError
from vse.evaluation.bootstrap import bootstrap, check_samples
from vse.evaluation.encode import CorpusEmbeddings, check_corpus
from vse.evaluation.ensemble import check_scores_file, ensemble, read_scores, save_scores
from vse.evaluation.groups import group_name, groups_of, mean_and_deviation, short_names
from vse.evaluation.json_file import check_json_file, write_json
from vse.evaluation.judgements import read_judgements
from vse.evaluation.protocols import PROTOCOLS, Protocol, check_protocol, find_protocol, parts_of_protocol, report
from vse.evaluation.published import Published, published_results, published_rows
from vse.evaluation.score import CorpusScores, embed_corpus, nan_names, score_embeddings, single_embedding_rsums
from vse.evaluation.tables import Row, Table, as_text, format_table, label, mark, parts_of, tables_of
from vse.runtime import pick_device


class Comparison(NamedTuple):
    """What was measured, by the name of each row of the tables, and the same for reading.

    Attributes:
        metrics: The metrics of each row by its name: of a run, of several that differ in their seed alone, or of the
            ensemble. Where several runs are a row, their mean, their "deviation", and under "runs" those of each.
        text: Tables for the terminal.
        tables: One table of all rows for each part of the protocol, for :data:`vse.evaluation.tables.FORMATS`.
        files: What :meth:`write` writes into which file.
    """

    metrics: dict[str, dict[str, Any]]
    text: str
    tables: list[Table]
    files: dict[Path, dict[str, Any]]

    def write(self) -> None:
        """Write the metrics of each run into its folder, and all of them into the file that the user named."""
        for path, content in self.files.items():
            write_json(path, content)


class _Trained(NamedTuple):
    """A trained model, and the corpus as its own config describes it."""

    run: str  # as the user wrote it
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
    with_ensemble: bool = False,
    each: bool = False,
    scores_file: Path | None = None,
    json_file: Path | None = None,
) -> Comparison:
    """Evaluate some members, each alone and perhaps together.

    Runs whose configs differ in the seed alone are one row of the tables, their mean and standard deviation.

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
        with_ensemble: Whether to evaluate the mean of all members' scores, too.
        each: Whether runs that differ in the seed alone are rows of their own.
        scores_file: Where to save the scores, of the one member or of the ensemble; None for nowhere.
        json_file: Where :meth:`Comparison.write` should write the metrics, beside the folder of each run.

    Returns:
        The metrics, and tables of them. Of several processes the main one reports; the others, which have encoded their
        share, return an empty comparison.

    Raises:
        InputError: An argument, a file or a checkpoint is not what it should be, or the members' corpora differ.
    """
    rules = find_protocol(protocol)
    folder_files = _files_in_folders(runs, split, rules, padding)
    files = [*folder_files.values(), *([] if json_file is None else [json_file])]
    _check_arguments(runs, rules, cxc, samples)
    _check_ensemble(runs, with_ensemble, scores_file)
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
        return Comparison({}, "", [], {})
    names = _names(runs, trained)
    with nan_names(corpus):
        members = _score_members(runs, trained, embeddings, corpus, names)
        together = [ensemble(members)] if with_ensemble else []
        if scores_file is not None:  # before they are ranked, which then uses the same matrix
            save_scores(scores_file, (together or members)[0], corpus)
    groups = [] if each else groups_of({names[t.run]: (t.loaded.config, t.loaded.file.name) for t in trained})
    singles = {member.name: report(member, corpus, rules, judgements) for member in [*members, *together]}
    rows = _rows([*members, *together], groups)
    results = {name: _result([singles[one.name] for one in own], own) for name, own in rows.items()}
    if samples is not None:
        _add_intervals(results, singles, rows, corpus, rules, samples)

    title = f"{split}: {len(corpus.images):,} images, {len(corpus.captions):,} captions"
    if padding == "released":
        title += ", released padding"
    text, tables = _format(results, rows, corpus, rules, title, papers)
    contents = {path: _of_one_run(singles[names[run]]) for run, path in folder_files.items()}
    if json_file is not None:
        contents[json_file] = results if len(results) > 1 else next(iter(results.values()))
    return Comparison(results, text, tables, contents)


def _is_scores(run: str) -> bool:
    """Whether a member is a file of saved scores."""
    return run.endswith(".npz")


def _files_in_folders(runs: Sequence[str], split: str, protocol: Protocol, padding: str) -> dict[str, Path]:
    """The file in each run's folder that keeps the metrics, by the run."""
    name = split if protocol.plain else f"{split}_{protocol.name}"
    if padding == "released":
        name += "_released"
    return {run: Path(run) / f"{name}.json" for run in runs if Path(run).is_dir()}


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


def _check_ensemble(runs: Sequence[str], with_ensemble: bool, scores_file: Path | None) -> None:
    """Raise InputError for an ensemble of one, and for several matrices where one can be saved."""
    if with_ensemble and len(runs) < 2:
        raise InputError(f"--ensemble is the mean of several members' scores, got only {runs[0]}")
    if scores_file is not None and len(runs) > 1 and not with_ensemble:
        raise InputError("--save-scores saves one score matrix; with several members, add --ensemble to save theirs")


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
            if problem := _difference(first, other, what):
                raise InputError(f"{first.run} and {other.run}: {problem}")


def _difference(first: _Trained, other: _Trained, what: str) -> str:
    """How an attribute of two members' corpora differs; "" where it is the same."""
    ours, theirs = list(getattr(first.corpus, what)), list(getattr(other.corpus, what))
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if place is not None:
        return f"their {what} differ from number {place} on"
    if len(ours) == len(theirs):
        return ""
    longer, same = (first, theirs) if len(ours) > len(theirs) else (other, ours)
    more = abs(len(ours) - len(theirs))
    return f"the first {len(same):,} of their {what} are the same, and {longer.run} has {more:,} more"


def _encode(trained: _Trained) -> CorpusEmbeddings:
    """A model's embeddings of its corpus."""
    config = trained.loaded.config
    model = trained.loaded.model.to(pick_device(config.run.device))
    return embed_corpus(model, trained.corpus, config.eval.batch_size, config.eval.precision)


def _names(runs: Sequence[str], trained: Sequence[_Trained]) -> dict[str, str]:
    """What the tables call each member."""
    files = {run: Path(run) for run in runs} | {one.run: one.loaded.file for one in trained}
    names = dict(zip(runs, short_names([files[run] for run in runs]), strict=True))
    shipped = {run: run for run in runs if names_config(run) and not Path(run).exists()}
    return names | shipped | {run: run.removeprefix(PREFIX) for run in runs if run.startswith(PREFIX)}


def _score_members(
    runs: Sequence[str],
    trained: Sequence[_Trained],
    embeddings: dict[str, CorpusEmbeddings],
    corpus: Corpus,
    names: dict[str, str],
) -> list[CorpusScores]:
    """The scores of each member, in the order in which the user gave them."""
    scored = {run: read_scores(Path(run), corpus) for run in runs if _is_scores(run)}
    for one in trained:
        scored[one.run] = _score_model(one, embeddings[one.run])
    return [replace(scored[run], name=names[run]) for run in runs]


def _score_model(trained: _Trained, embeddings: CorpusEmbeddings) -> CorpusScores:
    """Score a model's corpus, look at each embedding of its sets alone, and recall how the sets were at the start."""
    scored = score_embeddings(embeddings, trained.corpus)
    sets = {**scored.sets, **single_embedding_rsums(embeddings, trained.corpus.image_of_caption)}
    return replace(scored, sets={**sets, "start": trained.loaded.start} if trained.loaded.start else sets)


Rows = dict[str, list[CorpusScores]]  # by the name of each row of the tables, its runs


def _rows(members: Sequence[CorpusScores], groups: Sequence[Sequence[str]]) -> Rows:
    """The rows of the tables in the order of the members; a group stands where its first run does."""
    by_name = {member.name: member for member in members}
    group_of = {name: group for group in groups for name in group}
    rows: Rows = {}
    for name in by_name:
        group = group_of.get(name, [name])
        if len(group) == 1:
            rows[name] = [by_name[name]]
        elif name == group[0]:
            others = [other for other in by_name if other not in group]
            rows[group_name(group, others)] = [by_name[one] for one in group]
    return rows


def _result(metrics: Sequence[dict[str, Any]], runs: Sequence[CorpusScores]) -> dict[str, Any]:
    """The metrics of a row: those of its only run, or the mean of several, their deviation, and those of each."""
    if len(metrics) == 1:
        return metrics[0]
    return {**mean_and_deviation(metrics), "runs": {run.name: own for run, own in zip(runs, metrics, strict=True)}}


def _add_intervals(
    results: dict[str, dict[str, Any]],
    singles: dict[str, dict[str, Any]],
    rows: Rows,
    corpus: Corpus,
    protocol: Protocol,
    samples: int,
) -> None:
    """Put bootstrap intervals beside the metrics of each row, and of each run, for each part of the protocol.

    A run that is not a row of its own gets no interval of a difference.
    """
    grouped = [run for runs in rows.values() if len(runs) > 1 for run in runs]
    targets = [*results.values(), *(singles[run.name] for run in grouped)]
    for name, part in parts_of_protocol(protocol).items():
        ranks = [[run.ranks(corpus.image_of_caption, part.folds) for run in runs] for runs in rows.values()]
        ranks += [[run.ranks(corpus.image_of_caption, part.folds)] for run in grouped]
        for number, (target, own) in enumerate(zip(targets, bootstrap(ranks, samples), strict=True)):
            if number >= len(results):
                own.pop("difference", None)
            parts_of(target)[name]["bootstrap"] = own


def _of_one_run(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a run without its differences to another, for its own folder."""
    kept = {}
    for key, value in metrics.items():
        if key != "difference":
            kept[key] = _of_one_run(value) if isinstance(value, dict) else value
    return kept


def _format(
    results: dict[str, dict[str, Any]],
    rows: Rows,
    corpus: Corpus,
    protocol: Protocol,
    title: str,
    papers: Sequence[Published],
) -> tuple[str, list[Table]]:
    """Tables for a terminal, and one of all rows for each part of the protocol."""
    own = [Row(name, results[name], _mark(runs)) for name, runs in rows.items()]
    texts = [format_table(row.metrics, f"{label(row.name, row.mark)}, {title}") for row in own]
    published, left_out = published_rows(papers, protocol, corpus)
    if len(own) > 1 or published:
        texts.append(as_text(tables_of([*own, *published])))
    if left_out:
        texts.append(left_out)
    return "\n\n".join(texts), tables_of([*own, *published])


def _mark(runs: Sequence[CorpusScores]) -> str:
    """How many models or runs a row stands for, where it is not one."""
    if len(runs) > 1:
        return f"n = {len(runs)}"
    return "" if runs[0].models == 1 else mark(runs[0].models)
