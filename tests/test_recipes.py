"""The shipped configs: what the papers and their released codes say, file by file, and that each makes a model.

A fact is a key of the config, its value, and where the value is printed. "code" is the released code of the system.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT, WORDS, Outcome, without_word_vectors
from torch import Tensor

from vse.build import build_criterion, build_model, read_config
from vse.config import Config, flatten
from vse.data.subwords import Subwords
from vse.data.vocabulary import Vocabulary
from vse.similarity import compare

CONFIGS = ROOT / "configs"
NAMES = sorted(
    str(file.relative_to(CONFIGS).with_suffix("")) for file in CONFIGS.rglob("*.yaml") if "studies" not in file.parts
)
RUNS = [name for name in NAMES if not name.startswith("_base/")]
Fact = tuple[str, Any, str]
Cli = Callable[..., Outcome]

VSEPP: list[Fact] = [
    ("model.embed_dim", 1024, "code, train.py: default"),
    ("model.image.encoder.mlp", None, "code, model.py: one linear layer"),
    ("model.image.encoder.init", "xavier", "code, model.py"),
    ("model.image.encoder.drop", 0.0, "the code drops nothing"),
    ("model.text.encoder.word_dim", 300, "code, train.py: default"),
    ("model.text.encoder.word_init", "uniform", "code, model.py: +-0.1"),
    ("model.text.encoder.drop", 0.0, "the code drops nothing"),
    ("loss.ranking.margin", 0.2, "code, train.py: default"),
    ("loss.ranking.mining", "hardest", "code, README: --max_violation"),
    ("loss.ranking.warmup_epochs", 0, "code, README: --max_violation from the start"),
    ("loss.ranking.reduction", "sum", "code, model.py"),
    ("optim.name", "adam", "code, train.py: default"),
    ("optim.lr", 2e-4, "code, train.py: default"),
    ("optim.weight_decay", 0.0, "code, train.py: torch's default of Adam"),
    ("optim.schedule.milestones", [15], "code, train.py: default"),
    ("optim.schedule.factor", 0.1, "code, train.py: default"),
    ("train.epochs", 30, "code, train.py: default"),
    ("train.batch_size", 128, "code, train.py: default"),
    ("train.clip_norm", 2.0, "code, train.py: default"),
]

VSE_INFTY: list[Fact] = [
    ("model.embed_dim", 1024, "supplement 1.1"),
    ("data.sampling", "pair", "code, image_caption.py: a sample is a caption and its image"),
    ("model.similarity.name", "cosine", "paper, equation 1"),
    ("loss.ranking.name", "triplet", "paper, equation 1"),
    ("loss.ranking.margin", 0.2, "supplement 1.1"),
    ("loss.ranking.mining", "hardest", "paper, equation 1"),
    ("loss.ranking.warmup_epochs", 1, "supplement 1.1: all negatives in the first epoch"),
    ("loss.ranking.reduction", "sum", "code, loss.py"),
    ("optim.name", "adamw", "supplement 1.1"),
    ("optim.schedule.name", "step", "supplement 1.1"),
    ("optim.schedule.factor", 0.1, "supplement 1.1"),
    ("train.batch_size", 128, "supplement 1.1"),
    ("train.clip_norm", 2.0, "code, default"),
]
VSE_INFTY_IMAGES: list[Fact] = [
    *VSE_INFTY,
    ("optim.lr", 5e-4, "supplement 1.1"),
    ("optim.schedule.milestones", [15], "supplement 1.1: the last 10 epochs"),
    ("train.epochs", 25, "supplement 1.1"),
]
VSE_INFTY_REGIONS: list[Fact] = [
    ("model.image.encoder.name", "regions", "paper 5.1"),
    ("model.image.encoder.mlp", "input", "supplement 1.1; code, encoders.py"),
    ("model.image.encoder.features", "projected", "code, encoders.py"),
    ("model.image.encoder.init", "xavier", "code, encoders.py"),
    ("model.image.encoder.dropout", 0.0, "code, encoders.py"),
]
VSE_INFTY_BIGRU: list[Fact] = [
    ("model.text.encoder.name", "bigru", "paper 5.1"),
    ("model.text.encoder.word_dim", 300, "code (bigru), default"),
    ("model.text.encoder.word_init", "uniform", "code (bigru), encoders.py: +-0.1"),
    ("model.text.encoder.directions", "average", "code (bigru), encoders.py"),
    ("model.text.encoder.features", "states", "code (bigru), encoders.py"),
    ("model.text.encoder.keep_ends", False, "code (bigru), image_caption.py: <start> and <end> are dropped too"),
    ("model.text.encoder.freeze_words", False, "code (bigru), encoders.py"),
]
VSE_INFTY_BERT: list[Fact] = [
    ("model.text.encoder.name", "bert", "paper 5.1"),
    ("model.text.encoder.model", "bert-base-uncased", "code, encoders.py"),
    ("model.text.encoder.weights", "pretrained", "code, encoders.py"),
    ("model.text.encoder.dropout", 0.0, "code, encoders.py"),
    ("optim.weight_decay", 1e-4, "code, vse.py (the paper prints 10e-4)"),
    ("optim.factors", {"text.encoder.bert": 0.1}, "supplement 1.1"),
]
VSE_INFTY_GRID: list[Fact] = [
    ("model.image.encoder.name", "grid", "paper 5.1"),
    ("model.image.encoder.mlp", None, "supplement 1.1: one linear layer"),
    ("model.image.encoder.freeze_epochs", 1, "supplement 1.1"),
    ("model.image.encoder.train_norm", False, "supplement 1.1: the running statistics are fixed"),
    ("loss.ramp_epoch", 1, "supplement 1.1: linear warm-up; code, vse.py"),
    ("optim.factors", {"image.encoder.backbone": 0.01, "text.encoder.bert": 0.1}, "supplement 1.1"),
    ("data.transform.name", "square", "code, image_caption.py"),
    ("data.transform.size", 512, "paper 5.1"),
    ("data.transform.min_scale", 0.6, "code, image_caption.py"),
    ("data.transform.aspect", "picture", "code, image_caption.py: both sides scaled alike"),
    ("data.transform.antialias", False, "code, image_caption.py: OpenCV's INTER_LINEAR"),
]
GPO: list[Fact] = [
    (f"model.{side}.{key}", value, "paper 3.2; code, encoders.py: GPO(32, 32)")
    for side in ("image", "text")
    for key, value in (
        ("encoder.drop", 0.2),
        ("aggregator.name", "gpo"),
        ("aggregator.position_dim", 32),
        ("aggregator.hidden_dim", 32),
    )
]
DECAY = ("optim.weight_decay", 0.01, "code (bigru), train.py: torch's default of AdamW")
NO_FACTORS: Fact = ("optim.factors", {}, "code (bigru), train.py: one rate")
MEAN: list[Fact] = [
    (f"model.{side}.{key}", value, "paper 4: VSE++ pools by the mean; size augmentation is VSE∞'s own")
    for side in ("image", "text")
    for key, value in (("encoder.drop", 0.0), ("aggregator.name", "mean"))
]
CLIPS: list[Fact] = [
    ("optim.lr", 1e-4, "supplement 1.2"),
    ("optim.schedule.milestones", [25], "supplement 1.2: the last 10 epochs"),
    ("train.epochs", 35, "supplement 1.2"),
]
REGION_BIGRU = [*VSE_INFTY_IMAGES, *VSE_INFTY_REGIONS, *VSE_INFTY_BIGRU, DECAY, NO_FACTORS]
GRID_BERT = [*VSE_INFTY_IMAGES, *VSE_INFTY_BERT[:-1], *VSE_INFTY_GRID, *GPO]

VSE_2AD_LOSS: list[Fact] = [
    ("loss.ranking.name", "adaptive_contrastive", "code, README: --loss_type acc"),
    ("loss.ranking.gamma", 1.25, "code, arguments.py: --scale"),
    ("loss.ranking.margin", 0.2, "code, arguments.py"),
    ("loss.ranking.temperature", 0.05, "code, arguments.py: --tau"),
    ("loss.ranking.negatives", "adaptive", "code, arguments.py: --acc_type acc"),
    ("loss.ranking.released", True, "code, losses.py: a positive is among the candidates"),
    ("model.image.aggregator.name", "adaptive", "code, img_enc.py and txt_enc.py"),
    ("model.text.aggregator.name", "adaptive", "code, img_enc.py and txt_enc.py"),
    ("optim.name", "adamw", "code, train.py"),
    ("optim.lr", 5e-4, "code, arguments.py"),
    ("optim.schedule.milestones", [15], "code, arguments.py: --lr_update"),
    ("optim.schedule.factor", 0.1, "code, optimizer.py (which multiplies again in every later epoch)"),
    ("train.epochs", 25, "code, arguments.py"),
    ("train.batch_size", 128, "code, README"),
    ("train.clip_norm", 2.0, "code, arguments.py"),
    ("model.embed_dim", 1024, "code, arguments.py"),
]
VSE_2AD: list[Fact] = [
    *VSE_2AD_LOSS,
    *VSE_INFTY_REGIONS,
    ("model.image.encoder.drop", 0.2, "code, dataloader.py"),
    ("model.text.encoder.drop", 0.2, "code, dataloader.py"),
    ("model.text.encoder.keep_ends", True, "code, dataloader.py: <start> and <end> are never dropped"),
    ("model.text.encoder.word_init", "uniform", "code, txt_enc.py: +-0.1"),
    ("optim.weight_decay", 0.01, "code, train.py: torch's default of AdamW"),
    ("optim.factors", {}, "code, train.py"),
]
VSE_2AD_VIT: list[Fact] = [
    *VSE_2AD_LOSS,
    ("model.image.encoder.backbone", "google/vit-base-patch16-224", "code, README"),
    ("model.image.encoder.weights", "pretrained", "code, img_enc.py"),
    ("model.image.encoder.pixels", "half", "code, dataloader.py: ViTFeatureExtractor"),
    ("model.image.encoder.cls", True, "code, img_enc.py: the whole last hidden state is pooled"),
    ("model.image.encoder.mlp", None, "code, README: --precomp_enc_type backbone"),
    ("model.image.encoder.init", "xavier", "code, img_enc.py"),
    ("model.image.encoder.freeze_epochs", 0, "code, vse.py: only BUTD is frozen"),
    ("model.image.encoder.drop", 0.0, "code, img_enc.py: nothing is dropped in training"),
    ("loss.ramp_epoch", None, "the code has no ramp"),
    ("optim.weight_decay", 1e-4, "code, train.py"),
    ("optim.factors", {"image.encoder.backbone": 0.05, "text.encoder.bert": 0.1}, "code, README and train.py"),
    ("data.transform.size", 224, "code, dataloader.py: ViTFeatureExtractor"),
    ("data.transform.augment", False, "code, dataloader.py: ViTFeatureExtractor alone"),
    ("data.transform.antialias", True, "code, dataloader.py: ViTFeatureExtractor resizes with Pillow"),
]

PVSE: list[Fact] = [
    ("model.embed_dim", 1024, "code, default"),
    ("model.similarity.name", "max", "code, loss.py"),
    ("model.text.encoder.name", "bigru", "code, model.py"),
    ("model.text.encoder.word_dim", 300, "code, default"),
    ("model.text.encoder.directions", "concatenate", "code, model.py"),
    ("model.text.encoder.features", "words", "code, model.py"),
    ("model.text.encoder.context", "last", "code, model.py, without --legacy"),
    ("model.text.encoder.freeze_words", True, "code, README: no --txt_finetune"),
    ("model.text.encoder.word_init", "normal", "code, model.py: what nn.Embedding gives to words that GloVe lacks"),
    ("model.text.encoder.drop", 0.0, "the code drops nothing"),
    ("model.text.encoder.dropout", 0.0, "code, default"),
    ("model.image.aggregator.name", "pie_net", "code, model.py"),
    ("model.text.aggregator.name", "pie_net", "code, model.py"),
    ("model.image.aggregator.dropout", 0.0, "code, default"),
    ("model.text.aggregator.dropout", 0.0, "code, default"),
    ("data.vocabulary.vectors", "glove.840B.300d.txt", "code, README: --wemb_type glove"),
    ("data.vocabulary.min_count", 1, "code, vocab.py: --threshold 0"),
    ("loss.ranking.name", "triplet", "code, loss.py"),
    ("loss.ranking.margin", 0.1, "code, README"),
    ("loss.ranking.warmup_epochs", 0, "the code has none"),
    ("loss.terms.diversity.weight", 0.1, "code, README"),
    ("loss.terms.mmd.weight", 0.01, "code, README"),
    ("loss.terms.mmd.kernel", "exponential", "code, loss.py (the paper says RBF)"),
    ("loss.terms.mmd.gamma", 0.5, "code, loss.py"),
    ("optim.name", "adam", "code, train.py"),
    ("optim.amsgrad", True, "code, train.py; paper 3.5"),
    ("optim.lr", 2e-4, "code, default; paper 3.5"),
    ("optim.weight_decay", 0.0, "code, default"),
    ("optim.schedule.name", "step", "what the code's plateau scheduler does while the RSUM rises"),
    ("optim.schedule.milestones", [12, 23, 34, 45], "the same: patience 10, in min mode"),
    ("optim.schedule.factor", 0.5, "code, train.py"),
    ("train.epochs", 50, "paper 3.5"),
    ("train.clip_norm", 2.0, "code, default"),
]
PVSE_IMAGES: list[Fact] = [
    *PVSE,
    ("loss.ranking.mining", "hardest", "code, README: --max_violation"),
    ("loss.ranking.reduction", "mean", "code, loss.py"),
    ("model.image.encoder.mlp", None, "code, model.py"),
    ("model.image.encoder.features", "raw", "code, model.py"),
    ("model.image.encoder.context", "mean", "code, model.py"),
    ("model.image.encoder.drop", 0.0, "the code drops nothing"),
    ("model.image.encoder.init", "torch", "code, model.py: init_weights is never called"),
    ("model.image.aggregator.num_embeddings", 2, "code, README"),
    ("model.text.aggregator.num_embeddings", 2, "code, README"),
]
PVSE_CNN: list[Fact] = [
    ("model.image.encoder.backbone", "resnet152", "code, README; paper 3.5"),
    ("model.image.encoder.weights", "imagenet", "paper 3.5"),
    ("model.image.encoder.train_norm", True, "code, train.py: the whole model is in training mode"),
    ("model.image.encoder.freeze_epochs", 50, "paper 3.5"),
]
PVSE_CLIPS: list[Fact] = [
    *PVSE,
    *PVSE_CNN,
    ("loss.ranking.mining", "all", "paper 3.4; code, README: no --max_violation for clips"),
    ("loss.ranking.reduction", "mean_pairs", "code, loss.py: the sum over B²"),
    ("model.image.encoder.name", "video", "code, model.py"),
    ("model.image.encoder.context", "last", "code, model.py, without --legacy"),
    ("data.options.captions", "last", "code, data.py: one caption of a clip"),
    ("data.transform.fps", 8, "paper 3.5; code, README"),
    ("data.transform.size", 224, "code, default"),
    ("data.transform.resize", 256, "code, data.py"),
    ("data.transform.jitter", 0.1, "code, data.py"),
    ("data.transform.max_skip", 3, "code, data.py"),
    ("train.batch_size", 128, "code, README"),
]

DIVE: list[Fact] = [
    ("model.embed_dim", 1024, "code, default"),
    ("data.sampling", "image", "code, data.py: an image with all its captions"),
    ("model.similarity.name", "smooth_chamfer", "code, train_eval_coco.sh: --loss"),
    ("model.similarity.temperature", 16.0, "code, train_eval_coco.sh"),
    ("loss.ranking.name", "triplet", "code, loss.py"),
    ("loss.ranking.mining", "hardest", "code, train_eval_coco.sh: --max_violation"),
    ("loss.ranking.warmup_epochs", 0, "code, train.py, without --tri_mean_to_max"),
    ("loss.ranking.reduction", "mean", "code, loss.py"),
    ("loss.terms.mmd.weight", 0.01, "code, train_eval_coco.sh"),
    ("loss.terms.mmd.kernel", "exponential", "code, loss.py"),
    ("loss.terms.mmd.gamma", 0.5, "code, loss.py"),
    ("loss.terms.uniformity.weight", 0.01, "code, train_eval_coco.sh: --unif_weight"),
    ("optim.name", "adamw", "code, train_eval_coco.sh"),
    ("optim.lr", 1e-3, "code, train_eval_coco.sh"),
    ("optim.weight_decay", 1e-4, "code, train_eval_coco.sh"),
    ("train.clip_norm", 1.0, "code, train_eval_coco.sh"),
]
DIVE_SETS: list[Fact] = [
    (f"model.{side}.aggregator.{key}", value, source)
    for side in ("image", "text")
    for key, value, source in (
        ("name", "set_prediction", "code, train_eval_coco.sh: --arch slot"),
        ("num_embeddings", 4, "code, train_eval_coco.sh"),
        ("depth", 4, "code, train_eval_coco.sh"),
        ("ff_mult", 4, "code, train_eval_coco.sh"),
        ("dropout", 0.1, "code, train_eval_coco.sh"),
        ("share_weights", True, "code, train_eval_coco.sh"),
        ("attention", "slots", "code, attention.py: softmax over the slots"),
    )
]
DIVE_REGIONS: list[Fact] = [
    *DIVE,
    *DIVE_SETS,
    ("model.image.encoder.mlp", "projection", "code, model_spm.py, with --gpo_1x1"),
    ("model.image.encoder.context", "max", "code, train_eval_coco.sh: --img_res_pool max"),
    ("model.image.encoder.init", "torch", "code, model_spm.py, without --spm_xavier_init"),
    ("model.image.encoder.dropout", 0.1, "code, train_eval_coco.sh: --img_1x1_dropout"),
    ("model.image.encoder.drop", 0.2, "code, train_eval_coco.sh: --butd_drop_prob"),
    ("model.image.aggregator.position", "none", "code, train_eval_coco.sh"),
    ("model.text.encoder.features", "words", "code, train_eval_coco.sh: --txt_attention_input wemb"),
    ("model.text.encoder.context", "last", "code, train_eval_coco.sh: --txt_pooling rnn"),
    ("model.text.encoder.directions", "average", "code, train_eval_coco.sh: --gpo_rnn"),
    ("model.text.encoder.dropout", 0.1, "code, train_eval_coco.sh"),
    ("model.text.encoder.drop", 0.2, "code, train_eval_coco.sh: --caption_drop_prob"),
    ("model.text.encoder.keep_ends", True, "code, data.py: <start> and <end> are added after dropping"),
    ("model.text.encoder.freeze_words", False, "code, train_eval_coco.sh: --txt_finetune"),
    ("model.text.encoder.word_init", "normal", "code, model_spm.py: what nn.Embedding gives to words that GloVe lacks"),
    ("model.text.aggregator.position", "sine", "code, train_eval_coco.sh"),
    ("data.vocabulary.vectors", "glove.840B.300d.txt", "code, train_eval_coco.sh: --wemb_type glove"),
    ("loss.ranking.margin", 0.2, "code, train_eval_coco.sh"),
    ("optim.factors", {"image": 0.1, "text.aggregator": 0.1}, "code, train_eval_coco.sh: --*_pie_lr_scale"),
    ("optim.schedule.name", "cosine", "code, train_eval_coco.sh"),
    ("optim.schedule.final", 0.0, "code, train.py"),
    ("train.epochs", 80, "code, train_eval_coco.sh"),
    ("train.batch_size", 200, "code, train_eval_coco.sh"),
    ("run.precision", "bf16", "ours; the code's is fp16 (--amp)"),
    *((f"model.{side}.aggregator.heads", 4, "code, agg_block.py") for side in ("image", "text")),
    *((f"model.{side}.aggregator.head_dim", 512, "code, agg_block.py") for side in ("image", "text")),
]
ISSUE = "the authors' answer, issue 4 of their repository"
DIVE_GRID: list[Fact] = [
    *DIVE,
    *DIVE_SETS,
    ("model.image.encoder.backbone", "resnext101_32x8d", ISSUE),
    ("model.image.encoder.freeze_epochs", 1, f"{ISSUE}: --warm_epoch 1"),
    ("model.image.encoder.context", "max", "code, train_eval_coco.sh: --img_res_pool max"),
    ("model.image.encoder.init", "torch", "code, model_spm.py, without --spm_xavier_init"),
    ("model.image.encoder.drop", 0.2, "code, model_spm.py: grid_feature_drop is VSE∞'s size augmentation"),
    ("loss.ramp_epoch", 1, "VSE∞'s linear warm-up, which code, train.py, has as --lr_warmup"),
    (
        "optim.factors",
        {"image": 0.1, "text.aggregator": 0.1, "image.encoder.backbone": 0.005, "text.encoder.bert": 0.05},
        "code, train_eval_coco.sh: --*_pie_lr_scale; ours: the backbone's 5e-6 and BERT's 5e-5, as in VSE∞",
    ),
    ("model.image.aggregator.position", "sine", "code, model_spm.py: dropped cells leave a line of 1 x N"),
    ("model.text.encoder.dropout", 0.0, "code, model_spm.py: BERT's dropout is created and never used"),
    ("model.text.aggregator.position", "sine", "code, train_eval_coco.sh"),
    ("data.vocabulary.vectors", None, "BERT has its own"),
    ("data.transform.name", "square", "code, data.py: --gpo_aug"),
    ("data.transform.size", 512, "code, data.py: --gpo_aug"),
    ("data.transform.aspect", "random", "code, data.py: RandomResizedCrop"),
    ("data.transform.min_scale", 0.6, "code, data.py: scale=(0.36, 1), and 0.6² = 0.36"),
    ("data.transform.antialias", True, "code, data.py: torchvision on Pillow's pictures"),
    ("loss.ranking.margin", 0.1, ISSUE),
    ("optim.schedule.name", "step", ISSUE),
    ("optim.schedule.milestones", [20, 40], f"{ISSUE}: --lr_step_size 20"),
    ("optim.schedule.factor", 0.1, "code, train_eval_coco.sh: --lr_step_gamma"),
    ("train.epochs", 50, ISSUE),
    ("train.batch_size", 128, ISSUE),
    *((f"model.{side}.aggregator.heads", 8, ISSUE) for side in ("image", "text")),
    *((f"model.{side}.aggregator.head_dim", 256, ISSUE) for side in ("image", "text")),
]


ESA: list[Fact] = [
    ("model.embed_dim", 1024, "code, sh/*.sh"),
    ("data.views", 2, "code, arguments.py: --hardnum 2"),
    ("data.sampling", "pair", "code, image_caption.py"),
    ("model.similarity.name", "cosine", "code, loss.py"),
    ("loss.ranking.name", "triplet", "code, loss.py"),
    ("loss.ranking.positives", "worst", "code, loss.py: the minimum of the block"),
    ("loss.ranking.margin", 0.2, "code, arguments.py"),
    ("loss.ranking.mining", "hardest", "code, train.py: the hardest after the warm-up"),
    ("loss.ranking.warmup_epochs", 1, "code, sh/*.sh: --vse_mean_warmup_epochs 1"),
    ("loss.ranking.reduction", "sum", "code, loss.py"),
    ("optim.name", "adamw", "code, vse.py"),
    ("optim.lr", 5e-4, "code, sh/*.sh"),
    ("optim.schedule.milestones", [15], "code, sh/*.sh: --lr_update 15"),
    ("optim.schedule.factor", 0.1, "code, train.py"),
    ("train.epochs", 25, "code, sh/*.sh"),
    ("train.batch_size", 128, "code, sh/*.sh"),
    ("train.clip_norm", 2.0, "code, arguments.py"),
    ("model.image.encoder.mlp", "input", "code, encoders.py"),
    ("model.image.encoder.drop", 0.2, "code, encoders.py: a region is kept when u >= 0.2"),
    ("model.image.encoder.drop_after", True, "code, encoders.py: the masks are of the pooling alone"),
    ("model.image.encoder.init", "xavier", "code, encoders.py"),
    ("model.image.aggregator.name", "softmax_pool", "code, encoders.py"),
    ("model.image.aggregator.init", "xavier", "code, encoders.py"),
    ("model.text.aggregator.name", "softmax_pool", "code, encoders.py"),
    ("model.text.encoder.drop", 0.2, "code, image_caption.py"),
    ("model.text.encoder.dropout", 0.1, "code, encoders.py"),
]
ESA_BIGRU: list[Fact] = [
    *ESA,
    ("model.text.encoder.name", "bigru", "code, encoders.py"),
    ("model.text.encoder.word_dim", 300, "code, arguments.py"),
    ("model.text.encoder.directions", "average", "code, encoders.py"),
    ("model.text.encoder.keep_ends", False, "code, image_caption.py"),
    ("model.text.encoder.freeze_words", False, "code, encoders.py"),
    ("model.text.encoder.word_init", "normal", "code, encoders.py: what nn.Embedding gives to words that GloVe lacks"),
    ("model.text.aggregator.init", "torch", "code, encoders.py: linear1 keeps torch's default"),
    ("data.vocabulary.vectors", "glove.840B.300d.txt", "code, encoders.py"),
    ("optim.weight_decay", 0.01, "code, vse.py: torch's default of AdamW"),
    ("optim.factors", {}, "code, vse.py"),
]
ESA_BERT: list[Fact] = [
    *ESA,
    ("model.text.encoder.name", "bert", "code, encoders.py"),
    ("model.text.encoder.model", "bert-base-uncased", "code, encoders.py"),
    ("model.text.encoder.init", "xavier", "code, encoders.py"),
    ("model.text.aggregator.init", "xavier", "code, encoders.py"),
    ("data.vocabulary.vectors", None, "BERT has its own"),
    ("optim.weight_decay", 1e-4, "code, vse.py"),
    ("optim.factors", {"text.encoder.bert": 0.1}, "code, vse.py"),
]

CHAN: list[Fact] = [
    ("model.embed_dim", 1024, "code, arguments.py"),
    ("data.views", 1, "the code has one"),
    ("model.image.encoder.mlp", None, "code, encoders.py"),
    ("model.image.encoder.init", "xavier", "code, encoders.py"),
    ("model.image.encoder.drop", 0.2, "code, scripts/train.sh: --drop, and arguments.py"),
    ("model.image.encoder.drop_after", False, "code, image_caption_*.py: dropped before the encoder"),
    ("model.image.aggregator.name", "tokens", "code, model.py: no pooling"),
    ("model.text.aggregator.name", "tokens", "code, model.py: no pooling"),
    ("model.text.encoder.drop", 0.2, "code, scripts/train.sh: --drop"),
    ("model.text.encoder.dropout", 0.0, "code, encoders.py"),
    ("model.similarity.name", "chan", "code, model.py"),
    ("model.similarity.coding", "hard_words", "code, scripts/train.sh: VHACoding"),
    ("loss.ranking.name", "triplet", "code, scripts/train.sh: ContrastiveLoss"),
    ("loss.ranking.margin", 0.05, "code, scripts/train.sh"),
    ("loss.ranking.mining", "hardest", "code, train.py: the hardest after the warm-up"),
    ("loss.ranking.warmup_epochs", 1, "code, scripts/train.sh"),
    ("loss.ranking.reduction", "sum", "code, loss.py"),
    ("optim.name", "adamw", "code, model.py"),
    ("optim.lr", 5e-4, "code, scripts/train.sh"),
    ("optim.schedule.milestones", [15], "code, arguments.py: --lr_update"),
    ("optim.schedule.factor", 0.1, "code, train.py"),
    ("train.epochs", 25, "code, scripts/train.sh"),
    ("train.clip_norm", 2.0, "code, arguments.py"),
    ("run.precision", "bf16", "ours; the code's is fp16"),
]
CHAN_BIGRU: list[Fact] = [
    *CHAN,
    ("model.image.encoder.self_attention", True, "code, scripts/train.sh: --precomp_enc_type selfattention"),
    ("model.image.encoder.heads", 8, "code, modules.py"),
    ("model.similarity.pooling", "lse", "code, scripts/train.sh: LSEPooling"),
    ("model.similarity.pooling_temperature", 0.1, "code, arguments.py: --belta"),
    ("model.text.encoder.name", "bigru", "code, scripts/train.sh"),
    ("model.text.encoder.directions", "average", "code, encoders.py"),
    ("model.text.encoder.freeze_words", False, "code, encoders.py: requires_grad is set on the module, without effect"),
    ("data.vocabulary.vectors", "glove.840B.300d.txt", "code, scripts/train.sh: --wemb_type glove"),
    ("train.batch_size", 384, "code, scripts/train.sh"),
    ("optim.weight_decay", 0.01, "code, model.py: torch's default of AdamW"),
    ("optim.factors", {}, "code, model.py"),
]
CHAN_BERT: list[Fact] = [
    *CHAN,
    ("model.image.encoder.self_attention", False, "code, scripts/train.sh: --precomp_enc_type basic"),
    ("model.similarity.pooling", "mean", "code, scripts/train.sh: MeanPooling"),
    ("model.text.encoder.name", "bert", "code, scripts/train.sh"),
    ("train.batch_size", 128, "code, scripts/train.sh"),
    ("optim.weight_decay", 1e-4, "code, model.py"),
    ("optim.factors", {"text.encoder.bert": 0.1}, "code, model.py"),
]
THIRD = "a re-implementation for another task"
MAXMATCH: list[Fact] = [
    ("model.similarity.name", "assignment", "paper: maximal pair assignment"),
    ("model.similarity.value", "exponential", f"paper: matched cosines are scaled by exp; {THIRD}: exp(c) - 1"),
    ("model.image.aggregator.name", "set_prediction", "paper: DivE's model"),
    ("model.text.aggregator.name", "set_prediction", "paper: DivE's model"),
    ("model.image.aggregator.num_embeddings", 4, "paper: figure"),
    ("model.text.aggregator.num_embeddings", 4, "paper: figure"),
    ("loss.ranking.mining", "hardest", "paper: hardest negatives"),
    ("loss.terms.mmd.weight", 0.01, THIRD),
    ("loss.terms.uniformity.weight", 0.01, THIRD),
    ("loss.terms.global_discriminative.weight", 0.25, THIRD),
    ("loss.terms.global_discriminative.scale", 0.5, THIRD),
    ("loss.terms.global_discriminative.margin", 0.7, THIRD),
    ("loss.terms.intra_set_divergence.weight", 0.25, THIRD),
    ("loss.terms.intra_set_divergence.scale", 0.5, THIRD),
    ("loss.terms.intra_set_divergence.margin", 0.7, THIRD),
]


def load(name: str) -> Config:
    return read_config(CONFIGS / f"{name}.yaml")


def check_recipe(name: str, facts: list[Fact]) -> None:
    """Compare a config with what is printed; every difference is listed with its source."""
    config = load(name)
    flat = flatten(config.model_dump())
    found = [(key, config.optim.factors if key == "optim.factors" else flat.get(key, "missing")) for key, *_ in facts]
    differences = [
        f"{key} is {value!r}, but {expected!r} in: {source}"
        for (key, value), (_, expected, source) in zip(found, facts, strict=True)
        if value != expected
    ]
    assert not differences, f"{name}\n" + "\n".join(differences)


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_vsepp(dataset: str) -> None:
    for name, text in (("", "global"), ("_mean", "mean")):
        pools = [
            ("model.image.aggregator.name", "mean", "ours"),
            ("model.text.aggregator.name", text, "code, model.py"),
        ]
        check_recipe(f"vsepp/{dataset}_region_bigru{name}", [*VSEPP, *pools])


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_vse_infty(dataset: str) -> None:
    check_recipe(f"vse_infty/{dataset}_region_bigru", [*REGION_BIGRU, *GPO])
    check_recipe(f"vse_infty/{dataset}_region_bigru_mean", [*REGION_BIGRU, *MEAN])
    check_recipe(f"vse_infty/{dataset}_region_bert", [*VSE_INFTY_IMAGES, *VSE_INFTY_REGIONS, *VSE_INFTY_BERT, *GPO])


def test_vse_infty_grids() -> None:
    wsl = [
        ("model.image.encoder.backbone", "resnext101_32x8d", "paper 5.1"),
        ("model.image.encoder.pixels", "imagenet", "code, image_caption.py"),
    ]
    butd = [
        ("model.image.encoder.backbone", "caffe_resnet101", "paper 5.1"),
        ("model.image.encoder.pixels", "caffe", "code, image_caption.py"),
    ]
    check_recipe("vse_infty/coco_grid_wsl_bert", [*GRID_BERT, *wsl])
    check_recipe("vse_infty/f30k_grid_butd_bert", [*GRID_BERT, *butd])


@pytest.mark.parametrize("dataset", ["msrvtt", "vatex"])
def test_vse_infty_clips(dataset: str) -> None:
    check_recipe(f"vse_infty/{dataset}", [*VSE_INFTY, *VSE_INFTY_BIGRU, *GPO, *CLIPS])
    assert load(f"vse_infty/{dataset}").data.format == dataset


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_vse_2ad(dataset: str) -> None:
    check_recipe(f"vse_2ad/{dataset}_region_bigru", VSE_2AD)


def test_vse_2ad_vit() -> None:
    check_recipe("vse_2ad/f30k_vit_bert", VSE_2AD_VIT)


def test_pvse_images() -> None:
    batch = ("train.batch_size", 256, "code, README")
    check_recipe("pvse/f30k_region_bigru", [*PVSE_IMAGES, ("train.batch_size", 128, "paper 3.5")])
    check_recipe("pvse/coco_region_bigru", [*PVSE_IMAGES, batch])
    pictures = [
        ("data.transform.name", "crop", "code, data.py"),
        ("data.transform.size", 224, "code, default"),
        ("data.transform.resize", 256, "code, data.py"),
        ("data.transform.antialias", True, "code, data.py: torchvision on Pillow's pictures"),
    ]
    check_recipe("pvse/coco_resnet152_bigru", [*PVSE_IMAGES, *PVSE_CNN, *pictures, batch])


@pytest.mark.parametrize(("dataset", "count", "frames", "trim"), [("tgif", 3, 8, 6), ("mrw", 5, 4, 0)])
def test_pvse_clips(dataset: str, count: int, frames: int, trim: int) -> None:
    own = [
        ("model.image.aggregator.num_embeddings", count, "code, README: the released model"),
        ("model.text.aggregator.num_embeddings", count, "code, README: the released model"),
        ("data.transform.frames", frames, "code, README: --max_video_length"),
        ("data.transform.trim", trim, "code, data.py"),
    ]
    check_recipe(f"pvse/{dataset}", [*PVSE_CLIPS, *own])


@pytest.mark.parametrize("name", ["coco_resnet152_bigru", "tgif", "mrw"])
def test_pvse_second_stage(name: str) -> None:
    """Paper 3.5: 50 more epochs from the first stage's best model, with the CNN trained and nothing else changed."""
    first, second = load(f"pvse/{name}"), load(f"pvse/{name}_finetune")
    before, after = flatten(first.model_dump()), flatten(second.model_dump())
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    assert changed == {
        "run.dir": f"{first.run.dir}_finetune",
        "model.image.encoder.freeze_epochs": 0,
        "model.image.encoder.recompute": True,  # costs time and saves memory, and changes no result
        "train.start_from": first.run.dir,
    }


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_dive(dataset: str) -> None:
    check_recipe(f"dive/{dataset}_region_bigru", DIVE_REGIONS)


