"""Image adapters: how a condition reaches a text-to-image UNet without changing it at the start.

| adapter | what the decoder receives | at initialisation |
| --- | --- | --- |
| ControlNet (Zhang et al., 2023) | h + Z(h_eta(z_t, c)), a trainable encoder behind zero convolutions | h |
| mu-mixing (CCD eq. 10) | (1 - mu) h + mu h_eta(E(c)), a trainable encoder of c's latents; mu = 0 | h |

Both are bit-equal to the UNet at initialisation. An adapter has two steps: `prepare` turns the condition into what the
network reads, once per batch however many evaluations follow, and `residuals` makes the residuals of each evaluation.
`h_eta` sees the same timestep and text as the UNet. Cost per evaluation: about .35F each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.controlnet import ControlNetModel, controlnet_params_from_unet, init_controlnet, make_controlnet
from sdd_jax.models.unet import UNet2DConditionModel
from sdd_jax.types import Frozen, ModelBundle, Params, Residuals


class Adapter(Protocol):
    """The interface of an image adapter."""

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns fresh float32 parameters, the encoder's copied from `unet`."""
        ...

    def prepare(self, frozen: Frozen, condition: jax.Array) -> jax.Array:
        """Turns `condition` f32[b,H,W,c] in [-1, 1] into what `residuals` reads."""
        ...

    def residuals(
        self, params: Params, hint: jax.Array, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals:
        """Returns the residuals for one evaluation of the UNet at `z_t`, `t`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetAdapter:
    """A diffusers ControlNet; its condition is the image itself, in [0, 1] as published ControlNets expect.

    Fields: a ControlNet's `config.json`; the compute dtype; what the backward pass recomputes.
    """

    config: Mapping[str, Any]
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @functools.cached_property
    def module(self) -> ControlNetModel:
        """The network."""
        return make_controlnet(self.config, dtype=self.dtype, remat=self.remat)

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns a ControlNet whose encoder is the UNet's and whose output convolutions are zero."""
        return {"controlnet": _float32(controlnet_params_from_unet(unet, init_controlnet(self.module, rng)))}

    def prepare(self, frozen: Frozen, condition: jax.Array) -> jax.Array:
        """Maps [-1, 1] to the [0, 1] of published ControlNets."""
        return 0.5 * (condition + 1.0)

    def residuals(
        self, params: Params, hint: jax.Array, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals:
        """Returns one residual per skip connection and the middle block's."""
        out: Any = self.module.apply({"params": params["controlnet"]}, z_t, t, context, hint, added_cond=added_cond)
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuMixing:
    """CCD eq. 10: the encoder's features mixed with those of a trainable copy that reads the condition's latents."""

    model: ModelBundle
    module: UNet2DConditionModel

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns the UNet's encoder and mu = 0."""
        encoder = {k: v for k, v in unet.items() if not k.startswith(("up_blocks", "conv_norm_out", "conv_out"))}
        return {"encoder": _float32(encoder), "mu": jnp.zeros(())}

    def prepare(self, frozen: Frozen, condition: jax.Array) -> jax.Array:
        """Encodes the condition to latents (the posterior mean)."""
        return self.model.encode(frozen["vae"], condition)

    def residuals(
        self, params: Params, hint: jax.Array, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals:
        """Returns the copy's features and mu."""
        features: Any = self.module.apply(
            {"params": params["encoder"]}, hint, t, context, added_cond=added_cond, method="encode"
        )
        return Residuals(features.down, features.mid, params["mu"])


def _float32(params: Params) -> Params:
    """The trained copy of weights that may be stored in half precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
