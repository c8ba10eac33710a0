"""CxC within one kind, on items whose right answers stand in the middle of their rankings."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vse.data.corpus import Corpus
from vse.errors import InputError
from vse.evaluation.judgements import Judgements, cxc_within, read_judgements
from vse.evaluation.score import Encoded, Member, ensemble, report, score_within
from vse.similarity import chamfer, order

SIZE = 600  # more than what is ranked at a time


def slow_recalls(scores: Tensor, positives: list[set[int]]) -> dict[str, float]:
    """Sort the other items of each item that has a positive, a positive after its equals, and look for the first."""
    table = scores.tolist()
    ranks = []
    for item, right in enumerate(positives):
        if right:
            others = [other for other in range(len(table)) if other != item]
            others.sort(key=lambda other: (-table[item][other], other in right))
            ranks.append(next(place for place, other in enumerate(others) if other in right))
    return {f"r{k}": 100 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}


def partners(pairs: list[list[int]], group: np.ndarray | None, size: int) -> list[set[int]]:
    """The positives of each item: what it is paired with in either column, and its group; never itself."""
    found: list[set[int]] = [set() for _ in range(size)]
    for a, b in pairs:
        found[a].add(b)
        found[b].add(a)
    if group is not None:
        for i in range(size):
            found[i] |= {j for j in range(size) if group[j] == group[i]}
    return [right - {i} for i, right in enumerate(found)]


def middling_scores(positives: list[set[int]], signal: float) -> Tensor:
    """Scores in which an item is most like itself, and somewhat more like its positives than like others."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(positives), len(positives))).round(1)  # with ties
    for item, right in enumerate(positives):
        scores[item, list(right)] += signal
    np.fill_diagonal(scores, 9.0)
    return torch.from_numpy(scores).float()


def assert_in_the_middle(recalls: dict[str, float]) -> None:
    assert 10 < recalls["r1"] < recalls["r5"] < recalls["r10"] < 95


# Two of a group stand far apart, and no two groups need have the same size.
GROUPS = np.random.default_rng(5).integers(0, 250, SIZE)


@pytest.mark.parametrize("group", [None, GROUPS], ids=["pairs", "pairs and groups"])
def test_recalls_are_those_of_sorted_lists(group: np.ndarray | None) -> None:
    rng = np.random.default_rng(1)
    places = rng.integers(0, SIZE, (170, 2)).tolist()
    places += [[7, 7], [511, 3], [4, 512]]  # an item is no answer to itself; 512 are ranked at a time
    positives = partners(places, group, SIZE)
    scores = middling_scores(positives, 2.5)
    ids = (rng.permutation(10_000)[:SIZE]).tolist()
    found = cxc_within(lambda rows: scores[rows], ids, np.array(ids)[np.array(places)], group)
    assert_in_the_middle(found)
    assert found == pytest.approx(slow_recalls(scores, positives))


def test_each_pair_counts_both_ways() -> None:
    """Of one pair, one item finds the other at once and the other one does not."""
    scores = torch.zeros(30, 30)
    scores[3, 20], scores[20, 3] = 1.0, -1.0
    for pair in ([3, 20], [20, 3]):
        found = cxc_within(lambda rows: scores[rows], range(30), np.array([pair]))
        assert found == {"r1": 50.0, "r5": 50.0, "r10": 50.0}


def test_an_item_is_neither_its_own_answer_nor_in_its_own_way() -> None:
    scores = torch.eye(30) * 5
    for place, other in ((2, 9), (9, 2)):
        scores[place, other] = 1.0  # second to the item itself
    assert cxc_within(lambda rows: scores[rows], range(30), np.array([[2, 9]]))["r1"] == 100
    scores[9, 2] = scores[2, 9] = -1.0
    group = np.arange(30)
    group[9] = 2
    assert cxc_within(lambda rows: scores[rows], range(30), np.zeros((0, 2), dtype=int), group)["r10"] == 0


def corpus_of(image_of_caption: np.ndarray) -> Corpus:
    images, captions = int(image_of_caption.max()) + 1, len(image_of_caption)
    image_ids = [100 + i for i in range(images)]
    caption_ids = [5000 - i for i in range(captions)]
    return Corpus("small", image_ids, ["a"] * captions, image_of_caption, image_ids, caption_ids)


