"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193): a vision transformer whose class token says what an image shows.

Patches with a class token in front, learnt positions, then pre-norm layers with a learnt gain on each branch

    x <- x + g1 * Attention(LN1(x)),    x <- x + g2 * W2 gelu(W1 LN2(x)),

and a final norm; the embedding is the class token's state. The base model has 12 layers of width 768, 14x14 patches,
and positions for 518x518 px; for another size they are resized bicubically (a = -3/4, no antialiasing, borders
repeated: PyTorch's `interpolate`), so 224x224 px gives 16x16 patches. Any sides that 14 divides will do.

Weights: transformers' `facebook/dinov2-base`, a directory of `config.json` and `model.safetensors`. The `mask_token` of
training is not read; SwiGLU (the giant model) and register tokens are errors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models import hub
from sdd_jax.models.clip_vision import MLP, WEIGHT_NAMES, attend, norm
from sdd_jax.models.state_dicts import read_state_dict, rename, to_params
from sdd_jax.types import Params

RENAMES = ((r"^encoder\.layer\.", "encoder.layers."),)
BICUBIC_A = -0.75


class DINOv2Config(NamedTuple):
    """The fields of a config.json that shape the network; the defaults are the base model's."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6
    image_size: int = 518
    patch_size: int = 14

    @classmethod
    def from_json(cls, config: Mapping[str, Any], source: str = "config.json") -> DINOv2Config:
        """Reads a config.json; ValueError naming a field that changes the maths and is not supported."""
        supported = {"model_type": "dinov2", "use_swiglu_ffn": False, "hidden_act": "gelu", "qkv_bias": True}
        for field, value in supported.items():
            if config.get(field, value) != value:
                raise ValueError(f"{source}: {field} = {config[field]!r} is not supported, only {value!r}")
        return cls(**{name: config[name] for name in cls._fields if name in config})


def load_dinov2(directory: str | Path) -> tuple[DINOv2Config, Params]:
    """Loads a directory of transformers' DINOv2; errors in one line, naming the file or the field."""
    root = Path(directory)
    config = DINOv2Config.from_json(hub.read_json(root / "config.json"), str(root / "config.json"))
    path = next((root / name for name in WEIGHT_NAMES if (root / name).is_file()), root / WEIGHT_NAMES[0])
    tensors = rename(read_state_dict(path), RENAMES, drop=r"embeddings\.mask_token$")
    image = jnp.zeros((1, config.image_size, config.image_size, 3))
    return config, to_params(tensors, DINOv2(config), image, source=str(path))


@functools.partial(jax.jit, static_argnums=0)
def embed_image(config: DINOv2Config, params: Params, pixels: jax.Array) -> jax.Array:
    """Class-token embeddings f32[b,d] of preprocessed images f32[b,h,w,3] (`evals.preprocess.DINOV2`)."""
    with jax.default_matmul_precision("highest"):
        states: Any = DINOv2(config).apply({"params": params}, pixels)
    return states[:, 0]


def bicubic_matrix(target: int, source: int) -> np.ndarray:
    """f32[target, source]: PyTorch's bicubic interpolation of one axis (half-pixel centres, no antialiasing)."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        x = np.abs(position - (first + tap))
        near = (BICUBIC_A + 2) * x**3 - (BICUBIC_A + 3) * x**2 + 1
        far = BICUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


class DINOv2(nn.Module):
    """pixels f32[b,h,w,3] -> normed last states f32[b,n,d], the class token first."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        hidden = Embeddings(self.config, name="embeddings")(pixels)
        hidden = Encoder(self.config, name="encoder")(hidden)
        return norm(self.config.layer_norm_eps, "layernorm")(hidden)


class Embeddings(nn.Module):
    """pixels f32[b,h,w,3] -> class token and patches with their positions, f32[b,n,d]."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg, (b, height, width, _) = self.config, pixels.shape
        if height % cfg.patch_size or width % cfg.patch_size:
            raise ValueError(f"DINOv2 takes sides that {cfg.patch_size} divides; got {height}x{width}")
        patches = PatchProjection(cfg, name="patch_embeddings")(pixels)
        init, side = nn.initializers.normal(0.02), cfg.image_size // cfg.patch_size
        token = self.param("cls_token", init, (1, 1, cfg.hidden_size))
        positions = self.param("position_embeddings", init, (1, side**2 + 1, cfg.hidden_size))
        grid = positions[0, 1:].reshape(side, side, cfg.hidden_size)
        if patches.shape[1:3] != (side, side):
            rows, columns = (bicubic_matrix(n, side) for n in patches.shape[1:3])
            grid = jnp.einsum("ip,jq,pqd->ijd", rows, columns, grid)
        patches = (patches + grid[None]).reshape(b, -1, cfg.hidden_size)
        return jnp.concatenate([jnp.repeat(token + positions[:, :1], b, axis=0), patches], 1)


class PatchProjection(nn.Module):
    """pixels f32[b,h,w,3] -> f32[b,h/p,w/p,d]."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        window = (self.config.patch_size, self.config.patch_size)
        return nn.Conv(self.config.hidden_size, window, strides=window, padding="VALID", name="projection")(pixels)


class Encoder(nn.Module):
    """The stack of layers, f32[b,n,d] -> f32[b,n,d]."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        for i in range(self.config.num_hidden_layers):
            hidden = Layer(self.config, name=f"layers_{i}")(hidden)
        return hidden


class Layer(nn.Module):
    """One pre-norm layer with a gain on each branch, f32[b,n,d] -> f32[b,n,d]."""

    config: DINOv2Config

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        branch = Attention(cfg.num_attention_heads, name="attention")(norm(cfg.layer_norm_eps, "norm1")(hidden))
        hidden = hidden + LayerScale(name="layer_scale1")(branch)
        mlp = MLP(cfg.hidden_size * cfg.mlp_ratio, name="mlp")
        return hidden + LayerScale(name="layer_scale2")(mlp(norm(cfg.layer_norm_eps, "norm2")(hidden)))


class Attention(nn.Module):
    """Multi-head self-attention under transformers' nested names, f32[b,n,d] -> f32[b,n,d]."""

    heads: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        query, key, value = Projections(name="attention")(hidden)
        return Output(name="output")(attend(query, key, value, self.heads))


class Projections(nn.Module):
    """f32[b,n,d] -> query, key, value f32[b,n,d]."""

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, key, value = (nn.Dense(hidden.shape[-1], name=name)(hidden) for name in ("query", "key", "value"))
        return query, key, value


class Output(nn.Module):
    """The projection after attention, f32[b,n,d] -> f32[b,n,d]."""

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return nn.Dense(hidden.shape[-1], name="dense")(hidden)


class LayerScale(nn.Module):
    """A learnt gain per channel, f32[b,n,d] -> f32[b,n,d]."""

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return hidden * self.param("lambda1", nn.initializers.ones, (hidden.shape[-1],))[None, None]
