import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

# The tests' models are tiny: a second thread only waits, for long when the machine is busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a connection

ROOT = Path(__file__).parents[1]
WORDS = "red green blue dog cat bird runs sits flies over under beside water grass snow".split()
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line, after checking that it is the only thing on stderr but for progress."""
        lines = [line for line in self.err.replace("\r", "\n").split("\n") if line.startswith("error:")]
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        return lines[0]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a script in this process: cli("train", "configs/demo.yaml", "train.epochs=1")."""

    def run(script: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capfd.readouterr())

    return run


def write_precomp(folder: Path, train: int = 24, others: int = 10, width: int = 12, seed: int = 0) -> Path:
    """A precomp corpus: 5 captions per image, 6 regions; dev and test repeat each image once per caption."""
    rng = np.random.default_rng(seed)
    precomp = folder / "precomp"
    precomp.mkdir(parents=True)
    for split, count in (("train", train), ("dev", others), ("test", others)):
        features = rng.standard_normal((count, 6, width)).astype(np.float32)
        np.save(precomp / f"{split}_ims.npy", features if split == "train" else np.repeat(features, 5, axis=0))
        captions = [" ".join(rng.choice(WORDS, rng.integers(2, 8))) for _ in range(count * 5)]
        (precomp / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
        (precomp / f"{split}_ids.txt").write_text("".join(f"{1000 + i}\n" for i in range(count)))
    return folder


def write_pictures(folder: Path, train: int = 12, others: int = 6) -> Path:
    """Pictures of noise in Karpathy's layout, two captions each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for split, count in (("train", train), ("val", others), ("test", others)):
        for _ in range(count):
            number = len(entries)
            texts = [" ".join(rng.choice(WORDS, rng.integers(2, 8))) for _ in range(2)]
            sentences = [{"raw": text, "sentid": 2 * number + i} for i, text in enumerate(texts)]
            entries.append({"split": split, "imgid": number, "filename": f"{number}.jpg", "sentences": sentences})
            noise = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "images" / f"{number}.jpg")
    (folder / "dataset_small.json").write_text(json.dumps({"images": entries}))
    return folder


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    return write_precomp(tmp_path / "data")


@pytest.fixture
def tiny(corpus_folder: Path, tmp_path: Path) -> list[str]:
    """Config and overrides of a run that takes a second: cli("train", *tiny)."""
    config = ROOT / "configs" / "vse_infty" / "f30k_region_bigru.yaml"
    settings = {
        "run.dir": tmp_path / "run",
        "data.root": corpus_folder,
        "data.workers": 0,
        "data.vocabulary.min_count": 1,
        "model.embed_dim": 8,
        "model.text.encoder.word_dim": 6,
        "train.epochs": 2,
        "train.batch_size": 16,
        "run.log_steps": 3,
        "optim.schedule.milestones": [1],
    }
    return [str(config), *(f"{key}={value}" for key, value in settings.items())]


def write_transformer(folder: Path, config: Any, weights: bool = False) -> Path:
    """A folder of a `transformers` model, as published ones are: its config, with or without (random) weights."""
    from transformers import AutoModel

    (AutoModel.from_config(config) if weights else config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, words: list[str]) -> Path:
    """BERT's fast tokenizer, of specials, letters, and words, beside a model's config."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = dict.fromkeys([*special, *words, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = BertWordPieceTokenizer({piece: i for i, piece in enumerate(pieces)})
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random BERT."""
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, max_position_embeddings=32, **SMALL)
    folder = write_transformer(tmp_path_factory.mktemp("bert"), config, weights=True)
    return write_tokenizer(folder, WORDS)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random ViT, for pictures of 32 x 32."""
    from transformers import ViTConfig

    torch.manual_seed(0)
    return write_transformer(tmp_path_factory.mktemp("vit"), ViTConfig(image_size=32, patch_size=8, **SMALL), True)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