def test_i2i_and_t2t_of_models_and_their_ensemble() -> None:
    """The row is the query, also where a similarity is not symmetric; an ensemble's scores are the mean."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    of = rng.permutation(np.repeat(np.arange(60), 3))
    corpus = corpus_of(of)
    image_places, caption_places = rng.integers(0, 60, (40, 2)), rng.integers(0, 180, (50, 2))
    judgements = Judgements(np.array(corpus.image_ids)[image_places], np.array(corpus.caption_ids)[caption_places])
    members = []
    for name, similarity, size in (("a", chamfer, 2), ("b", order, 1)):
        images = torch.randn(60, size, 5, generator=generator)
        captions = images[torch.from_numpy(of)] + torch.randn(180, size, 5, generator=generator)
        for place, other in image_places.tolist():
            images[other] = 0.7 * images[place] + 0.6 * images[other]
        members.append(Member(name, torch.zeros(60, 180), {}, (Encoded(similarity, images, captions),)))
    results = []
    for member in (*members, ensemble(members)):
        expected = {}
        for key, pairs, group in (("i2i", image_places, None), ("t2t", caption_places, of)):
            sides = [(part.similarity, part.images if key == "i2i" else part.captions) for part in member.encoded]
            mean = torch.stack([similarity(items, items) for similarity, items in sides]).mean(0)
            expected[key] = slow_recalls(mean, partners(pairs.tolist(), group, len(mean)))
        found = score_within(member, corpus, judgements)
        assert found["i2i"] == pytest.approx(expected["i2i"]) and found["t2t"] == pytest.approx(expected["t2t"])
        results.append(found)
    for key in ("i2i", "t2t"):
        assert_in_the_middle(results[0][key])
        assert results[0][key] != results[1][key] != results[2][key]
    lost = judgements._replace(captions=np.array([[5000, 1]]))
    with pytest.raises(InputError, match="small: CxC judges item 1, which is not in this corpus"):
        score_within(members[0], corpus, lost)


def test_only_cxc_with_judgements_and_embeddings_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's own test is 5,000 images, too many for here: the protocol's other half is replaced."""
    import vse.evaluation as evaluation

    corpus = corpus_of(np.arange(40))
    judgements = Judgements(np.array([[100, 101]]), np.array([[5000, 4999]]))
    embeddings = torch.randn(40, 1, 4)
    member = Member("a", torch.zeros(40, 40), {}, (Encoded(chamfer, embeddings, embeddings),))
    monkeypatch.setattr(evaluation, "check_split", lambda *_: None)
    for name in ("cxc_metrics", "eccv_metrics"):
        monkeypatch.setattr(evaluation, name, lambda *_: {"i2t": {}, "t2i": {}})
    for protocol, given, own, sides in (
        ("cxc", judgements, member, {"i2t", "t2i", "i2i", "t2t"}),
        ("cxc", None, member, {"i2t", "t2i"}),
        ("cxc", judgements, member._replace(encoded=()), {"i2t", "t2i"}),
        ("eccv", judgements, member, {"i2t", "t2i"}),
    ):
        assert set(report(own, corpus, protocol, given)) == sides


def write_pairs(folder: Path, images: list[float], captions: list[float]) -> None:
    """CxC's two files with these scores, pair by pair; the ids count up."""
    for name, kind, pattern, scores in (
        ("sis", "image", "COCO_val2014_{:012d}.jpg", images),
        ("sts", "caption", "COCO_val2014:sentid:{}", captions),
    ):
        with open(folder / f"{name}_test.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f"{kind}1", f"{kind}2", "agg_score", "sampling_method"])
            writer.writerows([pattern.format(i), pattern.format(7 * i + 1), s, "x"] for i, s in enumerate(scores))


def test_a_pair_at_the_threshold_is_positive(tmp_path: Path) -> None:
    """From 2.5 on for images, from 3 on for captions; nothing below, and in the order of the file."""
    images, captions = [2.5] * 21_816, [3.0] * 16_184
    write_pairs(tmp_path, [2.49, *images, 0.0], [2.99, *captions, 2.5])
    found = read_judgements(tmp_path)
    for pairs, count in ((found.images, 21_816), (found.captions, 16_184)):
        first = np.arange(1, count + 1)
        assert np.array_equal(pairs, np.stack([first, 7 * first + 1], axis=1))
    for wrong, message in (
        (([*images, 2.5], captions), "sis_test.csv: holds 21,817 pairs"),
        ((images, captions[1:]), "sts_test.csv: holds 16,183 pairs"),
        (([*images, 5.01], captions), "sis_test.csv: line 21818: "),
    ):
        arguments: Any = wrong
        write_pairs(tmp_path, *arguments)
        with pytest.raises(InputError, match=re.escape(message)):
            read_judgements(tmp_path)
