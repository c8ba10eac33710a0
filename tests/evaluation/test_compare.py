import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Outcome, save_vse_infty, words_file, write_precomp

import vse
from vse.checkpoints.load import convert
from vse.data.formats import precomp
from vse.errors import InputError
from vse.evaluation.compare import compare
from vse.evaluation.encode import encode_corpus
from vse.evaluation.json_file import rounded
from vse.evaluation.score import evaluate, single_embedding_rsums
from vse.training import run

Cli = Callable[..., Outcome]
MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(make_run: MakeRun) -> tuple[str, str]:
    return str(make_run()), str(make_run("vse_infty", "run.seed=2"))


@pytest.fixture(scope="module")
def saved(runs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first run's scores."""
    file = tmp_path_factory.mktemp("scores") / "a.npz"
    compare([runs[0]], scores_file=file)
    return str(file)


def test_one_run(cli: Cli, runs: tuple[str, str], data_folder: Path, tmp_path: Path) -> None:
    """Printed, and kept in its folder and where the user wants it."""
    run, out = Path(runs[0]), tmp_path / "out.json"
    outcome = cli("eval", run, "--json", out, "--split", "dev", "--markdown")
    assert outcome.code == 0, outcome.err
    expected = evaluate(vse.load(run), precomp(str(data_folder), "dev"), 256, progress=False)
    assert json.loads(out.read_text()) == json.loads((run / "dev.json").read_text()) == rounded(expected)
    title, _, i2t, *_ = outcome.out.split("\n")
    assert title == f"{run.name}, dev: 10 images, 50 captions" and "ensemble" not in outcome.out
    assert i2t.split()[3] == f"{expected['i2t']['r1']:.1f}" and f"| {run.name} | " in outcome.out


def test_the_file_in_the_run_folder_tells_what_was_evaluated(runs: tuple[str, str], tmp_path: Path) -> None:
    folder, checkpoint = Path(runs[0]), str(Path(runs[1]) / "best.pt")
    assert list(compare([runs[0]], protocol="retrieval").files) == [folder / "test.json"]
    assert list(compare([runs[0]], split="dev", padding="released").files) == [folder / "dev_released.json"]
    assert compare([checkpoint]).files == {}
    assert list(compare([checkpoint, runs[0]]).files) == [folder / "test.json"]
    assert list(compare(list(runs)).files) == [folder / "test.json", Path(runs[1]) / "test.json"]
    assert list(compare([checkpoint], json_file=tmp_path / "a.json").files) == [tmp_path / "a.json"]


def test_members_and_their_ensemble(cli: Cli, runs: tuple[str, str], saved: str, tmp_path: Path) -> None:
    """From runs, checkpoints and saved scores; each is reported, and kept as asked."""
    a, b, json_file = Path(runs[0]), Path(runs[1]) / "best.pt", tmp_path / "all.json"
    both = cli("eval", a, b, "--each", "--ensemble", "--bootstrap", "50", "--json", json_file, "--markdown")
    assert both.code == 0, both.err
    content = json.loads(json_file.read_text())
    assert list(content) == [a.name, b.parent.name, "ensemble of 2"]
    assert "ensemble of 2, test: 10 images, 50 captions" in both.out and "compared with the first" in both.out
    assert all("bootstrap" in metrics for metrics in content.values()) and "| ensemble of 2 |" in both.out
    again = compare([saved, str(b)], with_ensemble=True)
    assert again.metrics["ensemble of 2"]["rsum"] == pytest.approx(content["ensemble of 2"]["rsum"], abs=1e-3)
    assert again.metrics["a.npz"] == compare([str(a)]).metrics[a.name]


def test_no_ensemble_unless_asked(runs: tuple[str, str], saved: str) -> None:
    """Two results stand as they do alone, in full and below each other."""
    found = compare([runs[1], saved])
    second = Path(runs[1]).name
    assert list(found.metrics) == [second, "a.npz"] and "ensemble" not in found.text
    assert found.metrics[second] == compare([runs[1]]).metrics[second]
    assert [line.split()[0] for line in found.text.split("\n")[-2:]] == [second, "a.npz"]


def test_the_ensembles_scores_are_saved(runs: tuple[str, str], saved: str, tmp_path: Path) -> None:
    compare(list(runs), with_ensemble=True, scores_file=tmp_path / "both.npz")
    compare([runs[1]], scores_file=tmp_path / "b.npz")
    both, first, second = (np.load(file) for file in (tmp_path / "both.npz", saved, tmp_path / "b.npz"))
    assert both["models"] == 2
    np.testing.assert_allclose(both["scores"], (first["scores"] + second["scores"]) / 2, rtol=1e-6)
    assert "both.npz (ensemble of 2), test" in compare([runs[0], str(tmp_path / "both.npz")]).text


def test_runs_that_differ_in_their_seed_alone_are_one_row(
    cli: Cli, make_run: MakeRun, runs: tuple[str, str], tmp_path: Path
) -> None:
    """Mean and deviation in every table; each run's own metrics in the file and in its folder."""
    three = [*runs, str(make_run("vse_infty", "run.seed=3", "eval.batch_size=7"))]
    other = str(make_run("vse_infty", "run.seed=2", "loss.ranking.margin=0.1"))
    file = tmp_path / "all.json"
    outcome = cli("eval", *three, other, "--bootstrap", 30, "--markdown", "--latex", "--csv", "--json", file)
    assert outcome.code == 0, outcome.err
    content = json.loads(file.read_text())
    group, last = content
    assert last == Path(other).name and list(content[group]["runs"]) == [Path(run).name for run in three]
    rsums = [compare([run]).metrics[Path(run).name]["rsum"] for run in three]
    assert content[group]["rsum"] == pytest.approx(np.mean(rsums), abs=1e-4)
    assert content[group]["deviation"]["rsum"] == pytest.approx(np.std(rsums, ddof=1), abs=1e-4)
    assert [own["rsum"] for own in content[group]["runs"].values()] == pytest.approx(rsums, abs=1e-4)
    assert f"{group} (n = 3), test: 10 images" in outcome.out and f"| {group} (n = 3) | " in outcome.out
    deviation = f"{content[group]['deviation']['rsum']:.1f}"
    assert f"{np.mean(rsums):.1f} ± {deviation} [" in outcome.out and rf"$\pm$ {deviation} [" in outcome.out
    assert "RSUM,RSUM deviation,RSUM low,RSUM high,RSUM - first" in outcome.out
    assert "difference" in content[last]["bootstrap"] and "difference" not in content[group]["bootstrap"]
    for one in (*three, other):
        own = json.loads((Path(one) / "test.json").read_text())
        expected = rounded(compare([one], samples=30).metrics[Path(one).name])
        assert own == expected and "difference" not in own["bootstrap"]


def test_each_run_as_a_row(runs: tuple[str, str]) -> None:
    names = [Path(run).name for run in runs]
    assert list(compare(list(runs), each=True).metrics) == names
    together = compare(list(runs), with_ensemble=True).metrics
    assert [*next(iter(together.values()))["runs"]] == names and list(together)[1] == "ensemble of 2"
    alone = compare(list(runs), json_file=Path(runs[0]) / "both.json").files[Path(runs[0]) / "both.json"]
    assert "deviation" in alone  # a single row stands without its name


def test_mistakes(runs: tuple[str, str], saved: str, tmp_path: Path) -> None:
    a, b = runs
    Path(b, "config.yaml").write_text("run: {}\n")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([a, a], {}, "two of them are the same; expected different members"),
        ([a, f"{b}/../{Path(a).name}"], {}, "two of them are the same; expected different members"),
        ([a, b, saved, saved], {}, "two of them are the same"),
        ([], {}, "RUN: expected a run folder or checkpoint among the arguments"),
        ([saved], {}, "a.npz: expected a run folder or checkpoint among the arguments"),
        ([a, saved], {"split": "dev"}, "a.npz: its captions are not those of"),
        ([a, str(tmp_path / "none.npz")], {}, "none.npz: no such file of scores"),
        ([a, str(tmp_path / "none")], {}, "none: no such run folder or checkpoint"),
        ([a], {"protocol": "f30k"}, "protocol f30k is for a split of 1,000 images, this one has 10"),
        ([a], {"protocol": "cocoa"}, "protocol 'cocoa': did you mean 'coco'"),
        ([a], {"samples": 0}, "bootstrap needs 1 to 10,000 samples, got 0"),
        (
            [a],
            {"samples": 9, "protocol": "cxc"},
            "--bootstrap is for R@K of a corpus's own pairs, not for --proto",
        ),
        ([a], {"cxc": tmp_path}, "--cxc is for --protocol cxc, got --protocol retrieval"),
        ([a, saved], {"cxc": tmp_path, "protocol": "cxc"}, "needs the embeddings of each member, but .*a.npz holds sc"),
        ([a], {"published": True}, "--published: the papers have no numbers for protocol retrieval"),
        ([a], {"vocabulary": tmp_path / "none.json"}, "none.json: no such file; expected a vocabulary"),
        ([a], {"scores_file": tmp_path / "x.txt"}, r"x.txt: expected a file name that ends in \.npz"),
        (
            [a, saved],
            {"scores_file": Path(saved), "with_ensemble": True},
            "a.npz: is one of the members; expected another file",
        ),
        ([a], {"with_ensemble": True}, "--ensemble is the mean of several members' scores, got only .*"),
        (
            [a, b],
            {"scores_file": tmp_path / "x.npz"},
            "--save-scores saves one score matrix; with several members, add",
        ),
        ([a], {"json_file": Path(b) / "config.yaml"}, "config.yaml: is there already and holds no metrics"),
        ([a], {"json_file": Path(b) / "best.pt"}, "best.pt: is there already and holds no metrics"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(InputError, match=message):
            compare(arguments, **options)


def test_members_with_different_corpora(make_run: MakeRun, runs: tuple[str, str], tmp_path: Path) -> None:
    other = make_run("vse_infty", f"data.root={write_precomp(tmp_path, seed=1)}")
    with pytest.raises(InputError, match="their captions differ from number 0 on"):
        compare([runs[0], str(other)])


def test_a_corpus_that_goes_on_where_another_ends(
    make_run: MakeRun, runs: tuple[str, str], data_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_folder, tmp_path / "data")
    folder = tmp_path / "data" / "precomp"
    for name, count in (("caps", 10), ("ids", 2)):  # of the last two images
        file = folder / f"test_{name}.txt"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-count]))
    np.save(folder / "test_ims.npy", np.load(folder / "test_ims.npy")[:-10])
    other = str(make_run("vse_infty", f"data.root={tmp_path / 'data'}"))
    for pair in ([runs[0], other], [other, runs[0]]):
        with pytest.raises(InputError, match=f"the first 8 of their image_ids are the same, and {runs[0]} has 2 more"):
            compare(pair)


