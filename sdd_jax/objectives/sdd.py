"""SDD: selective diffusion distillation of an image manipulator (Wang et al., ICCV 2023, sec. 4.1 and 4.3).

A feed-forward manipulator f_phi learns one edit from a frozen text-to-image teacher, at the timesteps S whose gradient
is worth having (`hqs`). With z' the latents of the manipulated image, t drawn from S, z'_t = alpha_t z' + sigma_t eps,

    g    = sigma_t^2 (eps_hat^w(z'_t, t, prompt) - eps)          a constant: the teacher's Jacobian is skipped      (5)
    L    = sds_weight <z', g> / (h w) + l2_weight mean (code' - code)^2 + identity_weight (1 - cos(R(x'), R(x)))    (7)

so that the gradient that reaches z' is g per latent pixel, and from there whatever lies between z' and phi: nothing for
a manipulator of latents, the encoder (and a generator) for one of images. sigma_t^2 is the paper's w(t) = 1 -
alphas_cumprod[t]. `top_k` keeps the k largest |g| of each sample. S = all timesteps is plain SDS. Gradients of phi are
clipped by the optimiser (`config.optimizer.clip_norm`).

The released code feeds g to the backward pass of a batch's sum, which here is sds_weight = h w b (4096 b at 512 px)
beside its weights for the other two (10 and 1); guidance 100; top_k 1024 of the whole batch; and its identity loss
compares an image with itself.

S is data, not program: `frozen["timesteps"]` is the probability of every t (`time_distribution`), so that trainings
which differ in nothing else share one compiled step.

Cost per sample: 2F for g (1F unguided), no backward pass through the teacher, and of the manipulator forward and
backward: 3F for the translator, so 5F; for a style mapper forward and input gradients of the generator and the
autoencoder's encoder. Reencoding adds passes through the autoencoder; the identity loss an image of each code and R.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.score import eps_denoiser, keep_top_k, sds_gradient, surrogate
from sdd_jax.objectives.identity import Identity, identity_loss
from sdd_jax.objectives.inputs import added_conditions, text_of
from sdd_jax.objectives.manipulators import Manipulator, code_distance
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDD:
    """The method's choices.

    Fields: the teacher's bundle, the manipulator; `guidance` w, 1 is off; `top_k` (None: all of g); the weights of (7);
    `identity`, R, which a weight above 0 needs.
    """

    model: ModelBundle
    manipulator: Manipulator
    guidance: float = 100.0
    top_k: int | None = None
    sds_weight: float = 1.0
    l2_weight: float = 1.0
    identity_weight: float = 0.0
    identity: Identity | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} keeps nothing: give at least 1, or None for all")
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
        """Returns (7), whose value means nothing but whose gradient does, and sizes: of g, of the edit, of the loss."""
        code_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        code = self.manipulator.source(frozen, batch, code_rng)
        edited = self.manipulator.apply(params, frozen, code)
        image = self.manipulator.image(frozen, edited) if self.identity_weight else None
        z = self.manipulator.latents(frozen, edited, image)
        g = self.gradient(frozen, batch, z, draw_times(frozen["timesteps"], time_rng, z.shape[0]), noise_rng)
        l2 = code_distance(edited, code)
        loss = self.sds_weight * jnp.mean(surrogate(z, g)) + self.l2_weight * l2
        metrics = {"gradient": jnp.sqrt(jnp.mean(g**2)), "l2": l2}
        if image is not None and self.identity is not None:
            original = self.manipulator.image(frozen, code)
            metrics["identity"] = jnp.mean(identity_loss(self.identity, frozen, image, original))
            loss = loss + self.identity_weight * metrics["identity"]
        return loss, metrics

    def gradient(self, frozen: Frozen, batch: Batch, z: jax.Array, t: jax.Array, rng: jax.Array) -> jax.Array:
        """g f32[b,h,w,c] at latents z [b,h,w,c] and t int32[b], with noise drawn from `rng` (5)."""
        context, added_cond = text_of(self.model, frozen, batch)
        eps_hat = eps_denoiser(
            functools.partial(self.model.denoise, frozen["teacher"]["unet"]),
            self.model.prediction,
            frozen["null_context"],
            added_conditions(self.model, frozen.get("null_pooled")),
        )
        w = None if self.guidance == 1.0 else self.guidance
        eps, level = jax.random.normal(rng, z.shape), Schedule(self.model.alphas_cumprod).at(t)
        g = level.sigma**2 * sds_gradient(eps_hat, z, eps, t, level, context, w, added_cond=added_cond)
        return g if self.top_k is None else keep_top_k(g, self.top_k)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of the manipulator."""
        return (Phase(self.loss),)


def time_distribution(timesteps: Sequence[int], count: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """The probability f32[count] of each of a model's `count` timesteps: of S by `weights` (None: uniform), else 0.

    Raises:
        ValueError: S is empty or has a timestep that the model lacks.
    """
    if not timesteps or not all(0 <= t < count for t in timesteps):
        raise ValueError(f"timesteps={tuple(timesteps)}: give at least one, each in 0..{count - 1}")
    distribution = np.zeros(count)
    np.add.at(distribution, list(timesteps), 1.0 if weights is None else list(weights))
    return (distribution / distribution.sum()).astype(np.float32)


def draw_times(distribution: jax.Array, rng: jax.Array, batch_size: int) -> jax.Array:
    """Draws t int32[b] by the probability f32[T] of each, one for each sample."""
    return jax.random.choice(rng, len(distribution), (batch_size,), p=distribution)
