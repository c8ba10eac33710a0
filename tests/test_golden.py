"""Numbers computed with the official codes, to their tolerances (tests/golden/README.md)."""

import functools
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from golden_numbers import GOLDEN, fill, fill_all, load, official_tokens, recipe
from torch import Tensor
from torch.nn import functional as F

import vse
from vse.aggregators import GPO, AdaptivePool, FSPool, GeM, PIENet, SetPrediction, SoftmaxPool
from vse.checkpoints.official import PIE_NET, ReleasedAdaptivePool, ReleasedSetPrediction, rename, set_prediction_names
from vse.encoders import Grid
from vse.losses import (
    AdaptiveContrastiveLoss,
    Mining,
    TripletLoss,
    diversity_loss,
    mmd_loss,
    uniformity_loss,
)
from vse.metrics import query_ranks, retrieval_metrics
from vse.model import Tower, VSEModel
from vse.sets import Aggregated, lengths_to_mask
from vse.similarity import (
    MatchProbability,
    assignment,
    chamfer,
    chan,
    max_cosine,
    order,
    pair_cosines,
    smooth_chamfer,
)
from vse.similarity.late_interaction import Coding, Pooling
from vse.similarity.matching import match


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=1e-5, rtol=1e-4)


def check_gpo(golden: dict[str, Any]) -> None:
    gpo = GPO()
    gpo.load_state_dict(official_state("gpo"))
    features = golden["features"]
    mask = lengths_to_mask(golden["lengths"], features.shape[1])
    for setting in (torch.enable_grad(), torch.no_grad()):  # computed afresh, and from the cached table
        with setting:
            close(gpo(features, mask).embeddings[:, 0], golden["pooled"])
            close(gpo.rank_weights(features, mask), golden["weights"])


def check_triplet(golden: dict[str, Any]) -> None:
    minings: list[tuple[Mining, str]] = [("all", "all"), ("hardest", "hard")]
    for mining, name in minings:
        images, texts = (golden[key].clone().requires_grad_() for key in ("images", "texts"))
        loss = TripletLoss(golden["margin"], mining=mining)(images @ texts.T, torch.eye(len(images), dtype=torch.bool))
        close(loss, golden[f"loss_{name}"])
        for found, side in zip(torch.autograd.grad(loss, (images, texts)), ("image", "text"), strict=True):
            close(found, golden[f"grad_{side}_{name}"])


def check_metrics(golden: dict[str, Any]) -> None:
    names = ("r1", "r5", "r10", "medr", "meanr")
    scores = golden["images"] @ golden["captions"].T
    positives = torch.arange(len(scores))[:, None] == torch.arange(scores.shape[1]) // 5
    assert torch.equal(query_ranks(scores, positives), golden["i2t_ranks"].long())
    assert torch.equal(query_ranks(scores.T, positives.T), golden["t2i_ranks"].long())
    metrics = retrieval_metrics(scores, positives)
    for side in ("i2t", "t2i"):
        assert [metrics[side][n] for n in names] == pytest.approx(golden[side].tolist(), abs=1e-9)
    assert metrics["rsum"] == pytest.approx(float(golden["i2t"][:3].sum() + golden["t2i"][:3].sum()), abs=1e-9)
    for fold, expected in enumerate(golden["folds"]):
        images, captions = slice(fold * 100, fold * 100 + 100), slice(fold * 500, fold * 500 + 500)
        found = retrieval_metrics(scores[images, captions], positives[images, captions])
        assert [found[s][n] for s in ("i2t", "t2i") for n in names] == pytest.approx(expected.tolist(), abs=1e-9)


def official_state(name: str) -> dict[str, Tensor]:
    return fill(json.loads((GOLDEN / "components" / "states.json").read_text())[name])


