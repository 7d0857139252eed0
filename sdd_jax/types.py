"""The types every layer shares (layer 0: imports nothing of this package).

| name | what it is |
| --- | --- |
| `Params` | a nested dict of arrays, named after diffusers' state dicts |
| `Batch` | a flat dict of arrays; keys in the table below |
| `Frozen` | what a loss may read and never differentiates: `teacher`, `vae`, `text`, `target` |
| `ModelBundle` | a model as pure functions, without its parameters |
| `Objective` | a training method: `init` its parameters, `loss` on a batch |

Batch keys: `image` f32[b,H,W,3] in [-1, 1], `input_ids` i32[b,n] (`input_ids_2` for a second text encoder), and where a
task has them `condition` f32[b,H,W,c] in [-1, 1], `mask` f32[b,H,W,1], `source` f32[b,H,W,3], `source_ids` i32[b,n].
Precomputed batches carry `moments` f32[b,h,w,2c], `context` f32[b,n,d] and `pooled` f32[b,e] instead of image and ids;
a StyleGAN manipulator's carry `codes` f32[b,n,d] of W+ instead of image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Frozen = dict[str, Any]
Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Frozen, Batch, jax.Array, jax.Array], tuple[jax.Array, Metrics]]


class Residuals(NamedTuple):
    """What an image adapter adds to a UNet's encoder features.

    down: one array per skip connection, in the order the encoder makes them (conv_in first); () for none.
    mid: the array for the middle block's output.
    mix: None adds (`h + r`, ControlNet); a scalar mu mixes (`(1 - mu) h + mu r`, CCD eq. 10).
    inner: one array per encoder level, added inside it, so that it flows on (T2I-Adapter); () for none.
    """

    down: tuple[jax.Array, ...]
    mid: jax.Array | None
    mix: jax.Array | None = None
    inner: tuple[jax.Array, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """A Stable Diffusion as pure functions; its parameters travel beside it.

    denoise(params['unet'], z, t, context, *, timestep_cond=None, added_cond=None, residuals=None,
        attention_edit=None) -> prediction f32[b,h,w,c], in the space that `prediction` names.
    moments(params['vae'], image) -> posterior mean and log-variance f32[b,h,w,2c] of unscaled latents.
    encode(params['vae'], image, rng=None) -> scaled latents f32[b,h,w,c]; the posterior mean when rng is None.
    decode(params['vae'], latents) -> image f32[b,H,W,3], nominally in [-1, 1].
    embed_text(params, ids, ids_2=None) -> (context f32[b,n,d], pooled f32[b,e] or None); ids_2 where there are two
        text encoders; params is any mapping that holds them under 'text_encoder' (and 'text_encoder_2').
    tokenize(texts) -> ids i32[b,n] padded to the tokenizer's length; tokenize_2 for a second text encoder, or None.
    """

    denoise: Callable[..., jax.Array]
    moments: Callable[[Params, jax.Array], jax.Array]
    encode: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    embed_text: Callable[..., tuple[jax.Array, jax.Array | None]]
    tokenize: Callable[[Sequence[str]], np.ndarray]
    tokenize_2: Callable[[Sequence[str]], np.ndarray] | None
    prediction: str
    alphas_cumprod: np.ndarray
    latent_scale: float
    downsampling: int
    latent_channels: int
    sample_size: int
    configs: Mapping[str, Mapping[str, Any]]
    source: str
    content_hash: str


class Phase(NamedTuple):
    """One optimiser update of a training step: a loss and the mask of the parameters it updates (None: all)."""

    loss: LossFn
    mask: Callable[[Params], Any] | None = None


class Objective(Protocol):
    """A training method. Implementations are frozen keyword-only dataclasses whose fields are the config schema."""

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the parameters that training starts from."""
        ...

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the scalar float32 loss and a flat dict of scalar metrics."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The optimiser updates of one step; most methods have one, `(Phase(self.loss),)`."""
        ...
