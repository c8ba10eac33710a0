"""A folder of one's own pictures: its table of captions, the names of the columns, and the splits."""

import json
from collections import Counter
from pathlib import Path

import pytest

from vse.build import read_config
from vse.config import config_changes
from vse.data.corpus import Corpus
from vse.data.folder_format import draw_splits, folder
from vse.errors import InputError


def paths(corpus: Corpus) -> list[str | Path]:
    return [corpus.images[image] for image in range(len(corpus.images))]


CAPTIONS = """file,caption,split
a/1.jpg,"A dog, running.",train
2.jpg,two cats,train
3.jpg,a test,test
a/1.jpg,"a ""quoted"" dog
on two lines",train
"""


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """CSV and JSONL alike: captions of an image anywhere, any number of them."""
    (tmp_path / "captions.csv").write_text(CAPTIONS, encoding="utf-8")
    corpus = folder(str(tmp_path), "train")
    assert paths(corpus) == [tmp_path / "a/1.jpg", tmp_path / "2.jpg"]
    assert corpus.captions == ["A dog, running.", "two cats", 'a "quoted" dog\non two lines']
    assert corpus.image_of_caption.tolist() == [0, 1, 0]
    assert folder(str(tmp_path), "testall").captions == ["a test"]
    row = {"file": "x.png", "split": "dev"}
    rows = [{**row, "caption": "café", "more": 1}, {**row, "caption": "b"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    corpus = folder(str(tmp_path), "dev", captions="mine.jsonl", pictures="images")
    assert paths(corpus) == [tmp_path / "images" / "x.png"] and corpus.captions == ["café", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.csv",
            "file,caption\na.jpg,a dog\n",
            "c.csv: has no column split; found file, caption; add one with train, dev or test, or set "
            "data.options.splits=auto",
        ),
        (
            "c.csv",
            "a.jpg,a dog\nb.jpg,a cat\n",
            "c.csv: has no column file or image or filename or file_name or path; found a.jpg, a dog; name it with "
            "data.options.columns.image",
        ),
        (
            "c.csv",
            "file,label,split\na.jpg,a dog,dev\n",
            "no column caption or text; found file, label, split; name it",
        ),
        ("c.csv", "file,caption,split\na.jpg,,train\n", "c.csv: line 2: expected texts"),
        ("c.csv", "file,caption,split\na.jpg,a dog,valid\n", "line 2: the split is 'valid', expected train, dev"),
        ("c.csv", "file,caption,split\na.jpg,a dog,dev\n", "c.csv: no caption in split train"),
        ("c.csv", "", "c.csv: no caption in split train"),
        ("c.jsonl", "{", "c.jsonl: line 1: not a line of JSON"),
        ("c.jsonl", "[1]\n", "c.jsonl: line 1: expected texts"),
        ("d.csv", "", "c.csv: no such file; expected a CSV or JSONL file"),
    ],
)
def test_bad_folders(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        folder(str(tmp_path), "train", captions=name.replace("d.", "c."))


def test_tables_of_captions(tmp_path: Path) -> None:
    """What a comma does, which endings are CSV, and one file under two spellings."""
    write = (tmp_path / "c.txt").write_text
    write('file,split,caption\n1.jpg,train,"a dog, running"\n./1.jpg,train,a cat\n')
    corpus = folder(str(tmp_path), "train", captions="c.txt")
    assert corpus.captions == ["a dog, running", "a cat"] and corpus.image_of_caption.tolist() == [0, 0]
    for content, message in (
        (
            "file,split,caption\n1.jpg,train,a dog, running\n",
            "line 2 has more fields than the header; a caption with a",
        ),
        (
            "file,split,caption,caption\n1.jpg,train,a,b\n",
            "two columns have the same name; found file, split, caption, caption",
        ),
    ):
        write(content)
        with pytest.raises(InputError, match=message):
            folder(str(tmp_path), "train", captions="c.txt")
    good = '{"file": "1.jpg", "split": "train", "caption": "a"}'
    (tmp_path / "c.jsonl").write_text(f"{good}\n{good}\n\n{good[:-3]}\n")
    with pytest.raises(InputError, match="c.jsonl: line 4: not a line of JSON"):
        folder(str(tmp_path), "train", captions="c.jsonl")
    (tmp_path / "c.jsonl").write_text(good.replace('"a"', '"ok \\ud83d"'))
    with pytest.raises(InputError, match="caption 1 is not valid text: 'ok"):
        folder(str(tmp_path), "train", captions="c.jsonl")


def test_val_is_dev_and_usual_names_are_recognised(tmp_path: Path) -> None:
    rows = ["Image,Text,SPLIT", "1.jpg,a dog,val", "2.jpg,a cat,Train", "3.jpg,a bird,validation", "4.jpg,a fish,dev"]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    assert folder(str(tmp_path), "dev").captions == ["a dog", "a bird", "a fish"]
    assert folder(str(tmp_path), "train").captions == ["a cat"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    """What the user names comes before a usual name; the others are found as always."""
    rows = ["file,photo,words,part", "wrong.jpg,1.jpg,a dog,train", "wrong.jpg,2.jpg,a cat,dev"]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    columns = {"image": "photo", "caption": "words", "split": "part"}
    corpus = folder(str(tmp_path), "train", columns=columns)
    assert paths(corpus) == [tmp_path / "1.jpg"] and corpus.captions == ["a dog"]
    (tmp_path / "c.jsonl").write_text('{"file": "3.jpg", "words": "a bird", "split": "train"}')
    assert folder(str(tmp_path), "train", captions="c.jsonl", columns={"caption": "words"}).captions == ["a bird"]
    for wrong, message in (
        ({"captoin": "words"}, r"data.options.columns.captoin: unknown \(did you mean 'caption'\?\)"),
        (
            {**columns, "split": "fold"},
            "captions.csv: has no column fold; found file, photo, words, part; add one with",
        ),
        ({**columns, "image": "picture"}, "has no column picture; .* name it with data.options.columns.image"),
    ):
        with pytest.raises(InputError, match=message):
            folder(str(tmp_path), "train", columns=wrong)
    read_config("demo_pictures", ["data.format=folder", "data.options.columns={image: photo, caption: words}"])
    with pytest.raises(InputError, match="data.options.columns: expected a mapping of settings"):
        read_config("demo_pictures", ["data.format=folder", "data.options.columns=photo"])


def test_the_splits_can_be_drawn(tmp_path: Path) -> None:
    """80, 10 and 10 % of the pictures, by their names alone; all captions of a picture stay together."""
    rows = [f"{number}.jpg,caption {caption} of {number}" for number in range(50) for caption in range(2)]
    found = []
    for order in (rows, rows[::-1]):
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *order]))
        corpora = {part: folder(str(tmp_path), part, splits="auto") for part in ("train", "dev", "test")}
        assert [len(corpus.images) for corpus in corpora.values()] == [40, 5, 5]
        assert [len(corpus.captions) for corpus in corpora.values()] == [80, 10, 10]
        found.append({part: set(paths(corpus)) for part, corpus in corpora.items()})
    assert found[0] == found[1] and len(set.union(*found[0].values())) == 50
    assert folder(str(tmp_path), "testall", splits="auto").captions == corpora["test"].captions
    (tmp_path / "captions.csv").write_text("image,caption\n./1.jpg,a dog\n1.jpg,a pet\n2.jpg,a cat\n3.jpg,a cow")
    sizes = [len(folder(str(tmp_path), part, splits="auto").image_ids) for part in ("train", "dev", "test")]
    assert sizes == [1, 1, 1]


def test_the_draw_is_even_and_fixed() -> None:
    """It does not follow the names' own order, and no later version may draw other splits."""
    parts = draw_splits({f"{number:05}.jpg" for number in range(1000)})
    assert Counter(parts.values()) == {"train": 800, "dev": 100, "test": 100}
    assert 30 < sum(parts[f"{number:05}.jpg"] == "test" for number in range(500)) < 70
    assert {file for file, part in draw_splits(set("abcdefghij")).items() if part != "train"} == {"d", "j"}


def test_the_way_to_split_must_not_change_when_a_run_goes_on() -> None:
    settings = ["data.format=folder", "data.options.splits=%s"]
    saved, now = (read_config("demo_pictures", [settings[0], settings[1] % way]) for way in ("auto", "column"))
    assert config_changes(saved.model_dump(), now) == ["data.options.splits (auto in the run, column now)"]
