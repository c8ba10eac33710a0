"""What holds for any input, not only for the examples of the other tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from aggregator_cases import DIM, KEEPS_ELEMENTS, POSITIONAL
from aggregator_cases import EVERY as AGGREGATORS_TRIED
from aggregator_cases import make as make_aggregator
from helpers import ROOT, corpus_of_ids, uneven_captions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_cases import random_batch
from similarity_cases import EVERY as SIMILARITIES_TRIED
from similarity_cases import make as make_similarity
from similarity_cases import masked_sets
from torch import Tensor

from vse.build import read_config
from vse.checkpoints.native import load_checkpoint, save_checkpoint
from vse.data.corpus import Features
from vse.data.vocabulary import Vocabulary
from vse.evaluation.ensemble import read_scores, save_scores
from vse.evaluation.score import CorpusScores
from vse.losses import LOSSES
from vse.metrics import query_ranks, retrieval_metrics
from vse.sets import masked_max, masked_mean, masked_softmax

quick = settings(max_examples=25, deadline=None)
# Each example writes the same file anew, and waits for the disk.
files = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 10**6)


def orders(seed: int, *sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(size, generator=generator) for size in sizes]


def any_sets(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Sets of 1 to 6 elements, in any places."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, 6, generator=generator) < 0.5
    mask[torch.arange(count), torch.randint(6, (count,), generator=generator)] = True
    return torch.randn(count, 6, DIM, generator=generator, dtype=torch.float64), mask


@quick
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_ranks_equal_those_of_brute_force_with_any_ties(seed: int, queries: int, items: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positives = rng.integers(0, levels, (queries, items)), rng.random((queries, items)) < 0.4
    positives[0, 0] = True
    expected = []
    for row, right in zip(scores.tolist(), positives.tolist(), strict=True):
        if any(right):
            best = max(score for score, is_right in zip(row, right, strict=True) if is_right)
            expected.append(sum(score >= best for score, is_right in zip(row, right, strict=True) if not is_right))
    assert query_ranks(scores, positives).tolist() == expected


@quick
@given(seeds)
def test_the_order_of_images_and_captions_changes_no_metric(seed: int) -> None:
    scores, positives = random_batch(seed)
    rows, columns = orders(seed, *scores.shape)
    moved = retrieval_metrics(scores[rows][:, columns], positives[rows][:, columns])
    expected = retrieval_metrics(scores, positives)
    for side in ("i2t", "t2i"):
        assert moved[side] == pytest.approx(expected[side])
    assert retrieval_metrics(4 * scores - 1, positives)["rsum"] == pytest.approx(expected["rsum"], abs=0.5)


@quick
@given(st.sampled_from(list(LOSSES)), seeds)
def test_the_order_of_images_and_captions_changes_no_loss(name: str, seed: int) -> None:
    scores, positives = (x.double() if x.is_floating_point() else x for x in random_batch(seed))
    rows, columns = orders(seed, *scores.shape)
    moved = LOSSES[name]()(scores[rows][:, columns], positives[rows][:, columns])
    torch.testing.assert_close(moved, LOSSES[name]()(scores, positives))


@quick
@given(st.sampled_from(AGGREGATORS_TRIED), seeds, st.integers(1, 5))
def test_a_set_alone_is_embedded_as_in_any_batch_in_any_order(name: str, seed: int, count: int) -> None:
    aggregator = make_aggregator(name).eval()
    features, mask = any_sets(seed, count)
    (batch_order,) = orders(seed, count)
    together = aggregator(features, mask).embeddings
    torch.testing.assert_close(aggregator(features[batch_order], mask[batch_order]).embeddings, together[batch_order])
    alone = aggregator(features[:1], mask[:1]).embeddings
    torch.testing.assert_close(alone[0], together[0])
    if name not in POSITIONAL and name not in KEEPS_ELEMENTS:
        (element_order,) = orders(seed + 1, features.shape[1])
        torch.testing.assert_close(aggregator(features[:, element_order], mask[:, element_order]).embeddings, together)


@quick
@given(st.sampled_from(SIMILARITIES_TRIED), seeds)
def test_a_pair_scores_the_same_alone_and_among_others_in_any_order(name: str, seed: int) -> None:
    similarity = make_similarity(name)
    a, b, a_mask, b_mask = masked_sets(name)
    whole = similarity(a, b, a_mask, b_mask)
    rows, columns, left, right = orders(seed, len(a), len(b), a.shape[1], b.shape[1])
    moved = similarity(a[rows][:, left], b[columns][:, right], a_mask[rows][:, left], b_mask[columns][:, right])
    torch.testing.assert_close(moved, whole[rows][:, columns])
    i, j = int(rows[0]), int(columns[0])
    alone = similarity(a[i : i + 1], b[j : j + 1], a_mask[i : i + 1], b_mask[j : j + 1])
    torch.testing.assert_close(alone[0, 0], whole[i, j])


@quick
@given(
    st.sampled_from([name for name in SIMILARITIES_TRIED if name != "order"]),
    st.lists(st.floats(1e-3, 1e3), min_size=7, max_size=7),
)
def test_the_length_of_an_embedding_changes_no_score_of_cosines(name: str, lengths: list[float]) -> None:
    similarity = make_similarity(name)
    a, b, a_mask, b_mask = masked_sets(name)
    left, right = (torch.tensor(part).double()[:, None, None] for part in (lengths[:4], lengths[4:]))
    scaled = similarity(a * left, b * right, a_mask, b_mask)
    torch.testing.assert_close(scaled, similarity(a, b, a_mask, b_mask), rtol=1e-5, atol=1e-6)


@quick
@given(seeds, st.integers(1, 5))
def test_masked_statistics_are_those_of_the_real_elements(seed: int, count: int) -> None:
    features, mask = any_sets(seed, count)
    dirty = features.masked_fill(~mask.unsqueeze(-1), torch.nan)
    weights = masked_softmax(dirty, mask.unsqueeze(-1), dim=1)
    for row in range(count):
        real = features[row, mask[row]]
        torch.testing.assert_close(masked_mean(dirty, mask)[row], real.mean(0))
        torch.testing.assert_close(masked_max(dirty, mask)[row], real.amax(0))
        torch.testing.assert_close(weights[row, mask[row]], real.softmax(0))
        assert not weights[row, ~mask[row]].any()


OVERRIDES = (
    *("model.text.aggregator.name=kmax", "model.text.aggregator.k=5", "train.epochs=3", "optim.lr=0.01"),
    *("loss.ranking.margin=0.3", "run.seed=7", "data.format=synthetic", "data.options.seed=5"),
)


@settings(max_examples=8, deadline=None)
@given(st.permutations(OVERRIDES))
def test_overrides_mean_the_same_in_any_order(overrides: list[str]) -> None:
    path = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
    assert read_config(path, overrides).model_dump() == read_config(path, list(OVERRIDES)).model_dump()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab cdé.,'"), max_size=12), min_size=1, max_size=8), st.integers(1, 3))
def test_a_vocabulary_made_from_its_state_reads_captions_alike(captions: list[str], least: int) -> None:
    built = Vocabulary.build(captions, least)
    again = Vocabulary(built.state)
    assert len(again) == len(built) and again.state == built.state
    for caption in [*captions, "a word of no caption"]:
        assert np.array_equal(again.encode(caption), built.encode(caption))
        assert (built.encode(caption) < len(built)).all()


@files
@given(
    epoch=st.integers(0, 10**6),
    words=st.lists(st.text(max_size=6), max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool]),
)
def test_what_is_read_from_a_checkpoint_is_what_was_written(
    tmp_path: Path, epoch: int, words: list[str], shape: list[int], dtype: torch.dtype
) -> None:
    weights = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    state = {
        **{"config": {"a": [1, None, 0.1]}, "vocabulary": words, "architectures": {}, "in_dim": None},
        **{"model": {"weights": weights}, "epoch": epoch},
    }
    save_checkpoint(tmp_path / "any.pt", state)
    found = load_checkpoint(tmp_path / "any.pt")
    assert torch.equal(found["model"].pop("weights"), weights) and found["epoch"] == epoch
    assert {key: found[key] for key in ("config", "vocabulary", "architectures", "in_dim")} == {
        key: state[key] for key in ("config", "vocabulary", "architectures", "in_dim")
    }


@files
@given(seeds, st.integers(1, 4), st.integers(0, 5), st.integers(1, 3))
def test_scores_come_back_from_any_corpus(tmp_path: Path, seed: int, images: int, more: int, models: int) -> None:
    corpus = corpus_of_ids(uneven_captions(images, images + more, seed))
    scores = torch.randn(images, images + more, generator=torch.Generator().manual_seed(seed))
    path = tmp_path / "any.npz"
    save_scores(path, CorpusScores("any", scores, models=models), corpus)
    found = read_scores(path, corpus)
    assert torch.equal(found.scores, scores) and found.models == models


@files
@given(seeds, st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_any_rows_of_features_come_back(tmp_path: Path, seed: int, rows: list[int]) -> None:
    values = np.random.default_rng(seed).standard_normal((7, 3, 2)).astype(np.float32)
    np.save(tmp_path / "any_ims.npy", values)
    assert np.array_equal(Features(tmp_path / "any_ims.npy").read(np.array(rows)), values[rows])
