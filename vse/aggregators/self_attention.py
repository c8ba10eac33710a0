"""Self-attention over the elements, then their mean."""

from torch import Tensor, nn

from vse.errors import check_at_least, check_probability
from vse.sets import Aggregated, check_set, fill_masked, masked_mean


class SelfAttention(nn.Module):
    """Transformer layers over the elements, whose outputs are averaged: SelfAttn in VSE∞'s comparison.

    VSE∞ (Chen et al. 2021, table 1) compares simple pooling with aggregators that relate the elements first. The code
    of these baselines is not released, so their form is our interpretation, the plainest one: the layer of Vaswani et
    al. 2017 (self-attention, then a ReLU network, each followed by a residual sum and LayerNorm), ``depth`` of them,
    without position codes, and e = (1/n) sum_i y_i over the outputs y of the real elements.

    Args:
        dim: Width D of the features.
        depth: Number of layers, each with its own weights.
        heads: Number of attention heads; they must divide ``dim``.
        ff_mult: Width of the network's hidden layer, in multiples of ``dim``.
        dropout: Probability of dropping, in attention and after both parts of a layer.

    Raises:
        ValueError: A size is below 1, ``heads`` does not divide ``dim``, or ``dropout`` is not in [0, 1).

    >>> SelfAttention(dim=64)(torch.randn(2, 5, 64)).embeddings.shape
    torch.Size([2, 1, 64])
    """

    def __init__(self, dim: int, depth: int = 1, heads: int = 8, ff_mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("depth", depth), ("heads", heads), ("ff_mult", ff_mult)):
            check_at_least(name, size, 1)
        check_probability("dropout", dropout)
        if dim % heads:
            raise ValueError(f"heads must divide the width of the features, {dim}, got {heads}")
        self.dim = dim
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, ff_mult * dim, dropout, batch_first=True) for _ in range(depth)
        )

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
        padding = None if mask is None else ~mask
        for layer in self.layers:
            features = layer(features, src_key_padding_mask=padding)
        return Aggregated(masked_mean(features, mask).unsqueeze(1))
