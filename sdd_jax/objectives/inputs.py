"""What every objective reads from a batch first: latents and text states, given or computed.

A batch carries either an image and token ids or their precomputed moments and text states; both become the same
arrays here, so that no method needs to know which.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.types import Batch, Frozen, ModelBundle


def latents_of(model: ModelBundle, frozen: Frozen, batch: Batch, rng: jax.Array) -> jax.Array:
    """Draws scaled latents f32[b,h,w,c] from the posterior of `moments` f32[b,h,w,2c], else of `image` f32[b,H,W,3]."""
    if "moments" not in batch:
        return model.encode(frozen["vae"], batch["image"], rng)
    mean, logvar = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
    std = jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))
    return (mean + std * jax.random.normal(rng, mean.shape)) * model.latent_scale


def text_of(model: ModelBundle, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """Returns (context f32[b,n,d], the UNet's added_cond or None) of precomputed `context` or of `input_ids`."""
    if "context" in batch:
        context, pooled = batch["context"], batch.get("pooled")
    else:
        context, pooled = model.embed_text(frozen["text"], batch["input_ids"], batch.get("input_ids_2"))
    return context, added_conditions(model, pooled)


def drop_captions(
    model: ModelBundle, frozen: Frozen, text: tuple[jax.Array, Any], rate: float, rng: jax.Array
) -> tuple[jax.Array, Any]:
    """Replaces a share `rate` of the captions of `text_of` by the empty one, SDXL's pooled states with the others."""
    context, added_cond = text
    dropped = jax.random.bernoulli(rng, rate, (context.shape[0], 1, 1))
    nothing = null_conditions(frozen, added_cond)
    added_cond = jax.tree.map(lambda null, own: jnp.where(dropped[..., 0], null, own), nothing, added_cond)
    return jnp.where(dropped, frozen["null_context"], context), added_cond


def null_conditions(frozen: Frozen, added_cond: Any) -> Any:
    """Returns the added conditions of the empty prompt at the sizes of `added_cond`, where prompts have any."""
    return None if added_cond is None else {**added_cond, "text_embeds": frozen["null_pooled"]}


def added_conditions(
    model: ModelBundle, pooled: jax.Array | None, sides: tuple[int, int] | None = None
) -> dict[str, jax.Array] | None:
    """Returns SDXL's added conditions for uncropped images; None for other models.

    sides: (height, width) in pixels; by default square, of the model's own size.
    """
    if pooled is None:
        return None
    height, width = map(float, sides or (model.sample_size * model.downsampling,) * 2)
    time_ids = jnp.asarray([[height, width, 0.0, 0.0, height, width]])
    return {"text_embeds": pooled, "time_ids": jnp.tile(time_ids, (pooled.shape[0], 1))}
