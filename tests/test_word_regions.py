"""Which region each word takes: planted matches, brute force, and models of several systems."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import WORDS
from torch import Tensor, nn

import vse
from vse.aggregators import AGGREGATORS, GPO
from vse.data.subwords import Subwords
from vse.data.vocabulary import MissingVocabulary, Vocabulary
from vse.errors import InputError
from vse.model import Tower, VSEModel
from vse.sets import FeatureSet
from vse.similarity import cosine, max_sim
from vse.word_regions import match_words

CAPTION = "red dog runs over grass"


class Given(nn.Module):
    """Regions as they are."""

    dim, context_dim, in_dim, reads = 16, None, 16, "features"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        return FeatureSet(inputs * self.scale, mask)


class Table(nn.Module):
    """A vector for each word."""

    dim, context_dim = 16, None

    def __init__(self, words: int, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> FeatureSet:
        return FeatureSet(self.table(inputs), mask)


def model_of(aggregator: Callable[[], nn.Module], width: int = 16) -> VSEModel:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(WORDS)
    text = Tower(Table(len(vocabulary), width), aggregator())
    return VSEModel(Tower(Given(), aggregator()), text, max_sim, vocabulary)


def planted(model: VSEModel, order: list[int]) -> Tensor:
    """Twelve regions: word w's own vector, of another length and with some noise, is region order[w]."""
    assert isinstance(model.text.encoder, Table) and isinstance(model.vocabulary, Vocabulary)
    table = model.text.encoder.table.weight.detach()
    regions = torch.randn(12, table.shape[1], generator=torch.Generator().manual_seed(1))
    for word, region in zip(CAPTION.split(), order, strict=True):
        regions[region] = 3.0 * table[model.vocabulary.ids[word]] + 0.1 * regions[region]
    return regions


@pytest.mark.parametrize("aggregator", [AGGREGATORS["tokens"], GPO])
def test_a_planted_match_is_found(aggregator: Callable[[], nn.Module]) -> None:
    model, order = model_of(aggregator).train(), [7, 2, 11, 0, 4]
    regions = planted(model, order)
    for image in (regions, regions.numpy()):
        found = model.match(image, CAPTION.upper())
        assert found.words == CAPTION.split() and found.region.tolist() == order
        assert (found.cosine > 0.99).all() and not found.cosine.requires_grad
        assert found.attention.shape == (5, 12) and found.attention.argmax(1).tolist() == order
        torch.testing.assert_close(found.attention.sum(1), torch.ones(5))
    assert model.training  # it is as it was
    moved = model.match(regions.roll(1, 0), CAPTION)
    assert moved.region.tolist() == [(region + 1) % 12 for region in order]


def test_match_words_equals_brute_force() -> None:
    """The second word has two subwords, and the first and last token belong to no word."""
    torch.manual_seed(0)
    regions, tokens = torch.randn(4, 6), torch.randn(5, 6)
    found = match_words(regions, tokens, ["a", "kitesurfer"], [-1, 0, 1, 1, -1], temperature=0.5)
    for place, rows in enumerate([[1], [2, 3]]):
        cosines = [sum(float(torch.cosine_similarity(tokens[t], r, 0)) for t in rows) / len(rows) for r in regions]
        weights = [math.exp(c / 0.5) for c in cosines]
        assert int(found.region[place]) == cosines.index(max(cosines))
        assert float(found.cosine[place]) == pytest.approx(max(cosines), abs=1e-6)
        assert found.attention[place].tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)


@pytest.mark.parametrize("system", ["chan", "vse_infty"])
def test_a_trained_models_match(system: str, make_run: Callable[..., Path]) -> None:
    model = vse.load(make_run(system, "model.embed_dim=16"))
    image = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    found = model.match(image, CAPTION)
    assert found.words == CAPTION.split() and found.attention.shape == (5, 6)
    if system == "chan":  # its score is a pooling of just these cosines, those of <start> and <end> included
        regions, words = model.embed_images([image]).embeddings, model.embed_texts(CAPTION).embeddings[:, 1:-1]
        torch.testing.assert_close(found.cosine.sum(), max_sim(regions, words)[0, 0])


def test_bert_reads_words_in_pieces(tiny_bert: Path) -> None:
    subwords = Subwords.read(str(tiny_bert))
    caption = "Red dogs, runs"
    words, numbers = subwords.words_of_tokens(caption)
    assert words == ["Red", "dogs", ",", "runs"] or words == ["Red", "dogs", "runs"]
    assert len(numbers) == len(subwords.encode(caption)) and numbers[0] == numbers[-1] == -1
    assert sorted({*numbers}) == list(range(-1, len(words)))
    assert numbers.count(words.index("dogs")) == 2  # dog, ##s


def test_what_cannot_be_matched() -> None:
    model = model_of(AGGREGATORS["tokens"])
    regions = torch.randn(3, 16)
    with pytest.raises(ValueError, match="caption 0 is empty"):
        model.match(regions, " ")
    with pytest.raises(ValueError, match="temperature must be positive"):
        model.match(regions, CAPTION, temperature=0.0)
    with pytest.raises(ValueError, match="image 0: expected a"):
        model.match([regions, regions], CAPTION)
    with pytest.raises(ValueError, match="regions are 16 wide and words 5"):
        model_of(AGGREGATORS["tokens"], width=5).match(regions, CAPTION)
    with pytest.raises(ValueError, match="gives 2 elements for 3 tokens"):
        match_words(regions, torch.randn(2, 16), ["a"], [-1, 0, -1])
    with pytest.raises(ValueError, match="the caption has no word"):
        match_words(regions, torch.randn(2, 16), [], [-1, -1])
    with pytest.raises(ValueError, match="has no vocabulary"):
        VSEModel(model.image, model.text, cosine).match(regions, CAPTION)
    with pytest.raises(InputError, match="came without its vocabulary"):
        VSEModel(model.image, model.text, cosine, MissingVocabulary(9, "x.json")).match(regions, CAPTION)