def test_dive_grid() -> None:
    check_recipe("dive/coco_resnext_bert", DIVE_GRID)


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
def test_newer_systems(dataset: str) -> None:
    check_recipe(f"esa/{dataset}_region_bigru", ESA_BIGRU)
    check_recipe(f"esa/{dataset}_region_bert", ESA_BERT)
    check_recipe(f"chan/{dataset}_region_bigru", CHAN_BIGRU)
    check_recipe(f"chan/{dataset}_region_bert", CHAN_BERT)
    check_recipe(f"maxmatch/{dataset}_region_bert", MAXMATCH)


def test_the_folders_are_those_of_the_dataset() -> None:
    for name in RUNS:
        config = load(name)
        dataset = "flickr8k" if name.startswith("best/") else name.split("/")[-1].split("_")[0]
        assert config.data.root == f"data/{dataset}" or "/" not in name, name
    runs = [load(name).run.dir for name in RUNS]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid(name: str) -> None:
    assert load(name).train.epochs > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_config_is_more_than_three_files(name: str) -> None:
    chain = [CONFIGS / f"{name}.yaml"]
    while base := yaml.safe_load(chain[-1].read_text()).get("base"):
        chain.append((chain[-1].parent / base).resolve())
    assert len(chain) <= 3, [str(file.relative_to(CONFIGS)) for file in chain]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_says_what_it_is(name: str) -> None:
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".") and len(first) <= 110


