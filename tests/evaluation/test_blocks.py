import math
from typing import Any

import numpy as np
import pytest
import torch

from vse.evaluation.blocks import (
    NaNScores,
    blocks_of_embeddings,
    blocks_of_matrix,
    bounds,
    check_not_nan,
    cut,
    mean_of_blocks,
    score_rows,
    transpose,
)
from vse.similarity import cosine, max_cosine

CPU = torch.device("cpu")
CHOICES: list[Any] = [slice(2, 5), slice(0, 7), torch.tensor([6, 0, 3])]


@pytest.mark.parametrize("rows", CHOICES)
@pytest.mark.parametrize("columns", CHOICES)
def test_any_block_of_a_matrix_and_of_embeddings(rows: Any, columns: Any) -> None:
    images, captions = torch.randn(7, 2, 5), torch.randn(9, 3, 5).half()
    matrix = max_cosine(images, captions.float())
    expected = matrix[torch.arange(7)[rows]][:, torch.arange(9)[columns]]
    for scores in (blocks_of_matrix(matrix.double()), blocks_of_embeddings(max_cosine, images, captions)):
        block = scores.block(rows, columns)
        assert block.dtype == torch.float32 and (scores.images, scores.captions) == (7, 9)
        torch.testing.assert_close(block, expected)
        torch.testing.assert_close(transpose(scores).block(columns, rows), expected.T)
    assert (transpose(scores).images, transpose(scores).captions) == (9, 7)


def test_blocks_hold_few_pairs_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vse.evaluation.blocks._BLOCK", 100)
    for k, own, side in ((1, 1, 10), (4, 1, 5), (4, 4, 2), (50, 50, 1)):
        assert blocks_of_embeddings(cosine, torch.zeros(3, k, 2), torch.zeros(3, own, 2)).side == side
    assert blocks_of_matrix(torch.zeros(3, 3)).side == 10


def test_the_mean_of_models() -> None:
    matrices = [torch.randn(4, 6) for _ in range(3)]
    members = [blocks_of_matrix(matrix) for matrix in matrices]
    mean = mean_of_blocks([members[0], members[1]._replace(side=3), members[2]])
    part = slice(1, 3), slice(2, 6)
    torch.testing.assert_close(mean.block(*part), torch.stack(matrices).mean(0)[part])
    assert mean.side == 3 and mean_of_blocks(members[:1]) is members[0]


def test_parts_are_nearly_equal() -> None:
    for total in range(1, 40):
        for side in range(1, 12):
            found = bounds(total, side)
            sizes = np.diff(found)
            assert found[0] == 0 and found[-1] == total and len(sizes) == math.ceil(total / side)
            assert sizes.max() <= side and sizes.max() - sizes.min() <= 1
    for total in (1448, 1449, 2900, 5000, 25_000, 113_287):
        found = bounds(total, 1448)
        sizes = np.diff(found)
        assert found[0] == 0 and found[-1] == total and (found[1:-1] % 16 == 0).all()
        assert 700 < sizes.min() and sizes.max() <= 1448 and sizes.max() - sizes.min() <= 32


def test_an_index_is_cut_into_slices_where_it_has_no_gaps() -> None:
    first, second, third = cut(np.array([4, 5, 6, 9, 7, 2, 3]), 3, CPU)
    assert first == slice(4, 6)
    assert isinstance(second, torch.Tensor) and second.tolist() == [6, 9]
    assert isinstance(third, torch.Tensor) and third.tolist() == [7, 2, 3]
    assert cut(np.arange(5), 10, CPU) == [slice(0, 5)]


def test_rows_of_scores() -> None:
    matrix = torch.randn(5, 11)
    scores = blocks_of_matrix(matrix)._replace(side=4)
    assert torch.equal(score_rows(scores, torch.tensor([3, 1])), matrix[[3, 1]])
    assert torch.equal(score_rows(transpose(scores), slice(2, 4)), matrix[:, 2:4].T)
    matrix[3, 10] = torch.nan
    with pytest.raises(NaNScores, match="the model gives NaN; its weights have diverged"):
        score_rows(scores, torch.tensor([3, 1]))
    check_not_nan(torch.tensor([torch.inf, -torch.inf, 1.0]))
