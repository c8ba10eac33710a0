"""The Generalized Pooling Operator of VSE∞."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from vse.errors import check_at_least, check_choice
from vse.sequences import GRUWeights, read_both_ways, read_padded
from vse.sets import Aggregated, check_set, count_elements, lengths_to_mask, masked_softmax, masked_sort

Decoder = Literal["gru", "transformer", "mlp"]


class GPO(nn.Module):
    """Generalized Pooling Operator: learned weights on the ranks of each dimension's sorted values.

    VSE∞, Chen et al. 2021 (arXiv 2011.04305), section 3.2: for a set of n elements, e_d = sum_k theta_k x_(k)d, where
    x_(1)d >= x_(2)d >= ... and theta = softmax_k(s_k / 0.1); the scores s_k come from a sinusoidal code of k, a BiGRU
    whose directions are averaged, and a linear map. theta depends on n alone, so a batch of sets of different sizes
    takes it from a table of n = 1..N; in evaluation on a CPU this table is kept until a parameter changes.

    The defaults are the operator of the paper. The other settings are for the ablations of its supplement (tables 3, 6,
    7 and 8), whose code is not released; their exact form is our interpretation, the plainest one:

    * ``decoder="transformer"``: one post-norm transformer layer with one head in place of the BiGRU, as wide as the
      code and with ``hidden_dim`` hidden units; ``"mlp"``: a linear map and a ReLU, which see one rank at a time.
    * ``per_dimension``: scores s_kd, and so weights, for every dimension d of the features.
    * ``conditioned``: the code of rank k plus a linear map of the sorted features x_(k), so that the weights depend on
      the sample.

    Args:
        position_dim: Width of the sinusoidal code, even.
        hidden_dim: Width of the BiGRU's states, each way.
        decoder: What turns codes into states: "gru", "transformer" or "mlp".
        per_dimension: Whether every dimension has its own weights.
        conditioned: Whether the weights depend on the features.
        in_dim: Width D of the features; needed for ``per_dimension`` and ``conditioned``. None allows any width.

    Raises:
        ValueError: A size is out of range, the decoder is unknown, or ``in_dim`` is missing.

    >>> GPO()(torch.randn(2, 36, 1024)).embeddings.shape
    torch.Size([2, 1, 1024])
    """

    temperature = 0.1  # fixed in the paper's code, not a hyper-parameter

    def __init__(
        self,
        position_dim: int = 32,
        hidden_dim: int = 32,
        decoder: Decoder = "gru",
        per_dimension: bool = False,
        conditioned: bool = False,
        in_dim: int | None = None,
    ) -> None:
        super().__init__()
        if position_dim < 2 or position_dim % 2:
            raise ValueError(f"position_dim must be even and positive, got {position_dim}")
        check_at_least("hidden_dim", hidden_dim, 1)
        check_choice("decoder", decoder, get_args(Decoder))
        if in_dim is None and (per_dimension or conditioned):
            raise ValueError("in_dim, the width of the features, is needed for per_dimension and conditioned weights")
        self.position_dim = position_dim
        self.decoder = decoder
        self.per_dimension = per_dimension
        self.in_dim = in_dim
        if decoder == "gru":
            self.gru = GRUWeights(position_dim, hidden_dim, bidirectional=True)
        elif decoder == "transformer":
            self.transformer = nn.TransformerEncoderLayer(position_dim, 1, hidden_dim, dropout=0.0, batch_first=True)
        else:
            self.mlp = nn.Sequential(nn.Linear(position_dim, hidden_dim), nn.ReLU())
        width = position_dim if decoder == "transformer" else hidden_dim
        outputs = in_dim if per_dimension and in_dim is not None else 1
        self.linear = nn.Linear(width, outputs, bias=False)
        self.condition = nn.Linear(in_dim, position_dim, bias=False) if conditioned and in_dim is not None else None
        self._table: Tensor | None = None
        self._table_key: Tensor | None = None

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Pool a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, 1, D).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.in_dim)
        ranked, prefix = masked_sort(features, mask)
        weights = self.rank_weights(ranked, prefix).to(ranked.dtype)
        if self.per_dimension:
            return Aggregated((weights * ranked).sum(1, keepdim=True))
        return Aggregated(torch.matmul(weights.unsqueeze(1), ranked))

    def rank_weights(self, ranked: Tensor, mask: Tensor | None) -> Tensor:
        """Weights theta of every sample's ranks, zero behind its real elements.

        Args:
            ranked: Sorted features (B, N, D); unless the weights are conditioned on them, only their shape counts.
            mask: Mask (B, N) of the real elements; None when all are real.

        Returns:
            Weights (B, N), or (1, N) when all sets are full and so alike; (B, N, D) or (1, N, D) per dimension.
        """
        size = ranked.shape[1]
        if self.condition is not None:
            return self._weights(count_elements(ranked, mask), size, ranked)
        counts = count_elements(ranked[:1], None) if mask is None else mask.sum(1)
        if self._keeps_table():
            return self._kept_table(size)[:, :size][counts - 1]
        if mask is None or self.per_dimension or self._has_few(counts, size):
            return self._weights(counts, size)
        return self._table_of(size)[counts - 1]

    def _has_few(self, counts: Tensor, size: int) -> bool:
        """Whether a batch needs fewer weights than the table of all sizes has; compiled, it serves any batch."""
        return not torch.compiler.is_compiling() and len(counts) <= size

    def _table_of(self, size: int) -> Tensor:
        """Weights theta (size, size) of sets of 1..size elements."""
        return self._weights(torch.arange(1, size + 1, device=self.linear.weight.device), size)

    def _weights(self, counts: Tensor, size: int, ranked: Tensor | None = None) -> Tensor:
        """Weights theta (R, size) or (R, size, D) of sets with ``counts`` (R,) elements."""
        # float32 whatever the surrounding precision: the table is tiny and its softmax is sharp.
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            codes = position_codes(size, self.position_dim, counts.device).to(self.linear.weight)
            codes = codes.expand(counts.shape[0], -1, -1)
            if self.condition is not None and ranked is not None:
                codes = codes + self.condition(ranked.to(codes.dtype))
            real = lengths_to_mask(counts, size)
            scores = self.linear(self._decode(codes, real)) / self.temperature
            weights = masked_softmax(scores, real.unsqueeze(-1), dim=1)
        return weights if self.per_dimension else weights.squeeze(-1)

    def _decode(self, codes: Tensor, real: Tensor) -> Tensor:
        """States (R, size, width) of the ranks' codes (R, size, position_dim); ``real`` (R, size) marks the ranks."""
        if self.decoder == "mlp":
            return self.mlp(codes)
        if self.decoder == "transformer":
            return self.transformer(codes, src_key_padding_mask=~real)
        read = read_padded if torch.compiler.is_compiling() else read_both_ways
        forward, backward = read(self.gru, codes, real)
        return (forward + backward) / 2

    def _keeps_table(self) -> bool:
        """Whether the table of all counts is kept for later batches.

        It is not kept on an accelerator, which would have to be waited for to see whether a parameter has changed, nor
        for weights per dimension, with which it would be large.
        """
        is_training = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        return not is_training and not self.per_dimension and self.linear.weight.device.type == "cpu"

    def _kept_table(self, size: int) -> Tensor:
        """Weights theta of every count 1..S with S >= size, computed once for the present parameters."""
        # By value: fused optimisers and writes to .data change parameters without raising their version.
        key = parameters_to_vector(self.parameters())
        known = self._table_key
        if known is None or known.dtype != key.dtype or not torch.equal(known, key):
            self._table = None
        if self._table is None or len(self._table) < size:
            self._table = self._table_of(max(64, 1 << (size - 1).bit_length()))  # in powers of two: few recomputations
            self._table_key = key.clone()
        return self._table


def position_codes(size: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Compute sinusoidal codes of the numbers from 0, with base 10000: sine on even channels, cosine on odd ones.

    Args:
        size: How many numbers are coded, 0 to size - 1.
        dim: Width of a code, even.
        device: Where they are computed; torch's default device if it is not given.

    Returns:
        Codes (size, dim), float32.

    >>> position_codes(3, 2)[0].tolist()
    [0.0, 1.0]
    """
    rate = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = torch.arange(size, device=device).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
