"""DDS: a one-pass translator distilled from a frozen teacher by delta denoising score (Hertz et al. 2023, sec. 4).

An image's latents zhat under its caption yhat, a task k that edits the caption to y, one t and one eps for both:

    z    = g_theta(zhat, k)                                                                      (1)
    g    = eps_hat^w(z_t, y, t) - eps_hat^w(zhat_t, yhat, t)                                     (2)
    L    = <z - zhat, sg g> / (H W) + lambda_i |z - zhat|^2 / (H W)                              (3)
    w_i  = w_0 + (w - w_0) min(1, i / (r n))                  guidance warm-up                   (4)
    lambda_i = lambda_n + (lambda - lambda_n) (1 + cos(pi i / n)) / 2                            (5)

at step i of n. Only theta is differentiated: dL/dz is (g + 2 lambda_i (z - zhat)) / (H W), the teacher's Jacobian is
skipped. Without the warm-up (r = 0) the paper sees all outputs collapse to one; with `subtract_source` off, g is SDS:
its two ablations. t is uniform over t_min..t_max, or over `timesteps` where a search selected some (SDD); g is weighted
by alpha_t^a sigma_t^b, which the paper leaves at 1.

Cost per sample: 7F, the translator's 3F and two guided scores in one call of the network; SDS 5F. The text encoder runs
on captions that come as ids. Batch: `moments` or `image`, `input_ids` of y, `source_ids` of yhat, `task` i32[b] (and,
in place of ids, `context`, `source_context`; for SDXL also `input_ids_2`, `source_ids_2`, or `pooled`,
`source_pooled`).

Not published, so fields: lambda and its end, w_0 and r, and the optimiser's settings.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Level, Schedule
from sdd_jax.diffusion.score import EpsFn, dds_gradient, eps_denoiser, sds_gradient, surrogate
from sdd_jax.models.translator import Translator
from sdd_jax.objectives.inputs import added_conditions, latents_of, text_of
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase

_SOURCE = {"source_ids": "input_ids", "source_ids_2": "input_ids_2", "source_context": "context",
           "source_pooled": "pooled"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDS:
    """The method's choices.

    Fields:
        model: the teacher, whose parameters are `frozen['teacher']['unet']`; `frozen['null_context']` f32[1,n,d] (and
            `null_pooled`) is the empty prompt, `frozen['task_context']` f32[M,n,d] (and `task_pooled`) the tasks'.
        output: what the translator's answer means, see `models.translator`.
        steps: n, the run's length.
        guidance, guidance_start, guidance_warmup: w, w_0 and r of (4).
        identity, identity_end: lambda and lambda_n of (5).
        subtract_source: DDS; False is SDS.
        t_min, t_max: the range of t, both ends included; timesteps: these instead, where there are any.
        alpha_power, sigma_power: a and b of g's weight.
    """

    model: ModelBundle
    output: str = "residual"
    steps: int
    guidance: float = 7.5
    guidance_start: float = 1.0
    guidance_warmup: float = 0.5
    identity: float = 1.0
    identity_end: float = 0.0
    subtract_source: bool = True
    t_min: int = 50
    t_max: int = 948
    timesteps: tuple[int, ...] = ()
    alpha_power: float = 0.0
    sigma_power: float = 0.0

    def __post_init__(self) -> None:
        last = len(self.model.alphas_cumprod) - 1
        times = self.timesteps or (self.t_min, self.t_max)
        if not 1 <= min(times) <= max(times) <= last or self.t_min > self.t_max:
            raise ValueError(f"timesteps {times} must lie in 1..{last}, the lower first")
        if not 0 <= self.guidance_warmup <= 1 or min(self.identity, self.identity_end) < 0:
            raise ValueError(
                f"guidance_warmup={self.guidance_warmup} is a share of the steps, in [0, 1]; identity={self.identity} "
                f"and identity_end={self.identity_end} are weights, not below 0"
            )
        _ = self.translator

    @property
    def translator(self) -> Translator:
        """The network that is trained."""
        return Translator(model=self.model, output=self.output)

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the translator that starts from the teacher's UNet and the tasks' text states; draws nothing."""
        return self.translator.init(frozen["teacher"]["unet"], frozen["task_context"], frozen.get("task_pooled"))

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns (3) averaged over the batch, and: the score's and the change's root mean squares, w_i, lambda_i."""
        latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        z_source = latents_of(self.model, frozen, batch, latents_rng)
        z = self.translator.apply(params, z_source, batch["task"])
        t = self.draw_times(time_rng, z.shape[0])
        level, w, weight = Schedule(self.model.alphas_cumprod).at(t), self.guidance_at(step), self.identity_at(step)
        g = self.score(frozen, batch, z, z_source, jax.random.normal(noise_rng, z.shape), t, level, w)
        change = z - z_source
        identity = jnp.mean(jnp.sum(jnp.square(change), axis=(1, 2, 3))) / (z.shape[1] * z.shape[2])
        loss = jnp.mean(surrogate(change, g)) + weight * identity
        metrics = {"score": _rms(g), "change": _rms(change), "guidance": w, "identity_weight": weight}
        return loss, metrics

    def score(
        self,
        frozen: Frozen,
        batch: Batch,
        z: jax.Array,
        z_source: jax.Array,
        eps: jax.Array,
        t: jax.Array,
        level: Level,
        w: jax.Array,
    ) -> jax.Array:
        """g of (2), weighted, f32[b,h,w,c]; a constant to autodiff."""
        eps_hat = self._eps_hat(frozen)
        context, added = text_of(self.model, frozen, batch)
        conditions = {} if added is None else {"added_cond": added}
        if not self.subtract_source:
            g = sds_gradient(eps_hat, z, eps, t, level, context, w, **conditions)
        else:
            source = {name: batch[key] for key, name in _SOURCE.items() if key in batch}
            source_context, source_added = text_of(self.model, frozen, source)
            if added is not None:
                conditions = {"added_cond": jax.tree.map(lambda *x: jnp.concatenate(x), added, source_added)}
            g = dds_gradient(eps_hat, z, z_source, eps, t, level, context, source_context, w, **conditions)
        return g * level.alpha**self.alpha_power * level.sigma**self.sigma_power

    def _eps_hat(self, frozen: Frozen) -> EpsFn:
        null_added = added_conditions(self.model, frozen.get("null_pooled"))
        denoise = functools.partial(self.model.denoise, frozen["teacher"]["unet"])
        return eps_denoiser(denoise, self.model.prediction, frozen["null_context"], null_added)

    def draw_times(self, rng: jax.Array, batch_size: int) -> jax.Array:
        """Draws t int32[b]: each of the range, or of the selected ones, is as likely."""
        if self.timesteps:
            return jax.random.choice(rng, jnp.asarray(self.timesteps, jnp.int32), (batch_size,))
        return jax.random.randint(rng, (batch_size,), self.t_min, self.t_max + 1)

    def guidance_at(self, step: jax.Array) -> jax.Array:
        """w_i of (4), f32[]."""
        done = jnp.minimum(1.0, step / max(self.guidance_warmup * self.steps, 1.0)) if self.guidance_warmup else 1.0
        return jnp.asarray(self.guidance_start + (self.guidance - self.guidance_start) * done, jnp.float32)

    def identity_at(self, step: jax.Array) -> jax.Array:
        """lambda_i of (5), f32[]."""
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(1.0, step / self.steps)))
        return jnp.asarray(self.identity_end + (self.identity - self.identity_end) * share, jnp.float32)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
