"""Whether embedding sets are still sets."""

import torch
from torch import Tensor

_ROWS = 4096  # positive pairs compared at a time


@torch.no_grad()
def set_health(image: Tensor, text: Tensor, image_of_caption: Tensor) -> dict[str, Tensor]:
    """Diversity of embedding sets, for each side with more than one embedding a sample.

    ``{side}_log_variance``: log of the mean over samples of 1 - |mean_k e_k|, the circular variance of the
    L2-normalised e_k (DivE, Kim et al. 2023, its ablation: about -7 for PIE-Net, -2 for slots on Flickr30K);
    ``{side}_slots_used``: exp of the entropy of which embedding is the best match in a positive pair, 1 to K.
    Shapes: image (A, K, H), text (C, L, H), image_of_caption (C,) -> scalars.
    """
    if image.shape[1] == text.shape[1] == 1:
        return {}
    pairs = zip(image_of_caption.split(_ROWS), text.split(_ROWS), strict=True)
    cosines = torch.cat([torch.einsum("ckh,clh->ckl", image[rows], captions) for rows, captions in pairs])
    health = {}
    for side, embeddings, best in (("image", image, cosines.amax(2)), ("text", text, cosines.amax(1))):
        if embeddings.shape[1] > 1:
            share = torch.nn.functional.one_hot(best.argmax(1), embeddings.shape[1]).float().mean(0)
            variance = 1 - torch.linalg.vector_norm(embeddings.mean(1), dim=-1)
            health[f"{side}_log_variance"] = variance.mean().clamp(min=1e-8).log()
            health[f"{side}_slots_used"] = torch.special.entr(share).sum().exp()
    return health
