"""Guidance distillation: two-pass guided predictions in one pass (Meng et al. 2023; stage 1 of iCD).

The student reads the guidance scale w and regresses what the frozen teacher says with guidance,

    target = f_teacher(z_t, t, null) + w (f_teacher(z_t, t, c) - f_teacher(z_t, t, null))           (1)  w = 1 is off
    L      = E_{t, w, eps} mean |f_student(z_t, t, c, w) - target|^2                                (2)

in the teacher's own space: guidance is linear, so (1) is the guided eps of an eps network and the guided v of a v
network. t is uniform over all timesteps and w is drawn per sample, from a list or uniformly from an interval. Scales of
iCD: SD1.5 {1, 8, 12, 16, 20}; SDXL {1, 4, 6, 8 or 9, 10, 12, 13 or 14, 16, 18, 20} (paper and scripts differ).

w enters as `guidance_embedding(w)`, the UNet's `timestep_cond`, through a bias-free projection (`time_cond_proj_dim`,
diffusers' `cond_proj`) that is added to the time features. The projection starts at zero, so that the student starts as
the teacher's conditional prediction for every w; the embedding itself is never zero (its norm is 16).

What is trained: every weight, or low-rank adapters and the projection.

Cost per sample: 5F in full training, student 3F and teacher 2F (cond and uncond in one forward of 2B samples). With
adapters the student's backward holds no gradient of a frozen kernel: student 2F and the adapter's own, 4F together.

No training code of stage 1 was released; (2) without a weight in t, and t over all timesteps, are choices made here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.guidance import guidance_embedding, guided
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.models import lora
from sdd_jax.models.lora import LoraSpec
from sdd_jax.objectives.inputs import latents_of, null_conditions, text_of
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceDistillation:
    """The method's choices.

    Fields:
        model: the teacher. Its frozen parameters are `frozen['teacher']['unet']`; the empty prompt's states are
            `frozen['null_context']` f32[1,n,d] and, for SDXL, `frozen['null_pooled']` f32[1,e].
        student: the bundle of `student_configs(model.configs)`.
        scales: the values of w; with `interval` the two ends of the interval that w is drawn from.
        lora: adapters to train in place of all weights; None trains everything.
    """

    model: ModelBundle
    student: ModelBundle
    scales: tuple[float, ...] = (1.0, 8.0, 12.0, 16.0, 20.0)
    interval: bool = False
    lora: LoraSpec | None = None
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 0:
            raise ValueError(f"scales={self.scales} are no guidance scales: give at least one, none below 0 (1 is off)")
        if self.interval and (len(self.scales) != 2 or not self.scales[0] < self.scales[1]):
            raise ValueError(f"scales={self.scales} is no interval: give its two ends (low, high)")

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns {'unet'}, the teacher with a zero projection, or {'lora', 'cond_proj'}: a fresh adapter and zeros."""
        teacher = frozen["teacher"]["unet"]
        projection = zero_projection(teacher, self.embedding_dim)
        if self.lora is None:
            return {"unet": with_projection(jax.tree.map(lambda x: x.astype(jnp.float32), teacher), projection)}
        return {"lora": lora.init(rng, teacher, self.lora), "cond_proj": projection}

    def predict(
        self, params: Params, frozen: Frozen, z_t: jax.Array, t: jax.Array, text: tuple[jax.Array, Any], w: jax.Array
    ) -> jax.Array:
        """Evaluates the student at z_t f32[b,h,w,c], t int[b], (context, added_cond) and w f32[b]: one forward."""
        context, added_cond = text
        conditions = {"added_cond": added_cond, "timestep_cond": guidance_embedding(w, self.embedding_dim)}
        if self.lora is None:
            return self.student.denoise(params["unet"], z_t, t, context, **conditions)
        base = with_projection(frozen["teacher"]["unet"], params["cond_proj"])
        return lora.adapt(self.student.denoise, self.lora)(base, params["lora"], z_t, t, context, **conditions)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns (2) and the student's error relative to the target's size, an RMSE over the batch."""
        latents_rng, time_rng, noise_rng, scale_rng = jax.random.split(rng, 4)
        schedule = Schedule(self.model.alphas_cumprod)
        x0 = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        t = jax.random.randint(time_rng, x0.shape[:1], 0, schedule.num_timesteps)
        w = self.draw_scales(scale_rng, x0.shape[0])
        z_t = add_noise(x0, jax.random.normal(noise_rng, x0.shape), schedule.at(t))
        target = jax.lax.stop_gradient(self.guided_teacher(frozen, z_t, t, text, w))
        loss = jnp.mean(l2(self.predict(params, frozen, z_t, t, text, w), target))
        return loss, {"relative_rmse": jnp.sqrt(loss / jnp.mean(jnp.square(target)))}

    def guided_teacher(
        self, frozen: Frozen, z_t: jax.Array, t: jax.Array, text: tuple[jax.Array, Any], w: jax.Array
    ) -> jax.Array:
        """The teacher's guided prediction (1), f32[b,h,w,c], at the cost of 2F; arguments as for `predict`."""
        context, added_cond = text
        denoise = functools.partial(self.model.denoise, frozen["teacher"]["unet"])
        null_added_cond = null_conditions(frozen, added_cond)
        return guided(denoise, frozen["null_context"], null_added_cond)(z_t, t, context, w, added_cond=added_cond)

    def draw_scales(self, rng: jax.Array, batch_size: int) -> jax.Array:
        """Draws w f32[b]: each value of the list, or each point of the interval, is as likely."""
        if self.interval:
            return jax.random.uniform(rng, (batch_size,), minval=self.scales[0], maxval=self.scales[1])
        return jax.random.choice(rng, jnp.asarray(self.scales, jnp.float32), (batch_size,))

    def student_unet(self, params: Params, frozen: Frozen) -> Params:
        """The student as one tree of UNet parameters, adapters merged: what is exported, and stage 2's teacher."""
        if self.lora is None:
            return params["unet"]
        return with_projection(lora.merge(frozen["teacher"]["unet"], params["lora"], self.lora), params["cond_proj"])

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)


def student_configs(configs: Mapping[str, Mapping[str, Any]], embedding_dim: int = 512) -> dict[str, Mapping[str, Any]]:
    """The teacher's configs with a UNet that reads guidance embeddings.

    Raises:
        ValueError: the UNet has a `time_cond_proj_dim` already.
    """
    if configs["unet"].get("time_cond_proj_dim") is not None:
        raise ValueError("the teacher's UNet reads guidance embeddings already (time_cond_proj_dim): give the original")
    return {**configs, "unet": {**configs["unet"], "time_cond_proj_dim": embedding_dim}}


def zero_projection(unet: Params, embedding_dim: int = 512) -> Params:
    """The `cond_proj` a student starts from: {'kernel': 0 of [embedding_dim, width of the time features]}, float32."""
    return {"kernel": jnp.zeros((embedding_dim, unet["time_embedding"]["linear_1"]["kernel"].shape[0]))}


def with_projection(unet: Params, projection: Params) -> Params:
    """UNet parameters with `time_embedding/cond_proj` set to `projection`."""
    return {**unet, "time_embedding": {**unet["time_embedding"], "cond_proj": projection}}
