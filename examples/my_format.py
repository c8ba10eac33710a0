"""A data format of one's own: a function from a folder and a split to a corpus, named in a config.

PYTHONPATH=examples vse train demo data.format=my_format:tab_separated data.root=FOLDER run.dir=runs/my_format
"""

from pathlib import Path

import numpy as np

from vse.data import Corpus, Features


def tab_separated(root: str, split: str, file: str = "captions.tsv") -> Corpus:
    """Read ``root/{split}.npy``, features (images, regions, width), and a table of captions.

    Args:
        root: The config's data.root.
        split: "train", "dev" or "test".
        file: The table below ``root``: a split, the number of an image, and a caption in each line, tabs between them.

    Returns:
        The corpus of the split.
    """
    lines = (Path(root) / file).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.startswith(f"{split}\t")]
    images = Features(Path(root) / f"{split}.npy")
    return Corpus(
        name=f"{root} ({split})",
        images=images,
        captions=[caption for _, _, caption in rows],
        image_of_caption=np.array([int(number) for _, number, _ in rows]),
        image_ids=range(len(images)),
        caption_ids=range(len(rows)),
    )
