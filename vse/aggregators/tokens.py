"""Every element is an embedding."""

from torch import Tensor, nn

from vse.errors import check_at_least
from vse.sets import Aggregated, check_set, fill_masked


class Tokens(nn.Module):
    """Every element stays an embedding of its own, e_k = x_k, for late interaction.

    ColBERT (Khattab & Zaharia 2020) and CHAN (Pan et al. 2023) compare such sets. With ``project`` e_k = W x_k + b. The
    sets differ in size as the inputs do, so the result has a mask, and the similarity must take it.

    Args:
        in_dim: Width of the features, for the projection.
        out_dim: Width of the projected embeddings.
        project: Whether the elements go through a linear layer, which has torch's initialisation.

    Raises:
        ValueError: There is a projection without both widths, or a width is below 1.

    >>> Tokens()(torch.randn(2, 5, 8)).embeddings.shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, in_dim: int | None = None, out_dim: int | None = None, project: bool = False) -> None:
        super().__init__()
        self.keeps_elements = True
        self.project: nn.Linear | None = None
        self.out_dim: int | None = None  # the features' own width
        if project:
            if in_dim is None or out_dim is None:
                raise ValueError(f"project needs in_dim and out_dim, got {in_dim} and {out_dim}")
            check_at_least("in_dim", in_dim, 1)
            check_at_least("out_dim", out_dim, 1)
            self.project, self.out_dim = nn.Linear(in_dim, out_dim), out_dim

    def forward(self, features: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Aggregated:
        """Keep the elements of a batch of sets.

        Args:
            features: Local features (B, N, D).
            mask: (B, N), True on real elements; None when all are real.
            context: Not used.

        Returns:
            Embeddings (B, N, D), or (B, N, out_dim) with ``project``, zero in masked places; and the mask.

        Raises:
            ValueError: A set is empty, or a shape is wrong.
        """
        check_set(features, mask, dim=None if self.project is None else self.project.in_features)
        embeddings = fill_masked(features, mask)
        if self.project is not None:
            embeddings = fill_masked(self.project(embeddings), mask)
        return Aggregated(embeddings, mask=mask)
