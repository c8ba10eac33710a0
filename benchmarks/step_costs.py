#!/usr/bin/env python3
"""What a training step of shipped configs costs at full width: operations, parameters, bytes sent, bytes of the loss.

    python benchmarks/step_costs.py [CONFIG ...]

Random weights and inputs, on the CPU, in fp32. docs/scale.md keeps the table and says what follows from it. Operations
are those of PyTorch's counter, a multiplication and an addition being two; the backward pass is included. Bytes sent
are counted in two processes at the calls of ``torch.distributed``.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, ViTConfig

from vse.build import build_criterion, build_model, read_config
from vse.config import Config
from vse.data.vocabulary import MissingVocabulary
from vse.distributed import share_gradients
from vse.model import VSEModel
from vse.sets import Aggregated
from vse.training.run import gather_aggregated
from vse.training.scheduled import set_epoch

CONFIGS = [
    *(f"{system}/coco_region_bigru" for system in ("vse_infty", "vse_2ad", "pvse", "dive")),
    *("vse_infty/coco_grid_wsl_bert", "vse_2ad/f30k_vit_bert", "pvse/coco_resnet152_bigru"),
    *("pvse/coco_resnet152_bigru_finetune", "dive/coco_resnext_bert"),
]
REGIONS, REGION_WIDTH = 36, 2048
WORDS, TOKENS = 12_000, 13  # rows of the word table; ids of a caption, its two ends included
PER_IMAGE = 5  # captions, where a batch holds whole images
LATE = 1_000  # an epoch in which nothing waits any more


def build(name: str) -> tuple[Config, VSEModel]:
    """A config's model as it is trained in the last epoch, with random weights."""
    config = read_config(name, ["data.vocabulary.vectors=null"])
    backbone = config.model.image.encoder.arguments.get("backbone")
    architectures: dict[str, Any] = {"image": None, "text": None}
    if backbone is not None and "vit" in backbone:
        architectures["image"] = ViTConfig(image_size=config.data.transform.arguments["size"]).to_dict()  # type: ignore[union-attr]
    if config.model.text.encoder.name == "bert":
        architectures["text"] = BertConfig().to_dict()
    width = REGION_WIDTH if backbone is None else None
    model = build_model(config, width, MissingVocabulary(WORDS, "vocabulary"), architectures)
    set_epoch(model.modules(), LATE if name.endswith("finetune") else config.train.epochs - 1)
    return config, model


def draw_images(config: Config, count: int) -> Tensor:
    """Random images of the kind and size that a config's model reads."""
    if config.data.transform is None:
        return torch.randn(count, REGIONS, REGION_WIDTH)
    size = config.data.transform.arguments["size"]
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8)


def draw_captions(count: int) -> tuple[Tensor, Tensor]:
    """Random captions and the mask of their words."""
    return torch.randint(4, WORDS, (count, TOKENS)), torch.ones(count, TOKENS, dtype=torch.bool)


def operations(work: Callable[[int], Any], count: int, is_grouped: bool) -> float:
    """Multiplications and additions of one more sample in a batch, its gradients included.

    What a batch of any size costs once, such as products of weights, is left out. PyTorch's counter knows no groups in
    a convolution's backward pass. Where there are some, the forward pass counts three times.
    """
    found = []
    for size in (count, 2 * count):
        with FlopCounterMode(display=False) as counter:
            given = work(size)
            if not is_grouped:
                total_of(given).backward()
        found.append(counter.get_total_flops())
    return (found[1] - found[0]) / count * (3 if is_grouped else 1)


def total_of(found: Aggregated) -> Tensor:
    """A number that depends on all that an aggregator gives."""
    total = found.embeddings.float().sum()
    return total if found.residual is None else total + found.residual.float().sum()


def drawn_sets(config: Config, model: VSEModel, images: int, captions: int) -> tuple[Aggregated, Aggregated]:
    """Random embedding sets of a batch, with gradients, shaped as the model's."""
    model.eval()
    with torch.no_grad():
        found = model.image(draw_images(config, 2)), model.text(*draw_captions(2))

    def like(tensor: Tensor | None, count: int) -> Tensor | None:
        if tensor is None:
            return None
        return nn.functional.normalize(torch.randn(count, *tensor.shape[1:]), dim=-1).requires_grad_()

    sides = [(side, count) for side, count in zip(found, (images, captions), strict=True)]
    image, text = (Aggregated(like(s.embeddings, n), None, like(s.residual, n)) for s, n in sides)  # type: ignore[arg-type]
    return image, text


