"""A tiny embedded world: a Stable Diffusion of width 8 at 64 px (f = 4) with its instruments, random weights.

`make_world` writes the files that `sdd_jax.load`, `read_instruments` and PyTorch diffusers read.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.data import portraits
from sdd_jax.jobs.world.clip import text_encoder_config
from sdd_jax.jobs.world.directory import SIZES
from sdd_jax.models.bundle import init_params, make_bundle
from sdd_jax.models.load import load
from sdd_jax.models.save import save, save_component
from sdd_jax.models.tokenizer import Tokenizer, train_tokenizer
from sdd_jax.models.towers import TowerConfig, init_tower, save_tower

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
    "scaling_factor": 0.5,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "projection_dim": 16,
    "layer_norm_eps": 1e-5,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
TOKENIZER = {"vocab_size": 768, "model_max_length": 40}
XL_TOKENS = 12
TOWER = {"widths": (8, 8), "strides": (4, 4), "groups": 4}


def configs(tokenizer: Tokenizer, **unet: Any) -> dict[str, dict[str, Any]]:
    """The config files' contents; `unet` replaces fields of the UNet's."""
    return {
        "unet": {"_class_name": "UNet2DConditionModel", **UNET, **unet},
        "vae": {"_class_name": "AutoencoderKL", **VAE},
        "text_encoder": text_encoder_config(ConfigDict(TEXT), tokenizer),
        "scheduler": SCHEDULER,
    }


def make_world(directory: Path) -> Path:
    """Writes the Stable Diffusion and the towers classifier/, regressor/, clip/; returns the directory."""
    tokenizer = train_tokenizer(portraits.caption_corpus(), out_dir=directory.parent / "tokenizer", **TOKENIZER)
    described = configs(tokenizer)
    params = init_params(described, jax.random.key(1))
    save(make_bundle(described, tokenizer), params, directory)
    rng = np.random.default_rng(2)
    for name, outputs in (("classifier", sum(SIZES)), ("regressor", len(portraits.RANGES))):
        tower = TowerConfig(**TOWER, outputs=outputs)
        save_tower(directory / name, tower, draw_tower(rng, tower))
    tower = TowerConfig(**TOWER, outputs=8)
    projection = rng.normal(size=(TEXT["hidden_size"], 8)).astype(np.float32)
    clip = {
        "image": draw_tower(rng, tower),
        "text_projection": {"kernel": projection},
        "logit_scale": np.float32(2.5),
    }
    save_tower(directory / "clip", tower, clip)
    return directory


def make_variant(world: Path, directory: Path, **unet: Any) -> Path:
    """Writes a copy of a tiny world whose UNet has other fields, and random weights; returns the directory."""
    shutil.copytree(world, directory)
    described = {**json.loads((directory / "unet" / "config.json").read_text()), **unet}
    (directory / "unet" / "config.json").write_text(json.dumps(described))
    _, shapes = load(f"shapes:{directory}")
    drawn = draw(np.random.default_rng(1), shapes["unet"])
    save_component(drawn, described, directory / "unet", "UNet2DConditionModel")
    return directory


def make_xl(directory: Path) -> Path:
    """Writes config files of an SDXL of width 8, pooled text and sizes beside the time; returns the directory."""
    text = {**TEXT, "num_hidden_layers": 2, "vocab_size": 99, "max_position_embeddings": XL_TOKENS}
    parts = {
        "unet": {
            **UNET,
            "_class_name": "UNet2DConditionModel",
            "cross_attention_dim": 2 * TEXT["hidden_size"],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": TEXT["projection_dim"] + 6 * 4,
        },
        "vae": {**VAE, "_class_name": "AutoencoderKL"},
        "text_encoder": {**text, "architectures": ["CLIPTextModel"]},
        "text_encoder_2": {**text, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"},
        "scheduler": SCHEDULER,
    }
    for part, config in parts.items():
        (directory / part).mkdir(parents=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (directory / part / name).write_text(json.dumps(config))
    return directory


def draw_tower(rng: np.random.Generator, tower: TowerConfig) -> Any:
    """Random parameters of a tower, drawn on the host: nothing is compiled."""
    return draw(rng, jax.eval_shape(lambda key: init_tower(key, tower), jax.random.key(0)))


def draw(rng: np.random.Generator, shapes: Any) -> Any:
    """Random float32 arrays of the shapes in a tree, drawn on the host."""
    return jax.tree.map(lambda leaf: rng.normal(scale=leaf.size**-0.25, size=leaf.shape).astype(np.float32), shapes)