def overrides_in_comments(name: str) -> list[str]:
    """The overrides that a config's comments give, each written as on the command line."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    comments = " ".join(line.removeprefix("#") for line in lines if line.startswith("#"))
    found = re.findall(r"(?:data|model|loss|optim|train)\.[\w.]+=(?:\{[^}]*\}|\S+)", comments)
    return [override.rstrip(".,:;") for override in found]


@pytest.mark.parametrize("name", [name for name in NAMES if overrides_in_comments(name)])
def test_overrides_in_comments_are_accepted(name: str) -> None:
    for override in overrides_in_comments(name):
        read_config(CONFIGS / f"{name}.yaml", [override])


def test_a_config_with_word_vectors_says_how_to_get_them() -> None:
    """And how to run without, unless it goes on from a first stage that has read them."""
    named = [name for name in RUNS if load(name).data.vocabulary.vectors and load(name).train.start_from is None]
    assert len(named) == 11
    for name in named:
        assert "glove.840B.300d.zip" in (CONFIGS / f"{name}.yaml").read_text(), name
        assert "data.vocabulary.vectors=null" in overrides_in_comments(name), name


@pytest.mark.parametrize("name", ["pvse/f30k_region_bigru", "dive/f30k_region_bigru"])
def test_missing_word_vectors_are_one_clear_error(name: str, cli: Cli, tiny: list[str]) -> None:
    settings = [setting for setting in tiny[1:] if "schedule" not in setting]
    error = cli("train", CONFIGS / f"{name}.yaml", *settings, "data.vocabulary.vectors=no/glove.txt").error
    assert "no/glove.txt: no such file" in error and "data.vocabulary.vectors=null" in error


def small(name: str, tiny_bert: Path, tiny_vit: Path, tiny_clip: Path) -> Config:
    """A shipped config with everything wide made narrow, and nothing pretrained but the tests' own models."""
    file = CONFIGS / f"{name}.yaml"
    config = read_config(file)
    settings = ["model.embed_dim=8", *without_word_vectors(file)]
    for side in ("image", "text"):
        if getattr(config.model, side).aggregator.name == "set_prediction":
            settings.append(f"model.{side}.aggregator.head_dim=4")
    backbone = config.model.image.encoder.arguments.get("backbone")
    if backbone is not None and "/" in backbone:
        settings.append(f"model.image.encoder.backbone={tiny_vit}")
    elif backbone is not None:
        geometry = "caffe_resnet50" if backbone.startswith("caffe") else "resnet18"
        settings += [f"model.image.encoder.backbone={geometry}", "model.image.encoder.weights=null"]
    if config.model.text.encoder.name == "clip":
        settings += [f"model.{side}.encoder.model={tiny_clip}" for side in ("image", "text")]
        settings += ["model.embed_dim=16", "data.transform={size: [32, 32], resize: 32}"]
    if config.model.text.encoder.name == "bert":
        settings.append(f"model.text.encoder.model={tiny_bert}")
    return read_config(file, settings)


