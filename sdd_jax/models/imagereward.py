"""ImageReward (Xu et al. 2023, arXiv:2304.05977): how people would rate an image made for a prompt.

BLIP (Li et al. 2022, arXiv:2201.12086) reads the image with a vision transformer (large: 24 pre-norm layers of width
1024, 16x16 patches, 224x224 px) and the prompt with BERT (12 post-norm layers of width 768), every layer of which also
attends to all image states:

    x <- LN(x + SelfAttention(x)),    x <- LN(x + CrossAttention(x, image)),    x <- LN(x + W2 gelu(W1 x))

Five linear layers with nothing between them (the released head has no activations) turn the state of the first token
into a number r, and the reward is (r - .16717) / 1.03334, the statistics of the training set: about 0 on average.

Weights: the published `ImageReward.pt`; its tensors `blip.vision_proj` and `blip.text_proj` take no part and are not
read. Prompts: BERT's uncased word pieces, `[CLS] ... [SEP]` padded or cut to 35 (`bert-base-uncased`'s vocabulary; BLIP
adds two tokens that scoring does not use). Shapes: b pairs, n image states, m tokens.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models.clip_vision import MLP, attend, norm
from sdd_jax.models.state_dicts import StateDict, read_state_dict, rename, to_params
from sdd_jax.types import Params

REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
PROMPT_TOKENS = 35

UNUSED = r"(?!blip\.(visual_encoder|text_encoder)\.|mlp\.)"
RENAMES = (
    (r"^blip\.", ""),
    (r"\.encoder\.layer\.", ".encoder.layers."),
    (r"\.(word|position)_embeddings\.weight$", r".\1_embeddings"),
)


class RewardConfig(NamedTuple):
    """Widths and depths; the defaults are the published model's."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vocab_size: int = 30524
    positions: int = 512
    text_width: int = 768
    text_inner: int = 3072
    text_layers: int = 12
    text_heads: int = 12
    vision_eps: float = 1e-6
    text_eps: float = 1e-12


PUBLISHED = RewardConfig()


def load_image_reward(path: str | os.PathLike[str], config: RewardConfig = PUBLISHED) -> Params:
    """Reads `ImageReward.pt`, or the same tensors as safetensors; errors as `read_state_dict`."""
    tensors: StateDict = rename(read_state_dict(path), RENAMES, drop=UNUSED)
    image, ids = jnp.zeros((1, config.image_size, config.image_size, 3)), jnp.zeros((1, 1), jnp.int32)
    return to_params(tensors, ImageReward(config), image, ids, jnp.ones((1, 1), bool), source=str(path))


