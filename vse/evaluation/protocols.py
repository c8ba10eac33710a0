"""Evaluation protocols: which test split each is for, and how it turns scores into metrics.

A new protocol is one record in :data:`PROTOCOLS`. A metric that no other protocol has also needs a column in
:mod:`vse.evaluation.tables`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vse.data.corpus import Corpus
from vse.errors import InputError, close_match
from vse.evaluation.folds import fold_metrics
from vse.evaluation.judgements import Judgements, check_ids, cxc_metrics, eccv_metrics, errors_name, within_metrics
from vse.evaluation.score import CorpusScores, nan_names


@dataclass(frozen=True)
class Protocol:
    """What is ranked together, and which metrics are computed of it.

    Attributes:
        name: What the user calls it.
        evaluate: Computes the metrics of scores on a corpus under this protocol; CxC's judgements are None where the
            user gave none.
        images: The number of images that the split must have; None for any number.
        captions: The number of captions that the split must have; None for any number.
        folds: The number of folds over which the metrics are averaged.
        parts: The names of the protocols whose metrics this one reports together.
        plain: Whether its metrics are those of plain retrieval, among all images and all captions. A run folder keeps
            them as ``{split}.json``, and those of any other protocol as ``{split}_{name}.json``.
        bootstrap: Whether intervals can be computed: its metrics are R@K of the corpus's own pairs.
        clips: Whether it is for clips only.
        coco_ids: Whether the corpus must have the ids of COCO's 5K test.
        judgements: Whether it can use CxC's judgements within images and within captions.
    """

    name: str
    evaluate: Callable[[CorpusScores, Corpus, "Protocol", Judgements | None], dict[str, Any]]
    images: int | None = None
    captions: int | None = None
    folds: int = 1
    parts: tuple[str, ...] = ()
    plain: bool = False
    bootstrap: bool = False
    clips: bool = False
    coco_ids: bool = False
    judgements: bool = False


def own_pairs(
    scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Judgements | None
) -> dict[str, Any]:
    """Compute R@K and ranks with the corpus's own pairs as positives, see :func:`vse.evaluation.folds.fold_metrics`.

    Args:
        scored: The scores (images, captions) of a model or an ensemble.
        corpus: The corpus that they belong to.
        protocol: The protocol, which gives the number of folds.
        judgements: It is not used.

    Returns:
        The dict of :func:`vse.metrics.retrieval_metrics`, recalls in percent; with several folds, also "folds", their
        number.

    Raises:
        ValueError: The images cannot be divided into equal folds, or the scores hold NaN.
    """
    return fold_metrics(scored.ranks(corpus.image_of_caption, protocol.folds), corpus.video)


def all_parts(
    scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Judgements | None
) -> dict[str, Any]:
    """Compute the metrics of each part of a protocol.

    Args:
        scored: The scores (images, captions) of a model or an ensemble.
        corpus: The corpus that they belong to.
        protocol: The protocol, which names the parts.
        judgements: CxC's judgements within images and within captions, for a part that can use them.

    Returns:
        The metrics of each part, by the part's name.

    Raises:
        ValueError: A part does not fit the corpus.
    """
    parts = parts_of_protocol(protocol)
    return {name: part.evaluate(scored, corpus, part, judgements) for name, part in parts.items()}


def cxc(scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Judgements | None) -> dict[str, Any]:
    """Compute CxC's recalls; with its judgements and a model's embeddings also among images and among captions.

    Args:
        scored: The scores (images, captions) of a model or an ensemble, and its embeddings if they are known.
        corpus: The corpus that they belong to, COCO's 5K test.
        protocol: It is not used.
        judgements: CxC's judgements within images and within captions; None leaves these recalls out.

    Returns:
        R@1, R@5 and R@10 in percent under "i2t" and "t2i", and under "i2i" and "t2t" where they are computed.

    Raises:
        InputError: The ``eccv_caption`` package is missing, an id is not the test's, or CxC judges an item that is not
            in the corpus.
    """
    with errors_name(corpus):
        metrics = cxc_metrics(scored.blocks, corpus.image_ids, corpus.caption_ids, corpus.image_of_caption)
    if judgements is not None and scored.embeddings:
        metrics |= within_metrics(scored, corpus, judgements)
    return metrics


def eccv(scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Judgements | None) -> dict[str, Any]:
    """Compute ECCV Caption's metrics, see :func:`vse.evaluation.judgements.eccv_metrics`.

    Args:
        scored: The scores (images, captions) of a model or an ensemble.
        corpus: The corpus that they belong to, COCO's 5K test.
        protocol: It is not used.
        judgements: It is not used.

    Returns:
        mAP@R, R-Precision and R@1 in percent under "i2t" and "t2i".

    Raises:
        InputError: The ``eccv_caption`` package is missing, or an id is not the test's.
    """
    with errors_name(corpus):
        return eccv_metrics(scored.blocks, corpus.image_ids, corpus.caption_ids, corpus.image_of_caption)


_ALL = (
    Protocol("retrieval", own_pairs, plain=True, bootstrap=True),
    Protocol("f30k", own_pairs, images=1000, plain=True, bootstrap=True),
    Protocol("coco_1k", own_pairs, images=5000, captions=25_000, folds=5, bootstrap=True),
    Protocol("coco_5k", own_pairs, images=5000, captions=25_000, plain=True, bootstrap=True),
    Protocol("coco", all_parts, images=5000, captions=25_000, parts=("coco_1k", "coco_5k"), bootstrap=True),
    Protocol("cxc", cxc, images=5000, captions=25_000, coco_ids=True, judgements=True),
    Protocol("eccv", eccv, images=5000, captions=25_000, coco_ids=True),
    Protocol("video", own_pairs, plain=True, bootstrap=True, clips=True),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Args:
        name: A name in :data:`PROTOCOLS`.

    Returns:
        The protocol.

    Raises:
        InputError: No protocol has this name; the message has the close match.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r}: {close_match(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]


def parts_of_protocol(protocol: Protocol) -> dict[str, Protocol]:
    """Return the protocols that make up one, by name; a protocol without parts stands alone under the name ""."""
    if not protocol.parts:
        return {"": protocol}
    return {name: PROTOCOLS[name] for name in protocol.parts}


def check_protocol(protocol: Protocol, corpus: Corpus) -> None:
    """Check that a protocol is for a corpus, before anything is encoded.

    Args:
        protocol: The protocol.
        corpus: The split to evaluate.

    Raises:
        InputError: The split has another size than the protocol is for, or pictures where it is for clips, or ids that
            are not COCO's.
    """
    check_split(protocol, len(corpus.images), len(corpus.captions), corpus.video)
    if protocol.coco_ids:
        with errors_name(corpus):
            check_ids(corpus.image_ids, corpus.caption_ids, corpus.image_of_caption)


def check_split(protocol: Protocol, images: int, captions: int, clips: bool) -> None:
    """Check that a protocol is for a split, by the split's size and kind.

    Args:
        protocol: The protocol.
        images: The number of images in the split.
        captions: The number of captions in the split.
        clips: Whether the images are clips.

    Raises:
        InputError: The protocol is for another size or kind; both are named.
    """
    if protocol.images not in (None, images):
        expected = f"a split of {protocol.images:,} images"
        raise InputError(f"protocol {protocol.name} is for {expected}, this one has {images:,}")
    if protocol.captions is not None and captions != protocol.captions:
        problem = f"protocol {protocol.name} is for {protocol.captions:,} captions, this split has {captions:,}"
        if captions > protocol.captions:
            each = protocol.captions // images
            problem += f"; with karpathy, data.options.per_image={each} takes the first {each} of each image"
        raise InputError(problem)
    if protocol.clips and not clips:
        raise InputError(f"protocol {protocol.name} is for clips, but this corpus has pictures or their features")


def report(
    scored: CorpusScores, corpus: Corpus, protocol: Protocol, judgements: Judgements | None = None
) -> dict[str, Any]:
    """Evaluate scores under a protocol.

    Args:
        scored: The scores of a model or an ensemble.
        corpus: The corpus that they belong to.
        protocol: One of :data:`PROTOCOLS`.
        judgements: CxC's judgements within images and within captions, for the protocol that can use them.

    Returns:
        The protocol's metrics, and for embedding sets also "sets", what is known of them.

    Raises:
        InputError: The protocol is not for this corpus, or the model gives NaN.
    """
    check_split(protocol, len(corpus.images), len(corpus.captions), corpus.video)
    with nan_names(corpus):
        return scored.with_sets(protocol.evaluate(scored, corpus, protocol, judgements))
