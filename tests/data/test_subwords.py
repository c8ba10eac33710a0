"""Tokenizers of pretrained text models."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, WORDS, write_tokenizer, write_transformer

from vse.data.subwords import Subwords
from vse.errors import InputError


def test_pieces(tiny_bert: Path) -> None:
    """Ids and word numbers as the library's tokenizer gives them; a long caption is cut at the model's length."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny_bert)
    pieces = Subwords.read(str(tiny_bert))
    for caption in ("A red dog runs over snow.", "Zebra-striped CAT, flies", "", "ünknown grass\u200b"):
        ids, words = pieces.split(caption)
        assert ids == pieces.encode(caption).tolist() == reference(caption).input_ids
        assert words == [-1 if word is None else word for word in reference(caption).word_ids()]
    special = pieces.encode("[SEP] dog [MASK]")
    assert not {reference.mask_token_id, reference.pad_token_id} & set(special) and 3 not in special[:-1]
    ids, words = pieces.split("snowy dogs")
    assert reference.convert_ids_to_tokens(ids) == ["[CLS]", "snow", "##y", "dog", "##s", "[SEP]"]
    assert words == [-1, 0, 0, 1, 1, -1]
    flat, table = pieces.encode_all(["a dog", "snowy dogs"])
    assert table[flat.tokens[flat.ends[0] :]].tolist() == ids and flat.words[flat.ends[0] :].tolist() == words
    pieces.cut(32)
    pieces.cut(None)
    assert len(pieces.encode("dog " * 50)) == 32 and pieces.encode("dog " * 50)[-1] == reference.sep_token_id
    assert pieces.mask == reference.mask_token_id and len(pieces) == len(reference)
    assert not set(reference.all_special_ids) & set(pieces.plain.tolist())
    assert len(pieces.plain) == len(pieces) - len(reference.all_special_ids)
    again = Subwords(**json.loads(json.dumps(pieces.state)))
    assert again.encode("snowy dogs").tolist() == ids and again.state == pieces.state
    for same in (again, copy.deepcopy(pieces), pickle.loads(pickle.dumps(pieces))):
        assert same.encode("[SEP] dog [MASK]").tolist() == special.tolist()
        assert len(same.encode("dog " * 50)) == 32


def test_bad_pieces(tmp_path: Path) -> None:
    from transformers import BertConfig

    with pytest.raises(InputError, match="not a tokenizer's JSON"):
        Subwords("{}", None)
    folder = write_transformer(tmp_path, BertConfig(**SMALL))
    with pytest.raises(InputError, match="has no tokenizer.json; expected the folder of a text model"):
        Subwords.read(str(folder))
    write_tokenizer(folder, WORDS)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a model of transformers"):
        Subwords.read(str(folder))


def test_captions_are_augmented_word_by_word(tiny_bert: Path, tmp_path: Path) -> None:
    """In training only; [CLS] and [SEP] stay."""
    from helpers import write_precomp

    from vse.data.batches import TrainingData
    from vse.data.formats import precomp

    pieces = Subwords.read(str(tiny_bert))
    corpus = precomp(str(write_precomp(tmp_path)), "train")
    data = TrainingData(corpus, pieces, 0.9, seed=1)
    batch = data[3, np.arange(60)]
    assert not isinstance(batch, InputError)
    assert (batch.tokens[:, 0] == pieces.encode("")[0]).all()
    last = batch.tokens[torch.arange(60), batch.token_mask.sum(1) - 1]
    assert (last == pieces.encode("")[1]).all() and pieces.mask in batch.tokens
    plain = TrainingData(corpus, pieces, 0.0, seed=1)[3, np.arange(60)]
    assert not isinstance(plain, InputError) and pieces.mask not in plain.tokens


def test_a_caption_without_tokens_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    from helpers import write_precomp

    from vse.data.batches import TrainingData
    from vse.data.formats import precomp

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bare"))
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    root = write_precomp(tmp_path / "data")
    captions = root / "precomp" / "train_caps.txt"
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join([*lines[:3], "\u200b", *lines[4:]]) + "\n")
    data = TrainingData(precomp(str(root), "train"), Subwords.read(str(folder)), 0.2, seed=1)
    assert isinstance(error := data[0, np.arange(8)], InputError) and "caption 3 has no tokens" in str(error)


def test_captions_are_cut_at_the_smallest_length(tiny_bert: Path) -> None:
    """Those that were split before it was known, too."""
    pieces, captions = Subwords.read(str(tiny_bert)), ["dog " * 9, "a dog"]
    assert np.diff(pieces.encode_all(captions)[0].ends, prepend=0).tolist() == [11, 4]
    for length in (6, 8):
        pieces.cut(length)
        assert pieces.max_length == 6
        assert np.diff(pieces.encode_all(captions)[0].ends, prepend=0).tolist() == [6, 4]
