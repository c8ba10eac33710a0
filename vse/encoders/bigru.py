"""Word vectors and a bidirectional GRU."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vse.sets import FeatureSet, check_mask


class BiGRU(nn.Module):
    """Bidirectional GRU over learned word vectors, its two directions averaged (VSE∞, Chen et al. 2021, section 4.1).

    Word vectors start uniform in [-0.1, 0.1]. ``drop`` is the probability of the caption augmentation; it acts on
    token ids in the data pipeline, where words can be removed (see :meth:`vse.data.vocabulary.Vocabulary.augment`).

    Shapes: token ids (B, L), prefix mask (B, L) -> features (B, L, dim), context (B, dim): each direction's last
    state, averaged. Raises ValueError for sizes below 1, ``drop`` outside [0, 1), an empty caption, a mask that is no
    prefix.

    >>> BiGRU(vocab_size=10, dim=64)(torch.randint(0, 10, (2, 5))).features.shape
    torch.Size([2, 5, 64])
    """

    reads = "tokens"  # what the data must provide

    def __init__(self, vocab_size: int, dim: int, word_dim: int = 300, drop: float = 0.0) -> None:
        super().__init__()
        if min(vocab_size, dim, word_dim) < 1:
            raise ValueError(f"sizes must be at least 1, got vocab_size {vocab_size}, dim {dim}, word_dim {word_dim}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {drop}")
        self.dim = self.context_dim = dim
        self.drop = drop
        self.embedding = nn.Embedding(vocab_size, word_dim)
        self.gru = nn.GRU(word_dim, dim, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        """Encode a batch of token ids."""
        if inputs.dim() != 2 or inputs.is_floating_point() or 0 in inputs.shape:
            raise ValueError(
                f"tokens must be a non-empty (B, L) tensor of ids, got {inputs.dtype} {tuple(inputs.shape)}"
            )
        if mask is None:
            lengths = torch.full((len(inputs),), inputs.shape[1])
        else:
            check_mask(mask, inputs.shape, prefix=True)
            lengths = mask.sum(1).cpu()
            inputs = inputs.masked_fill(~mask, 0)  # whatever stands behind the caption is no word id
        packed = pack_padded_sequence(self.embedding(inputs), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        features, _ = pad_packed_sequence(states, batch_first=True, total_length=inputs.shape[1])
        forward, backward = features.chunk(2, dim=-1)
        return FeatureSet((forward + backward) / 2, mask, last.mean(0))
