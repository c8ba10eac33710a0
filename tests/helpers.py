"""What several tests share: small data sets, models and checkpoints, and the outcome of a command."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vse
from vse.aggregators import GPO, AdaptivePool, SetPrediction
from vse.build import read_config
from vse.checkpoints.native import load_checkpoint
from vse.data.corpus import Corpus
from vse.data.vocabulary import SPECIALS
from vse.evaluation.blocks import blocks_of_matrix
from vse.evaluation.folds import FoldRanks, fold_metrics, rank_folds
from vse.model import VSEModel

ROOT = Path(__file__).parents[1]
WORDS = "red green blue dog cat bird runs sits flies over under beside water grass snow".split()
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
State = dict[str, Tensor]
DIM = 8


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


def without_word_vectors(config: Path) -> list[str]:
    """Overrides that run a shipped config without the GloVe file which its recipe names: no test has that file.

    The words then start at random and are trained.
    """
    if read_config(config).data.vocabulary.vectors is None:
        return []
    return ["data.vocabulary.vectors=null", "model.text.encoder.freeze_words=false"]


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


def write_own_pictures(folder: Path, count: int = 20) -> Path:
    """Pictures of noise with two captions each in captions.csv, which has no column of splits."""
    rng = np.random.default_rng(0)
    (folder / "holidays").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(count):
        file = f"holidays/{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / file)
        lines += [f'{file},"{sentence(rng)}, {sentence(rng)}"' for _ in range(2)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def grey_frames(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    """Pictures of one grey each, brighter and brighter: frame i has the value 10 * i."""
    return [Image.new("RGB", size, (10 * i,) * 3) for i in range(count)]


def write_gif(path: Path, count: int, duration: int | list[int] = 40) -> Path:
    """A clip of :func:`grey_frames`, each shown for ``duration`` milliseconds."""
    first, *others = grey_frames(count)
    first.save(path, save_all=True, append_images=others, duration=duration)
    return path


def write_clips(folder: Path, ids: list[str]) -> None:
    """Frame features, 6 wide, of two to five frames."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for clip in ids:
        np.save(folder / f"{clip}.npy", rng.standard_normal((rng.integers(2, 6), 6)).astype(np.float32))


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, 4))


