"""Measure embedding sets: how far apart the embeddings of a set are, and how many of them have an effect."""

from collections.abc import Callable

import torch
from torch import Tensor

from vse.ragged import Sets, places_of, take
from vse.sets import at_least_float32, fill_masked, masked_mean
from vse.similarity import compare

_PAIRS = 64  # positive pairs compared at a time
_SETS = 4096  # sets measured at a time

Similarity = Callable[..., Tensor]


def set_health(
    image: Sets,
    text: Sets,
    image_of_caption: Tensor,
    similarity: Similarity | None = None,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measure the embedding sets of a corpus or a batch.

    For each side with more than one embedding a sample:

    - ``{side}_log_variance``: log of the mean over samples of 1 - |mean_k e_k|, the circular variance of the
      L2-normalised e_k (DivE, Kim et al. 2023, its ablation: about -7 for PIE-Net and -2 for slots on Flickr30K). With
      1 - |mean_k e_k|^2, the other common definition, an untrained DivE would have -1.4 instead of -2.1.
    - ``{side}_slots_used``, 1 to K: for each positive pair of an image and a caption, note which embedding belongs to
      the best pair of embeddings; this is exp of the entropy of these counts. It suits multiple-instance learning. In
      Smooth-Chamfer every embedding has a term of its own.
    - ``{side}_embeddings_used``, 1 to K, if there is a ``similarity``: exp of the entropy of the embeddings' shares in
      its gradient (:func:`embeddings_used`).

    A low variance alone is not a failure: some aggregators start near -11. Compare it with its value at the start.

    Where the sets differ in size, only real embeddings count, and an embedding is known by its place: the first word of
    a caption, the second, and so on. The numbers used then lie between 1 and the number of places.

    Args:
        image: L2-normalised embeddings (A, K, H), or a corpus's sets of different sizes.
        text: L2-normalised embeddings (C, L, H), or a corpus's sets of different sizes.
        image_of_caption: The row in ``image`` of each caption's image, (C,).
        similarity: The model's similarity, (A, K, H) and (C, L, H) -> (A, C).
        image_mask: (A, K), True on real embeddings; None when all are real.
        text_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        Scalars by name; none when both sides have single embeddings.

    >>> set_health(torch.randn(2, 4, 8), torch.randn(6, 4, 8), torch.arange(6) // 3)["image_slots_used"]
    """
    if places_of(image) == places_of(text) == 1:
        return {}
    masks = (image_mask, text_mask)
    winners = _winners(image, text, image_of_caption, *masks)
    used: tuple[Tensor | None, Tensor | None] = (None, None)
    if similarity is not None:
        used = embeddings_used(similarity, image, text, image_of_caption, *masks)
    health = {}
    sides = zip(("image", "text"), (image, text), masks, winners, used, strict=True)
    for side, sets, mask, best, weighted in sides:
        if places_of(sets) > 1:
            health[f"{side}_log_variance"] = _variances(sets, mask).mean().clamp(min=1e-8).log()
            counts = torch.nn.functional.one_hot(best, places_of(sets)).sum(0)
            health[f"{side}_slots_used"] = _effective_number(counts)
            if weighted is not None:
                health[f"{side}_embeddings_used"] = weighted
    return health


def embeddings_used(
    similarity: Similarity,
    image: Sets,
    text: Sets,
    image_of_caption: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure how many embeddings of a set have an effect on the similarity.

    The score s of a positive pair has the gradient ds / de_k with respect to embedding k. The share of embedding k is
    the sum of |ds / de_k| over all positive pairs, divided by the sum over all k; the effective number is exp of the
    shares' entropy. It is 1 when one embedding decides everything and K when all have the same effect. For the best
    pair's cosine ("max") it counts the winners; for Smooth-Chamfer with K = 4 it is rarely below 2.9.

    Args:
        similarity: (A, K, H) and (C, L, H) -> scores (A, C).
        image: Embeddings (A, K, H), or a corpus's sets of different sizes.
        text: Embeddings (C, L, H), or a corpus's sets of different sizes.
        image_of_caption: The row in ``image`` of each caption's image, (C,).
        image_mask: (A, K), True on real embeddings; None when all are real.
        text_mask: (C, L), True on real embeddings; None when all are real.

    Returns:
        The effective numbers of the image's and the text's embeddings, scalars.

    >>> embeddings_used(max_cosine, torch.randn(2, 4, 8), torch.randn(6, 4, 8), torch.arange(6) // 3)
    """
    sums = [torch.zeros(places_of(sets), device=sets.device) for sets in (image, text)]
    for start in range(0, len(text), _PAIRS):
        rows, captions = image_of_caption[start : start + _PAIRS], slice(start, start + _PAIRS)
        (images, a_mask), (texts, b_mask) = _some(image, image_mask, rows), _some(text, text_mask, captions)
        with torch.enable_grad():
            pair = images.clone().requires_grad_(), texts.clone().requires_grad_()
            score = compare(similarity, pair[0], pair[1], a_mask, b_mask).diagonal().sum()
        if score.requires_grad:  # else it does not depend on the embeddings
            for total, gradient in zip(sums, torch.autograd.grad(score, pair), strict=True):
                total[: gradient.shape[1]] += torch.linalg.vector_norm(gradient, dim=-1).sum(0)
    return _effective_number(sums[0]), _effective_number(sums[1])


@torch.no_grad()
def constant_share(residual: Tensor) -> Tensor:
    """Measure which share of the residuals' power does not depend on the sample, from 0 to 1.

    sum_k |mean_i r_ik|^2 / sum_k mean_i |r_ik|^2 for the residual r_ik of sample i and embedding k. Near 1, the
    embeddings of a set differ by the same fixed offsets in every sample.

    Args:
        residual: Residuals (B, K, H) of one side.

    Returns:
        The share, a tensor without shape; 0 where all residuals are 0.

    >>> constant_share(torch.ones(5, 4, 8))
    tensor(1.)
    """
    residual = residual.float() if residual.dtype in (torch.float16, torch.bfloat16) else residual
    constant = residual.mean(0).square().sum()
    return constant / residual.square().sum((1, 2)).mean().clamp(min=torch.finfo(residual.dtype).tiny)


@torch.no_grad()
def _winners(
    image: Sets, text: Sets, image_of_caption: Tensor, image_mask: Tensor | None, text_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which embedding of the image, and which of the text, (C,) each, is in the best pair of every positive pair."""
    best_image, best_text = [], []
    for start in range(0, len(text), _PAIRS):
        rows, captions = image_of_caption[start : start + _PAIRS], slice(start, start + _PAIRS)
        (images, a_mask), (texts, b_mask) = _some(image, image_mask, rows), _some(text, text_mask, captions)
        cosines = torch.einsum("ckh,clh->ckl", images, texts)
        if a_mask is not None:
            cosines = cosines.masked_fill(~a_mask.unsqueeze(2), float("-inf"))
        if b_mask is not None:
            cosines = cosines.masked_fill(~b_mask.unsqueeze(1), float("-inf"))
        best_image.append(cosines.amax(2).argmax(1))
        best_text.append(cosines.amax(1).argmax(1))
    return torch.cat(best_image), torch.cat(best_text)


@torch.no_grad()
def _variances(sets: Sets, mask: Tensor | None) -> Tensor:
    """The circular variance (n,) of each set."""
    parts = []
    for start in range(0, len(sets), _SETS):
        mean = masked_mean(*_some(sets, mask, slice(start, start + _SETS)))
        parts.append(1 - torch.linalg.vector_norm(mean, dim=-1))
    return torch.cat(parts)


def _some(sets: Sets, mask: Tensor | None, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
    """Embeddings (n, K, H) of some sets, without gradient and zero in masked places, and their mask."""
    taken = take(sets, rows)
    mask = taken.mask if mask is None else mask[rows]
    return fill_masked(at_least_float32(taken.embeddings.detach()), mask), mask


def _effective_number(weights: Tensor) -> Tensor:
    """Exp of the entropy of non-negative weights (K,): 1 when one has all of the weight, K when all are equal."""
    share = weights.double() / weights.sum().clamp(min=1e-30)
    return torch.special.entr(share).sum().exp().to(torch.get_default_dtype())
