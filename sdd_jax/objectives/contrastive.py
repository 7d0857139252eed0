"""Contrastive language-image pre-training (Radford et al., 2021) with counterfactual captions as extra negatives.

With unit embeddings u_i of images and v_j of captions and a learned temperature exp(tau):

    s_ij = exp(tau) u_i.v_j,    r_il = exp(tau) u_i.n_il
    L = 1/2 [ CE_i over {s_i1 .. s_ib, r_i1 .. r_ik}  +  CE_j over {s_1j .. s_bj} ]

n_i1..n_ik are captions of image i with one attribute changed: in-batch captions differ in many words, so telling them
apart teaches little about any single one, and the text states stay blind to it. A negative (in-batch or counterfactual)
whose ids equal the positive's is masked.

Batch: `image` f32[b,H,W,3], `input_ids` i32[b,n], `negative_ids` i32[b,k,n].
Cost: 3 tower forwards on b images, 3 text forwards on b (k + 1) captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sdd_jax.models.towers import TowerConfig, embed_caption, embed_image, init_tower
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Fields: the image tower; the text encoder as `init_text(rng)` and `embed_text(params, ids) -> [b,d]`, pooled."""

    tower: TowerConfig
    init_text: Callable[[jax.Array], Params]
    embed_text: Callable[[Params, jax.Array], jax.Array]
    text_width: int
    max_logit_scale: float = 4.6052

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns fresh parameters: text_encoder, image tower, text_projection, logit_scale."""
        keys = jax.random.split(rng, 3)
        projection = jax.random.normal(keys[2], (self.text_width, self.tower.outputs)) * self.text_width**-0.5
        return {
            "text_encoder": self.init_text(keys[0]),
            "image": init_tower(keys[1], self.tower),
            "text_projection": {"kernel": projection},
            "logit_scale": jnp.asarray(2.659, jnp.float32),
        }

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the symmetric cross-entropy and the in-batch image-to-caption accuracy."""
        ids, negative_ids = batch["input_ids"], batch["negative_ids"]
        b, k, n = negative_ids.shape
        images = embed_image(self.tower, params, batch["image"])
        captions = self.embed_captions(params, jnp.concatenate([ids, negative_ids.reshape(b * k, n)]))
        scale = jnp.exp(jnp.minimum(params["logit_scale"], self.max_logit_scale))
        within = scale * images @ captions[:b].T
        against = scale * jnp.einsum("bd,bkd->bk", images, captions[b:].reshape(b, k, -1))
        same = jnp.all(ids[:, None] == ids[None], -1) & ~jnp.eye(b, dtype=bool)
        within = jnp.where(same, -jnp.inf, within)
        against = jnp.where(jnp.all(ids[:, None] == negative_ids, -1), -jnp.inf, against)
        labels = jnp.arange(b)
        image_loss = optax.softmax_cross_entropy_with_integer_labels(jnp.concatenate([within, against], 1), labels)
        text_loss = optax.softmax_cross_entropy_with_integer_labels(within.T, labels)
        metrics = {
            "retrieval": (within.argmax(-1) == labels).mean(),
            "negatives": (jnp.diag(within) > against.max(-1)).mean(),
        }
        return 0.5 * (image_loss.mean() + text_loss.mean()), metrics

    def embed_captions(self, params: Params, ids: jax.Array) -> jax.Array:
        """Returns unit caption embeddings f32[b,e] of `ids` i32[b,n]."""
        return embed_caption(params, self.embed_text(params["text_encoder"], ids))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of every parameter."""
        return (Phase(self.loss),)