def loss_costs(config: Config, model: VSEModel, images: int, captions: int, epoch: int = LATE) -> tuple[float, int]:
    """Operations of the similarity and the loss of a batch, and the bytes that they keep for the backward pass."""
    image, text = drawn_sets(config, model, images, captions)
    positives = torch.arange(captions) * images // captions == torch.arange(images)[:, None]
    criterion = build_criterion(config)
    set_epoch(criterion.modules(), epoch)

    def judge() -> Tensor:
        scores = model.similarity(image.embeddings, text.embeddings)
        total: Tensor = criterion(scores, positives, image, text)["total"]
        return total

    kept = bytes_kept(judge, model)
    with FlopCounterMode(display=False) as counter:
        judge().backward()
    return counter.get_total_flops(), kept


def bytes_kept(work: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters excepted."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = work()  # lives until all is counted, so that no place is used twice
    del found
    return sum(kept.values())


def _count_sent(rank: int, name: str, images: int, captions: int, folder: str) -> None:
    """Note the bytes of each collective operation of one step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    config, model = build(name)
    model.train()
    sent: Counter[str] = Counter()
    reduce, gather = dist.all_reduce, dist.all_gather

    def counted_reduce(tensor: Tensor, *others: Any, **options: Any) -> Any:
        sent["all_reduce"] += tensor.nbytes
        return reduce(tensor, *others, **options)

    def counted_gather(parts: list[Tensor], own: Tensor) -> Any:
        sent["all_gather"] += own.nbytes
        return gather(parts, own)

    dist.all_reduce, dist.all_gather = counted_reduce, counted_gather  # type: ignore[assignment]
    image, text = model.image(draw_images(config, images)), model.text(*draw_captions(captions))
    image, text = gather_aggregated(image, 2 * images), gather_aggregated(text, 2 * captions)
    (total_of(image) + total_of(text)).backward()
    sent["norms"] = sent.pop("all_reduce", 0)
    share_gradients(model.parameters())
    if rank == 0:
        torch.save(dict(sent), f"{folder}/sent.pt")
    dist.destroy_process_group()


def bytes_sent(name: str, images: int, captions: int) -> dict[str, int]:
    """Bytes that a process gives to each kind of collective operation, with so many images and captions of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_count_sent, (name, images, captions, folder), nprocs=2, start_method="fork")
        found: dict[str, int] = torch.load(Path(folder) / "sent.pt")
        return found


def describe(name: str) -> str:
    """A line of figures."""
    config, model = build(name)
    model.eval()  # nothing is dropped
    per_image = PER_IMAGE if config.data.sampling == "image" else 1
    count = 1 if config.data.transform else 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    is_grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in model.modules())
    image = operations(lambda size: model.image(draw_images(config, size)), count, is_grouped)
    caption = operations(lambda size: model.text(*draw_captions(size)), 4, False)
    image_kept = bytes_kept(lambda: model.image(draw_images(config, count)), model) / count
    caption_kept = bytes_kept(lambda: model.text(*draw_captions(4)), model) / 4
    batch = config.train.batch_size
    loss, kept = loss_costs(config, model, batch, batch * per_image)
    sent = bytes_sent(name, 2, 2 * per_image)
    return (
        f"{name}: batch {batch} images x {per_image} captions; {trained / 1e6:.1f} M parameters trained; "
        f"an image {image / 1e9:.2f} GFLOP, a caption {caption / 1e9:.2f} GFLOP, the loss {loss / 1e9:.2f} GFLOP; "
        f"an image keeps {image_kept / 1e6:.1f} MB, a caption {caption_kept / 1e6:.1f} MB, "
        f"the loss {kept / 1e6:.1f} MB; "
        f"a process with 2 images and their captions sends: "
        f"gathered {sent['all_gather']:,} B, norms {sent['norms']:,} B, gradients {sent['all_reduce'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    for wanted in sys.argv[1:] or CONFIGS:
        print(describe(wanted), flush=True)
