"""A style autoencoder: a StyleGAN2 synthesis G and an encoder E into its W+, trained together by reconstruction.

    ws = E(x) f32[b,n,d],   x_hat = G(ws)                                                  neither noise nor mapping
    L  = |x - x_hat|_1 + |x - x_hat|_2^2 + lambda_p P(x, x_hat) + lambda_d mean_{i>0} |w_i - w_0|^2
    P  = mean over the first maps phi_l of the attribute classifier of |phi_l(x) - phi_l(x_hat)|^2

Every term is a mean over its elements. The last is e4e's (Tov et al. 2021, arXiv:2102.02766): codes that stay near one
code for all layers are easier to edit. E is e4e's network, trained from scratch. There is no adversary, so what codes
do not tell, such as texture, comes out as its mean.

The generator's weights are stored with unit deviation and scaled where they are used (equalised learning rates). Here
they are trained in units of `generator_gain`: params['generator'] holds kernels and input divided by it, whose learning
rate is so many times that of the encoder, whose weights have their usual size. `generator_params` gives them as
`models.stylegan2` reads them.

`centre_codes` afterwards moves the codes' mean out of the encoder's last biases into `latent_avg`, where published
encoders have it: what truncation pulls towards and mappers are near. The codes stay what they were.

Batch: `image` f32[b,H,W,3]. Frozen: `classifier` (tower params). Cost: 3 (encode + generate), plus the classifier's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax.models.e4e import E4E, E4EConfig, init_e4e
from sdd_jax.models.stylegan2 import StyleGAN2Config, init_generator, make_generator
from sdd_jax.models.towers import TowerConfig
from sdd_jax.objectives.perceptual import feature_distance
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase

EQUALISED = ("kernel", "input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleAutoencoder:
    """Fields: the two networks, the classifier's shape, how many of its maps P compares, the weights; see above."""

    generator: StyleGAN2Config
    encoder: E4EConfig
    tower: TowerConfig
    perceptual_weight: float = 0.1
    delta_weight: float = 1e-3
    perceptual_maps: int = 3
    generator_gain: float = 10.0

    def __post_init__(self) -> None:
        codes = (self.generator.num_ws, self.generator.style_dim)
        if (self.encoder.num_ws, self.encoder.style_dim) != codes:
            raise ValueError(f"the encoder gives codes {self.encoder.num_ws, self.encoder.style_dim}, G reads {codes}")
        if self.generator_gain <= 0:
            raise ValueError(f"generator_gain={self.generator_gain} must be above 0")

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns fresh parameters of both networks, the generator's in units of the gain."""
        encoder_rng, generator_rng = jax.random.split(rng)
        generator = init_generator(generator_rng, self.generator)
        return {"encoder": init_e4e(encoder_rng, self.encoder), "generator": self._scaled(generator, False)}

    def generator_params(self, params: Params) -> Params:
        """The generator's parameters as `make_generator` takes them."""
        return self._scaled(params["generator"], True)

    def encode(self, params: Params, image: jax.Array) -> jax.Array:
        """Codes f32[b,n,d] of images f32[b,H,W,3]."""
        codes: Any = E4E(self.encoder).apply({"params": params["encoder"]}, image)
        return codes

    def generate(self, params: Params, ws: jax.Array) -> jax.Array:
        """Images f32[b,H,W,3] of codes f32[b,n,d]."""
        return make_generator(self.generator).synthesis(self.generator_params(params), ws)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted sum and its parts; `code` is the codes' deviation from zero."""
        image = batch["image"]
        ws = self.encode(params, image)
        recon = self.generate(params, ws)
        l1, l2 = jnp.mean(jnp.abs(image - recon)), jnp.mean((image - recon) ** 2)
        delta = jnp.mean((ws[:, 1:] - ws[:, :1]) ** 2)
        perceptual = feature_distance(self.tower, frozen["classifier"], image, recon, self.perceptual_maps)
        loss = l1 + l2 + self.perceptual_weight * perceptual + self.delta_weight * delta
        metrics = {"l1": l1, "psnr": 10 * jnp.log10(4.0 / l2), "delta": delta, "perceptual": perceptual}
        return loss, {**metrics, "code": jnp.sqrt(jnp.mean(ws**2))}

    def _scaled(self, generator: Params, up: bool) -> Params:
        gain = self.generator_gain if up else 1.0 / self.generator_gain

        def rule(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            return leaf * gain if path[-1].key in EQUALISED else leaf

        return jax.tree_util.tree_map_with_path(rule, generator)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of both networks."""
        return (Phase(self.loss),)


def centre_codes(encoder: Params, mean: jax.Array) -> Params:
    """Returns encoder params whose codes are those of `encoder` less `mean` f32[n,d]."""
    centred = dict(encoder)
    for i, code in enumerate(mean):
        shift = code if i == 0 else code - mean[0]  # codes after the first are the first and an offset
        name = f"style_{i}"
        linear = encoder[name]["linear"]
        centred[name] = {**encoder[name], "linear": {**linear, "bias": linear["bias"] - shift}}
    return centred