def check_adaptive(pool: type[AdaptivePool]) -> Callable[[dict[str, Any]], None]:
    def check(golden: dict[str, Any]) -> None:
        aggregator = pool(golden["features"].shape[-1])
        aggregator.load_state_dict(official_state("adpool"))
        mask = lengths_to_mask(golden["lengths"], golden["features"].shape[1])
        close(aggregator(golden["features"], mask).embeddings[:, 0], golden["pooled"])
        close(aggregator.levels(golden["features"], mask)[1], golden["branch_weights"])

    return check


def check_pie_net(state: str, num_embeddings: int) -> Callable[[dict[str, Any]], None]:
    def check(golden: dict[str, Any]) -> None:
        local, context = golden["local"], golden["glob"]
        aggregator = PIENet(local.shape[-1], context.shape[-1], num_embeddings)
        aggregator.load_state_dict(rename(official_state(state), PIE_NET, "PIE-Net"))
        result = aggregator(local, lengths_to_mask(golden["lengths"], local.shape[1]), context)
        close(result.embeddings, golden["out"].view_as(result.embeddings))
        close(result.residual, golden["residual"].view_as(result.embeddings))
        close(result.attention.transpose(1, 2), golden["attn"])

    return check


def check_set_prediction(state: str, released: bool = False, **options: Any) -> Callable[[dict[str, Any]], None]:
    def check(golden: dict[str, Any]) -> None:
        local, context = golden["local"], golden["glob"]
        if local.dim() == 4:
            options["grid"] = tuple(local.shape[1:3])
        local = local.flatten(1, -2)
        aggregator = (ReleasedSetPrediction if released else SetPrediction)(
            local.shape[-1], context.shape[-1], **options
        )
        names = set_prediction_names(options.get("depth", 4), options.get("share_weights", True))
        aggregator.load_state_dict(rename(official_state(state), names, "the set prediction"))
        mask = lengths_to_mask(golden["lengths"], local.shape[1]) if "lengths" in golden else None
        result = aggregator(local, mask, context)
        close(result.residual, golden["set_prediction"])
        close(result.embeddings, golden["out"])
        if mask is None or mask.all():
            assert not released
        else:  # the released padding: ours gives another result
            assert released
            ours = SetPrediction(local.shape[-1], context.shape[-1], **options)
            ours.load_state_dict(aggregator.state_dict())
            different = (ours(local, mask, context).embeddings - golden["out"]).abs().amax((1, 2)) > 1e-3
            assert different.tolist() == (~mask.all(1)).tolist()

    return check


def check_gem(golden: dict[str, Any]) -> None:
    features = golden["features"]
    mask = lengths_to_mask(golden["lengths"], features.shape[1])
    for power in (1.0, 3.0, 6.5):
        pool = GeM(power, golden["eps"])
        pooled = pool(features, mask).embeddings[:, 0]
        close(pooled, golden[f"pooled_p{power}"])
        if f"grad_p_of_sum_p{power}" in golden:
            close(torch.autograd.grad(pooled.sum(), pool.power)[0], golden[f"grad_p_of_sum_p{power}"])


def check_fspool(golden: dict[str, Any]) -> None:
    mask = lengths_to_mask(golden["lengths"], golden["features"].shape[1])
    for pieces in (20, 4):
        pool = FSPool(golden["features"].shape[-1], pieces)
        pool.load_state_dict(official_state(f"fspool_pieces{pieces}"))
        features = golden["features"].clone().requires_grad_()
        pooled = pool(features, mask).embeddings[:, 0]
        close(pooled, golden[f"pooled_pieces{pieces}"])
        gradient = torch.autograd.grad(pooled.sum(), features)[0]
        close(gradient, golden[f"grad_features_of_sum_pieces{pieces}"])


def check_set_similarity(golden: dict[str, Any]) -> None:
    images, texts = golden["images"], golden["texts"]
    close(max_cosine(images, texts), golden["max"])
    close(chamfer(images, texts), golden["chamfer"])
    close(smooth_chamfer(images, texts), golden["smooth_chamfer_t16"])
    if "smooth_chamfer_t1" in golden:
        close(smooth_chamfer(images, texts, temperature=1.0), golden["smooth_chamfer_t1"])
        close(MatchProbability()(images, texts), golden["match_prob_a1_b0"])


