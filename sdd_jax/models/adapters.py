"""Image adapters: how a condition reaches a text-to-image UNet without changing it at the start.

| adapter | what becomes of the encoder's features h | at initialisation |
| --- | --- | --- |
| ControlNet (Zhang et al., 2023) | h + Z(h_eta(z_t, c)), a trainable encoder behind zero convolutions | h |
| mu-mixing (CCD eq. 10) | (1 - mu) h + mu h_eta(E(c)), a trainable encoder of c's latents; mu = 0 | h |
| T2I-Adapter (Mou et al., 2023) | h_i + x_i(c) inside the encoder, a small network of c alone | h |
| none | h: no condition but the text | h |

All are bit-equal to the UNet at initialisation. An adapter has two steps: `prepare` turns the condition into what the
network reads, once per batch however many evaluations follow, and `residuals` makes the residuals of each evaluation.
`h_eta` sees the same timestep and text as the UNet. Cost per evaluation: about .35F for the first two, .1F for the
third.

Several adapters on one frozen UNet are one `Composition`: their residuals are summed with weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.controlnet import ControlNetModel, controlnet_params_from_unet, init_controlnet, make_controlnet
from sdd_jax.models.t2i_adapter import T2IAdapterConfig, T2IAdapterModel, init_t2i_adapter
from sdd_jax.models.unet import UNet2DConditionModel
from sdd_jax.types import Frozen, ModelBundle, Params, Residuals


class Adapter(Protocol):
    """The interface of an image adapter."""

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns fresh float32 parameters, the encoder's copied from `unet`."""
        ...

    def prepare(self, frozen: Frozen, condition: Any) -> Any:
        """Turns `condition` f32[b,H,W,c] in [-1, 1] into what `residuals` reads."""
        ...

    def residuals(
        self, params: Params, hint: Any, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals | None:
        """Returns the residuals for one evaluation of the UNet at `z_t`, `t`; None for none."""
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

    def embed(self, params: Params, hint: jax.Array) -> jax.Array:
        """Returns what the condition adds to the encoder's first features, [b,h,w,features]."""
        out: Any = self.module.apply({"params": params["controlnet"]}, hint, method="embed")
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuMixing:
    """CCD eq. 10: the encoder's features mixed with those of a trainable copy that reads the condition's latents.

    The autoencoder reads three channels: of an inpainting condition the masked picture, whose mask is the grey in it.
    """

    model: ModelBundle
    module: UNet2DConditionModel

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns the UNet's encoder and mu = 0."""
        encoder = {k: v for k, v in unet.items() if not k.startswith(("up_blocks", "conv_norm_out", "conv_out"))}
        return {"encoder": _float32(encoder), "mu": jnp.zeros(())}

    def prepare(self, frozen: Frozen, condition: jax.Array) -> jax.Array:
        """Encodes the condition to latents (the posterior mean)."""
        return self.model.encode(frozen["vae"], condition[..., :3])

    def residuals(
        self, params: Params, hint: jax.Array, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals:
        """Returns the copy's features and mu."""
        features: Any = self.module.apply(
            {"params": params["encoder"]}, hint, t, context, added_cond=added_cond, method="encode"
        )
        return Residuals(features.down, features.mid, params["mu"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2IAdapter:
    """A diffusers T2IAdapter, whose condition is in [0, 1]. Fields: its shape; the compute dtype."""

    config: T2IAdapterConfig
    dtype: DTypeLike = jnp.float32

    @functools.cached_property
    def module(self) -> T2IAdapterModel:
        """The network."""
        return T2IAdapterModel(self.config, dtype=self.dtype)

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns an adapter whose features are zero."""
        return {"t2i": _float32(init_t2i_adapter(self.module, rng))}

    def prepare(self, frozen: Frozen, condition: jax.Array) -> jax.Array:
        """Maps [-1, 1] to the [0, 1] of published adapters."""
        return 0.5 * (condition + 1.0)

    def residuals(
        self, params: Params, hint: jax.Array, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> Residuals:
        """Returns one feature per level, the same at every time."""
        features: Any = self.module.apply({"params": params["t2i"]}, hint)
        return Residuals((), None, inner=tuple(features))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAdapter:
    """No condition but the text: the plain UNet."""

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns no parameters."""
        return {}

    def prepare(self, frozen: Frozen, condition: None) -> None:
        """Passes nothing on."""

    def residuals(
        self, params: Params, hint: None, z_t: jax.Array, t: jax.Array, context: jax.Array, added_cond: Any = None
    ) -> None:
        """Returns no residuals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composition:
    """Several adapters on one UNet: parameters and conditions are sequences, residuals the weighted sums.

    Raises:
        ValueError: numbers of adapters and weights that differ, or mu-mixing, which replaces features and has no sum.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.adapters) != len(self.weights) or not self.adapters:
            raise ValueError(f"{len(self.weights)} weights for {len(self.adapters)} adapters: give one each")
        if any(isinstance(adapter, MuMixing) for adapter in self.adapters):
            raise ValueError("mu-mixing replaces the encoder's features: it cannot be summed with another adapter")

    def init(self, rng: jax.Array, unet: Params) -> Params:
        """Returns each adapter's fresh parameters by its number."""
        keys = jax.random.split(rng, len(self.adapters))
        return {str(i): one.init(key, unet) for i, (one, key) in enumerate(zip(self.adapters, keys, strict=True))}

    def prepare(self, frozen: Frozen, condition: Sequence[Any]) -> tuple[Any, ...]:
        """Prepares each condition by its own adapter."""
        return tuple(one.prepare(frozen, own) for one, own in zip(self.adapters, condition, strict=True))

    def residuals(
        self,
        params: Params,
        hint: Sequence[Any],
        z_t: jax.Array,
        t: jax.Array,
        context: jax.Array,
        added_cond: Any = None,
    ) -> Residuals:
        """Returns sum_k weight_k residuals_k, for each place where any adapter speaks."""
        made = [
            (weight, one.residuals(params[str(i)], own, z_t, t, context, added_cond))
            for i, (one, own, weight) in enumerate(zip(self.adapters, hint, self.weights, strict=True))
        ]
        spoken = [(weight, residuals) for weight, residuals in made if residuals is not None]

        def total(parts: Sequence[tuple[float, Any]]) -> Any:
            """The weighted sum of trees of one structure; () for none."""
            scaled = [jax.tree.map(lambda leaf, weight=weight: weight * leaf, part) for weight, part in parts]
            return functools.reduce(functools.partial(jax.tree.map, jnp.add), scaled) if scaled else ()

        mid = [(weight, r.mid) for weight, r in spoken if r.mid is not None]
        return Residuals(
            down=total([(weight, r.down) for weight, r in spoken if r.down]),
            mid=total(mid) if mid else None,
            inner=total([(weight, r.inner) for weight, r in spoken if r.inner]),
        )


def _float32(params: Params) -> Params:
    """The trained copy of weights that may be stored in half precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