def write_dataset(kind: str, root: Path, train: int = 12, others: int = 6) -> Path:
    """A small corpus in the published format, with frame features; MRW has one sentence a clip, the others two."""
    rng = np.random.default_rng(0)
    sizes = {"train": train, "val": others, "test": others}
    per_clip = 1 if kind == "mrw" else 2
    clips = {part: [f"{part}_{i}" for i in range(size)] for part, size in sizes.items()}
    root.mkdir()
    everything = [clip for part in clips.values() for clip in part]
    write_clips(root / "features", everything)
    if kind == "tgif":
        rows = [f"https://host/x/{clip}.gif\t{sentence(rng)}\t33" for clip in everything for _ in range(per_clip)]
        (root / "tgif-v1.0.tsv").write_text("\n".join(rows) + "\n")
        for part, names in clips.items():
            (root / f"{part}.txt").write_text("".join(f"https://host/x/{clip}.gif\n" for clip in names))
    elif kind == "mrw":
        entries = [{"id": clip, "sentence": sentence(rng), "title": "mrw"} for clip in everything]
        (root / "mrw-v1.0.json").write_text(json.dumps(entries))
        for part, names in clips.items():
            (root / "split").mkdir(exist_ok=True)
            (root / "split" / f"{'valid' if part == 'val' else part}.tsv").write_text(
                "".join(f"{clip}\t{i}\n" for i, clip in enumerate(names))
            )
    elif kind == "msrvtt":
        for file, parts in (("train_val", {"train": "train", "val": "validate"}), ("test", {"test": "test"})):
            places = [(clip, split) for part, split in parts.items() for clip in clips[part]]
            videos = [{"video_id": clip, "split": split, "id": i} for i, (clip, split) in enumerate(places)]
            sentences = [
                {"caption": sentence(rng), "video_id": video["video_id"], "sen_id": i}
                for i in range(per_clip)
                for video in videos
            ]
            (root / f"{file}_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    else:
        names_of = {"train": "training_v1.0", "val": "validation_v1.0", "test": "public_test_english_v1.1"}
        for part, name in names_of.items():
            texts = [[sentence(rng) for _ in range(per_clip)] for _ in clips[part]]
            pairs = zip(clips[part], texts, strict=True)
            content = [{"videoID": clip, "enCap": captions, "chCap": ["x"]} for clip, captions in pairs]
            (root / f"vatex_{name}.json").write_text(json.dumps(content))
    return root


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


def write_clip(folder: Path, kind: str) -> Path:
    """The folder of a small random two-tower model of a kind of `transformers`, with all that published ones have."""
    from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil, SiglipImageProcessorPil

    torch.manual_seed(0)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": 90, "max_position_embeddings": 24, **ids, **SMALL}
    both: dict[str, Any] = {"text_config": text, "vision_config": {**SMALL, "image_size": 32, "patch_size": 8}}
    if kind == "siglip":
        processor: Any = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        both["projection_dim"] = 16
        processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model: Any = AutoModel.from_config(AutoConfig.for_model(kind, **both))
    with torch.no_grad():
        for parameter in model.parameters():  # so that samples differ, and no bias is 0
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return write_tokenizer(folder, WORDS)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def below(prefix: str, module: nn.Module | State) -> State:
    state = module if isinstance(module, dict) else module.state_dict()
    return {prefix + key: value.clone() for key, value in state.items()}


def mlp(in_dim: int, dim: int = DIM) -> State:
    """VSE∞'s: two layers, two norms, the second unused."""
    layers = [nn.Linear(in_dim, dim // 2), nn.Linear(dim // 2, dim)]
    norms = [nn.BatchNorm1d(dim // 2), nn.BatchNorm1d(dim)]
    norms[0].running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    return {
        k: v for i in (0, 1) for k, v in {**below(f"layers.{i}.", layers[i]), **below(f"bns.{i}.", norms[i])}.items()
    }


def region_states(vocabulary: int = 30, width: int = 12) -> tuple[State, State]:
    """VSE∞, regions and BiGRU."""
    torch.manual_seed(2)
    gru = nn.GRU(6, DIM, batch_first=True, bidirectional=True)
    image = {**below("fc.", nn.Linear(width, DIM)), **below("mlp.", mlp(width)), **below("gpool.", GPO())}
    text = {**below("embed.", nn.Embedding(vocabulary, 6)), **below("rnn.", gru), **below("gpool.", GPO())}
    return image, text


def resnet_state(name: str = "resnet18") -> State:
    import torchvision

    torch.manual_seed(0)
    return {k: v for k, v in torchvision.models.get_model(name).state_dict().items() if not k.startswith("fc.")}


def split_backbone(state: State) -> State:
    """VSE∞'s way to keep a ResNet: in two parts, and all of it once more."""
    parts = {"conv1": "base.0", "bn1": "base.1", "layer1": "base.4", "layer2": "base.5", "layer3": "base.6"}
    parts["layer4"] = "top.0"
    twice: State = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        twice |= {f"backbone.{parts[first]}.{rest}": value, f"backbone.resnet.{key}": value}
    return twice


def small_bert(hidden: int = 64) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    sizes = {**SMALL, "hidden_size": hidden, "num_attention_heads": hidden // 64}
    model: nn.Module = BertModel(BertConfig(vocab_size=90, max_position_embeddings=32, **sizes)).eval()
    return model


def vse_2ad_states(vocabulary: int = 30, width: int = 12) -> State:
    image, text = region_states(vocabulary, width)
    for side in (image, text):
        for key in [key for key in side if key.startswith("gpool.")]:
            del side[key]
        side |= below("pool.", AdaptivePool(DIM))
    return below("img_enc.", image) | below("txt_enc.", text)


def dive_slots(in_dim: int, depth: int, shared: bool, seed: int, **arguments: Any) -> tuple[SetPrediction, State]:
    """A set prediction, and its state as DivE's code has it."""
    torch.manual_seed(seed)
    module = SetPrediction(in_dim, DIM, 2, depth, head_dim=4, ff_mult=2, share_weights=shared, **arguments)
    own = module.state_dict()
    names = {
        **{"query": "0.fn.to_q", "key": "0.fn.to_k", "value": "0.fn.to_v", "out": "0.fn.to_out.0", "norm": "0.norm"},
        **{"input_norm": "0.norm_context", "ff": "2.fn.net", "ff_norm": "2.norm"},
    }
    state = {"agg_block.latents": own["slots"]}
    state |= {f"residual_norm.{k}": own[f"context_norm.{k}"] for k in ("weight", "bias")}
    state |= {f"agg_block.last_layer.0.{k}": own[f"slot_norm.{k}"] for k in ("weight", "bias")}
    for layer in range(depth):
        block = f"blocks.{0 if shared else layer}."
        for key, value in own.items():
            if key.startswith(block):
                part, _, rest = key.removeprefix(block).partition(".")
                state[f"agg_block.layers.{layer}.{names[part]}.{rest}"] = value
    return module, state


def dive_state(depth: int = 2, shared: bool = True) -> State:
    """DivE, regions and BiGRU."""
    image, text = region_states()
    head = {"fc1": nn.Linear(DIM, 4), "fc2": nn.Linear(4, DIM), "bn": nn.ModuleDict({"bn": nn.BatchNorm1d(4)})}
    parts = {key: value for key, value in text.items() if not key.startswith("gpool.")}
    image = below("fc.", nn.Linear(12, DIM)) | below("mlp.", nn.ModuleDict(head))
    image |= below("spm.", dive_slots(DIM, depth, shared, 1)[1])
    return below("img_enc.", image) | below("txt_enc.", parts | below("spm.", dive_slots(6, depth, shared, 2)[1]))


def pvse_state(video: bool = False, count: int = 2) -> State:
    pie_net = {"attention.w_1.weight": torch.zeros(256, 512), "attention.w_2.weight": torch.zeros(count, 256)}
    pie_net |= below("fc.", nn.Linear(512, DIM)) | below("layer_norm.", nn.LayerNorm(DIM))
    words = {"attention.w_1.weight": torch.zeros(3, 6), "attention.w_2.weight": torch.zeros(count, 3)}
    words |= below("fc.", nn.Linear(6, DIM)) | below("layer_norm.", nn.LayerNorm(DIM))
    over = nn.GRU(512, DIM // 2, bidirectional=True) if video else nn.Linear(512, DIM)
    image = below("cnn.", resnet_state()) | below("rnn." if video else "fc.", over) | below("pie_net.", pie_net)
    text = below("embed.", nn.Embedding(30, 6)) | below("rnn.", nn.GRU(6, DIM // 2, bidirectional=True))
    return below("img_enc.", image) | below("txt_enc.", text | below("pie_net.", words))


def load_content(tmp_path: Path, content: Any, **arguments: Any) -> VSEModel:
    torch.save(content, tmp_path / "model_best.pth")
    return vse.load(tmp_path / "model_best.pth", **arguments)


def save_vse_infty(file: Path, **sizes: int) -> Path:
    options = Namespace(data_name="f30k_precomp", batch_size=4)
    torch.save({"model": list(region_states(**sizes)), "opt": options, "best_rsum": np.float64(1.0)}, file)
    return file


def words_file(path: Path, count: int) -> Path:
    words = [*SPECIALS[:-1], *WORDS, *(f"w{i}" for i in range(count))][:count]
    path.write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    return path


def karpathy_file(folder: Path, **changes: Any) -> Path:
    def entry(number: int, split: str, captions: int) -> dict[str, Any]:
        sentences = [{"raw": f"  Caption {number} {i}", "sentid": number * 10 + i} for i in range(captions)]
        return {
            "filename": f"{number}.jpg",
            "filepath": "val2014",
            "imgid": number,
            "split": split,
            "sentences": sentences,
        }

    entries = [entry(0, "train", 5), entry(1, "restval", 7), entry(2, "val", 1), entry(3, "test", 20)]
    entries[0] = {**entries[0], **changes}
    (folder / "images").mkdir(parents=True)
    (folder / "dataset_tiny.json").write_text(json.dumps({"images": entries}))
    return folder


def random_scores(images: int, per_image: int = 5, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Scores (images, captions) in which a caption's own image stands out, and the image of each caption."""
    image_of_caption = np.repeat(np.arange(images), per_image)
    scores = torch.randn(images, len(image_of_caption), generator=torch.Generator().manual_seed(seed))
    scores[torch.from_numpy(image_of_caption), torch.arange(len(image_of_caption))] += 2.5
    return scores, image_of_caption


def positives_of(images: int, image_of_caption: np.ndarray) -> np.ndarray:
    return np.arange(images)[:, None] == image_of_caption[None, :]


def random_embeddings(image_of_caption: np.ndarray, k: int = 1, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Embedding sets of images and of captions, of which a caption's is somewhat like its image's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(int(image_of_caption.max()) + 1, k, dim, generator=generator)
    noise = torch.randn(len(image_of_caption), k, dim, generator=generator)
    captions = images[torch.from_numpy(image_of_caption)] + 0.8 * noise
    return nn.functional.normalize(images, dim=-1), nn.functional.normalize(captions, dim=-1)


def weights_of(run: Path, name: str = "last.pt") -> State:
    """The weights in a run's checkpoint."""
    weights: State = load_checkpoint(run / name)["model"]
    return weights


def same_weights(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def small_config(config: str, tiny: list[str]) -> list[str]:
    """A published system's config with everything wide made narrow, on the tiny corpus."""
    content = read_config(ROOT / "configs" / config)
    settings = [s for s in tiny[1:] if not s.startswith("optim.schedule")]
    settings += without_word_vectors(ROOT / "configs" / config)
    for side in ("image", "text"):
        if getattr(content.model, side).aggregator.name == "set_prediction":
            settings.append(f"model.{side}.aggregator.head_dim=4")
    return [str(ROOT / "configs" / config), *settings]


def launch_training(tiny: list[str], *more: str) -> subprocess.Popen[str]:
    """A training in a process group of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *tiny, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def uneven_captions(images: int, captions: int, seed: int = 0) -> np.ndarray:
    """The image of each caption: at least one caption for each image, many for some, in no order."""
    rng = np.random.default_rng(seed)
    favourites = rng.integers(0, max(1, images // 4), captions - images)
    return rng.permutation(np.concatenate([np.arange(images), favourites]))


def noisy_scores(image_of_caption: np.ndarray, signal: np.ndarray, seed: int) -> Tensor:
    """Scores whose positives stand out by their image's ``signal``."""
    scores = torch.randn(len(signal), len(image_of_caption), generator=torch.Generator().manual_seed(seed))
    rows, columns = torch.from_numpy(image_of_caption), torch.arange(len(image_of_caption))
    scores[rows, columns] += torch.from_numpy(signal[image_of_caption]).float()
    return scores


def slow_ranks(scores: Tensor, image_of_caption: np.ndarray, folds: int = 1) -> dict[str, list[tuple[int, int]]]:
    """For each direction, each query's image and its rank among its fold's candidates."""
    size = len(scores) // folds
    values, fold_of = scores.numpy(), image_of_caption // size
    ranks: dict[str, list[tuple[int, int]]] = {"i2t": [], "t2i": []}
    for image in range(len(scores)):
        candidates = fold_of == image // size
        own = candidates & (image_of_caption == image)
        if own.any():
            best = values[image, own].max()
            ranks["i2t"].append((image, int((values[image, candidates & ~own] >= best).sum())))
    for caption, image in enumerate(image_of_caption.tolist()):
        first = image // size * size
        column = values[first : first + size, caption]
        ranks["t2i"].append((image, int((column >= values[image, caption]).sum()) - 1))
    return ranks


def ranks_of(scores: Tensor, image_of_caption: np.ndarray, folds: int = 1) -> list[FoldRanks]:
    """The ranks that a score matrix gives."""
    return rank_folds(blocks_of_matrix(scores), image_of_caption, folds)


def metrics_of(scores: Tensor, image_of_caption: np.ndarray, folds: int = 1, clips: bool = False) -> dict[str, Any]:
    """The metrics that a score matrix gives."""
    return fold_metrics(ranks_of(scores, image_of_caption, folds), clips)


def corpus_of_ids(image_of_caption: np.ndarray, clips: bool = False, **changes: Any) -> Corpus:
    """A corpus that can be scored but not encoded: it has ids and no images."""
    images, captions = int(image_of_caption.max()) + 1, len(image_of_caption)
    values: dict[str, Any] = {
        "name": "small",
        "images": range(images),
        "captions": [f"caption {i}" for i in range(captions)],
        "image_of_caption": image_of_caption,
        "image_ids": [100 + i for i in range(images)],
        "caption_ids": [5000 - i for i in range(captions)],
        "video": clips,
    }
    return Corpus(**(values | changes))


def own_module(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """Write a module of a user's own parts where it can be imported, and return its name."""
    name = f"mine_{folder.name}"
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    return name
