"""Runs that start from a checkpoint: what they take from it, what begins anew, what is refused."""

import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_numbers import GOLDEN, fill_all
from helpers import (
    ROOT,
    WORDS,
    Outcome,
    State,
    read_jsonl,
    same_weights,
    save_vse_infty,
    small_config,
    weights_of,
    words_file,
    write_pictures,
    write_precomp,
)

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.vocabulary import Vocabulary
from vse.training.trainer import Training

Cli = Callable[..., Outcome]
TABLE = "text.encoder.embedding.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word vectors are kept in the user's cache folder."""
    monkeypatch.setenv("VSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def first(cli: Cli, tiny: list[str], tmp_path: Path) -> Path:
    """The folder of a run of PVSE with K = 2 that has trained for an epoch."""
    assert cli("train", *small_config("pvse/f30k_region_bigru.yaml", tiny), "train.epochs=1").code == 0
    return tmp_path / "run"


@pytest.fixture
def second(tiny: list[str], first: Path, tmp_path: Path) -> list[str]:
    """The config of another run, in another folder, that starts from the first."""
    config = small_config("pvse/f30k_region_bigru.yaml", tiny)
    return [*config, f"run.dir={tmp_path / 'second'}", f"train.start_from={first}"]


def begin(config: list[str], *more: str) -> Training:
    """The run of a config, before its first step."""
    return Training(read_config(config[0], [*config[1:], *more]))


def state_of(training: Training) -> State:
    return training.model.state_dict()


def below(state: State, *prefixes: str) -> State:
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def beside(state: State, *prefixes: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


# --- What is taken over ---------------------------------------------------------------------------------------------


def test_a_run_goes_out_from_a_run_folder(cli: Cli, first: Path, second: list[str], tmp_path: Path) -> None:
    """It has the best weights and the vocabulary; optimiser, schedule and best RSUM begin anew; the source is noted."""
    training = begin(second)
    assert same_weights(state_of(training), weights_of(first, "best.pt"))
    assert training.vocabulary.state == load_checkpoint(first / "best.pt")["vocabulary"]
    assert training.optimiser.state_dict()["state"] == {} and training.schedule.history == []
    assert training.total_steps == 0 and training.best["epoch"] is None

    outcome = cli("train", *second, "train.epochs=1")
    assert outcome.code == 0 and f"starting from {first / 'best.pt'}" in outcome.out
    digest = hashlib.sha256((first / "best.pt").read_bytes()).hexdigest()
    for name in ("best.pt", "last.pt"):
        state = load_checkpoint(tmp_path / "second" / name)
        assert state["source"] == {"path": str(first / "best.pt"), "sha256": digest}
        assert state["config"]["train"]["start_from"] == str(first)
    saved = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert saved["train"]["start_from"] == str(first)


def test_a_run_that_goes_on_no_longer_needs_its_source(
    cli: Cli, first: Path, second: list[str], tmp_path: Path
) -> None:
    assert cli("train", *second, "train.epochs=1").code == 0
    source = load_checkpoint(tmp_path / "second" / "last.pt")["source"]
    shutil.rmtree(first)
    outcome = cli("train", *second, "train.epochs=2")
    assert outcome.code == 0 and "going on with epoch 2" in outcome.out
    assert load_checkpoint(tmp_path / "second" / "last.pt")["source"] == source
    assert cli("eval", tmp_path / "second").code == 0


def test_a_start_is_the_same_as_the_checkpoint_itself(first: Path, second: list[str]) -> None:
    """A file may be named in place of its folder, last.pt too."""
    training = begin(second, f"train.start_from={first / 'last.pt'}")
    assert same_weights(state_of(training), weights_of(first, "last.pt"))


OFFICIAL = sorted(file.stem for file in (GOLDEN / "trajectories").glob("*.json"))


@pytest.mark.parametrize("system", OFFICIAL)
def test_a_vocabulary_must_come_with_an_official_checkpoint(system: str, tmp_path: Path) -> None:
    """The runs of tests/test_trajectories.py start from the same four checkpoints, and follow the official codes."""
    about = json.loads((GOLDEN / "trajectories" / f"{system}.json").read_text())
    torch.save({"model": fill_all(about), "args": Namespace(**about.get("options", {}))}, tmp_path / "official.pth")
    shape = about["batches"][0]["image_shape"]
    if len(shape) == 4:
        write_pictures(tmp_path / "data", others=2)
    else:
        write_precomp(tmp_path / "data", others=2, width=shape[-1])
    settings = [*about["overrides"], f"data.root={tmp_path / 'data'}", f"train.start_from={tmp_path / 'official.pth'}"]
    expected = rf"came without its vocabulary, .* \({about['vocab_size']} rows\); give it as data.vocabulary.file"
    with pytest.raises(ValueError, match=expected):
        begin([str(ROOT / "configs" / f"{about['config']}.yaml"), *settings, "data.vocabulary.vectors=null"])


def test_an_official_checkpoint_without_a_row_for_mask(tiny: list[str], tmp_path: Path) -> None:
    """VSE∞'s vocabularies get <mask> after training: its row starts as that of <unk>, as when the model is loaded."""
    official = save_vse_infty(tmp_path / "official.pth", vocabulary=24)
    words = words_file(tmp_path / "words.json", 24)
    training = begin(tiny, f"train.start_from={official}", f"data.vocabulary.file={words}")
    content = torch.load(official, weights_only=False)["model"][1]["embed.weight"]
    table = state_of(training)[TABLE]
    assert len(training.vocabulary) == len(table) == 25
    assert torch.equal(table[:24], content) and torch.equal(table[24], content[Vocabulary.read(words).unk])


# --- What starts afresh ---------------------------------------------------------------------------------------------


def test_another_number_of_embeddings(first: Path, second: list[str]) -> None:
    """The misfit is one line with names and both shapes; what it proposes works."""
    three = [f"model.{side}.aggregator.num_embeddings=3" for side in ("image", "text")]
    with pytest.raises(ValueError, match="its weights do not fit this config") as caught:
        begin(second, *three)
    line = str(caught.value)
    assert line.startswith(f"{first / 'best.pt'}: ") and "\n" not in line
    assert "image.aggregator.maps.weight has shape (2, 6), expected (3, 6)" in line
    assert "text.aggregator.maps.weight has shape (2, 3), expected (3, 3)" in line
    fresh = "train.start_fresh=[image.aggregator, text.aggregator]"
    assert line.endswith(f"set {fresh} to initialise them anew")

    parts = ("image.aggregator.", "text.aggregator.")
    training = begin(second, *three, fresh)
    assert same_weights(beside(state_of(training), *parts), beside(weights_of(first, "best.pt"), *parts))
    anew = begin(second, *three, "train.start_from=null")  # the same seed draws the same initialisation
    assert same_weights(below(state_of(training), *parts), below(state_of(anew), *parts))


def test_another_head(first: Path, second: list[str]) -> None:
    """Aggregators of another kind, on encoders that are kept; what the checkpoint has beside is left out."""
    mean = [f"model.{side}.aggregator={{name: gpo}}" for side in ("image", "text")]
    mean += ["model.image.encoder.features=projected", "model.text.encoder.features=states"]
    mean += ["model.similarity.name=cosine", "loss.terms.diversity.weight=0"]
    with pytest.raises(ValueError, match=r"image.aggregator.\S+ is missing; .* and \d+ more; set train.start_fresh=\["):
        begin(second, *mean)
    training = begin(second, *mean, "train.start_fresh=[image.aggregator, text.aggregator]")
    encoders = ("image.encoder.", "text.encoder.")
    expected = below(weights_of(first, "best.pt"), *encoders)
    assert expected and same_weights(below(state_of(training), *encoders), expected)


def test_a_fresh_text_tower_has_the_new_runs_vocabulary(
    first: Path, second: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    captions = corpus_folder / "precomp" / "train_caps.txt"
    captions.write_text(captions.read_text().replace("dog", "wolf"))
    training = begin(second, "train.start_fresh=[text]")
    assert isinstance(training.vocabulary, Vocabulary)
    assert "wolf" in training.vocabulary.ids and "dog" not in training.vocabulary.ids
    assert same_weights(below(state_of(training), "image."), below(weights_of(first, "best.pt"), "image."))


def test_a_fresh_text_encoder_starts_from_word_vectors(
    first: Path, second: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    """As in a run that starts from no checkpoint."""
    (tmp_path / "glove.txt").write_text("dog 1 2 3 4 5 6\ncat 9 9 9 9 9 9\n")
    training = begin(second, f"data.vocabulary.vectors={tmp_path / 'glove.txt'}", "train.start_fresh=[text.encoder]")
    assert isinstance(training.vocabulary, Vocabulary)
    assert state_of(training)[TABLE][training.vocabulary.ids["dog"]].tolist() == [1, 2, 3, 4, 5, 6]
    aggregators = below(weights_of(first, "best.pt"), "text.aggregator.")
    assert same_weights(below(state_of(training), "text.aggregator."), aggregators)


# --- More words -----------------------------------------------------------------------------------------------------


def add_words(folder: Path, words: list[str]) -> None:
    """Captions with words that the first run has not seen."""
    captions = folder / "precomp" / "train_caps.txt"
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join([*lines[: -len(words)], *(f"a {word}" for word in words)]) + "\n")


def test_an_extended_vocabulary(first: Path, second: list[str], corpus_folder: Path) -> None:
    """Known words keep their ids' rows; each new word's row is drawn as in a new run (here from N(0, 1))."""
    new = [f"new{number}" for number in range(60)]
    add_words(corpus_folder, new)
    known = load_checkpoint(first / "best.pt")
    assert len(begin(second).vocabulary) == len(known["vocabulary"])  # unless asked, there are no new words
    training = begin(second, "data.vocabulary.extend=true")
    words, table = training.vocabulary, state_of(training)[TABLE]
    assert isinstance(words, Vocabulary)
    old = known["model"][TABLE]
    assert words.words[: len(old)] == known["vocabulary"] and torch.equal(table[: len(old)], old)
    assert set(words.words[len(old) :]) == {"a", *new}
    rows = table[len(old) :]
    assert rows.numel() == 61 * 6 and abs(float(rows.std()) - 1) < 0.15 and abs(float(rows.mean())) < 0.2
    assert same_weights(beside(state_of(training), TABLE), beside(known["model"], TABLE))


def test_an_extended_vocabulary_with_word_vectors(
    first: Path, second: list[str], corpus_folder: Path, tmp_path: Path
) -> None:
    """New words start from the file, or are drawn where it lacks them; what is known keeps what it has learned."""
    add_words(corpus_folder, ["wolf", "zebra"])
    (tmp_path / "glove.txt").write_text("wolf 1 2 3 4 5 6\ndog 9 9 9 9 9 9\n")
    settings = ["data.vocabulary.extend=true", f"data.vocabulary.vectors={tmp_path / 'glove.txt'}"]
    training = begin(second, *settings, "model.text.encoder.freeze_words=true")
    words, table = training.vocabulary, state_of(training)[TABLE]
    assert isinstance(words, Vocabulary)
    old = weights_of(first, "best.pt")[TABLE]
    assert torch.equal(table[: len(old)], old) and "dog" in words.words[: len(old)]
    assert table[words.ids["wolf"]].tolist() == [1, 2, 3, 4, 5, 6]
    unknown = table[words.ids["zebra"]]
    assert unknown.abs().max() > 0 and not (unknown == unknown.round()).all()
    assert not dict(training.model.named_parameters())[TABLE].requires_grad


def test_without_extending_no_file_of_word_vectors_is_read(second: list[str]) -> None:
    """The words come from the checkpoint: the second stage of a run needs no GloVe."""
    begin(second, "data.vocabulary.vectors=none.txt")
    with pytest.raises(ValueError, match="none.txt: no such file"):
        begin(second, "data.vocabulary.vectors=none.txt", "data.vocabulary.extend=true")


# --- BERT -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(cli: Cli, tiny: list[str], tiny_bert: Path, tmp_path: Path) -> list[str]:
    """The config of a run with BERT that starts from another with BERT, whose folder is gone."""
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    config = small_config("vse_infty/f30k_region_bert.yaml", tiny)
    config = [setting for setting in config if "word_dim" not in setting]
    config.append(f"model.text.encoder.model={folder}")
    assert cli("train", *config, "train.epochs=1").code == 0
    shutil.rmtree(folder)
    return [*config, f"run.dir={tmp_path / 'second'}", f"train.start_from={tmp_path / 'run'}"]


def test_bert_needs_no_folder(bert: list[str], tmp_path: Path) -> None:
    training = begin(bert)
    assert same_weights(state_of(training), weights_of(tmp_path / "run", "best.pt"))
    assert training.vocabulary.state == load_checkpoint(tmp_path / "run" / "best.pt")["vocabulary"]
    fresh = begin(bert, "train.start_fresh=[text.aggregator]")
    assert same_weights(below(state_of(fresh), "text.encoder."), below(state_of(training), "text.encoder."))


def test_bert_learns_no_words(bert: list[str], tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="extend.*bert has a tokenizer of its own and learns no new words"):
        begin(bert, "data.vocabulary.extend=true")
    words = [*tiny, f"run.dir={tmp_path / 'second'}", f"train.start_from={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"another kind of tokens than bigru; set train.start_fresh=\[text\] to"):
        begin(words)
    training = begin(words, "train.start_fresh=[text]", "optim.weight_decay=0")
    image = below(weights_of(tmp_path / "run", "best.pt"), "image.")
    assert same_weights(below(state_of(training), "image."), image)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.start_from=none"], "train.start_from: none: no such run folder or checkpoint"),
        (["train.start_from=null", "train.start_fresh=[text]"], "train.start_fresh: needs a train.start_from, which"),
        (["train.start_from=null", "data.vocabulary.extend=true"], "extend: needs a train.start_from, which"),
        (
            ["train.start_fresh=[image.agregator]"],
            "train.start_fresh: 'image.agregator' begins no parameter's name (did you mean 'image.aggregator'?)",
        ),
        (["train.start_fresh=[image.enc]"], "'image.enc' begins no parameter's name"),
        (
            ["train.start_fresh=[text]", "data.vocabulary.extend=true"],
            "extend: the text encoder starts afresh: there is nothing to extend",
        ),
    ],
)
def test_what_is_refused(cli: Cli, second: list[str], tmp_path: Path, settings: list[str], message: str) -> None:
    assert message in cli("train", *second, *settings).error
    assert not (tmp_path / "second" / "last.pt").exists()


def test_another_vocabulary_is_refused(cli: Cli, first: Path, second: list[str], tmp_path: Path) -> None:
    size = len(load_checkpoint(first / "best.pt")["vocabulary"])
    other_size = f"has {size + 8} words, but the table in {first / 'best.pt'} has {size} rows"  # with <mask>
    for count, message in ((size, "has other words, or other ids"), (size + 7, other_size)):
        words = words_file(tmp_path / f"{count}.json", count)
        content: Any = json.loads(words.read_text())
        content["word2idx"] = {f"{word}x" if word in WORDS else word: i for word, i in content["word2idx"].items()}
        words.write_text(json.dumps(content))
        assert message in cli("train", *second, f"data.vocabulary.file={words}").error


def test_features_of_another_width(cli: Cli, second: list[str], tmp_path: Path) -> None:
    wide = write_precomp(tmp_path / "wide", width=20)
    error = cli("train", *second, f"data.root={wide}").error
    assert "image.encoder.fc.weight has shape (8, 12), expected (8, 20)" in error
    assert "set train.start_fresh=[image.aggregator, image.encoder] to initialise them anew" in error


# --- PVSE's two stages ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_second_stage_of_pvse_trains_the_cnn(cli: Cli, tmp_path: Path) -> None:
    """Both shipped configs, end to end on pictures: the CNN stays in the first stage and is trained in the second.

    The words are a file's in the first stage and stay so in the second, which does not read it.
    """
    write_pictures(tmp_path / "data", train=8, others=4)
    vectors = tmp_path / "glove.txt"
    vectors.write_text("".join(f"{word} {i} 1 1 1 1 1\n" for i, word in enumerate(WORDS)))
    small = [f"data.root={tmp_path / 'data'}", "data.options={}", "data.workers=0", "data.transform.size=32"]
    small += ["data.transform.resize=36", "model.embed_dim=8", "model.text.encoder.word_dim=6", "train.batch_size=8"]
    small += ["model.image.encoder.backbone=resnet18", "model.image.encoder.weights=null", "train.epochs=2"]
    small += [f"data.vocabulary.vectors={vectors}", "run.log_steps=1"]
    stages = [ROOT / "configs" / "pvse" / f"coco_resnet152_bigru{name}.yaml" for name in ("", "_finetune")]

    one = [str(stages[0]), *small, f"run.dir={tmp_path / 'one'}"]
    untrained = state_of(begin(one))
    assert cli("train", *one).code == 0
    best = weights_of(tmp_path / "one", "best.pt")
    cnn = [name for name in best if "encoder.backbone." in name and name.endswith(".weight")]
    assert cnn and all(torch.equal(best[name], untrained[name]) for name in cnn)
    assert not torch.equal(best["image.encoder.head.fc.weight"], untrained["image.encoder.head.fc.weight"])

    vectors.unlink()
    two = [str(stages[1]), *small, f"run.dir={tmp_path / 'two'}", f"train.start_from={tmp_path / 'one'}"]
    assert same_weights(state_of(begin(two)), best)
    outcome = cli("train", *two)
    assert outcome.code == 0, outcome.err
    assert f"starting from {tmp_path / 'one' / 'best.pt'}" in outcome.out
    last = weights_of(tmp_path / "two")
    assert all(not torch.equal(last[name], best[name]) for name in cnn)
    assert torch.equal(last[TABLE], best[TABLE])  # the words are frozen in both
    rates = [record["train"]["lr"] for record in read_jsonl(tmp_path / "two" / "metrics.jsonl") if "train" in record]
    assert rates[0] == 2e-4  # the schedule begins anew
    assert cli("eval", tmp_path / "two").code == 0


def test_a_fresh_part_of_an_encoder_starts_from_its_published_weights(
    cli: Cli, tiny: list[str], tiny_bert: Path, tmp_path: Path
) -> None:
    """And not at random, though the rest of the encoder comes from the checkpoint."""
    config = small_config("vse_infty/f30k_region_bert.yaml", tiny)
    config = [setting for setting in config if "word_dim" not in setting] + [f"model.text.encoder.model={tiny_bert}"]
    assert cli("train", *config, "train.epochs=1", "optim.lr=0.01").code == 0
    config += [f"run.dir={tmp_path / 'second'}", f"train.start_from={tmp_path / 'run'}"]
    found = state_of(begin(config, "train.start_fresh=[text.encoder.bert]"))
    anew, trained = state_of(begin(config, "train.start_from=null")), weights_of(tmp_path / "run", "best.pt")
    assert same_weights(below(found, "text.encoder.bert."), below(anew, "text.encoder.bert."))
    assert same_weights(beside(found, "text.encoder.bert."), beside(trained, "text.encoder.bert."))
    assert not same_weights(below(found, "text.encoder.bert."), below(trained, "text.encoder.bert."))


def test_rare_words_extend_no_vocabulary(first: Path, second: list[str], corpus_folder: Path) -> None:
    add_words(corpus_folder, ["wolf", "zebra", "zebra"])
    training = begin(second, "data.vocabulary.extend=true", "data.vocabulary.min_count=2")
    assert isinstance(training.vocabulary, Vocabulary)
    assert "zebra" in training.vocabulary.ids and "wolf" not in training.vocabulary.ids
