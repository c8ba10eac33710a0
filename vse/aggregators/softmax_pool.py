"""Pooling by a softmax over the elements, separately for every dimension."""

from typing import Literal, get_args

from torch import Tensor, nn

from vse.errors import check_at_least, check_choice
from vse.sets import Aggregated, at_least_float32, check_set, fill_masked, masked_softmax

Init = Literal["xavier", "torch"]


class SoftmaxPool(nn.Module):
    """Per-dimension attention: a softmax over the elements weighs each dimension on its own (ESA, Zhu et al. 2023).

    ESA (IEEE TCSVT 2023, "external space attention aggregation"): a_i = W x_i, w_id = exp(a_id) / sum_j exp(a_jd) and
    e_d = sum_i w_id x_id. W = 0 gives the mean; a large positive diagonal gives the maximum. The order of the elements
    does not matter. The official layer also has a bias, which is the same for all elements and so changes nothing;
    here there is none.

    Args:
        dim: Width D of the features.
        init: Initialisation of W: "xavier", uniform in ±sqrt(6 / (dim + dim)) (ESA's regions and BERT), or "torch",
            uniform in ±1 / sqrt(dim) (ESA's BiGRU).

    Raises:
        ValueError: ``dim`` is below 1, or ``init`` is unknown.

    >>> SoftmaxPool(dim=8)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, dim: int, init: Init = "xavier") -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        check_choice("init", init, get_args(Init))
        self.dim = dim
        self.linear = nn.Linear(dim, dim, bias=False)
        if init == "xavier":
            nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, dim).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.dim)
        features = fill_masked(features, mask)
        pooled = (self.weigh(features, mask) * features).sum(1)
        return Aggregated(pooled.to(features.dtype).unsqueeze(1))

    def weigh(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the weights of each dimension.

        Args:
            features: Local features (B, N, dim), finite in masked places too.
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            Weights (B, N, dim), at least in float32, that add up to 1 over the elements and are 0 in masked places.
        """
        logits = at_least_float32(self.linear(features))
        return masked_softmax(logits, None if mask is None else mask.unsqueeze(-1), dim=1)
