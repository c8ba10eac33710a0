"""Loading a checkpoint: which vocabulary it gets, and what is refused or reported."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import WORDS, region_states, save_vse_infty, words_file

from vse.checkpoints.load import convert, load_model
from vse.data.vocabulary import SPECIALS, MissingVocabulary, Vocabulary
from vse.errors import InputError


def other_words(path: Path, count: int = 29) -> Path:
    """As many words as ``words_file`` writes, with other ids."""
    words = [*SPECIALS[:-1], *reversed(WORDS), *(f"w{i}" for i in range(count))][:count]
    path.write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    return path


def test_beside_the_checkpoint_before_beside_the_data(tmp_path: Path) -> None:
    file, data = save_vse_infty(tmp_path / "model_best.pth"), tmp_path / "data"
    data.mkdir()
    overrides = [f"data.root={data}"]
    assert isinstance(load_model(file, overrides)[0].vocabulary, MissingVocabulary)
    there = Vocabulary.read(other_words(data / "f30k_precomp_vocab.json"))
    found = load_model(file, overrides)[0].vocabulary
    assert isinstance(found, Vocabulary) and found.words == there.words
    here = Vocabulary.read(words_file(tmp_path / "f30k_precomp_vocab.json", 29))
    found = load_model(file, overrides)[0].vocabulary
    assert isinstance(found, Vocabulary) and found.words == here.words != there.words


def test_a_given_vocabulary_and_a_checkpoints_own(tmp_path: Path) -> None:
    """Another one is refused, unless it is only for those that have none."""
    words, others = words_file(tmp_path / "words.json", 29), other_words(tmp_path / "others.json")
    official, converted = save_vse_infty(tmp_path / "model_best.pth"), tmp_path / "converted.pt"
    convert(official, converted, vocabulary=words)
    with pytest.raises(InputError, match="others.json: has other words, or other ids for them"):
        load_model(converted, vocabulary=others)
    for file, expected in ((converted, words), (official, others)):
        found = load_model(file, vocabulary=others, keep_own=True)[0].vocabulary
        assert isinstance(found, Vocabulary) and found.words == Vocabulary.read(expected).words


def test_what_is_assumed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, in one line, when something is."""
    file = tmp_path / "model_best.pth"
    torch.save({"model": list(region_states()), "opt": Namespace()}, file)
    load_model(file)
    told = "its options lack these, so the published models' values are used: batch_size=128\n"
    assert capsys.readouterr().err == f"{file}: {told}"
    torch.save({"model": list(region_states()), "opt": Namespace(batch_size=128)}, file)
    load_model(file)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_converted(tmp_path: Path, wrong: float) -> None:
    image, text = region_states()
    image["fc.weight"][2, 3] = wrong
    torch.save({"model": [image, text], "opt": Namespace(batch_size=4)}, tmp_path / "model_best.pth")
    with pytest.raises(InputError, match="model_best.pth: image.encoder.fc.weight is not finite"):
        convert(tmp_path / "model_best.pth", tmp_path / "converted.pt")
    assert not (tmp_path / "converted.pt").exists()


@pytest.mark.parametrize("name", ["f30k_precomp_vocab.json", "coco_precomp_vocab.json"])
def test_either_file_where_the_options_do_not_name_the_data(tmp_path: Path, name: str) -> None:
    torch.save({"model": list(region_states()), "opt": Namespace(batch_size=4)}, tmp_path / "model_best.pth")
    words = Vocabulary.read(words_file(tmp_path / name, 29))
    found = load_model(tmp_path / "model_best.pth")[0].vocabulary
    assert isinstance(found, Vocabulary) and found.words == words.words
