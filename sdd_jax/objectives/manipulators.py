"""What SDD trains: any feed-forward map f_phi from an image, or its code, to the edited image.

A method needs five functions of it, `Manipulator`; its code is whatever the network reads and writes: latents of the
autoencoder here, style codes for a generator.

    code = source(batch)      edited = apply(params, code)      z' = latents(edited)      x' = image(edited)

`LatentManipulator` is the teacher's UNet as a one-pass translator (`models.translator`): code and z' are latents, so
guidance reaches it without a pass through the autoencoder, and the edit of an image costs 1F, an encoding and a
decoding. With `reencode` guidance looks at E(D(z')) instead, what the edited picture would be encoded to, and comes
back through both; latents that no picture has are then worth nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from sdd_jax.models.translator import Translator
from sdd_jax.objectives.inputs import latents_of
from sdd_jax.types import Batch, Frozen, ModelBundle, Params


class Manipulator(Protocol):
    """f_phi with what stands around it. Implementations are frozen dataclasses of functions and constants."""

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the parameters phi that training starts from, float32."""
        ...

    def source(self, frozen: Frozen, batch: Batch, rng: jax.Array | None) -> jax.Array:
        """Returns the codes f32[b,...] of a batch's images: drawn, or with None the most likely ones."""
        ...

    def apply(self, params: Params, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Returns the edited codes, as shaped as `code`."""
        ...

    def latents(self, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Returns the teacher's scaled latents f32[b,h,w,c] of codes, differentiable in them."""
        ...

    def image(self, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Returns images f32[b,H,W,3] of codes, nominally in [-1, 1], differentiable in them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentManipulator:
    """The translator of latents.

    frozen: `teacher`, `vae`, `text`, and `phrase`, which its task context starts from: ids i32[1,n], and those of a
    second tokenizer or None.
    """

    model: ModelBundle
    translator: Translator
    reencode: bool = False

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the teacher's UNet as a translator; see `Translator.init`."""
        return self.translator.init(
            frozen["teacher"]["unet"], *self.model.embed_text(frozen["text"], *frozen["phrase"])
        )

    def source(self, frozen: Frozen, batch: Batch, rng: jax.Array | None) -> jax.Array:
        """The images' latents, drawn from the posterior; with None the mean, of `image`."""
        if rng is None:
            return self.model.encode(frozen["vae"], batch["image"])
        return latents_of(self.model, frozen, batch, rng)

    def apply(self, params: Params, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Translates latents, 1F."""
        return self.translator.apply(params, code, jnp.zeros(code.shape[:1], jnp.int32))

    def latents(self, frozen: Frozen, code: jax.Array) -> jax.Array:
        """The code itself, or E(D(code))."""
        return self.model.encode(frozen["vae"], self.image(frozen, code)) if self.reencode else code

    def image(self, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Decodes."""
        return self.model.decode(frozen["vae"], code)
