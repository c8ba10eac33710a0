"""The check of token ids that all encoders of captions share."""

from torch import Tensor

from vse.sets import check_mask


def clean_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Check a batch of token ids and put id 0 in the masked places.

    Args:
        tokens: Ids (B, L) of an integer type.
        mask: Which tokens are real (B, L), bool, each row a prefix. None means that all are.

    Returns:
        Ids (B, L) that can be looked up in a table, padding included.

    Raises:
        ValueError: The tokens are not a non-empty matrix of ids, the mask does not fit them or is not a prefix, or a
            caption has no token.

    >>> clean_tokens(torch.tensor([[7, 5, -1]]), torch.tensor([[True, True, False]])).tolist()
    [[7, 5, 0]]
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or 0 in tokens.shape:
        raise ValueError(f"tokens must be a non-empty (B, L) tensor of ids, got {tokens.dtype} {tuple(tokens.shape)}")
    if mask is None:
        return tokens
    check_mask(mask, tokens.shape, prefix=True)
    return tokens.masked_fill(~mask, 0)