def check_esa_pool(golden: dict[str, Any]) -> None:
    pool = esa_pool("esa_pool")
    mask = lengths_to_mask(golden["lengths"], golden["features"].shape[1])
    close(pool(golden["features"], mask).embeddings[:, 0], golden["pooled"])
    if "weights" in golden:
        close(pool.weigh(golden["features"], mask), golden["weights"])


def check_released_esa_pool(golden: dict[str, Any]) -> None:
    """The released image code has no mask: zeros past the length take part. Ours leaves them out."""
    pool, features = esa_pool("esa_pool"), golden["features"]
    close(pool(features).embeddings[:, 0], golden["pooled"])
    mask = lengths_to_mask(golden["lengths"], features.shape[1])
    different = (pool(features, mask).embeddings[:, 0] - golden["pooled"]).abs().amax(1) > 1e-3
    assert different.tolist() == (~mask.all(1)).tolist()


def check_esa_views(golden: dict[str, Any]) -> None:
    """Each image twice, with the regions that its view keeps."""
    features = golden["features"].repeat_interleave(2, dim=0)
    keep = torch.stack([golden["keep_1"], golden["keep_2"]], dim=1).flatten(0, 1).bool()
    some = keep.any(1)  # a view without regions is zero in the released code; ours keeps at least one
    pooled = esa_pool("esa_pool")(features[some], keep[some]).embeddings[:, 0]
    close(F.normalize(pooled, dim=-1), golden["embeddings"][some])


def esa_pool(state: str) -> SoftmaxPool:
    pool = SoftmaxPool(64)
    pool.load_state_dict({"linear.weight": official_state(state)["linear1.weight"]})
    return pool


def load_pair(states: list[dict[str, Tensor]]) -> VSEModel:
    """A model from the official states of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": states, "opt": Namespace(data_name="f30k_precomp")}, Path(folder) / "model_best.pth")
        return vse.load(Path(folder) / "model_best.pth")


def check_esa_tower(side: str) -> Callable[[dict[str, Any]], None]:
    """Through the public path: both sides written in ESA's layout, loaded, compared."""

    def check(golden: dict[str, Any]) -> None:
        model = load_pair([official_state("esa_image_regions"), official_state("esa_text_bigru")])
        if side == "image":
            tower, inputs, mask = model.image, golden["images"], None
        else:
            tower, inputs = model.text, golden["tokens"]
            mask = lengths_to_mask(golden["lengths"], inputs.shape[1])
        real = torch.ones(golden["locals"].shape[:2], dtype=torch.bool) if mask is None else mask
        close(tower.encoder(inputs, mask).features[real], golden["locals"][real])
        close(tower(inputs, mask).embeddings[:, 0], golden["embeddings"])

    return check


def check_esa_loss(golden: dict[str, Any]) -> None:
    minings: list[tuple[Mining, str]] = [("all", "all"), ("hardest", "hard")]
    for mining, name in minings:
        for views in (1, 2, 3):
            images, texts = (golden[key].clone().requires_grad_() for key in ("images", "texts"))
            samples = torch.arange(len(images)) // views
            positives = samples[:, None] == samples
            loss = TripletLoss(golden["margin"], mining, positives="worst")
            value = loss(images @ texts.T, positives)
            close(value, golden[f"loss_{name}_k{views}"])
            for found, side in zip(torch.autograd.grad(value, (images, texts)), ("image", "text"), strict=True):
                close(found, golden[f"grad_{side}_{name}_k{views}"])


CODINGS: dict[str, Coding] = {"vha": "hard_words", "tha": "hard_regions", "vsa": "soft_regions"}


