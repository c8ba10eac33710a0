"""The set-prediction module of DivE."""

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vse.aggregators.pooling import set_context
from vse.errors import check_at_least, check_choice, check_probability
from vse.sets import Aggregated, check_set, fill_masked, masked_softmax

Position = Literal["none", "sine", "sine_2d"]
Attention = Literal["slots", "inputs"]


class SlotSelfAttention(nn.Module):
    """Multi-head attention among the slots, softmax over the slots that are read, as in a transformer decoder.

    Args:
        dim: Width of the slots.
        heads: Number of heads.
        head_dim: Width of a head's queries, keys and values.

    >>> SlotSelfAttention(dim=8, heads=2, head_dim=4)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, slots: Tensor) -> Tensor:
        """Return what the slots (B, K, dim) read from each other."""
        queries, keys, values = self.to_qkv(slots).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(queries, keys, values)
        return self.out(read.transpose(1, 2).flatten(2))


class SlotBlock(nn.Module):
    """One round: the slots attend to the inputs, then a feed-forward net.

    Keys and values are not computed one by one. With q = Wq s and k = Wk x, a head's logit q.k = s.(Wq^T Wk) x. What it
    reads, Wo (sum_n a_n Wv x_n), is (Wo Wv)(sum_n a_n x_n): the products of weights serve all samples and depths, and
    the K slots are fewer than the elements.

    Args:
        in_dim: Width of the inputs.
        dim: Width of the slots.
        heads: Number of attention heads.
        head_dim: Width of a head's queries, keys and values.
        ff_mult: Width of the feed-forward net's hidden layer, in multiples of ``dim``.
        dropout: Probability of dropping, after the attention and in the feed-forward net.
        attention: Whether the softmax is over the "slots" or over the "inputs".
        self_attention: Whether the slots attend to each other before they attend to the inputs.

    >>> block = SlotBlock(in_dim=8, dim=6, heads=2, head_dim=4, ff_mult=4, dropout=0.0, attention="slots")
    >>> block(torch.randn(1, 3, 6), torch.randn(2, 5, 8), torch.randn(2, 5, 8), None, block.products())[0].shape
    torch.Size([2, 3, 6])
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        heads: int,
        head_dim: int,
        ff_mult: int,
        dropout: float,
        attention: Attention,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = SlotSelfAttention(dim, heads, head_dim) if self_attention else None
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.heads, self.attention = heads, attention
        inner = heads * head_dim
        self.norm, self.input_norm, self.ff_norm = nn.LayerNorm(dim), nn.LayerNorm(in_dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(in_dim, inner, bias=False)
        self.value = nn.Linear(in_dim, inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)
        self.ff = nn.Sequential(
            nn.Linear(dim, ff_mult * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff_mult * dim, dim)
        )

    def products(self) -> tuple[Tensor, Tensor]:
        """Multiply the weights that follow each other.

        Returns:
            Wq^T Wk / sqrt(head_dim) as (dim, heads * in_dim), and Wo Wv, transposed, as (heads * in_dim, dim).
        """
        query, key, value = (
            layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.query, self.key, self.value)
        )  # (heads, head_dim, dim or in_dim)
        out = self.out.weight.unflatten(1, (self.heads, -1))  # (dim, heads, head_dim)
        look = query.transpose(1, 2) @ key / math.sqrt(query.shape[1])  # (heads, dim, in_dim)
        read = value.transpose(1, 2) @ out.permute(1, 2, 0)  # (heads, in_dim, dim)
        return look.transpose(0, 1).flatten(1), read.flatten(0, 1)

    def forward(
        self, slots: Tensor, keyed: Tensor, inputs: Tensor, mask: Tensor | None, products: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take one round.

        Args:
            slots: The slots (B, K, dim), or (1, K, dim) while they are the same for all samples.
            keyed: The normed inputs (B, N, in_dim) with their positions.
            inputs: The normed inputs (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.
            products: What :meth:`products` returns.

        Returns:
            The new slots (B, K, dim) and the attention (B, K, heads, N).
        """
        look, read = products
        if self.self_attention is not None and self.self_norm is not None:
            slots = slots + self.dropout(self.self_attention(self.self_norm(slots)))
        queries = (self.norm(slots) @ look).unflatten(-1, (self.heads, -1)).flatten(1, 2)  # (B or 1, K * heads, in_dim)
        logits = (queries @ keyed.transpose(1, 2)).unflatten(1, (-1, self.heads))
        weights = self.weigh(logits, None if mask is None else mask[:, None, None])
        seen = weights.to(inputs.dtype).flatten(1, 2) @ inputs
        slots = slots + self.dropout(seen.unflatten(1, (-1, self.heads)).flatten(2) @ read + self.out.bias)
        return slots + self.ff(self.ff_norm(slots)), weights

    def weigh(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Turn logits into attention.

        Args:
            logits: The logits (B, K, heads, N).
            mask: (B, 1, 1, N), True on real elements; None when all are real.

        Returns:
            The attention (B, K, heads, N).
        """
        if self.attention == "inputs":
            return masked_softmax(logits, mask)
        weights = logits.softmax(1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0.0)
        return weights / (weights.sum(-1, keepdim=True) + 1e-7)


class SetPrediction(nn.Module):
    """Set prediction: K learned slots compete for the elements, ``depth`` times, and are added to a global vector.

    DivE, Kim et al. 2023 (arXiv 2211.16761), section 3.2. Each block, with LayerNorms before it:
    logits = (Wq slots)(Wk inputs)^T / sqrt(head_dim); attention = softmax over the *slots*, then every slot's row is
    divided by its sum over the elements; slots += dropout(Wo (attention Wv inputs)); slots += FF(slots). In the end
    embedding_k = LayerNorm(context) + LayerNorm(slot_k), and the residual is LayerNorm(slot_k).

    ``attention="inputs"`` takes an ordinary softmax over the elements instead: the transformer of the paper's ablation
    on architectures, whose slots do not compete. The paper does not say whether its slots also attend to each other,
    as in a full transformer decoder, so ``self_attention`` is a separate setting.

    Args:
        in_dim: Width of the local features.
        out_dim: Width of the slots and the embeddings.
        num_embeddings: Number K of slots.
        depth: Number of rounds.
        heads: Number of attention heads.
        head_dim: Width of a head's queries, keys and values.
        ff_mult: Width of the feed-forward net's hidden layer, in multiples of ``out_dim``.
        dropout: Probability of dropping, after the attention and in the feed-forward net.
        position: Code that is added to the keys: "none"; "sine" of an element's place among the sample's real ones;
            "sine_2d" of the row and column of a ``grid`` that is flattened row by row.
        grid: Height and width of the grid, for "sine_2d".
        share_weights: Whether one block serves all rounds.
        attention: Axis of the softmax, "slots" or "inputs". A masked element gets weight 0 after either.
        project_context: Whether the context is ``in_dim`` wide and goes through a learned map. Without a context the
            mean of the features stands in, which this also adapts.
        self_attention: Whether the slots attend to each other, LayerNorm first, at the start of each round.

    Raises:
        ValueError: A size is below 1, a choice is unknown, ``dropout`` is not in [0, 1), or ``grid`` does not go with
            ``position``.

    >>> SetPrediction(in_dim=300, out_dim=64)(torch.randn(2, 9, 300), context=torch.randn(2, 64)).embeddings.shape
    torch.Size([2, 4, 64])
    """

    block: ClassVar[type[SlotBlock]] = SlotBlock  # the block that is repeated; the released code has another

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_embeddings: int = 4,
        depth: int = 4,
        heads: int = 4,
        head_dim: int = 512,
        ff_mult: int = 4,
        dropout: float = 0.0,
        position: Position = "none",
        grid: tuple[int, int] | None = None,
        share_weights: bool = True,
        attention: Attention = "slots",
        project_context: bool = False,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"in_dim": in_dim, "out_dim": out_dim, "num_embeddings": num_embeddings, "depth": depth}
        sizes |= {"heads": heads, "head_dim": head_dim, "ff_mult": ff_mult}
        for name, size in sizes.items():
            check_at_least(name, size, 1)
        check_choice("position", position, get_args(Position))
        check_choice("attention", attention, get_args(Attention))
        check_probability("dropout", dropout)
        if (position == "sine_2d") != (grid is not None):
            raise ValueError(f"grid=(h, w) belongs to position 'sine_2d', got position {position!r} and grid {grid}")
        if position == "sine_2d" and in_dim % 2:
            raise ValueError(f"in_dim must be even for position 'sine_2d', got {in_dim}")
        if grid is not None and (not isinstance(grid, tuple | list) or len(grid) != 2 or min(grid) < 1):
            raise ValueError(f"grid must be two sizes (h, w) of at least 1, got {grid}")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.position, self.grid = position, None if grid is None else (grid[0], grid[1])
        self.slots = nn.Parameter(torch.randn(num_embeddings, out_dim))
        blocks = 1 if share_weights else depth
        self.repeats = depth // blocks
        self.blocks = nn.ModuleList(
            type(self).block(in_dim, out_dim, heads, head_dim, ff_mult, dropout, attention, self_attention)
            for _ in range(blocks)
        )
        self.slot_norm = nn.LayerNorm(out_dim)
        self.context_norm = nn.LayerNorm(out_dim)
        self.project = nn.Linear(in_dim, out_dim) if project_context else None

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Embed a batch of sets.

        Args:
            features: Local features (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Global vectors (B, out_dim), or (B, in_dim) with ``project_context``; None for the mean of the
                features.

        Returns:
            Embeddings and residual (B, K, out_dim), attention (B, K, N): the last round's, averaged over heads, and the
            context after its LayerNorm, (B, out_dim).

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=self.in_dim)
        context = set_context(features, mask, context, self.out_dim, self.project)
        return self.predict(fill_masked(features, mask), mask, context)

    def predict(self, features: Tensor, mask: Tensor | None, context: Tensor) -> Aggregated:
        """Embed sets that have been checked and whose padding has been cleared.

        Args:
            features: Local features (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.
            context: Global vectors (B, out_dim).

        Returns:
            What :meth:`forward` returns.
        """
        codes = self.position_codes(features, mask)
        slots = self.slots.unsqueeze(0)  # (1, K, out_dim): the same for all samples until the first attention
        for block in self.blocks:
            assert isinstance(block, SlotBlock)
            inputs = block.input_norm(features)
            keyed = inputs if codes is None else inputs + codes
            keyed, inputs = for_products(keyed), for_products(inputs)  # once, and not again in every round
            products = block.products()
            for _ in range(self.repeats):
                slots, attention = block(slots, keyed, inputs, mask, products)
        residual, shared = self.slot_norm(slots), self.context_norm(context)
        return Aggregated(shared.unsqueeze(1) + residual, attention.mean(2), residual, context=shared)

    def position_codes(self, features: Tensor, mask: Tensor | None) -> Tensor | None:
        """Compute the position codes, which are added to the input of the keys.

        Args:
            features: Local features (B, N, in_dim).
            mask: (B, N), True on real elements; None when all are real.

        Returns:
            Codes (B, N, in_dim), (1, N, in_dim) where they are the same for all samples, or None without positions.

        Raises:
            ValueError: There are more or fewer features than cells in the grid.
        """
        size = features.shape[1]
        if self.position == "none":
            return None
        if self.grid is None:
            if mask is None:
                places = torch.arange(1, size + 1, device=features.device).unsqueeze(0)
            else:
                places = mask.cumsum(1)  # what is masked, padding or dropped, takes no place
            return sine_codes(places / (places[:, -1:] + 1e-6), self.in_dim).to(features.dtype)
        height, width = self.grid
        if size != height * width:
            raise ValueError(f"grid is {height} x {width} = {height * width} cells, but there are {size} features")
        rows, columns = (
            sine_codes(torch.arange(1, n + 1, device=features.device) / (n + 1e-6), self.in_dim // 2) for n in self.grid
        )
        codes = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=-1)
        return codes.unsqueeze(0).to(features.dtype)


def for_products(features: Tensor) -> Tensor:
    """Convert features to the type in which autocast multiplies; without autocast they stay as they are."""
    kind = features.device.type
    return features.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else features


def sine_codes(places: Tensor, dim: int) -> Tensor:
    """Compute sinusoidal codes: channel i is the sine (i even) or cosine (i odd) of 2 pi p / 10000^(2[i/2]/dim).

    Args:
        places: Places p in (0, 1], of any shape.
        dim: Width of a code.

    Returns:
        Codes (..., dim).

    >>> sine_codes(torch.tensor([0.25, 1.0]), dim=8).shape
    torch.Size([2, 8])
    """
    channel = torch.arange(dim, device=places.device)
    rate = 10000.0 ** (2 * (channel // 2) / dim)
    angle = 2 * math.pi * places.unsqueeze(-1) / rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
