"""Graph convolution over the elements, then their mean."""

import math

from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sets import Aggregated, check_set, fill_masked, masked_mean, masked_softmax


class GraphLayer(nn.Module):
    """One graph convolution: every element reads all elements, by learned affinities.

    X becomes X + Wr (A X Wg), where row i of A is softmax_j((Wq x_i).(Wk x_j) / sqrt(dim)) over the real elements.

    Args:
        dim: Width of the elements.

    >>> GraphLayer(dim=8)(torch.randn(2, 5, 8), None).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)  # a bias would add the same to all affinities of an element
        self.graph = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, elements: Tensor, mask: Tensor | None) -> Tensor:
        """Update the elements.

        Args:
            elements: The elements (B, N, dim).
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            The new elements (B, N, dim).
        """
        affinities = self.query(elements) @ self.key(elements).transpose(1, 2) / math.sqrt(elements.shape[-1])
        weights = masked_softmax(affinities, None if mask is None else mask.unsqueeze(1))
        return elements + self.out(weights.to(elements.dtype) @ self.graph(elements))


class GCN(nn.Module):
    """Graph convolutions over the elements, whose outputs are averaged: GCN in VSE∞'s comparison.

    VSE∞ (Chen et al. 2021, table 1) compares simple pooling with aggregators that relate the elements first. The code
    of these baselines is not released, so their form is our interpretation: the residual graph convolution of VSRN (Li
    et al. 2019), X + Wr (A X Wg) with a fully connected graph whose affinities A are learned from the elements,
    ``depth`` of them; rows of A are normalised by a softmax, and e = (1/n) sum_i y_i over the outputs y of the real
    elements.

    Args:
        dim: Width D of the features.
        depth: Number of graph convolutions, each with its own weights.

    Raises:
        ValueError: ``dim`` or ``depth`` is below 1.

    >>> GCN(dim=8)(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, dim: int, depth: int = 1) -> None:
        super().__init__()
        check_at_least("dim", dim, 1)
        check_at_least("depth", depth, 1)
        self.dim = dim
        self.layers = nn.ModuleList(GraphLayer(dim) for _ in range(depth))

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets.

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
        for layer in self.layers:
            features = layer(features, mask)
        return Aggregated(masked_mean(features, mask).unsqueeze(1))
