#!/usr/bin/env python3
"""Times of the package's own choices beside the plain alternatives, each pair measured in this one run.

    python benchmarks/cpu.py

Prints a table of medians and ratios; docs/PERFORMANCE.md keeps one. Absolute times depend on the machine.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vse.aggregators import GPO, SetPrediction
from vse.aggregators.set_prediction import SlotBlock
from vse.build import build_criterion, build_model, read_config
from vse.data.vocabulary import SPECIALS, Vocabulary
from vse.metrics import retrieval_metrics
from vse.runtime import autocast
from vse.sets import lengths_to_mask

REPEATS = 7


def median_time(function: Callable[[], object]) -> float:
    """Median seconds of a call, after one to warm up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def training_step(
    config_file: str, precision: str, captions: int = 1, overrides: Sequence[str] = ()
) -> Callable[[], object]:
    """One step on Flickr8k's shapes: 128 images of 25 regions of 192, 512-dimensional embeddings."""
    config = read_config(config_file, ["model.embed_dim=512", "data.vocabulary.vectors=null", *overrides])
    torch.manual_seed(0)
    model = build_model(config, 192, Vocabulary([*SPECIALS, *map(str, range(2930))])).train()
    criterion = build_criterion(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    images = torch.randn(128, 25, 192)
    lengths = torch.randint(6, 24, (128 * captions,))
    tokens, mask = torch.randint(5, 2935, (len(lengths), int(lengths.max()))), lengths_to_mask(lengths)
    positives = torch.eye(128, dtype=torch.bool).repeat_interleave(captions, 1)

    def step() -> None:
        with autocast(torch.device("cpu"), precision):
            image, text = model.image(images), model.text(tokens, mask)
        scores = model.similarity(image.embeddings, text.embeddings)
        optimiser.zero_grad()
        criterion(scores, positives, image, text)["total"].backward()
        optimiser.step()

    return step


class KeysAndValues(SlotBlock):
    """The slots' attention with keys and values of every element, at every depth, as the released code has it."""

    def forward(
        self, slots: Tensor, keyed: Tensor, inputs: Tensor, mask: Tensor | None, products: object
    ) -> tuple[Tensor, Tensor]:
        """Take one round."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        queries = split(self.query(self.norm(slots.expand(len(inputs), -1, -1))))
        keys, values = split(self.key(keyed)), split(self.value(inputs))
        logits = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).transpose(1, 2)
        weights = self.weigh(logits, None if mask is None else mask[:, None, None])
        read = weights.to(values.dtype).transpose(1, 2) @ values
        slots = slots + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        return slots + self.ff(self.ff_norm(slots)), weights


class PlainSetPrediction(SetPrediction):
    """Set prediction that computes the keys and values of every element."""

    block = KeysAndValues


def gpo_per_sample(gpo: GPO, sets: list[torch.Tensor]) -> torch.Tensor:
    """GPO with one pass of its GRU row per sample, as the released code has it."""
    lengths = torch.tensor([len(s) for s in sets])
    features = pad_sequence(sets, batch_first=True, padding_value=-1e4)
    weights = gpo._weights(lengths, features.shape[1])
    return (features.sort(dim=1, descending=True).values * weights.unsqueeze(-1)).sum(1)


def metrics_by_sorting(scores: np.ndarray) -> float:
    """R@1 of both directions from a full argsort of each, five captions per image."""
    order = np.argsort(-scores, axis=1)
    i2t = np.mean(order[:, 0] // 5 == np.arange(len(scores)))
    order = np.argsort(-scores.T, axis=1)
    return float(i2t + np.mean(order[:, 0] == np.arange(scores.shape[1]) // 5))


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    rows: list[tuple[str, float, str, float]] = []
    for system, captions in (("vse_infty", 1), ("dive", 5)):
        steps = (training_step(f"configs/{system}/f30k_region_bigru.yaml", p, captions) for p in ("bf16", "fp32"))
        half, full = (median_time(step) for step in steps)
        rows.append((f"{system} step, bf16", half, "fp32", full))
    aggregator = "name: cpu:PlainSetPrediction, dropout: 0.1"  # this file, beside the defaults that the config states
    overrides = [
        f"model.image.aggregator={{{aggregator}}}",
        f"model.text.aggregator={{{aggregator}, position: sine}}",
    ]
    plain = median_time(training_step("configs/dive/f30k_region_bigru.yaml", "fp32", 5, overrides))
    rows.append(("dive step, fp32, products of weights", full, "keys, values", plain))

    gpo = GPO()
    features, mask = torch.randn(128, 36, 1024), torch.rand(128, 36) < 0.8
    sets = [f[m] for f, m in zip(features, mask, strict=True)]

    def backward(pooled: torch.Tensor) -> None:
        pooled.sum().backward()

    once = median_time(lambda: backward(gpo(features, mask).embeddings))
    rows.append(("GPO, once per count", once, "per sample", median_time(lambda: backward(gpo_per_sample(gpo, sets)))))

    scores = torch.randn(1000, 5000)
    positives = torch.arange(1000)[:, None] == torch.arange(5000) // 5
    counting = median_time(lambda: retrieval_metrics(scores, positives))
    sorting = median_time(lambda: metrics_by_sorting(scores.numpy()))
    rows.append(("Metrics of 1,000 x 5,000, counting", counting, "argsort", sorting))

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {REPEATS}")
    for name, ours, other, theirs in rows:
        print(f"{name:36}{1000 * ours:8.0f} ms   {other:12}{1000 * theirs:8.0f} ms   ratio {theirs / ours:5.2f}")


if __name__ == "__main__":
    main()
