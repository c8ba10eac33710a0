"""Embedding sets of any sizes, kept without padding: a corpus's longest caption would make all of them long."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vse.distributed import agree, gather, largest, shares, world_size
from vse.sets import Aggregated, lengths_to_mask


class RaggedSets:
    """Embedding sets of different sizes, which are padded only when some of them are taken.

    Args:
        embeddings: All real embeddings (total, H), one set after another.
        sizes: The number of embeddings of each set (n,), on the CPU.
        starts: Where each set begins (n,), on the CPU; by default one set begins where the set before it ends.

    >>> sets = RaggedSets(torch.randn(3, 8), torch.tensor([1, 2]))
    >>> sets[:].mask.tolist()
    [[True, False], [True, True]]
    """

    def __init__(self, embeddings: Tensor, sizes: Tensor, starts: Tensor | None = None) -> None:
        self.embeddings, self.sizes = embeddings, sizes
        self.starts = sizes.cumsum(0) - sizes if starts is None else starts

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.sizes)

    def __getitem__(self, rows: slice | Tensor) -> Aggregated:
        """Take some sets, padded to the largest of them.

        Args:
            rows: A slice, or the numbers (n,) of the sets.

        Returns:
            Embeddings (n, K, H), zero behind the smaller sets, and their mask (n, K).
        """
        rows = rows if isinstance(rows, slice) else rows.cpu()
        sizes, device = self.sizes[rows], self.embeddings.device
        mask = lengths_to_mask(sizes)
        places = self.starts[rows].unsqueeze(1) + torch.arange(mask.shape[1])
        places, mask = places.masked_fill(~mask, 0).to(device), mask.to(device)
        return Aggregated(self.embeddings[places].masked_fill(~mask.unsqueeze(-1), 0.0), mask=mask)

    @property
    def places(self) -> int:
        """The size of the largest set."""
        return int(self.sizes.max())

    @property
    def device(self) -> torch.device:
        """The device of the embeddings."""
        return self.embeddings.device


Sets = Tensor | RaggedSets  # (n, K, H) when all sets have one size


def take(sets: Sets, rows: slice | Tensor) -> Aggregated:
    """Take some embedding sets.

    Args:
        sets: Embeddings (N, K, H), or sets of different sizes.
        rows: A slice, or the numbers (n,) of the sets.

    Returns:
        Embeddings (n, K, H), and a mask (n, K) where the sets of the corpus differ in size.

    >>> take(torch.randn(5, 1, 8), slice(2)).embeddings.shape
    torch.Size([2, 1, 8])
    """
    return Aggregated(sets[rows]) if isinstance(sets, Tensor) else sets[rows]


def places_of(sets: Sets) -> int:
    """Return the number K of embeddings of the largest set.

    >>> places_of(torch.randn(5, 4, 8))
    4
    """
    return sets.shape[1] if isinstance(sets, Tensor) else sets.places


class Collector:
    """Joins the embedding sets of batches, without the padding of each.

    >>> collector = Collector()
    >>> collector.add(Aggregated(torch.ones(2, 1, 8)))
    >>> collector.sets([1, 0]).shape
    torch.Size([2, 1, 8])
    """

    def __init__(self) -> None:
        self._embeddings: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def add(self, sets: Aggregated) -> None:
        """Add a batch of sets (B, K, H), with their mask if they differ in size."""
        embeddings, mask = sets.embeddings, sets.mask
        if mask is None:
            self._embeddings.append(embeddings.flatten(0, 1))
            self._sizes.append(torch.full((len(embeddings),), embeddings.shape[1]))
        else:
            self._embeddings.append(embeddings[mask])
            self._sizes.append(mask.sum(1).cpu())

    def sets(self, order: Sequence[int]) -> Sets:
        """Return all sets, once.

        Args:
            order: The number of each added set among the sets that are returned.

        Returns:
            Embeddings (n, K, H) when all sets have one size, and otherwise ragged sets.
        """
        places = torch.empty(len(order), dtype=torch.long)
        places[torch.tensor(order)] = torch.arange(len(order))
        sizes, embeddings = torch.cat(self._sizes), torch.cat(self._embeddings)
        self._embeddings.clear()
        if bool((sizes == sizes[0]).all()):
            whole = embeddings.view(len(sizes), int(sizes[0]), -1)
            is_sorted = bool((places == torch.arange(len(places))).all())
            return whole if is_sorted else whole[places.to(whole.device)]
        starts = sizes.cumsum(0) - sizes
        return RaggedSets(embeddings, sizes[places], starts[places])


def padded(sets: Sets) -> Aggregated:
    """Return all sets as one batch, padded to the largest, with a mask if they differ in size.

    >>> padded(torch.randn(5, 4, 8)).mask
    """
    return Aggregated(sets) if isinstance(sets, Tensor) else sets[:]


def gather_sets(own: Sets, total: int) -> Sets:
    """Gather the sets of all processes, each of which has its share of them (:func:`vse.distributed.share`).

    Args:
        own: This process's sets.
        total: Number of sets of all processes together.

    Returns:
        All sets in their order before the cut; with one process, ``own`` itself.
    """
    if world_size() == 1:
        return own
    most, other = largest(places_of(own), -places_of(own))
    (is_ragged,) = agree(isinstance(own, RaggedSets))
    if isinstance(own, Tensor) and not is_ragged and most == -other:
        return gather(own, total)
    ragged = own if isinstance(own, RaggedSets) else _as_ragged(own)
    sizes = gather(ragged.sizes, total)
    (most,) = largest(len(ragged.embeddings))
    wide = ragged.embeddings.new_zeros(most, ragged.embeddings.shape[1])
    wide[: len(ragged.embeddings)] = ragged.embeddings
    starts = gather(ragged.starts, total)
    return RaggedSets(gather(wide, most * world_size()), sizes, starts + _first_rows(most, total))


def _as_ragged(sets: Tensor) -> RaggedSets:
    return RaggedSets(sets.flatten(0, 1), torch.full((len(sets),), sets.shape[1]))


def _first_rows(most: int, total: int) -> Tensor:
    """For each set, where the embeddings of its process begin when each process has ``most`` rows."""
    return torch.repeat_interleave(torch.arange(world_size()) * most, torch.tensor(shares(total)))
