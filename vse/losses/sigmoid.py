"""The pairwise sigmoid loss of SigLIP."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.errors import check_choice, check_positive
from vse.losses.info_nce import Temperature, check_number
from vse.losses.pairs import positive_pairs
from vse.sets import at_least_float32

SigmoidReduction = Literal["batch", "pairs"]


class SigmoidLoss(nn.Module):
    """Each pair of image and caption alone is judged as a match or not, at a learned temperature and bias.

    SigLIP, Zhai et al. 2023, equation (1) and algorithm 1: -1/B sum_ij log sigmoid(z_ij (s_ij / t + b)), where z_ij is
    1 for positive pairs and -1 for all others. Scores in half precision are converted to float32.

    Args:
        temperature: The temperature t, or its initial value; the paper's t' starts at log 10, which is t = 0.1 here.
            "pretrained" takes temperature and bias of the encoders' published model.
        bias: The bias b, or its initial value. It makes up for the many negatives at the start.
        learnable: Whether log t and b are trained.
        reduction: What the sum over all pairs is divided by. "batch": the number of captions, or of images if there are
            more of them, which is the paper's B for a batch of B pairs. "pairs": the number of all pairs, which makes
            the loss smaller by a factor of B and independent of the batch size.

    Raises:
        ValueError: ``temperature`` is not positive, ``bias`` is infinite, or ``reduction`` is unknown.

    >>> SigmoidLoss(0.01, 0.0)(2 * torch.eye(4) - 1, torch.eye(4, dtype=torch.bool)) < 1e-5
    tensor(True)
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        bias: float = -10.0,
        learnable: bool = True,
        reduction: SigmoidReduction = "batch",
    ) -> None:
        super().__init__()
        temperature = check_number(temperature)
        check_positive("temperature", temperature)
        if not math.isfinite(bias):
            raise ValueError(f"bias must be finite, got {bias}")
        check_choice("reduction", reduction, get_args(SigmoidReduction))
        self.reduction = reduction
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

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
        positive_pairs(scores, positives, pairs)  # for its checks
        logits = at_least_float32(scores) / self.log_temperature.exp() + self.bias
        total = -F.logsigmoid(torch.where(positives, logits, -logits)).sum()
        return total / (max(scores.shape) if self.reduction == "batch" else scores.numel())
