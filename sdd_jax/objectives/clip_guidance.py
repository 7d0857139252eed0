"""CLIP guidance of a manipulator, SDD's baseline: StyleCLIP's mapper (Patashnik et al., ICCV 2021, sec. 5).

    L = clip_weight (1 - cos(I(x'), T(prompt))) + l2_weight mean (code' - code)^2
        + identity_weight (1 - cos(R(x'), R(x)))

The same manipulator, data and other losses as `sdd`; in place of the diffusion teacher a CLIP looks at the edited image
x'. StyleCLIP's weights are 1, .8 and .1. Two CLIPs serve: the embedded world's, and a published one, which sees x'
resized to its input (bicubic, antialiased where it shrinks).

Cost per sample, with f a forward of the manipulator (1F for the translator): 3f, and forward and backward of the
decoder and CLIP's image tower; no evaluation of the teacher.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sdd_jax.models import clip_vision
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.towers import TowerConfig, embed_caption, embed_image, unit
from sdd_jax.objectives.identity import Identity, identity_loss
from sdd_jax.objectives.manipulators import Manipulator, code_distance
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


class CLIPNetwork(Protocol):
    """A CLIP on the batch's own arrays; its parameters are `frozen['clip']`."""

    def images(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """Unit embeddings f32[b,e] of images f32[b,H,W,3] in [-1, 1], differentiable in them."""
        ...

    def texts(self, frozen: Frozen, ids: jax.Array) -> jax.Array:
        """Unit embeddings f32[b,e] of token ids i32[b,n]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerCLIP:
    """The embedded world's CLIP: a convolutional tower, and a projection of the model's own text encoder."""

    tower: TowerConfig
    text: TextConfig

    def images(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """See `CLIPNetwork`."""
        return embed_image(self.tower, frozen["clip"], _resized(image, self.tower.image_size))

    def texts(self, frozen: Frozen, ids: jax.Array) -> jax.Array:
        """See `CLIPNetwork`."""
        states: Any = CLIPTextEncoder(self.text).apply({"params": frozen["text"]["text_encoder"]}, ids)
        return embed_caption(frozen["clip"], states.pooled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedCLIP:
    """OpenAI's CLIP in transformers' format, whose vocabulary is that of Stable Diffusion's tokenizers.

    mean, std: of its pixels, f32[3] (`evals.preprocess`).
    """

    vision: clip_vision.VisionConfig
    text: TextConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def images(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """See `CLIPNetwork`."""
        pixels = 0.5 * (_resized(image, self.vision.image_size) + 1.0)
        mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (self.mean, self.std))
        return unit(clip_vision.embed_image(self.vision, frozen["clip"]["vision"], (pixels - mean) / std))

    def texts(self, frozen: Frozen, ids: jax.Array) -> jax.Array:
        """See `CLIPNetwork`."""
        return unit(clip_vision.embed_text(self.text, frozen["clip"]["text"], ids))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPGuidance:
    """Fields: the manipulator, the CLIP, the three weights, and R, which an identity weight above 0 needs."""

    manipulator: Manipulator
    clip: CLIPNetwork
    clip_weight: float = 1.0
    l2_weight: float = 0.8
    identity_weight: float = 0.0
    identity: Identity | None = None

    def __post_init__(self) -> None:
        if self.identity_weight and self.identity is None:
            raise ValueError(
                f"identity_weight={self.identity_weight} has no network to recognise with: set config.identity.kind"
            )

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the manipulator's parameters."""
        return self.manipulator.init(rng, frozen)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted sum and its terms."""
        code = self.manipulator.source(frozen, batch, rng)
        edited = self.manipulator.apply(params, frozen, code)
        image = self.manipulator.image(frozen, edited)
        prompts = jax.lax.stop_gradient(self.clip.texts(frozen, batch["input_ids"]))
        clip = jnp.mean(1.0 - jnp.sum(self.clip.images(frozen, image) * prompts, axis=-1))
        l2 = code_distance(edited, code)
        loss, metrics = self.clip_weight * clip + self.l2_weight * l2, {"clip": clip, "l2": l2}
        if self.identity_weight and self.identity is not None:
            original = self.manipulator.image(frozen, code)
            metrics["identity"] = jnp.mean(identity_loss(self.identity, frozen, image, original))
            loss = loss + self.identity_weight * metrics["identity"]
        return loss, metrics

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of the manipulator."""
        return (Phase(self.loss),)


def _resized(image: jax.Array, side: int) -> jax.Array:
    if image.shape[1:3] == (side, side):
        return image
    return jax.image.resize(image, (image.shape[0], side, side, 3), "bicubic")
