"""Plain latent diffusion training (Ho et al., 2020; Rombach et al., 2022): regress what the network predicts.

    z_t = alpha_t x0 + sigma_t eps,   L = E_{t, eps} m(t) |target - f(z_t, t, context)|^2

The target is eps, v or x0 as the model's `prediction` says. m(t) is 1, or min-SNR (Hang et al., 2023): the weight in x0
space clipped at gamma, which for eps is min(snr, gamma) / snr and for v min(snr, gamma) / (snr + 1). A share of the
captions is replaced by the empty one, which is what classifier-free guidance later reads.

Batch: `moments` f32[b,h,w,2c] (or `image`), `context` f32[b,n,d] (or `input_ids`). Cost: 3F.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Level, Schedule, add_noise, snr
from sdd_jax.objectives.inputs import drop_captions, latents_of, text_of
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase

TARGETS: dict[str, Callable[[jax.Array, jax.Array, Level], jax.Array]] = {
    "eps": lambda x0, eps, at: eps,
    "v": lambda x0, eps, at: at.alpha * eps - at.sigma * x0,
    "x0": lambda x0, eps, at: x0,
}
"""What a network of each prediction regresses, from (x0, eps, level)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Fields: the model, how to make its UNet, caption dropout, min-SNR gamma (None: weight 1)."""

    model: ModelBundle
    init_unet: Callable[[jax.Array], Params]
    caption_dropout: float = 0.1
    min_snr_gamma: float | None = None

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the UNet to train."""
        return {"unet": self.init_unet(rng)}

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted mean squared error and the unweighted one."""
        latents_rng, time_rng, noise_rng, drop_rng = jax.random.split(rng, 4)
        x0 = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        context, added_cond = drop_captions(self.model, frozen, text, self.caption_dropout, drop_rng)
        schedule = Schedule(self.model.alphas_cumprod)
        t = jax.random.randint(time_rng, x0.shape[:1], 0, schedule.num_timesteps)
        level = schedule.at(t)
        eps = jax.random.normal(noise_rng, x0.shape)
        z_t = add_noise(x0, eps, level)
        target = TARGETS[self.model.prediction](x0, eps, level)
        prediction = self.model.denoise(params["unet"], z_t, t, context, added_cond=added_cond)
        errors = jnp.mean((target - prediction) ** 2, axis=(1, 2, 3))
        return jnp.mean(self._weight(level) * errors), {"mse": jnp.mean(errors)}

    def _weight(self, level: Level) -> jax.Array:
        if self.min_snr_gamma is None:
            return jnp.ones(())
        ratio = snr(level).reshape(-1)
        clipped = jnp.minimum(ratio, self.min_snr_gamma)
        return clipped / {"eps": ratio, "v": ratio + 1.0, "x0": jnp.ones_like(ratio)}[self.model.prediction]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of the UNet."""
        return (Phase(self.loss),)
