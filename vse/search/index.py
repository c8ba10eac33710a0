"""Open an index and search it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vse.batchwise import weights_digest
from vse.checkpoints.load import Loaded, load_model
from vse.checkpoints.native import find_checkpoint
from vse.config_files import names_config
from vse.data.reading import NOT_NPY
from vse.encoders.base import traits_of
from vse.errors import InputError, check_at_least, check_choice, first_line
from vse.evaluation.blocks import NaNScores
from vse.files import sha256
from vse.model import VSEModel, kind_of_images
from vse.ragged import Sets, padded, places_of, take
from vse.runtime import autocast, pick_device, products
from vse.search import approximate
from vse.search.exact import Best, choose_sides, find_best
from vse.search.results import Hit, Result
from vse.search.shards import Shards, read_manifest
from vse.sets import Aggregated
from vse.similarity import check_takes_masks, compare

Kind = Literal["images", "captions"]


class Index:
    """Embedded pictures, clips or captions, and the model that embedded them. :meth:`open` opens one.

    Args:
        shards: The embeddings.
        similarity: Compares embedding sets, see :mod:`vse.similarity`.
        device: Where they are compared.
        model: Embeds queries; None when only embeddings are searched for.
        precision: The precision in which queries are embedded.

    Raises:
        InputError: The sets differ in size, and the similarity takes no masks.
    """

    def __init__(
        self,
        shards: Shards,
        similarity: Callable[..., Tensor],
        device: torch.device,
        model: VSEModel | None = None,
        precision: str = "fp32",
    ) -> None:
        if shards.is_ragged:
            try:
                check_takes_masks(similarity)
            except ValueError as error:
                raise InputError(f"{shards.folder}: {error}") from None
        self.shards, self.similarity, self.device = shards, similarity, device
        self.model, self.precision = model, precision
        self._proposals: approximate.Proposals | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        run: str | Path | None = None,
        vocabulary: str | Path | None = None,
        device: str = "auto",
    ) -> "Index":
        """Open an index, and load the model that made it.

        Args:
            folder: The index, which ``vse embed`` has made.
            run: The run folder or checkpoint, when it is no longer where it was.
            vocabulary: A vocabulary file for a checkpoint that came without one, see :func:`vse.load`.
            device: Where queries are embedded and compared.

        Returns:
            The index.

        Raises:
            InputError: The folder is no finished index, or the checkpoint is missing or another one.

        >>> len(Index.open("index"))
        50000
        """
        shards = Shards(Path(folder))
        loaded = load_checkpoint_of(Path(folder), run, vocabulary)
        model = loaded.model.to(pick_device(device))
        return cls(shards, model.similarity, model.device, model, shards.manifest.get("precision", "fp32"))

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.shards)

    def search(
        self,
        queries: Any,
        top: int = 10,
        approximately: bool = False,
        candidates: int | None = None,
        batch_size: int = 256,
    ) -> list[Result]:
        """Rank the items for each query.

        A text is compared with images as in evaluation. Items of the query's own kind are compared as CxC's
        image-image and caption-caption retrieval compares them: the query is the similarity's first argument.

        Args:
            queries: One query, or a list: a str is a text; a :class:`pathlib.Path`, a PIL picture, a tensor or an array
                is an image, as in :meth:`vse.model.VSEModel.encode_images`. The path of a .npy file is one of features.
            top: The number of items to find for each query.
            approximately: Whether an approximate index proposes the items (see :meth:`build_approximate`), and the
                similarity ranks only these.
            candidates: The number of embeddings that it proposes for each embedding of a query; by default as many as
                it was measured with, and at least ten for each item that is wanted.
            batch_size: The number of queries that are embedded at a time.

        Returns:
            The results, in the order of the queries; none for an empty list. With fewer items than ``top``, or fewer
            proposed ones, a result has fewer hits.

        Raises:
            InputError: A picture cannot be read, or there is no approximate index.
            ValueError: The model cannot embed one of the queries.

        >>> index.search("a dog on a beach", top=2)[0].hits[0]
        Hit(rank=1, score=0.41, id='17.jpg', path=PosixPath('/home/me/pictures/17.jpg'), caption=None)
        """
        queries = list(queries) if isinstance(queries, list | tuple) else [queries]
        is_text = [isinstance(query, str) for query in queries]
        results: list[Result | None] = [None] * len(queries)
        sides: tuple[tuple[Kind, bool], ...] = (("captions", True), ("images", False))
        for kind, texts in sides:
            places = [place for place, is_one in enumerate(is_text) if is_one == texts]
            if not places:
                continue
            sets = self.embed_queries([queries[place] for place in places], kind, batch_size)
            best = self.search_sets(sets, kind, top, approximately, candidates)
            for place, hits in zip(places, self._hits(best), strict=True):
                results[place] = _name(queries[place], place, hits)
        return [result for result in results if result is not None]

    def embed_queries(self, queries: Sequence[Any], kind: Kind, batch_size: int = 256) -> Sets:
        """Embed queries of one kind.

        Args:
            queries: Texts, or images.
            kind: "captions" for texts, "images" for images.
            batch_size: The number of queries that are embedded at a time.

        Returns:
            Their embedding sets.

        Raises:
            InputError: A picture cannot be read.
            ValueError: The index was opened without a model, or the model cannot embed a query.
        """
        if self.model is None:
            raise ValueError("this index has no model; only search_sets works")
        with autocast(self.device, self.precision):
            if kind == "captions":
                return self.model.text_sets(queries, batch_size)
            return self.model.image_sets([self._read(query) for query in queries], batch_size)

    def _read(self, query: Any) -> Any:
        """What the model takes as an image: the content of a .npy file, anything else as it is."""
        assert self.model is not None
        is_file = isinstance(query, Path) and kind_of_images(traits_of(self.model.image.encoder)) == "features"
        if not is_file:
            return query
        if query.suffix != ".npy":
            raise InputError(f"{query}: the model reads features; expected a .npy file (regions, width) of them")
        try:
            with open(query, "rb") as file:
                features = np.lib.format.read_array(file, allow_pickle=False).astype(np.float32)
        except NOT_NPY as error:
            raise InputError(f"{query}: not a complete .npy file of numbers ({first_line(error)})") from None
        width = traits_of(self.model.image.encoder).in_dim
        if features.ndim != 2 or width not in (None, features.shape[1]):
            raise InputError(f"{query}: expected features (regions, {width}), found an array {features.shape}")
        return features

    @torch.no_grad()
    def search_sets(
        self,
        queries: Sets,
        kind: Kind,
        top: int = 10,
        approximately: bool = False,
        candidates: int | None = None,
    ) -> Best:
        """Rank the items for queries that are embedded already.

        Args:
            queries: Embeddings (n, L, H), or sets of different sizes.
            kind: What the queries are, "images" or "captions".
            top: As in :meth:`search`.
            approximately: As in :meth:`search`.
            candidates: As in :meth:`search`.

        Returns:
            The scores of the best items and their positions in the index, (n, min(top, items)).

        Raises:
            InputError: There is no approximate index, or a score is NaN.
            ValueError: ``top`` is below 1, or the queries do not fit the index.
        """
        check_choice("kind", kind, get_args(Kind))
        check_at_least("top", top, 1)
        top = min(top, len(self))
        if approximately:
            return self._search_approximately(queries, kind, top, candidates)
        sides = choose_sides(len(queries), (places_of(queries), self.shards.places), self.shards.width, self.device)

        def score(rows: slice, block: Aggregated) -> Tensor:
            return self._score(_moved(take(queries, rows), self.device), block, kind)

        blocks = self.shards.blocks(sides.items, self.device)
        try:
            return find_best(score, blocks, len(queries), top, sides.queries, self.device)
        except NaNScores as error:
            raise InputError(f"{self.shards.folder}: {error}") from None

    def build_approximate(
        self, factory: str | None = None, queries: Sets | None = None, kind: Kind | None = None
    ) -> "approximate.About":
        """Build an approximate index over all embeddings beside the exact one, and measure its recall.

        Args:
            factory: Faiss's description of the index, such as "IVF4096,SQfp16"; chosen by the number of embeddings by
                default.
            queries: Embedded queries for the measurement; by default some of the index's own items.
            kind: What these queries are.

        Returns:
            What is known of it.

        Raises:
            InputError: Faiss is not installed, or does not know the factory.
        """
        self._proposals = None
        approximate.build(self.shards, factory)
        self._proposals = approximate.Proposals(self.shards)
        own = np.unique(np.linspace(0, len(self) - 1, approximate.SAMPLE).astype(np.int64))
        sample = self.shards.take(own, self.device) if queries is None else queries
        asked: Kind = kind or ("images" if self.shards.kind == "images" else "captions")
        about = self._measured(self._proposals, sample, asked)._replace(own_items=queries is None)
        approximate.write_about(self.shards.folder, about)
        return about

    def _measured(self, proposals: approximate.Proposals, sample: Sets, kind: Kind) -> approximate.About:
        """What is known of an approximate index, after queries look further until enough is found.

        They look at twice as many lists or candidates, whichever finds more.
        """
        top = min(10, len(self))
        exact = self.search_sets(sample, kind, top).positions

        def measure(lists: int, candidates: int) -> tuple[float, int, int]:
            proposals.look(lists, candidates)
            found = self.search_sets(sample, kind, top, approximately=True).positions
            return approximate.recall(exact, found), lists, candidates

        recall, lists, candidates = measure(proposals.about.probe, proposals.about.candidates)
        while recall < approximate.ENOUGH:
            further = []
            if lists < proposals.lists:
                further.append((2 * lists, candidates))
            if candidates < min(approximate.MOST, proposals.about.rows):
                further.append((lists, 2 * candidates))
            if not further:
                break
            recall, lists, candidates = max((measure(*more) for more in further), key=lambda result: result[0])
        proposals.look(lists, candidates)
        return proposals.about._replace(recall=recall, queries=len(sample), top=top)

    def _search_approximately(self, queries: Sets, kind: Kind, top: int, candidates: int | None) -> Best:
        """Rank the items that the approximate index proposes for each query."""
        if self._proposals is None:
            self._proposals = approximate.Proposals(self.shards)
        depth = max(self._proposals.about.candidates, 10 * top) if candidates is None else candidates
        check_at_least("candidates", depth, 1)
        scores = torch.full((len(queries), top), float("-inf"))
        positions = torch.full((len(queries), top), -1)
        for number, proposed in enumerate(self._proposals.find(queries, depth)):
            if not len(proposed):
                continue
            own = _moved(take(queries, slice(number, number + 1)), self.device)

            def score(_: slice, block: Aggregated, own: Aggregated = own) -> Tensor:
                return self._score(own, block, kind)

            block = padded(self.shards.take(proposed, self.device))
            count = min(top, len(proposed))
            best = find_best(score, [(0, block)], 1, count, 1, self.device)
            scores[number, :count] = best.scores[0]
            positions[number, :count] = torch.from_numpy(proposed)[best.positions[0]]
        return Best(scores, positions)

    def _score(self, queries: Aggregated, block: Aggregated, kind: Kind) -> Tensor:
        """Scores (n, m) of queries against items, in float32; images come first, and otherwise the query."""
        a, b = (queries, block) if kind == "images" or self.shards.kind == "captions" else (block, queries)
        with products(self.device, "fp32"):
            scores = compare(self.similarity, a.embeddings.float(), b.embeddings.float(), a.mask, b.mask).float()
        return scores if a is queries else scores.T

    def _hits(self, best: Best) -> list[tuple[Hit, ...]]:
        """The items of each query."""
        positions = best.positions.numpy()
        items = self.shards.items(positions[positions >= 0])
        folder = self.shards.manifest.get("folder")
        found = []
        for scores, row in zip(best.scores.tolist(), positions.tolist(), strict=True):
            hits: list[Hit] = []
            for score, position in zip(scores, row, strict=True):
                if position >= 0:
                    item = items[position]
                    path = Path(folder) / item.file if folder and item.file else None
                    hits.append(Hit(len(hits) + 1, score, item.id, path, item.caption))
            found.append(tuple(hits))
        return found


def load_checkpoint_of(folder: Path, run: str | Path | None = None, vocabulary: str | Path | None = None) -> Loaded:
    """Load the model that made an index.

    Args:
        folder: The index.
        run: The run folder or checkpoint, when it is no longer where it was.
        vocabulary: A vocabulary file for a checkpoint that came without one.

    Returns:
        The model.

    Raises:
        InputError: The checkpoint is missing, or it is another one.
    """
    manifest = read_manifest(folder)
    place, expected = str(run or manifest["checkpoint"]), manifest["checkpoint_sha256"]
    if not names_config(place):
        if run is None and not Path(place).exists():
            raise InputError(f"{folder}: was made with {place}, which is not there; name the run with --run PATH")
        _check_digest(folder, place, sha256(find_checkpoint(place)), expected)
    loaded = load_model(place, manifest.get("overrides", ()), vocabulary)
    if names_config(place):
        _check_digest(folder, place, weights_digest(loaded.model.state_dict()), expected)
    return loaded


def _check_digest(folder: Path, place: str, found: str, expected: str) -> None:
    if found != expected:
        problem = f"is not the checkpoint that {folder} was made with (its SHA-256 is {found[:12]}, "
        raise InputError(f"{place}: {problem}expected {expected[:12]}); name the right one with --run, or embed again")


def _moved(sets: Aggregated, device: torch.device) -> Aggregated:
    """A batch of sets on a device."""
    mask = None if sets.mask is None else sets.mask.to(device)
    return Aggregated(sets.embeddings.to(device), mask=mask)


def _name(query: Any, place: int, hits: tuple[Hit, ...]) -> Result:
    """The result of one query."""
    if isinstance(query, str | Path):
        return Result(str(query), query if isinstance(query, Path) else None, hits)
    return Result(f"image {place}", None, hits)