def draw_images(config: Config) -> Tensor:
    """Three random images of the kind that a config's image encoder reads."""
    sizes = {"regions": (5, 12), "grid": (3, 32, 32), "clip": (3, 32, 32), "video": (2, 3, 32, 32)}
    return torch.randn(3, *sizes[config.model.image.encoder.name])


@pytest.mark.parametrize("name", NAMES)
def test_every_config_makes_a_model(name: str, tiny_bert: Path, tiny_vit: Path, tiny_clip: Path) -> None:
    """And its loss has a gradient for every parameter of the aggregators."""
    torch.manual_seed(0)
    config = small(name, tiny_bert, tiny_vit, tiny_clip)
    subwords = config.model.text.encoder.name in ("bert", "clip")
    vocabulary = Subwords.read(str(tiny_bert)) if subwords else Vocabulary.build([" ".join(WORDS)])
    images = draw_images(config)
    model = build_model(config, images.shape[-1] if images.dim() == 3 else None, vocabulary)
    image = model.image(images)
    text = model.text(torch.tensor([[1, 6, 7, 2], [1, 7, 8, 2], [1, 8, 9, 2]]))
    scores = compare(model.similarity, image.embeddings, text.embeddings, image.mask, text.mask)
    loss = build_criterion(config, model)(scores, torch.eye(3, dtype=torch.bool), image, text)["total"]
    loss.backward()
    for side in ("image", "text"):
        aggregator = dict(getattr(model, side).aggregator.named_parameters())
        assert all(parameter.grad is not None for parameter in aggregator.values())
