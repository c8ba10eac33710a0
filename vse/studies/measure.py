"""What a finished run of a study leaves: its metrics, its cost, and the ranks from which intervals are computed."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vse.build import build_corpus
from vse.checkpoints.load import load_model
from vse.config import config_changes
from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.encode import check_corpus
from vse.evaluation.folds import FoldRanks
from vse.evaluation.json_file import rounded
from vse.evaluation.protocols import check_protocol, parts_of_protocol, report
from vse.evaluation.score import CorpusScores, embed_corpus, nan_names, score_embeddings, single_embedding_rsums
from vse.files import write_file, write_json
from vse.runtime import pick_device
from vse.studies.cost import training_cost
from vse.studies.plan import PlannedRun, Study

RESULT, RANKS, MACHINE = "result.json", "ranks.npz", "machine.json"  # in a run folder


def measure(run: PlannedRun, study: Study) -> None:
    """Evaluate a run's best checkpoint, and write what the study needs of the run into its folder.

    Args:
        run: A run whose training has finished.
        study: The study.

    Raises:
        InputError: The protocol is not for the data, or a file cannot be read or written.
    """
    protocol, config = study.protocol, run.config
    places = [f"data.root={json.dumps(config.data.root)}", f"run.device={json.dumps(config.run.device)}"]
    loaded = load_model(run.folder, places)
    corpus = build_corpus(loaded.config, study.content.split)
    check_corpus(loaded.model, corpus)
    check_protocol(protocol, corpus)
    model = loaded.model.to(pick_device(config.run.device))
    embeddings = embed_corpus(model, corpus, config.eval.batch_size, config.eval.precision, progress=False)
    scored = score_embeddings(embeddings, corpus, run.name)
    if protocol.bootstrap:  # before the metrics, which then use the same ranks and draw no bar of their own
        _save_ranks(run.folder / RANKS, scored, corpus, study)
    metrics = report(scored, corpus, protocol)
    if "sets" in metrics:
        alone = single_embedding_rsums(embeddings, corpus.image_of_caption, progress=False)
        metrics["sets"] = {**metrics["sets"], **alone, "start": loaded.start}
    machine = run.folder / MACHINE
    result = {
        "split": study.content.split,
        "protocol": protocol.name,
        "config": config.model_dump(),
        "corpus": {"images": len(corpus.images), "captions": len(corpus.captions), "digest": _digest(corpus)},
        "metrics": metrics,
        "training": training_cost(run.folder / "metrics.jsonl"),
        "machine": json.loads(machine.read_text()) if machine.is_file() else {},
    }
    write_json(run.folder / RESULT, rounded(result))  # the last file: with it, the run is finished


def _digest(corpus: Corpus) -> str:
    """What tells whether two runs were evaluated on the same captions of the same images."""
    ids = [list(map(str, corpus.image_ids)), list(map(str, corpus.caption_ids)), list(corpus.captions)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def _save_ranks(file: Path, scored: CorpusScores, corpus: Corpus, study: Study) -> None:
    """Write the ranks of all queries, for each part of the protocol."""
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts_of_protocol(study.protocol).items():
        with nan_names(corpus):
            folds = scored.ranks(corpus.image_of_caption, part.folds, progress=False)
        for field in FoldRanks._fields:
            arrays[f"{name}.{field}"] = np.concatenate([np.asarray(getattr(fold, field)) for fold in folds])
    write_file(file, lambda target: np.savez_compressed(target, **arrays))  # type: ignore[arg-type]


def read_ranks(folder: Path, parts: Sequence[str]) -> dict[str, list[FoldRanks]]:
    """Read the ranks of a run.

    Args:
        folder: The run folder.
        parts: The names of the parts of the protocol.

    Returns:
        The ranks of each part, its folds behind each other.
    """
    with np.load(folder / RANKS) as arrays:
        return {
            name: [
                FoldRanks(
                    torch.from_numpy(arrays[f"{name}.i2t"]),
                    torch.from_numpy(arrays[f"{name}.t2i"]),
                    arrays[f"{name}.images"],
                    arrays[f"{name}.image_of_caption"],
                )
            ]
            for name in parts
        }


def read_result(run: PlannedRun, study: Study) -> dict[str, Any] | None:
    """Read what a run has left.

    Args:
        run: The run.
        study: The study.

    Returns:
        The result; None where the run has none, or one of fewer epochs, another split or another protocol.

    Raises:
        InputError: The file cannot be read, or is of a run with other settings.
    """
    file = run.folder / RESULT
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        saved = result["config"]
        evaluated = result["split"], result["protocol"]
        length = saved["train"]["epochs"], saved["train"]["patience"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: is not the result of a run; remove it, and it is written again") from None
    changes = config_changes(saved, run.config)
    if changes:
        raise InputError(f"{run.folder}: was trained with other settings: {'; '.join(changes)}; choose another --dir")
    planned = run.config.train.epochs, run.config.train.patience
    is_same = length == planned and evaluated == (study.content.split, study.protocol.name)
    return result if is_same and (not study.protocol.bootstrap or (run.folder / RANKS).is_file()) else None


def merge(study: Study, folders: Sequence[Path]) -> int:
    """Copy the results of runs from the study's folders of other machines; a result that is here is kept.

    Args:
        study: The study.
        folders: The folders.

    Returns:
        How many results were copied.

    Raises:
        InputError: A folder is missing, or has no result of this study.
    """
    count = 0
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--merge: {folder}: no such folder")
        found = 0
        for run in study.runs:
            source = folder / run.folder.relative_to(study.folder)
            if not (source / RESULT).is_file():
                continue
            found += 1
            if (run.folder / RESULT).is_file():
                continue
            run.folder.mkdir(parents=True, exist_ok=True)
            for name in (RANKS, RESULT):  # the result last, since it says that all is there
                if (source / name).is_file():
                    _copy(source / name, run.folder / name)
            count += 1
        if not found:
            raise InputError(f"--merge: {folder}: holds no result of study {study.name}")
    return count


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it is there completely or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
