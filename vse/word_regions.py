"""Which region of an image each word of a caption takes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vse.errors import check_positive
from vse.similarity import unit


class WordMatch(NamedTuple):
    """The regions that the words of a caption take.

    Attributes:
        words: The L words.
        region: (L,) the index of the region with the largest cosine, from 0.
        cosine: (L,) that cosine.
        attention: (L, N) each word's weights over the regions, which add up to 1.
    """

    words: list[str]
    region: Tensor
    cosine: Tensor
    attention: Tensor


def match_words(
    regions: Tensor, tokens: Tensor, words: Sequence[str], word_of_token: Sequence[int], temperature: float = 0.1
) -> WordMatch:
    """Match each word with the region of the largest cosine.

    c_ln = cos(word l, region n). The region is argmax_n c_ln, as in MaxSim (ColBERT, Khattab & Zaharia 2020) and in the
    hard coding of CHAN (Pan et al. 2023). The attention is softmax_n(c_ln / ``temperature``), as in the soft coding of
    the same paper. A word of several subwords has the mean of their cosines.

    Args:
        regions: Embeddings or features (N, D) of the regions.
        tokens: Embeddings or features (T, D) of the caption's tokens.
        words: The caption's L words.
        word_of_token: For each token the number of its word, from 0; -1 for tokens that belong to none.
        temperature: What cosines are divided by in the softmax; 0.1 is CHAN's.

    Returns:
        The match of each word.

    Raises:
        ValueError: The widths or the numbers of tokens differ, there is no word, or the temperature is not positive.

    >>> match_words(torch.eye(2), torch.eye(2).flip(0), ["red", "dog"], [0, 1]).region
    tensor([1, 0])
    """
    check_positive("temperature", temperature)
    if not words:
        raise ValueError("the caption has no word")
    if regions.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"words and regions cannot be compared: regions are {regions.shape[1]} wide and words {tokens.shape[1]}"
        )
    if len(tokens) != len(word_of_token):
        raise ValueError(
            f"the text encoder gives {len(tokens)} elements for {len(word_of_token)} tokens; expected one for each"
        )
    cosines = unit(tokens.float()) @ unit(regions.float()).T  # (T, N)
    number = torch.tensor(word_of_token, device=cosines.device)
    cosines = torch.stack([cosines[number == word].mean(0) for word in range(len(words))])
    best = cosines.max(1)
    return WordMatch(list(words), best.indices, best.values, (cosines / temperature).softmax(1))
