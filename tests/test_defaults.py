"""The papers' values are the defaults of the components, since shipped configs leave them out."""

import inspect
from typing import Any

import pytest

from vse.aggregators import AGGREGATORS
from vse.encoders import ENCODERS
from vse.losses import LOSSES, REGULARISERS
from vse.similarity import SIMILARITIES

DEFAULTS: dict[str, dict[str, Any]] = {
    "loss triplet": {"margin": 0.2, "mining": "hardest", "reduction": "sum", "warmup_epochs": 0, "positives": "each"},
    "loss adaptive_contrastive": {"gamma": 1.25, "margin": 0.2, "temperature": 0.05, "negatives": "adaptive"},
    "loss info_nce": {"temperature": 0.07, "learnable": True},
    "loss sigmoid": {"temperature": 0.1, "bias": -10.0, "learnable": True, "reduction": "batch"},
    "term mmd": {"kernel": "rbf", "gamma": 0.5},
    "similarity smooth_chamfer": {"temperature": 16.0},
    "similarity max_sim": {"query": "text", "reduction": "sum"},
    "similarity chan": {
        **{"coding": "hard_words", "pooling": "lse", "coding_temperature": 0.1, "pooling_temperature": 0.1},
    },
    "similarity assignment": {"value": "cosine"},
    "similarity match_probability": {"scale": 1.0, "shift": 0.0},
    "encoder regions": {
        "mlp": "input",
        "features": "projected",
        "context": None,
        "dropout": 0.0,
        "drop": 0.0,
        "drop_after": False,
        "self_attention": False,
        "heads": 8,
    },
    "encoder bigru": {
        **{"word_dim": 300, "directions": "average", "features": "states", "context": "last", "dropout": 0.0},
        **{"drop": 0.0, "keep_ends": False, "freeze_words": False},
    },
    "encoder grid": {
        **{"weights": None, "mlp": None, "features": "projected", "context": None, "dropout": 0.0, "drop": 0.0},
        **{"freeze_epochs": 0, "stage_epochs": None, "train_norm": False, "pixels": "imagenet"},
    },
    "encoder video": {"context": "last", "dropout": 0.0, "freeze_epochs": 0, "train_norm": False},
    "encoder bert": {
        **{"weights": "pretrained", "context": None, "dropout": 0.0, "drop": 0.0, "init": "torch", "lora": None},
    },
    "encoder clip": {"weights": "pretrained", "features": "projected", "context": "pooled", "cls": False, "lora": None},
    "aggregator softmax_pool": {"init": "xavier"},
    "aggregator tokens": {"project": False},
    "aggregator gpo": {"position_dim": 32, "hidden_dim": 32},
    "aggregator gem": {"power": 3.0, "eps": 1e-6},
    "aggregator fspool": {"pieces": 20},
    "aggregator pie_net": {"hidden_dim": None, "dropout": 0.0},
    "aggregator set_prediction": {
        **{"num_embeddings": 4, "depth": 4, "heads": 4, "head_dim": 512, "ff_mult": 4, "dropout": 0.0},
        **{"position": "none", "grid": None, "share_weights": True, "attention": "slots"},
    },
}
TABLES: dict[str, dict[str, Any]] = {
    "loss": LOSSES,
    "term": REGULARISERS,
    "similarity": SIMILARITIES,
    "encoder": ENCODERS,
    "aggregator": AGGREGATORS,
}


@pytest.mark.parametrize("place", DEFAULTS)
def test_the_papers_values_are_the_defaults(place: str) -> None:
    """Configs leave them out, so another default changes a published system without a word."""
    kind, name = place.split()
    parameters = inspect.signature(TABLES[kind][name]).parameters
    assert {key: parameters[key].default for key in DEFAULTS[place]} == DEFAULTS[place]
