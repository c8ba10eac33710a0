"""PIE-Net of PVSE."""

import torch
from torch import Tensor, nn

from vse.aggregators.pooling import set_context
from vse.sets import Aggregated, check_set, fill_masked, masked_softmax


class PIENet(nn.Module):
    """Polysemous instance embedding network: K locally guided residuals added to a global vector.

    PVSE, Song & Soleymani 2019 (arXiv 1906.04402), section 3. For local features x and the context phi:
    alpha = softmax over elements of W2 tanh(W1 x), K attention maps; residual r_k = dropout(sigmoid(fc(alpha_k x)));
    embedding z_k = LayerNorm(phi + r_k). K = 1 is no special case.

    ``hidden_dim`` defaults to in_dim / 2. Without a context the masked mean of the features stands in, which must then
    be ``out_dim`` wide; with ``project_context`` the context is ``in_dim`` wide and goes through a learned map.

    Shapes: features (B, N, in_dim), mask (B, N), context (B, out_dim) -> embeddings and residual (B, K, out_dim),
    attention (B, K, N). Raises ValueError for sizes below 1, dropout outside [0, 1), an empty set or a wrong shape.

    >>> PIENet(in_dim=300, out_dim=64, num_embeddings=4)(torch.randn(2, 9, 300), context=torch.randn(2, 64))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_embeddings: int,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        project_context: bool = False,
    ) -> None:
        super().__init__()
        hidden_dim = max(1, in_dim // 2) if hidden_dim is None else hidden_dim
        sizes = {"in_dim": in_dim, "out_dim": out_dim, "num_embeddings": num_embeddings, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.hidden = nn.Linear(in_dim, hidden_dim, bias=False)
        self.maps = nn.Linear(hidden_dim, num_embeddings, bias=False)
        self.fc = nn.Linear(in_dim, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(out_dim)
        self.project = nn.Linear(in_dim, out_dim) if project_context else None
        for layer in (self.hidden, self.maps, self.fc):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets."""
        check_set(features, mask, dim=self.in_dim)
        features = fill_masked(features, mask)
        context = set_context(features, mask, context, self.out_dim, self.project)
        scores = self.maps(self.hidden(features).tanh()).transpose(1, 2)
        attention = masked_softmax(scores, None if mask is None else mask.unsqueeze(1))
        residual = self.dropout(self.fc(torch.matmul(attention.to(features.dtype), features)).sigmoid())
        return Aggregated(self.norm(context.unsqueeze(1) + residual), attention, residual)
