"""What SDD trains: any feed-forward map f_phi from an image, or its code, to the edited image.

A method needs five functions of it, `Manipulator`; its code is whatever the network reads and writes: an array, or a
list of arrays, with the batch in front.

    code = source(batch)      edited = apply(params, code)      z' = latents(edited)      x' = image(edited)

`LatentManipulator` is the teacher's UNet as a one-pass translator (`models.translator`): code and z' are latents, so
guidance reaches it without a pass through the autoencoder, and the edit of an image costs 1F, an encoding and a
decoding. With `reencode` guidance looks at E(D(z')) instead, what the edited picture would be encoded to, and comes
back through both; latents that no picture has are then worth nothing.

`StyleManipulator` is a mapper M of a StyleGAN2 generator's codes (`models.style_mappers`), the paper's own manipulator:

    w' = w + delta_scale M(w)        x' = G(w')        z' = E(resize(x'))

with w of W+, of images by e4e (`models.e4e`), or G's modulation vectors (StyleSpace). delta_scale is .1 as released;
for NVIDIA's generators, whose codes spread wider, users found 1.5. G and E are frozen and guidance comes back through
both; no UNet is in the manipulator, so an edit costs 0F: e4e, M and G forward. G's noise is its constant buffers, and
the resize to the teacher's side is bilinear without antialiasing, as in the released code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sdd_jax.models.e4e import E4EConfig, encode
from sdd_jax.models.style_mappers import MapperConfig, apply_mapper, init_mapper
from sdd_jax.models.stylegan2 import StyleFunctions
from sdd_jax.models.translator import Translator
from sdd_jax.objectives.inputs import latents_of
from sdd_jax.types import Batch, Frozen, ModelBundle, Params

Code = Any
"""f32[b,...], or a list of them."""


class Manipulator(Protocol):
    """f_phi with what stands around it. Implementations are frozen dataclasses of functions and constants."""

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns the parameters phi that training starts from, float32."""
        ...

    def source(self, frozen: Frozen, batch: Batch, rng: jax.Array | None) -> Code:
        """Returns the codes of a batch's images: drawn, or with None the most likely ones."""
        ...

    def apply(self, params: Params, frozen: Frozen, code: Code) -> Code:
        """Returns the edited codes, as shaped as `code`."""
        ...

    def latents(self, frozen: Frozen, code: Code, image: jax.Array | None = None) -> jax.Array:
        """Returns the teacher's scaled latents f32[b,h,w,c] of codes, differentiable in them.

        image: `image(frozen, code)`, where it is there already.
        """
        ...

    def image(self, frozen: Frozen, code: Code) -> jax.Array:
        """Returns images f32[b,H,W,3] of codes, nominally in [-1, 1], differentiable in them."""
        ...


def code_distance(a: Code, b: Code) -> jax.Array:
    """The mean squared difference of two codes; of lists the sum of their parts', as StyleCLIP has it in StyleSpace."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.mean((x - y) ** 2) for x, y in pairs), jnp.zeros(()))


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

    def latents(self, frozen: Frozen, code: jax.Array, image: jax.Array | None = None) -> jax.Array:
        """The code itself, or E(D(code))."""
        if not self.reencode:
            return code
        return self.model.encode(frozen["vae"], self.image(frozen, code) if image is None else image)

    def image(self, frozen: Frozen, code: jax.Array) -> jax.Array:
        """Decodes."""
        return self.model.decode(frozen["vae"], code)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleManipulator:
    """The mapper of a generator's codes.

    frozen: `generator`, its parameters; `mapper`, where training starts from a trained one; `vae`; and where images are
    edited, which needs an `encoder`, its parameters under that name and `latent_avg` f32[n,d]. A batch holds `codes`
    f32[b,n,d] of W+, or images to encode. zero_start: a fresh mapper changes nothing; published ones start at random.
    """

    model: ModelBundle
    generator: StyleFunctions
    mapper: MapperConfig = MapperConfig()
    encoder: E4EConfig | None = None
    delta_scale: float = 0.1
    zero_start: bool = False

    @property
    def side(self) -> int:
        """Pixels of the teacher's images."""
        return self.model.sample_size * self.model.downsampling

    @property
    def code_shapes(self) -> Code:
        """What `source` gives of one image, as `jax.ShapeDtypeStruct`s."""
        config = self.generator.config
        if self.mapper.reads_styles:
            return [jax.ShapeDtypeStruct((1, width), jnp.float32) for width in config.style_widths]
        return jax.ShapeDtypeStruct((1, config.num_ws, config.style_dim), jnp.float32)

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """A fresh mapper, or the given one."""
        if "mapper" in frozen:
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), frozen["mapper"])
        return init_mapper(rng, self.mapper, self.code_shapes, zero=self.zero_start)

    def source(self, frozen: Frozen, batch: Batch, rng: jax.Array | None) -> Code:
        """The batch's codes, or its images' by the encoder; of the same image always the same."""
        codes = batch["codes"] if "codes" in batch else self.encode(frozen, batch["image"])
        return self.generator.styles(frozen["generator"], codes) if self.mapper.reads_styles else codes

    def encode(self, frozen: Frozen, image: jax.Array) -> jax.Array:
        """Codes f32[b,n,d] of W+ of images f32[b,H,W,3].

        Raises:
            ValueError: there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("this generator has no encoder for images: set config.manipulator.encoder")
        return encode(self.encoder, frozen["encoder"], frozen["latent_avg"], image)

    def apply(self, params: Params, frozen: Frozen, code: Code) -> Code:
        """w + delta_scale M(w)."""
        delta = apply_mapper(self.mapper, params, code)
        return jax.tree.map(lambda w, change: w + self.delta_scale * change, code, delta)

    def latents(self, frozen: Frozen, code: Code, image: jax.Array | None = None) -> jax.Array:
        """E of the image at the teacher's side, the posterior's mean."""
        image = self.image(frozen, code) if image is None else image
        if image.shape[1:3] != (self.side, self.side):
            image = jax.image.resize(image, (image.shape[0], self.side, self.side, 3), "bilinear", antialias=False)
        return self.model.encode(frozen["vae"], image)

    def image(self, frozen: Frozen, code: Code) -> jax.Array:
        """Generates."""
        if self.mapper.reads_styles:
            return self.generator.synthesis_from_styles(frozen["generator"], code, "const")
        return self.generator.synthesis(frozen["generator"], code, "const")
