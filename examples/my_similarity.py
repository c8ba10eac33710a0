"""A similarity of one's own, named in a config.

PYTHONPATH=examples vse train demo "model.similarity.name=my_similarity:best_to_mean" run.dir=runs/my_similarity
"""

from torch import Tensor


def best_to_mean(images: Tensor, captions: Tensor, share: float = 0.5) -> Tensor:
    """A mix of the best pair's cosine and the mean of all pairs' cosines.

    The first two parameters are the embedding sets, whatever their names; the others are settings of the config.

    Args:
        images: (A, K, H), L2-normalised.
        captions: (C, L, H), L2-normalised.
        share: The best pair's share.

    Returns:
        Scores (A, C).
    """
    cosines = (images.flatten(0, 1) @ captions.flatten(0, 1).T).unflatten(0, images.shape[:2])
    cosines = cosines.unflatten(2, captions.shape[:2])  # (A, K, C, L)
    return share * cosines.amax((1, 3)) + (1 - share) * cosines.mean((1, 3))
