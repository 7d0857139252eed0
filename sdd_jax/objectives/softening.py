"""Softened images, on which the world's instruments learn to read pictures that are not renders.

    x' = (1 - u) x + u blur_3(x) + s n,    u ~ U(0, 1),  s ~ U(0, noise),  n ~ N(0, I)

Reconstructions and generated pictures are softer than renders, and have lost the finest detail. An instrument that
reads a value off such detail takes its loss for a loss of the value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soften(rng: jax.Array, image: jax.Array, noise: float) -> jax.Array:
    """Blends each image of f32[b,H,W,c] with its blur by a random share and adds noise of a random deviation."""
    keys = jax.random.split(rng, 3)
    shape = (image.shape[0], 1, 1, 1)
    share = jax.random.uniform(keys[0], shape)
    deviation = jax.random.uniform(keys[1], shape, maxval=noise)
    kernel = jnp.array([0.25, 0.5, 0.25])
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = sum((kernel[i] * padded[:, i : i + image.shape[1]] for i in range(3)), start=jnp.zeros(()))
    blurred = sum((kernel[i] * rows[:, :, i : i + image.shape[2]] for i in range(3)), start=jnp.zeros(()))
    return (1 - share) * image + share * blurred + deviation * jax.random.normal(keys[2], image.shape)
