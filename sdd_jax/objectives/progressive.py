"""GD: guided and progressive distillation of the text-to-image teacher (Salimans & Ho, 2022; Meng et al., 2023).

The paper's other two-stage baseline: distil the unconditional teacher first, in rounds that each divide the number of
steps, then fine-tune the few-step student on the condition (`objectives.conditional` with `grid_steps` = its steps).

One round. The student has N trailing times t_0 > t_1 > ... and reaches t_{i+1} (CLEAN after the last) in one DDIM step;
the teacher walks the same way in k DDIM steps over the grid of N k times. From z_t the teacher arrives at z_s, and

    x~ = (z_s - r z_t) / (alpha_s - r alpha_t),   r = sigma_s / sigma_t          the x0 whose one DDIM step ends there
    L  = max(alpha_t^2 / sigma_t^2, 1) |x~ - x_hat_student(z_t, t)|^2            truncated SNR

In the first round the teacher is guided by `guidance_scale` (1 is off, F instead of 2F a step); later rounds start from
the student before, which has absorbed it, with guidance_scale 1. t is drawn per sample.

Cost per sample: 3F and k teacher steps: 3F + kF, in the first round 3F + 2kF.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import CLEAN, Level, add_noise, truncated_snr
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.diffusion.transport import move
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(ConditionalNetwork):
    """Fields: `grid_steps` N of the student; `substeps` k; `guidance_scale` of the teacher; and the network's."""

    grid_steps: int = 8
    substeps: int = 2
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train_unet:
            raise ValueError("train_unet=False leaves nothing to distil into: progressive distillation trains the UNet")
        if self.substeps < 2 or self.grid_steps < 1:
            raise ValueError(f"grid_steps={self.grid_steps}, substeps={self.substeps}: at least 1 and 2")

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted error against the teacher's arrival, and the plain one."""
        latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        x = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        hint = self.adapter.prepare(frozen, batch.get("condition"))
        times, is_last = self.draw_times(time_rng, x.shape[0])
        at = self.schedule.at(times[0])
        z_t = add_noise(x, jax.random.normal(noise_rng, x.shape), at)

        w = None if self.guidance_scale == 1.0 else jnp.float32(self.guidance_scale)
        z, from_level = z_t, at
        for i in range(self.substeps):
            out = self.pretrained(frozen, z, times[i], text, w)
            to_level = self.schedule.at(times[i + 1])
            if i == self.substeps - 1:
                last = is_last[:, None, None, None]
                to_level = Level(
                    jnp.where(last, CLEAN.alpha, to_level.alpha), jnp.where(last, CLEAN.sigma, to_level.sigma)
                )
            z = move(out, z, from_level, to_level, self.model.prediction)
            from_level = to_level
        target = jax.lax.stop_gradient(one_step_data(z_t, z, at, from_level))

        out = self.predict(params, frozen, hint, z_t, times[0], text)
        errors = l2(target, predictor(self.model.prediction).x0(out, z_t, at))
        return jnp.mean(truncated_snr(at) * errors), {
            "mse": jnp.mean(errors),
            "reconstruction": jnp.mean(l2(x, target)),
        }

    def draw_times(self, rng: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """Draws the teacher's stops i32[k+1,b] from a student's time to its next, and whether that is CLEAN bool[b].

        Where it is CLEAN the last stop repeats the one before it.
        """
        grid = trailing_grid(self.grid_steps * self.substeps, len(self.model.alphas_cumprod))
        fine = jnp.asarray([*grid, grid[-1]])
        start = jax.random.randint(rng, (batch_size,), 0, self.grid_steps) * self.substeps
        stops = fine[start[None] + jnp.arange(self.substeps + 1)[:, None]]
        return stops, start == (self.grid_steps - 1) * self.substeps

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of the UNet."""
        return (Phase(self.loss),)


def one_step_data(z_t: jax.Array, z_s: jax.Array, at_t: Level, at_s: Level) -> jax.Array:
    """x~ above: the x0 whose DDIM step from z_t at `at_t` ends in z_s at `at_s` (CLEAN: z_s), f32[b,h,w,c]."""
    ratio = at_s.sigma / at_t.sigma
    return (z_s - ratio * z_t) / (at_s.alpha - ratio * at_t.alpha)
