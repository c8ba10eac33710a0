"""An aggregator of one's own, named in a config: ``PYTHONPATH=examples vse train examples/my_pool.yaml``.

The arguments of its constructor are its keys in the config. An argument called ``in_dim`` is given the width of the
encoder's features, and one called ``out_dim`` the width of the embeddings (``model.embed_dim``).
"""

import torch
from torch import Tensor, nn

from vse.sets import Aggregated, check_set, masked_softmax


class MyPool(nn.Module):
    """Attention pooling: a weighted mean of the elements, whose weights come from a small network.

    Args:
        in_dim: Width of the features, and so of the embedding.
        hidden_dim: Width of the network's hidden layer.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 32) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 1))

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, in_dim).
            mask: Which of them are real (B, N), bool; None means that all are.
            context: The encoder's global vector, which this aggregator does not use.

        Returns:
            Embeddings (B, 1, in_dim) and the attention (B, 1, N).
        """
        check_set(features, mask)
        if mask is not None:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)  # whatever stands in masked places
        attention = masked_softmax(self.score(features).transpose(1, 2), None if mask is None else mask.unsqueeze(1))
        return Aggregated(torch.matmul(attention.to(features.dtype), features), attention)
