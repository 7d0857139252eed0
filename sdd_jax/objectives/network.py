"""The conditional network that CCD and its baselines train: a UNet, the teacher's or its own, behind an image adapter.

    f(z_t, t, c, text) = UNet_theta(z_t, t, text; residuals_eta(z_t, t, c, text))

Trained are the adapter eta and the UNet theta (`train_unet`), or the adapter alone on the frozen teacher. With guidance
w the prediction is uncond + w (cond - uncond), where uncond has the empty prompt and the same image condition: one
forward of 2B samples, 2F.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import boundary_scalings
from sdd_jax.diffusion.guidance import guided
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models.adapters import Adapter, ControlNetAdapter
from sdd_jax.objectives.inputs import null_conditions
from sdd_jax.types import Frozen, ModelBundle, Params

Text = tuple[jax.Array, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalNetwork:
    """What the methods share.

    Fields:
        model, adapter: the teacher's bundle and how a condition reaches it.
        train_unet: whether the UNet is trained too.
        grid_steps: N, the trailing grid of times that the method trains on and that it is sampled on.
        init_unet: makes the UNet that training starts from; None: the teacher.
    """

    model: ModelBundle
    adapter: Adapter
    train_unet: bool = True
    grid_steps: int = 1000
    init_unet: Callable[[jax.Array], Params] | None = None

    def __post_init__(self) -> None:
        if self.init_unet is not None and not self.train_unet:
            raise ValueError(
                "init='random' with train_unet=False would keep a random UNet: train it, or start from the teacher"
            )

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The teacher's."""
        return Schedule(self.model.alphas_cumprod)

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the adapter's parameters and, in full training, the UNet to start from."""
        unet = frozen["teacher"]["unet"]
        if self.init_unet is not None:
            rng, unet_rng = jax.random.split(rng)
            unet = self.init_unet(unet_rng)
        params = {"adapter": self.adapter.init(rng, unet)}
        if self.train_unet:
            params["unet"] = jax.tree.map(lambda x: x.astype(jnp.float32), unet)
        return params

    @property
    def prediction(self) -> str:
        """What `predict` answers in: 'eps', 'v' or 'x0'."""
        return self.model.prediction

    def predict(
        self,
        params: Params,
        frozen: Frozen,
        hint: Any,
        z_t: jax.Array,
        t: jax.Array,
        text: Text,
        w: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluates the network at z_t f32[b,h,w,c], t int[b]: the UNet of `params`, else the teacher's.

        hint: what `adapter.prepare` made. text: `inputs.text_of`. w: guidance f32[b] or scalar; None: off, one forward.
        """
        context, added_cond = text
        if w is None:
            return self._forward(params, frozen, hint, z_t, t, context, added_cond)

        def denoise(z: jax.Array, t: jax.Array, context: jax.Array, *, hint: Any, added_cond: Any = None) -> jax.Array:
            return self._forward(params, frozen, hint, z, t, context, added_cond)

        return guided(denoise, frozen["null_context"], null_conditions(frozen, added_cond))(
            z_t, t, context, w, hint=hint, added_cond=added_cond
        )

    def hint_error(self, params: Params, frozen: Frozen, hint: jax.Array, x: jax.Array) -> jax.Array:
        """What a ControlNet's embedding misses of the data x, f32[b]: |embed(c) - K x|^2 / |K x|^2.

        K is the teacher's first convolution, without its bias. The embedding is the one part of a ControlNet that
        starts from nothing; regressed, it hands the copied encoder the best picture of x that it can make of c, in the
        features the encoder was trained on, from the first steps on.
        """
        assert isinstance(self.adapter, ControlNetAdapter)
        kernel = frozen["teacher"]["unet"]["conv_in"]["kernel"].astype(jnp.float32)
        target = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        missed = self.adapter.embed(params["adapter"], hint).astype(jnp.float32) - target
        return jnp.mean(missed**2, axis=(1, 2, 3)) / jnp.mean(target**2, axis=(1, 2, 3))

    def pretrained(
        self, frozen: Frozen, z_t: jax.Array, t: jax.Array, text: Text, w: jax.Array | None = None
    ) -> jax.Array:
        """Evaluates the teacher, which knows the text and no image condition; arguments as for `predict`."""
        context, added_cond = text
        unet = frozen["teacher"]["unet"]
        if w is None:
            return self.model.denoise(unet, z_t, t, context, added_cond=added_cond)

        def denoise(z: jax.Array, t: jax.Array, context: jax.Array, **conditions: Any) -> jax.Array:
            return self.model.denoise(unet, z, t, context, **conditions)

        return guided(denoise, frozen["null_context"], null_conditions(frozen, added_cond))(
            z_t, t, context, w, added_cond=added_cond
        )

    def _forward(
        self, params: Params, frozen: Frozen, hint: Any, z_t: jax.Array, t: jax.Array, context: jax.Array, added: Any
    ) -> jax.Array:
        unet = params.get("unet", frozen["teacher"]["unet"])
        residuals = self.adapter.residuals(params["adapter"], hint, z_t, t, context, added)
        return self.model.denoise(unet, z_t, t, context, added_cond=added, residuals=residuals)


def tied_to_data(pred: jax.Array, z_t: jax.Array, t: jax.Array, schedule: Schedule, kind: str) -> jax.Array:
    """A consistency function's x0_hat, c_skip z_t + c_out x0_hat(pred), of a prediction of `kind` at z_t, t int[b]."""
    c_skip, c_out = boundary_scalings(t)
    return c_skip * z_t + c_out * predictor(kind).x0(pred, z_t, schedule.at(t))
