"""A ranking loss of one's own, named in a config.

PYTHONPATH=examples vse train demo "loss.ranking={name: 'my_loss:SoftMargin', scale: 10.0}" run.dir=runs/my_loss
"""

from torch import Tensor, nn
from torch.nn.functional import softplus


class SoftMargin(nn.Module):
    """Softplus instead of the triplet loss's hinge: softplus(scale * (negative - positive)) / scale.

    It is averaged over all candidates of each positive pair, where other positives count as 0; the two directions are
    added.

    Args:
        scale: How closely the softplus follows the hinge.
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, scores: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of scores (A, C); positives (A, C) says which pairs belong together."""
        image, caption = positives.nonzero(as_tuple=True)
        positive = scores[image, caption].unsqueeze(1)
        to_text = softplus(self.scale * (scores[image] - positive)) * ~positives[image]
        to_image = softplus(self.scale * (scores.T[caption] - positive)) * ~positives.T[caption]
        return (to_text.mean() + to_image.mean()) / self.scale
