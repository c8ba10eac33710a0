"""The check that the encoders of captions share."""

import pytest
import torch
from torch import Tensor

from vse.encoders.tokens import clean_tokens


def test_garbage_behind_a_caption_becomes_id_0() -> None:
    tokens = torch.tensor([[5, 6, 7], [8, -1, 10**9]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    before = tokens.clone()
    assert clean_tokens(tokens, mask).tolist() == [[5, 6, 7], [8, 0, 0]]
    assert torch.equal(tokens, before)
    assert clean_tokens(tokens, None) is tokens


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (torch.zeros(2, 3), None, r"tokens must be a non-empty \(B, L\) tensor of ids, got torch.float32 \(2, 3\)"),
        (torch.zeros(3, dtype=torch.long), None, r"got torch.int64 \(3,\)"),
        (torch.zeros(2, 0, dtype=torch.long), None, r"got torch.int64 \(2, 0\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool), r"mask must have shape \(2, 3\)"),
        (torch.zeros(1, 2, dtype=torch.long), torch.tensor([[False, True]]), "sample 0: a sequence needs a prefix"),
        (torch.zeros(2, 1, dtype=torch.long), torch.tensor([[True], [False]]), "sample 1 of the batch has no element"),
    ],
)
def test_bad_tokens(tokens: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_tokens(tokens, mask)
