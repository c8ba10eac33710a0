"""PIE-Net of PVSE."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vse.aggregators.pooling import set_context
from vse.errors import check_at_least, check_choice, check_probability
from vse.sets import Aggregated, check_set, fill_masked, masked_softmax

Combine = Literal["set", "concatenate"]


class PIENet(nn.Module):
    """Polysemous instance embedding network: K locally guided residuals added to a global vector.

    PVSE, Song & Soleymani 2019 (arXiv 1906.04402), section 3. For local features x and the context phi:
    alpha = softmax over elements of W2 tanh(W1 x), K attention maps; residual r_k = dropout(sigmoid(fc(alpha_k x)));
    embedding z_k = LayerNorm(phi + r_k). K = 1 is no special case.

    Three settings are for the ablations of the paper's figure 6. Its code does not have them; how widths are kept in
    the last two is our interpretation:

    * ``use_global=False`` ("no global"): z_k = LayerNorm(r_k), and the context is not read.
    * ``use_residual=False`` ("no residual"): phi and r_k are concatenated instead of added, and a learned map takes
      them to the width of an embedding: z_k = LayerNorm(W [phi; r_k] + b).
    * ``combine="concatenate"`` (no multiple-instance learning): the K vectors z_k, each ``out_dim / K`` wide, as is the
      context, are concatenated into one embedding ``out_dim`` wide. Attention and residuals stay those of the K parts.

    Args:
        in_dim: Width of the local features.
        out_dim: Width of an embedding.
        num_embeddings: Number K of attention maps, and of embeddings unless they are concatenated.
        hidden_dim: Width of the attention's hidden layer; half of ``in_dim`` by default.
        dropout: Probability of dropping a channel of a residual.
        project_context: Whether the context is ``in_dim`` wide and goes through a learned map. Without a context the
            mean of the features stands in, which this also adapts.
        use_global: Whether the context takes part.
        use_residual: Whether the residual is added to the context; otherwise they are concatenated.
        combine: "set" for K embeddings, "concatenate" for one.

    Raises:
        ValueError: A size is below 1, ``dropout`` is not in [0, 1), ``combine`` is unknown, K does not divide
            ``out_dim`` where it must, or a setting needs the context but ``use_global`` is False.

    >>> PIENet(in_dim=300, out_dim=64, num_embeddings=4)(torch.randn(2, 9, 300), context=torch.randn(2, 64))[0].shape
    torch.Size([2, 4, 64])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_embeddings: int,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        project_context: bool = False,
        use_global: bool = True,
        use_residual: bool = True,
        combine: Combine = "set",
    ) -> None:
        super().__init__()
        hidden_dim = max(1, in_dim // 2) if hidden_dim is None else hidden_dim
        sizes = {"in_dim": in_dim, "out_dim": out_dim, "num_embeddings": num_embeddings, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            check_at_least(name, size, 1)
        check_probability("dropout", dropout)
        check_choice("combine", combine, get_args(Combine))
        if not use_global and (project_context or not use_residual):
            raise ValueError("project_context and use_residual=False need the context, but use_global is False")
        if combine == "concatenate" and out_dim % num_embeddings:
            raise ValueError(f"num_embeddings must divide out_dim to concatenate, got {num_embeddings} and {out_dim}")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.use_global, self.combine = use_global, combine
        self.width = out_dim if combine == "set" else out_dim // num_embeddings
        self.hidden = nn.Linear(in_dim, hidden_dim, bias=False)
        self.maps = nn.Linear(hidden_dim, num_embeddings, bias=False)
        self.fc = nn.Linear(in_dim, self.width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(self.width)
        self.project = nn.Linear(in_dim, self.width) if project_context else None
        self.join = None if use_residual else nn.Linear(2 * self.width, self.width)
        for layer in (self.hidden, self.maps, self.fc):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets.

        Args:
            features: Local features (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Global vectors (B, out_dim), or (B, in_dim) with ``project_context``; None for the mean of the
                features.

        Returns:
            Embeddings and residual (B, K, out_dim), attention (B, K, N). Concatenated, the embeddings are
            (B, 1, out_dim) and the residual (B, K, out_dim / K).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.in_dim)
        features = fill_masked(features, mask)
        scores = self.maps(self.hidden(features).tanh()).transpose(1, 2)
        attention = masked_softmax(scores, None if mask is None else mask.unsqueeze(1))
        residual = self.dropout(self.fc(torch.matmul(attention.to(features.dtype), features)).sigmoid())
        embeddings = residual
        if self.use_global:
            context = set_context(features, mask, context, self.width, self.project).unsqueeze(1)
            if self.join is None:
                embeddings = context + residual
            else:
                embeddings = self.join(torch.cat([context.expand_as(residual), residual], dim=-1))
        embeddings = self.norm(embeddings)
        if self.combine == "concatenate":
            embeddings = embeddings.flatten(1).unsqueeze(1)
        return Aggregated(embeddings, attention, residual)
