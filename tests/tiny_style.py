"""A style generator of 16 px and its encoder at random: style/ of a world, for the tests of style manipulators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.models.e4e import E4EConfig, Encoder, init_e4e, save_e4e
from sdd_jax.models.irse import IRSEConfig
from sdd_jax.models.stylegan2 import StyleGAN2Config, init_generator
from sdd_jax.models.stylegan_convert import LoadedGenerator, save_generator

GENERATOR = StyleGAN2Config(
    size=16, style_dim=6, mapping_layers=2, channel_multiplier=1, channel_base=64, max_channels=8
)
BODY = IRSEConfig(units=(1, 1, 1, 1), widths=(4, 4, 6, 8), reduction=2, groups=2)
ENCODER = E4EConfig(num_ws=GENERATOR.num_ws, style_dim=GENERATOR.style_dim, side=32, body=BODY)


def draw_generator(seed: int = 0) -> Any:
    """Random parameters of every kind, biases and noise strengths included, drawn on the host."""
    shapes = jax.eval_shape(lambda key: init_generator(key, GENERATOR), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        deviation = 100.0 if path[0].key.startswith("style_") else 1.0 if leaf.ndim > 1 else 0.2
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_encoder(seed: int = 1) -> Any:
    """Random parameters of the encoder, drawn on the host."""
    shapes = jax.eval_shape(lambda key: init_e4e(key, ENCODER), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        fan_in = leaf.size / leaf.shape[-1] if path[-1].key == "kernel" else 1.0
        linear = "linear" in [part.key for part in path]
        return (rng.standard_normal(leaf.shape) * (1.0 if linear else fan_in**-0.5)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_style(world: Path) -> Path:
    """Writes style/ below `world`, which may hold nothing else; returns `world`."""
    average = np.random.default_rng(2).standard_normal((GENERATOR.num_ws, GENERATOR.style_dim)).astype(np.float32)
    save_generator(LoadedGenerator(GENERATOR, draw_generator(), jax.numpy.asarray(average)), world / "style")
    save_e4e(Encoder(ENCODER, draw_encoder(), average), world / "style" / "encoder")
    return world
