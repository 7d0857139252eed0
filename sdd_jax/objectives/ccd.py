"""CCD: conditional diffusion distillation (Mei et al., CVPR 2024, there also CoDi), eq. 11.

From a text-to-image teacher straight to a few-step image-conditional model, in one stage. With the online network's
prediction at (z_t, t, c), z_t = alpha_t x + sigma_t eps:

    z_s  = alpha_s x_hat + sigma_s eps                                  (eq. 12, "PREv": the real noise that built z_t)
    L    = d_eps(sg eps_hat_target(z_s, s, c), eps_hat_online(z_t, t, c)) + d_x(x, x_hat_online(z_t, t, c))   (eq. 11)

t is drawn from a trailing grid of N times, from its second point on, and s is the previous grid point, never CLEAN,
where the target cannot be evaluated. One t is shared by the whole batch (the paper's finding; released codes draw one
per sample). Algorithm 1 prints t for the target's time; eq. 11 and the text say s, and so does this code. The target is
the EMA of the online network, and its output is not differentiated.

What is trained: the adapter and the UNet (`train_unet`), or the adapter alone on a frozen UNet (sec. 4.4).

Cost per sample: 4F in full training (the online prediction serves both terms: 3F, the target's 1F), plus 4 adapter
forwards. Adapter only: the backward pass stops at the decoder's weights, 3F or less, plus the same adapter forwards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import Distance, l2
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import grid_pairs
from sdd_jax.diffusion.transport import prev_with_noise
from sdd_jax.models.adapters import Adapter
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class CCD:
    """The method's choices.

    Fields: the teacher's bundle and the adapter; `train_unet` for full training; `grid_steps` N; `shared_time`;
    `eps_weight` and `x_weight` of eq. 11's two terms, and their distances per sample.
    """

    model: ModelBundle
    adapter: Adapter
    train_unet: bool = True
    grid_steps: int = 50
    shared_time: bool = True
    eps_weight: float = 1.0
    x_weight: float = 1.0
    eps_distance: Distance = l2
    x_distance: Distance = l2

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the adapter's parameters and, in full training, the teacher's UNet to start from."""
        params = {"adapter": self.adapter.init(rng, frozen["teacher"]["unet"])}
        if self.train_unet:
            params["unet"] = jax.tree.map(lambda x: x.astype(jnp.float32), frozen["teacher"]["unet"])
        return params

    def predict(
        self, params: Params, frozen: Frozen, hint: jax.Array, z_t: jax.Array, t: jax.Array, text: tuple
    ) -> jax.Array:
        """Evaluates the conditional network: the UNet of `params`, else the teacher's, with the adapter's residuals."""
        context, added_cond = text
        unet = params.get("unet", frozen["teacher"]["unet"])
        residuals = self.adapter.residuals(params["adapter"], hint, z_t, t, context, added_cond)
        return self.model.denoise(unet, z_t, t, context, added_cond=added_cond, residuals=residuals)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns eq. 11 averaged over the batch, and its two terms."""
        latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        time_rng = frozen["step_rng"] if self.shared_time else time_rng
        kind, schedule = predictor(self.model.prediction), Schedule(self.model.alphas_cumprod)
        x = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        hint = self.adapter.prepare(frozen, batch["condition"])
        t, s = self.draw_times(time_rng, x.shape[0])
        at_t, at_s = schedule.at(t), schedule.at(s)
        eps = jax.random.normal(noise_rng, x.shape)
        z_t = add_noise(x, eps, at_t)

        online = self.predict(params, frozen, hint, z_t, t, text)
        x_hat, eps_hat = kind.x0(online, z_t, at_t), kind.eps(online, z_t, at_t)
        z_s = jax.lax.stop_gradient(prev_with_noise(x_hat, eps, at_s))
        target = jax.lax.stop_gradient(self.predict(frozen["target"], frozen, hint, z_s, s, text))
        eps_target = kind.eps(target, z_s, at_s)

        consistency = jnp.mean(self.eps_distance(eps_target, eps_hat))
        reconstruction = jnp.mean(self.x_distance(x, x_hat))
        loss = self.eps_weight * consistency + self.x_weight * reconstruction
        return loss, {"consistency": consistency, "reconstruction": reconstruction}

    def draw_times(self, rng: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """Draws (t, s) i32[b] of neighbouring grid points; when time is shared, one pair for the whole global batch."""
        t, s = grid_pairs(self.grid_steps, len(self.model.alphas_cumprod))
        index = jax.random.randint(rng, () if self.shared_time else (batch_size,), 0, len(t))
        t_drawn, s_drawn = (jnp.broadcast_to(jnp.asarray(times)[index], (batch_size,)) for times in (t, s))
        return t_drawn, s_drawn

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)
