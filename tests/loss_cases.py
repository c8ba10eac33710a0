"""What the tests of losses share: score matrices, embedding sets, and a cross-entropy that is slow and obvious."""

from collections.abc import Callable

import torch
from torch import Tensor

from vse.sets import Aggregated


def batch(case: str) -> tuple[Tensor, Tensor]:
    """Scores and positives: "pairs", "ragged" (one to four captions per image) or "many" (many to many)."""
    torch.manual_seed(1)
    if case == "pairs":
        return torch.randn(7, 7, dtype=torch.float64) * 0.3, torch.eye(7, dtype=torch.bool)
    if case == "ragged":  # one to four captions per image
        images = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3])
        return torch.randn(4, 9, dtype=torch.float64) * 0.3, torch.arange(4)[:, None] == images
    positives = torch.rand(6, 8) < 0.3  # many to many; some captions or images may have none
    return torch.randn(6, 8, dtype=torch.float64) * 0.3, positives


def random_batch(seed: int) -> tuple[Tensor, Tensor]:
    """Scores of all sizes, and many to many positives."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(x) for x in torch.randint(3, 30, (2,), generator=generator))
    positives = torch.rand(rows, columns, generator=generator) < 0.3
    positives[0, 0] = True
    scores = torch.rand(rows, columns, generator=generator) * 1.4 - 0.4
    return scores + 0.5 * torch.rand((), generator=generator) * positives, positives


def sides(image_size: int = 3, text_size: int = 2) -> tuple[Aggregated, Aggregated]:
    """Four images and six captions, with this many embeddings and residuals each, and a context."""
    torch.manual_seed(2)
    image, image_residual = (torch.randn(4, image_size, 5, dtype=torch.float64) for _ in range(2))
    text, text_residual = (torch.randn(6, text_size, 5, dtype=torch.float64) for _ in range(2))
    contexts = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    image_side = Aggregated(image, residual=image_residual, context=contexts[0])
    return image_side, Aggregated(text, residual=text_residual, context=contexts[1])


def slow_contrastive(
    scores: Tensor, positives: Tensor, margin: float, temperature: float, count: Callable[[int], int], enters: bool
) -> Tensor:
    """Cross-entropy of each positive against its query's hardest negatives, query by query; rows are queries."""
    costs = []
    size = scores.shape[1]
    for query in range(len(scores)):
        candidates = [c for c in range(size) if enters or not positives[query, c]]
        candidates.sort(key=lambda c: -float(scores[query, c].detach()) if not positives[query, c] else 0.0)
        hardest = candidates[: count(size)]
        for match in range(size):
            if positives[query, match]:
                logits = [scores[query, match], *(scores[query, c] + margin for c in hardest)]
                costs.append(-torch.log_softmax(torch.stack(logits) / temperature, 0)[0])
    return torch.stack(costs).mean()
