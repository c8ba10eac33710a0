"""The contrastive loss of CLIP."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vse.errors import check_at_least, check_positive
from vse.losses.pairs import pair_cross_entropy, positive_pairs
from vse.sets import at_least_float32

Temperature = float | Literal["pretrained"]


def check_number(temperature: Temperature) -> float:
    """Check that a loss got its temperature as a number.

    Args:
        temperature: The temperature; "pretrained" stands for that of the encoders' model, which the build knows.

    Returns:
        The temperature.

    Raises:
        ValueError: It is "pretrained".

    >>> check_number(0.07)
    0.07
    """
    if isinstance(temperature, str):
        raise ValueError(f"temperature must be a number where there is no pretrained model, got {temperature!r}")
    return temperature


class InfoNCELoss(nn.Module):
    """Cross-entropy of each positive against all of its query's negatives, at a learned temperature.

    InfoNCE, van den Oord et al. 2018, in both directions as in CLIP (Radford et al. 2021):
    -log(exp(s+ / t) / (exp(s+ / t) + sum over negatives of exp(s- / t))), mean over the positive pairs, averaged over
    the directions. A query's other positives are left out. Scores in half precision are converted to float32.

    Args:
        temperature: The temperature t, or its initial value if it is learnable; at least 0.01.
            "pretrained" takes that of the encoders' published model.
        learnable: Whether log t is trained; it is kept above log 0.01.

    Raises:
        ValueError: ``temperature`` is below 0.01 or infinite.

    >>> InfoNCELoss()(torch.eye(4), torch.eye(4, dtype=torch.bool)) < 1e-5
    tensor(True)
    """

    lowest = 0.01  # CLIP's limit: a sharper softmax makes training unstable

    def __init__(self, temperature: Temperature = 0.07, learnable: bool = True) -> None:
        super().__init__()
        temperature = check_number(temperature)
        check_positive("temperature", temperature)
        check_at_least("temperature", temperature, self.lowest)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learnable)

    def forward(self, scores: Tensor, positives: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Judge a batch.

        Args:
            scores: Scores (A, C), images by captions.
            positives: (A, C) bool, True where image and caption belong together.
            pairs: Rows and columns (2, P) of the positive pairs; found in ``positives`` if they are not given.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: A shape or type is wrong, or no pair is positive.
        """
        rows, columns = positive_pairs(scores, positives, pairs)
        with torch.no_grad():  # on the parameter itself: a clamp in the graph would leave it without a gradient there
            self.log_temperature.clamp_(min=math.log(self.lowest))
        scaled = at_least_float32(scores) / self.log_temperature.exp()
        negatives = scaled.masked_fill(positives, float("-inf"))
        matches = scaled[rows, columns]
        image_to_text = pair_cross_entropy(matches, negatives, rows)
        text_to_image = pair_cross_entropy(matches, negatives.T, columns)
        return (image_to_text + text_to_image) / 2
