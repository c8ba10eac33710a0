"""The papers whose ideas a model uses, as its card cites them. CITATION.cff lists the same."""

from typing import Any, NamedTuple

from vse.config import Config


class Paper(NamedTuple):
    """A paper.

    Attributes:
        key: Its key in BibTeX.
        system: What its system is called.
        parts: The names of components that come from it.
        title: Its title.
        authors: Its authors, as BibTeX has them.
        venue: The conference or journal.
        year: The year.
        kind: The kind of BibTeX entry.
    """

    key: str
    system: str
    parts: frozenset[str]
    title: str
    authors: str
    venue: str
    year: int
    kind: str = "inproceedings"


PAPERS = (
    Paper(
        "faghri2018vsepp",
        "VSE++",
        frozenset({"triplet"}),
        "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives",
        "Faghri, Fartash and Fleet, David J. and Kiros, Jamie Ryan and Fidler, Sanja",
        "BMVC",
        2018,
    ),
    Paper(
        "chen2021vseinfty",
        "VSE∞",
        frozenset({"gpo"}),
        "Learning the Best Pooling Strategy for Visual Semantic Embedding",
        "Chen, Jiacheng and Hu, Hexiang and Wu, Hao and Jiang, Yuning and Wang, Changhu",
        "CVPR",
        2021,
    ),
    Paper(
        "song2019pvse",
        "PVSE",
        frozenset({"pie_net"}),
        "Polysemous Visual-Semantic Embedding for Cross-Modal Retrieval",
        "Song, Yale and Soleymani, Mohammad",
        "CVPR",
        2019,
    ),
    Paper(
        "zhang2023vse2ad",
        "VSE-2AD",
        frozenset({"adaptive", "adaptive_contrastive"}),
        "Improving Visual-Semantic Embedding with Adaptive Pooling and Optimization Objective",
        "Zhang, Zijian and Shu, Chang and Xiao, Ya and Shen, Yuan and Zhu, Di and Chen, Youxin and Xiao, Jing and "
        "Lau, Jey Han and Zhang, Qian and Lu, Zheng",
        "EACL",
        2023,
    ),
    Paper(
        "kim2023dive",
        "DivE",
        frozenset({"set_prediction", "smooth_chamfer"}),
        "Improving Cross-Modal Retrieval with Set of Diverse Embeddings",
        "Kim, Dongwon and Kim, Namyup and Kwak, Suha",
        "CVPR",
        2023,
    ),
    Paper(
        "zhu2023esa",
        "ESA",
        frozenset({"softmax_pool"}),
        "ESA: External Space Attention Aggregation for Image-Text Retrieval",
        "Zhu, Hongguang and Zhang, Chunjie and Wei, Yunchao and Huang, Shujuan and Zhao, Yao",
        "IEEE Transactions on Circuits and Systems for Video Technology",
        2023,
        "article",
    ),
    Paper(
        "pan2023chan",
        "CHAN",
        frozenset({"chan"}),
        "Fine-Grained Image-Text Matching by Cross-Modal Hard Aligning Network",
        "Pan, Zhengxin and Wu, Fangyu and Zhang, Bailing",
        "CVPR",
        2023,
    ),
    Paper(
        "alomari2025maxmatch",
        "MaxMatch",
        frozenset({"assignment", "global_discriminative", "intra_set_divergence"}),
        "Maximal Matching Matters: Preventing Representation Collapse for Robust Cross-Modal Retrieval",
        "Alomari, Hani and Sivakumar, Anushka and Zhang, Andrew and Thomas, Chris",
        "ACL",
        2025,
    ),
)


def papers_of(config: Config) -> list[Paper]:
    """Find the papers whose components a config names; VSE++, whose loss most systems have, for no other system.

    >>> [paper.system for paper in papers_of(read_config("vse_infty/f30k_region_bigru"))]
    ['VSE∞']
    """
    model = config.model
    components: list[Any] = [model.image.aggregator, model.text.aggregator, model.similarity, config.loss.ranking]
    names = {component.name for component in components} | set(config.loss.terms)
    found = [paper for paper in PAPERS if paper.parts & names]
    return [paper for paper in found if paper.system != "VSE++"] or found


def bibtex(paper: Paper) -> str:
    """Format a paper as a BibTeX entry."""
    place = "journal" if paper.kind == "article" else "booktitle"
    return (
        f"@{paper.kind}{{{paper.key},\n"
        f"  title = {{{paper.title}}},\n"
        f"  author = {{{paper.authors}}},\n"
        f"  {place} = {{{paper.venue}}},\n"
        f"  year = {{{paper.year}}}\n"
        "}"
    )