@functools.partial(jax.jit, static_argnums=0)
def image_reward(config: RewardConfig, params: Params, pixels: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Rewards f32[b].

    Args:
      pixels: f32[b,s,s,3], by `evals.preprocess.IMAGE_REWARD`.
      ids, mask: i32[b,m] and bool [b,m], by `prompt_tokenizer`; the mask is False on padding.
    """
    with jax.default_matmul_precision("highest"):
        raw: Any = ImageReward(config).apply({"params": params}, pixels, ids, mask)
    return (raw - REWARD_MEAN) / REWARD_STD


def prompt_tokenizer(vocabulary: str | Path) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """texts -> (ids i32[n,35], mask bool [n,35]) with BERT's uncased word pieces of the file `vocab.txt`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it lacks BERT's special tokens.
    """
    from tokenizers import BertWordPieceTokenizer

    if not Path(vocabulary).is_file():
        raise FileNotFoundError(f"{vocabulary}: no such vocabulary; it is vocab.txt of bert-base-uncased")
    words = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in words]
    if missing:
        raise ValueError(f"{vocabulary} has no {missing[0]}; it must be vocab.txt of bert-base-uncased")
    backend = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    backend.enable_truncation(PROMPT_TOKENS)
    backend.enable_padding(length=PROMPT_TOKENS, pad_id=words.index("[PAD]"))

    def tokenize(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = backend.encode_batch(list(texts))
        ids = np.array([row.ids for row in encoded], np.int32).reshape(-1, PROMPT_TOKENS)
        return ids, np.array([row.attention_mask for row in encoded], bool).reshape(-1, PROMPT_TOKENS)

    return tokenize


class ImageReward(nn.Module):
    """pixels f32[b,s,s,3], ids i32[b,m], mask bool [b,m] -> the head's number f32[b], not normalised."""

    config: RewardConfig

    @nn.compact
    def __call__(self, pixels: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
        image = VisionTransformer(self.config, name="visual_encoder")(pixels)
        text = TextEncoder(self.config, name="text_encoder")(ids, mask, image)
        return Head(name="mlp")(text[:, 0])


class Head(nn.Module):
    """f32[b,d] -> f32[b]: five linear layers, numbered as in the file, where dropouts count."""

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        for number, width in HEAD_WIDTHS.items():
            hidden = nn.Dense(width, name=f"layers_{number}")(hidden)
        return hidden[:, 0]


class VisionTransformer(nn.Module):
    """pixels f32[b,s,s,3] -> normed states f32[b,n,d], the class token first."""

    config: RewardConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg, b = self.config, len(pixels)
        if pixels.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            raise ValueError(f"ImageReward takes {cfg.image_size}x{cfg.image_size} RGB images; got {pixels.shape[1:]}")
        patches = PatchEmbedding(cfg, name="patch_embed")(pixels)
        init = nn.initializers.normal(0.02)
        token = self.param("cls_token", init, (1, 1, cfg.vision_width))
        positions = self.param("pos_embed", init, (1, 1 + patches.shape[1], cfg.vision_width))
        hidden = jnp.concatenate([jnp.repeat(token, b, axis=0), patches], 1) + positions
        for i in range(cfg.vision_layers):
            hidden = VisionBlock(cfg, name=f"blocks_{i}")(hidden)
        return norm(cfg.vision_eps, "norm")(hidden)


class PatchEmbedding(nn.Module):
    """pixels f32[b,s,s,3] -> f32[b,n - 1,d]."""

    config: RewardConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg, window = self.config, (self.config.patch_size, self.config.patch_size)
        patches = nn.Conv(cfg.vision_width, window, strides=window, padding="VALID", name="proj")(pixels)
        return patches.reshape(len(pixels), -1, cfg.vision_width)


class VisionBlock(nn.Module):
    """One pre-norm layer, f32[b,n,d] -> f32[b,n,d]."""

    config: RewardConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = hidden + FusedAttention(cfg.vision_heads, name="attn")(norm(cfg.vision_eps, "norm1")(hidden))
        return hidden + MLP(4 * cfg.vision_width, name="mlp")(norm(cfg.vision_eps, "norm2")(hidden))


class FusedAttention(nn.Module):
    """Self-attention whose query, key and value are one projection, f32[b,n,d] -> f32[b,n,d]."""

    heads: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width = hidden.shape[-1]
        query, key, value = jnp.split(nn.Dense(3 * width, name="qkv")(hidden), 3, axis=-1)
        return nn.Dense(width, name="proj")(attend(query, key, value, self.heads))


class TextEncoder(nn.Module):
    """ids i32[b,m], mask bool [b,m], image states f32[b,n,d] -> text states f32[b,m,d']."""

    config: RewardConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
        hidden = TextEmbeddings(self.config, name="embeddings")(ids)
        return TextLayers(self.config, name="encoder")(hidden, mask, image)


class TextEmbeddings(nn.Module):
    """ids i32[b,m] -> normed sum of word and position embeddings f32[b,m,d']; BLIP's BERT has no segments."""

    config: RewardConfig

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg, init = self.config, nn.initializers.normal(0.02)
        if ids.shape[1] > cfg.positions:
            raise ValueError(f"{ids.shape[1]} ids per prompt; ImageReward has {cfg.positions} positions")
        words = self.param("word_embeddings", init, (cfg.vocab_size, cfg.text_width))
        positions = self.param("position_embeddings", init, (cfg.positions, cfg.text_width))
        return norm(cfg.text_eps, "LayerNorm")(words[ids] + positions[None, : ids.shape[1]])


class TextLayers(nn.Module):
    """The stack of BERT layers, each with cross-attention."""

    config: RewardConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
        for i in range(self.config.text_layers):
            hidden = TextLayer(self.config, name=f"layers_{i}")(hidden, mask, image)
        return hidden


class TextLayer(nn.Module):
    """One post-norm layer, f32[b,m,d'] -> f32[b,m,d']."""

    config: RewardConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = TextAttention(cfg, name="attention")(hidden, hidden, mask)
        hidden = TextAttention(cfg, name="crossattention")(hidden, image, None)
        inner = jax.nn.gelu(Linear(cfg.text_inner, name="intermediate")(hidden), approximate=False)
        return ResidualNorm(cfg, name="output")(inner, hidden)


class TextAttention(nn.Module):
    """LN(x + attention of x to `source`), f32[b,m,d'] -> f32[b,m,d']; mask bool over the source."""

    config: RewardConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, source: jax.Array, mask: jax.Array | None) -> jax.Array:
        query, key, value = Projections(self.config.text_width, name="self")(hidden, source)
        return ResidualNorm(self.config, name="output")(attend(query, key, value, self.config.text_heads, mask), hidden)


class Projections(nn.Module):
    """hidden f32[b,m,d'], source f32[b,n,d] -> query f32[b,m,d'], key and value f32[b,n,d']."""

    features: int

    @nn.compact
    def __call__(self, hidden: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        query = nn.Dense(self.features, name="query")(hidden)
        return query, nn.Dense(self.features, name="key")(source), nn.Dense(self.features, name="value")(source)


class Linear(nn.Module):
    """A dense layer under BERT's nested name, f32[b,m,i] -> f32[b,m,features]."""

    features: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return nn.Dense(self.features, name="dense")(hidden)


class ResidualNorm(nn.Module):
    """LN(residual + W x): f32[b,m,i], f32[b,m,d'] -> f32[b,m,d']."""

    config: RewardConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, residual: jax.Array) -> jax.Array:
        return norm(self.config.text_eps, "LayerNorm")(
            residual + nn.Dense(self.config.text_width, name="dense")(hidden)
        )