def chan_masks(golden: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Masks of a golden batch's regions and words."""
    return (
        lengths_to_mask(golden["region_lengths"], golden["regions"].shape[1]),
        lengths_to_mask(golden["word_lengths"], golden["words"].shape[1]),
    )


def check_chan_similarity(golden: dict[str, Any]) -> None:
    masks = chan_masks(golden)
    temperatures = {"coding_temperature": golden["alpha"], "pooling_temperature": golden["beta"]}
    for name, coding in CODINGS.items():
        for pooling in get_args(Pooling):
            found = chan(golden["regions"], golden["words"], *masks, coding, pooling, **temperatures)
            close(found, golden[f"{name}_{pooling}"])


def check_chan_loss(golden: dict[str, Any]) -> None:
    masks = chan_masks(golden)
    minings: list[tuple[Mining, str]] = [("all", "all"), ("hardest", "hard")]
    for name, pooling in (("vha", "lse"), ("vha", "mean"), ("vsa", "mean")):
        regions, words = (golden[key].clone().requires_grad_() for key in ("regions", "words"))
        scores = chan(regions, words, *masks, CODINGS[name], pooling)  # type: ignore[arg-type]
        close(scores, golden[f"scores_{name}_{pooling}"])
        for mining, kind in minings:
            loss = TripletLoss(golden["margin"], mining)(scores, torch.eye(len(regions), dtype=torch.bool))
            close(loss, golden[f"loss_{kind}_{name}_{pooling}"])
            gradients = torch.autograd.grad(loss, (regions, words), retain_graph=True)
            for found, side in zip(gradients, ("regions", "words"), strict=True):
                close(found, golden[f"grad_{side}_{kind}_{name}_{pooling}"])


def load_chan() -> VSEModel:
    return load_pair([official_state("chan_image_selfattention"), official_state("chan_text_bigru"), {}, {}])


def check_chan_image(golden: dict[str, Any]) -> None:
    """Without padding the released code; with padding the right numbers, not the released ones, which leak."""
    tower, images = load_chan().image, golden["images_full"]
    close(tower(images).embeddings, golden["out_full"])
    mask = lengths_to_mask(golden["lengths"], images.shape[1])
    result = tower(images, mask)
    assert torch.equal(result.mask, mask)
    close(result.embeddings[mask], golden["out_padded_masked"][mask])
    differ = (result.embeddings - golden["out_padded_released"]).abs().amax(2).masked_fill(~mask, 0).amax(1) > 1e-3
    assert differ.tolist() == (~mask.all(1)).tolist()


def check_chan_text(golden: dict[str, Any]) -> None:
    mask = lengths_to_mask(golden["lengths"], golden["tokens"].shape[1])
    result = load_chan().text(golden["tokens"], mask)
    assert torch.equal(result.mask, mask)
    close(result.embeddings, golden["out"])


def check_assignment(golden: dict[str, Any]) -> None:
    images, texts = (golden[key].clone().requires_grad_() for key in ("images", "texts"))
    partners = match(pair_cosines(images, texts).detach().permute(1, 0, 3, 2)).transpose(1, 2)
    assert torch.equal(partners, golden["assignment"].long())
    scores = assignment(images, texts)
    close(scores, golden["mean_matched"])
    close(assignment(images, texts, value="exponential"), golden["exp_matched"])
    for found, side in zip(torch.autograd.grad(scores.sum(), (images, texts)), ("images", "texts"), strict=True):
        close(found, golden[f"grad_{side}_of_sum_of_mean"])


def check_order(golden: dict[str, Any]) -> None:
    close(order(golden["x"].unsqueeze(1), golden["y"].unsqueeze(1)), golden["sim"])


def check_adopt(golden: dict[str, Any]) -> None:
    for negatives, gamma, name in (("adaptive", 1.25, "s1.25"), ("adaptive", 2.0, "s2.0"), (3, 1.25, "const3")):
        loss = AdaptiveContrastiveLoss(gamma, golden["margin"], golden["temperature"], negatives)  # type: ignore[arg-type]
        check_adopt_loss(loss, golden, f"_{name}")


def check_released_adopt(golden: dict[str, Any]) -> None:
    arguments = {"margin": golden["margin"], "temperature": golden["temperature"]}
    check_adopt_loss(AdaptiveContrastiveLoss(**arguments, released=True), golden, "")
    with pytest.raises(AssertionError):  # ours keeps the positive out
        check_adopt_loss(AdaptiveContrastiveLoss(**arguments), golden, "")


def check_adopt_loss(loss: AdaptiveContrastiveLoss, golden: dict[str, Any], suffix: str) -> None:
    images = golden["images"].clone().requires_grad_()
    scores, positives = images @ golden["texts"].T, torch.eye(len(images), dtype=torch.bool)
    value = loss(scores, positives)
    close(value, golden[f"loss{suffix}"])
    close(torch.autograd.grad(value, images)[0], golden[f"grad_image{suffix}"])
    if f"num_negatives{suffix}" in golden:
        counts = [loss.count_negatives(scores.T, positives.T), loss.count_negatives(scores, positives)]
        assert [int(n) for n in counts] == golden[f"num_negatives{suffix}"].tolist()


def check_pvse_loss(golden: dict[str, Any]) -> None:
    minings: list[tuple[TripletLoss, str]] = [
        (TripletLoss(golden["margin"], "all", "mean_pairs"), "all"),
        (TripletLoss(golden["margin"], "hardest", "mean"), "hard"),
    ]
    for triplet, name in minings:
        images = golden["images"].clone().requires_grad_()
        image = Aggregated(images, residual=golden["image_residuals"])
        text = Aggregated(golden["texts"], residual=golden["text_residuals"])
        ranking = triplet(max_cosine(images, golden["texts"]), torch.eye(len(images), dtype=torch.bool))
        diversity = diversity_loss(image, text)
        mmd = mmd_loss(image, text, kernel="exponential", gamma=golden["mmd_gamma"])
        total = ranking + golden["div_weight"] * diversity + golden["mmd_weight"] * mmd
        for found, part in ((ranking, "ranking"), (diversity, "div"), (mmd, "mmd")):
            close(found, golden[f"{part}_loss_{name}"])
        close(total, golden[f"total_{name}"])
        close(torch.autograd.grad(total, images)[0], golden[f"grad_image_{name}"])


def check_dive_loss(golden: dict[str, Any]) -> None:
    minings: list[tuple[Mining, str]] = [("hardest", "hard"), ("all", "all"), ("semihard", "semihard")]
    for mining, name in minings:
        images, residuals = (golden[key].clone().requires_grad_() for key in ("images", "image_residuals"))
        image = Aggregated(images, residual=residuals)
        text = Aggregated(golden["texts"], residual=golden["text_residuals"])
        scores = smooth_chamfer(images, golden["texts"], golden["temperature"])
        positives = torch.arange(len(images))[:, None] == torch.arange(scores.shape[1]) // golden["captions_per_image"]
        triplet = TripletLoss(golden["margin"], mining, reduction="mean")
        ranking = triplet(scores, positives)
        mmd = mmd_loss(image, text, kernel="exponential", gamma=golden["mmd_gamma"])
        uniformity = uniformity_loss(image, text)
        total = ranking + golden["mmd_weight"] * mmd + golden["unif_weight"] * uniformity
        close(ranking, golden[f"i2t_loss_{name}"] + golden[f"t2i_loss_{name}"])
        close(mmd, golden[f"mmd_loss_{name}"])
        close(uniformity, golden[f"unif_loss_{name}"])
        close(total, golden[f"total_{name}"])
        gradients = torch.autograd.grad(total, (images, residuals))
        close(gradients[0], golden[f"grad_image_{name}"])
        close(gradients[1], golden[f"grad_image_residuals_{name}"])


def about_model(name: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    return about


def official_checkpoint(name: str) -> dict[str, Any]:
    """The golden model ``name`` as its official code saves it."""
    about = about_model(name)
    if name.startswith("vse_infty"):
        text_about = about if "bigru" in name or "bert" in name else about_model("vse_infty_bigru")
        image, text = ({f"module.{key}": value for key, value in state.items()} for state in fill_all(text_about))
        options: dict[str, Any] = {"data_name": "f30k_precomp", "embed_size": 1024, "batch_size": 128}
        if text_about is not about:
            image = {f"module.{key}": value for key, value in fill(about["state"]).items()}
            doubled = {"base.0": "conv1", "base.1": "bn1", "top.0": "layer4"}
            doubled |= {f"base.{3 + i}": f"layer{i}" for i in (1, 2, 3)}
            for theirs, ours in doubled.items():
                old, new = f"module.backbone.{theirs}.", f"module.backbone.resnet.{ours}."
                image |= {new + key.removeprefix(old): image[key] for key in list(image) if key.startswith(old)}
            options["backbone_source"] = about["system"].rpartition("=")[2]
        best = np.float64(500)
        return {"epoch": 9, "model": [image, text], "best_rsum": best, "opt": Namespace(**options), "Eiters": 7}
    state = fill(about["state"])
    if name.startswith("vse_2ad"):
        arguments = Namespace(data_name="f30k", precomp_enc_type="basic", device=torch.device("cuda:0"))
        return {"model": state, "rsum": np.float64(500), "args": arguments}
    state = {f"module.{key}": value for key, value in state.items()}
    if name.startswith("pvse") and about["options"]["legacy"]:
        return state  # as the released files are
    return {"args": Namespace(**about["options"]), "epoch": 9, "best_score": 500.0, "model": state}


@functools.lru_cache(maxsize=2)
def load_official(name: str, padding: str = "masked") -> VSEModel:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(official_checkpoint(name), Path(folder) / "model_best.pth")
        return vse.load(Path(folder) / "model_best.pth", padding=padding)


def check_tower(tower: Tower, inputs: Tensor, mask: Tensor | None, expected: Tensor) -> None:
    for setting in (torch.enable_grad(), torch.inference_mode()):
        with setting:
            found = tower(inputs, mask).embeddings
        torch.testing.assert_close(found.detach(), expected.view_as(found), atol=1e-4, rtol=0)


def golden_text(about: dict[str, Any]) -> tuple[Tensor, Tensor]:
    tokens, lengths = official_tokens(about, about["vocab_size"])
    return tokens, lengths_to_mask(lengths)


def check_model(name: str, padding: str = "masked") -> Callable[[dict[str, Any]], None]:
    """The golden model through the public path: written in its official layout, loaded, compared."""

    def check(golden: dict[str, Any]) -> None:
        about = about_model(name)
        model = load_official(name, padding)
        masked = load_official(name) if padding == "released" else None
        images = torch.from_numpy(recipe.draw(about["image_seed"], tuple(about["image_shape"])))
        mask = None
        if "region_lengths" in about:
            mask = lengths_to_mask(torch.tensor(about["region_lengths"]), images.shape[1])
            if not name.startswith("vse_infty"):
                images[~mask] = 0
        check_tower(model.image, images, mask, golden["image_embeddings"])
        if "text_lengths" in about:
            check_tower(model.text, *golden_text(about), golden["text_embeddings"])
        if "image_attention" in golden:
            for tower, inputs, key in ((model.image, (images,), "image"), (model.text, golden_text(about), "text")):
                found = tower(*inputs).attention.detach().transpose(1, 2)
                torch.testing.assert_close(found, golden[f"{key}_attention"], atol=1e-5, rtol=1e-4)
        if "grid_mean" in golden:
            check_cells(model, images, golden)
        if masked is not None:  # ours gives another result, for just those with padding
            for tower, (own_inputs, own), key in (
                (masked.image, (images, mask), "image"),
                (masked.text, golden_text(about), "text"),
            ):
                assert own is not None and not own.all()
                found = tower(own_inputs, own).embeddings.detach().flatten(1)
                differ = (found - golden[f"{key}_embeddings"].flatten(1)).abs().amax(1) > 1e-4
                assert differ.tolist() == (~own.all(1)).tolist()

    return check


def check_cells(model: VSEModel, pictures: Tensor, golden: dict[str, Any]) -> None:
    encoder = model.image.encoder
    assert isinstance(encoder, Grid)
    with torch.no_grad():
        cells = encoder.backbone(pictures)
    for found, expected in ((cells.mean(-1), golden["grid_mean"]), (cells[:, :, ::64], golden["grid_sample"])):
        largest = expected.abs().max()
        torch.testing.assert_close(found / largest, expected / largest, atol=1e-4, rtol=0)


UNTIED: dict[str, Any] = {"depth": 2, "share_weights": False}
RELEASED = ("vse_2ad_region_bigru_padded", "dive_butd_bigru_padded")
MODELS = (
    *("vse_infty_bigru", "vse_infty_bert", "vse_infty_grid_detector", "vse_infty_grid_resnext"),
    *("vse_2ad_region_bigru_full", "dive_butd_bigru_full", *RELEASED),
    *("pvse_k1", "pvse_k3", "pvse_legacy_k2", "pvse_video_k3", "pvse_legacy_video_k2"),
)

CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "components/gpo": check_gpo,
    "components/adpool_full": check_adaptive(AdaptivePool),
    "components/adpool_padded": check_adaptive(ReleasedAdaptivePool),
    "components/gem": check_gem,
    "components/fspool_full": check_fspool,
    "components/fspool_padded": check_fspool,
    "components/pie_net_k1": check_pie_net("pie_net_k1", 1),
    "components/pie_net_k3": check_pie_net("pie_net_k3", 3),
    "components/set_prediction_text_full": check_set_prediction("set_prediction_text", position="sine"),
    "components/set_prediction_text_padded": check_set_prediction("set_prediction_text", True, position="sine"),
    "components/set_prediction_image_full": check_set_prediction("set_prediction_image"),
    "components/set_prediction_image_padded": check_set_prediction("set_prediction_image", True),
    "components/set_prediction_untied_full": check_set_prediction("set_prediction_untied", **UNTIED),
    "components/set_prediction_untied_padded": check_set_prediction("set_prediction_untied", True, **UNTIED),
    "components/set_prediction_grid_sine": check_set_prediction("set_prediction_grid_sine", position="sine_2d"),
    "components/set_similarity": check_set_similarity,
    "components/set_similarity_uneven": check_set_similarity,
    "components/order_similarity": check_order,
    "components/esa_pool_full": check_esa_pool,
    "components/esa_pool_padded": check_esa_pool,
    "components/esa_pool_padded_released_image": check_released_esa_pool,
    "components/esa_views": check_esa_views,
    "components/esa_image_regions": check_esa_tower("image"),
    "components/esa_text_bigru": check_esa_tower("text"),
    "components/esa_loss": check_esa_loss,
    "components/chan_similarity_full": check_chan_similarity,
    "components/chan_similarity_padded": check_chan_similarity,
    "components/chan_loss": check_chan_loss,
    "components/chan_image_selfattention": check_chan_image,
    "components/chan_text_bigru": check_chan_text,
    "components/maxmatch_assignment": check_assignment,
    "components/triplet_vse_infty": check_triplet,
    "components/adopt_loss": check_adopt,
    "components/adopt_loss_released_positive_enters": check_released_adopt,
    "components/pvse_loss": check_pvse_loss,
    "components/dive_loss": check_dive_loss,
    "components/metrics": check_metrics,
    **{f"models/{name}": check_model(name, "released" if name in RELEASED else "masked") for name in MODELS},
}


@pytest.mark.parametrize("name", CHECKS, ids=[Path(name).stem for name in CHECKS])
def test_golden(name: str) -> None:
    CHECKS[name](load(GOLDEN / f"{name}.npz"))
