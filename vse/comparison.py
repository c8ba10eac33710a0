"""Several runs, checkpoints or saved scores on one corpus: each, and their ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vse.build import build_corpus, load_model
from vse.data.corpora import Corpus
from vse.errors import InputError
from vse.evaluation import Member, ensemble, read_scores, report, save_scores, score_corpus
from vse.protocols import bootstrap
from vse.runtime import pick_device


def compare(
    runs: Sequence[str],
    overrides: Sequence[str],
    split: str,
    protocol: str,
    samples: int | None = None,
    scores_file: Path | None = None,
) -> tuple[dict[str, dict[str, Any]], str]:
    """Metrics by name of each of ``runs`` and, of several, their ensemble; and the corpus's size in words.

    ``runs``: run folders, checkpoints, or files of saved scores, at least one of them no such file. ``samples`` adds
    bootstrap intervals; ``scores_file`` keeps the (ensemble's) scores. Raises InputError when the corpora of two
    members are not the same.
    """
    files = [run for run in runs if run.endswith(".npz")]
    if len(files) == len(runs):
        raise InputError(f"{runs[0] if runs else 'RUN'}: expected a run folder or checkpoint among the arguments")
    corpus: Corpus | None = None
    members: dict[str, Member] = {}
    for run in (run for run in runs if run not in files):
        model, config, file = load_model(run, overrides)
        own = build_corpus(config, split)
        if corpus is None:
            corpus = own
        _same(corpus, own, runs[0], run)
        model.to(pick_device(config.run.device))
        name = str(file)
        members[run] = score_corpus(model, own, config.eval.batch_size, config.run.precision, name=name)
    assert corpus is not None
    ordered = [read_scores(Path(run), corpus) if run in files else members[run] for run in runs]
    if len(ordered) > 1:
        ordered.append(ensemble(ordered))
    results = {member.name: report(member, corpus, protocol) for member in ordered}
    if len(results) < len(ordered):
        raise InputError(f"{', '.join(runs)}: the same one twice; expected different members")
    if samples is not None:
        for name in ("coco_1k", "coco_5k") if protocol == "coco" else (protocol,):
            parts = bootstrap([member.scores for member in ordered], corpus.image_of_caption, name, samples)
            for member, intervals in zip(ordered, parts, strict=True):
                metrics = results[member.name]
                (metrics[name] if protocol == "coco" else metrics)["bootstrap"] = intervals
    if scores_file is not None:
        save_scores(scores_file, ordered[-1], corpus)
    return results, f"{len(corpus.images):,} images, {len(corpus.captions):,} captions"


def _same(first: Corpus, other: Corpus, name: str, other_name: str) -> None:
    """Raise InputError when two corpora differ in an id."""
    for what in ("image_ids", "caption_ids", "captions"):
        ours, theirs = list(getattr(first, what)), list(getattr(other, what))
        if ours != theirs:
            place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), "the end")
            raise InputError(f"{name} and {other_name}: their {what} differ from number {place} on")