def test_each_embedding_of_a_set_alone(cli: Cli, make_run: MakeRun, data_folder: Path) -> None:
    """In a test evaluation only: validation has other things to do."""
    run = make_run("pvse")
    outcome = cli("eval", run)
    sets = json.loads((run / "test.json").read_text())["sets"]
    model, corpus = vse.load(run), precomp(str(data_folder), "test")
    expected = single_embedding_rsums(encode_corpus(model, corpus, 256, progress=False), corpus.image_of_caption)
    assert len(sets["image_rsum"]) == 2 and {key: sets[key] for key in expected} == rounded(expected)
    numbers = ", ".join(f"{rsum:.1f}" for rsum in sets["text_rsum"])
    assert f"\nText sets       RSUM of each embedding alone: {numbers}\n" in outcome.out
    assert "image_rsum" not in evaluate(model, corpus, 256, progress=False)["sets"]


def test_evaluation_is_in_float32_unless_asked(make_run: MakeRun, data_folder: Path, tmp_path: Path) -> None:
    """Whatever the precision of the training was."""
    run = make_run("vse_infty", "run.precision=bf16")
    model, corpus = vse.load(run), precomp(str(data_folder), "test")
    for settings, precision in (([], "fp32"), (["eval.precision=bf16"], "bf16")):
        file = tmp_path / f"{precision}.npz"
        compare([str(run)], settings, scores_file=file)
        for other in ("fp32", "bf16"):
            embeddings = encode_corpus(model, corpus, 256, other, progress=False)
            scores = model.similarity(embeddings.images, embeddings.captions)
            assert np.array_equal(np.load(file)["scores"], scores) == (other == precision)


def test_validation_is_in_the_evaluations_precision(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: Any, corpus: Any, batch_size: int, precision: str) -> dict[str, Any]:
        seen.append(precision)
        return evaluate(model, corpus, batch_size, precision, progress=False)

    monkeypatch.setattr(run, "evaluate", watched)
    half = [*tiny, "run.precision=bf16", "train.epochs=1"]
    for settings in ([], ["eval.precision=bf16", f"run.dir={tmp_path / 'again'}"]):
        assert cli("train", *half, *settings).code == 0
    assert seen == ["fp32", "bf16"]


def test_a_vocabulary_is_for_the_members_that_have_none(data_folder: Path, tmp_path: Path) -> None:
    words, others = (words_file(tmp_path / f"{name}.json", 29) for name in ("words", "others"))
    others.write_text(others.read_text().replace("dog", "wolf"))
    official, converted = save_vse_infty(tmp_path / "model_best.pth"), tmp_path / "converted.pt"
    convert(official, converted, vocabulary=words)
    found = compare([str(converted), str(official)], [f"data.root={data_folder}"], vocabulary=others).metrics
    assert found["converted.pt"]["i2t"] != found["model_best.pth"]["i2t"]
