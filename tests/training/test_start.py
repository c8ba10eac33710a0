"""How a run begins from another run's checkpoint: which weights and words it takes, and what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Outcome, save_vse_infty, weights_of, words_file

from vse.build import build_corpus, read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.vocabulary import Vocabulary
from vse.errors import InputError
from vse.training.start import Start, start

Cli = Callable[..., Outcome]
TABLE = "text.encoder.embedding.weight"


@pytest.fixture
def first(cli: Cli, tiny: list[str], tmp_path: Path) -> Path:
    """The folder of a finished run."""
    assert cli("train", *tiny, "train.epochs=1").code == 0
    return tmp_path / "run"


def begin(tiny: list[str], *settings: str) -> Start:
    """What a run begins with under these settings."""
    config = read_config(tiny[0], [*tiny[1:], *settings])
    torch.manual_seed(7)
    training = build_corpus(config, "train")
    return start(config, training, training.images.width, None)


def test_weights_words_and_source(tiny: list[str], first: Path) -> None:
    weights = weights_of(first, "best.pt")
    began = begin(tiny, f"train.start_from={first}")
    assert all(torch.equal(value, weights[name]) for name, value in began.model.state_dict().items())
    assert isinstance(began.vocabulary, Vocabulary)
    assert began.vocabulary.words == load_checkpoint(first / "best.pt")["vocabulary"]
    digest = hashlib.sha256((first / "best.pt").read_bytes()).hexdigest()
    assert began.source == {"path": str(first / "best.pt"), "sha256": digest}


def test_a_second_run_starts_and_goes_on(cli: Cli, tiny: list[str], first: Path, tmp_path: Path) -> None:
    """It says where it started, remembers the source, and needs the first run no longer."""
    second = [*tiny, f"run.dir={tmp_path / 'second'}", f"train.start_from={first}"]
    outcome = cli("train", *second, "train.epochs=1")
    assert outcome.code == 0 and f"starting from {first / 'best.pt'}" in outcome.out
    source = load_checkpoint(tmp_path / "second" / "last.pt")["source"]
    assert source["path"] == str(first / "best.pt")
    (first / "best.pt").unlink()
    outcome = cli("train", *second, "train.epochs=2")
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(tmp_path / "second" / "last.pt")["source"] == source


def test_fresh_parts_keep_their_initialisation(tiny: list[str], first: Path) -> None:
    weights = weights_of(first, "best.pt")
    began = begin(tiny, f"train.start_from={first}", "train.start_fresh=[image.aggregator]")
    for name, value in began.model.state_dict().items():
        if not name.startswith("image.aggregator."):
            assert torch.equal(value, weights[name]), name
    fresh = [name for name in weights if name.startswith("image.aggregator.")]
    assert fresh and not any(torch.equal(began.model.state_dict()[name], weights[name]) for name in fresh)


def test_a_fresh_text_encoder_gets_its_own_words(tiny: list[str], first: Path) -> None:
    began = begin(tiny, f"train.start_from={first}", "train.start_fresh=[text]", "data.vocabulary.min_count=1000")
    assert len(began.vocabulary) == 5  # the specials
    assert torch.equal(
        began.model.state_dict()["image.encoder.fc.weight"], weights_of(first)["image.encoder.fc.weight"]
    )


def test_new_words_get_rows_of_their_own(tiny: list[str], first: Path, corpus_folder: Path) -> None:
    """Known words keep their rows and ids; the words of the new captions follow."""
    captions = corpus_folder / "precomp" / "train_caps.txt"
    captions.write_text(captions.read_text().replace("red", "vermilion"))
    old = load_checkpoint(first / "best.pt")
    began = begin(tiny, f"train.start_from={first}", "data.vocabulary.extend=true")
    assert isinstance(began.vocabulary, Vocabulary)
    assert began.vocabulary.words == [*old["vocabulary"], "vermilion"]
    table = began.model.state_dict()[TABLE]
    assert torch.equal(table[:-1], old["model"][TABLE]) and table[-1].abs().max() <= 0.1
    assert begin(tiny, f"train.start_from={first}").vocabulary.words == old["vocabulary"]  # type: ignore[union-attr]


def test_an_official_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    """It needs its vocabulary, which is in a file of its own."""
    file = save_vse_infty(tmp_path / "model_best.pth")
    with pytest.raises(InputError, match="model_best.pth: came without its vocabulary, f30k_precomp_vocab.json"):
        begin(tiny, f"train.start_from={file}")
    words = words_file(tmp_path / "words.json", 29)
    began = begin(tiny, f"train.start_from={file}", f"data.vocabulary.file={words}")
    assert isinstance(began.vocabulary, Vocabulary) and began.vocabulary.words == Vocabulary.read(words).words


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.embed_dim=16"], r"weights do not fit this config: .*; train.start_fresh=\[.*image.encoder.*\] would"),
        (
            ["model.image.aggregator={name: max}"],
            r"not in this model and 6 more; train.start_fresh=\[image.aggregator\] would",
        ),
        (["train.start_fresh=[image.agregator]"], "'image.agregator' begins no .* mean 'image.aggregator'"),
        (["train.start_from=nowhere"], "train.start_from: nowhere: no such run folder or checkpoint"),
        (["train.start_from=null", "train.start_fresh=[image]"], "train.start_fresh: needs a train.start_from"),
        (["train.start_from=null", "data.vocabulary.extend=true"], "data.vocabulary.extend: needs a train.start_from"),
        (["train.start_fresh=[text]", "data.vocabulary.extend=true"], "the text encoder starts afresh: there is nothi"),
    ],
)
def test_what_does_not_fit(tiny: list[str], first: Path, settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        begin(tiny, f"train.start_from={first}", *settings)
