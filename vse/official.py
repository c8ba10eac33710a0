"""The official codes' checkpoints: their parameter names in ours."""

from torch import Tensor

# VSE∞ (region features, BiGRU). The second BatchNorm of its MLP is never used.
_VSE_INFTY: tuple[dict[str, str | None], dict[str, str | None]] = (
    {
        "fc.": "encoder.fc.",
        "mlp.layers.0.": "encoder.hidden.",
        "mlp.bns.0.": "encoder.norm.",
        "mlp.layers.1.": "encoder.out.",
        "gpool.": "aggregator.",
        "mlp.bns.1.": None,
    },
    {"embed.": "encoder.embedding.", "rnn.": "encoder.gru.", "gpool.": "aggregator."},
)


def vse_infty_weights(image: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our ``regions`` + ``bigru`` + ``gpo`` model from VSE∞'s list of two (``checkpoint["model"]``).

    Keys may carry ``module.``. Raises ValueError for a key that this system does not have.

    >>> model.load_state_dict(vse_infty_weights(*torch.load("model_best.pth")["model"]))
    """
    weights = {}
    for side, state, names in zip(("image", "text"), (image, text), _VSE_INFTY, strict=True):
        for key, value in state.items():
            key = key.removeprefix("module.")
            prefix = next((p for p in names if key.startswith(p)), None)
            if prefix is None:
                raise ValueError(f"{key}: not a parameter of VSE∞'s {side} encoder (regions, BiGRU)")
            if (ours := names[prefix]) is not None:
                weights[f"{side}.{ours}{key.removeprefix(prefix)}"] = value
    return weights
