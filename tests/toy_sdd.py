"""A Stable Diffusion that is a line of arithmetic, for the tests of HQS and SDD: every gradient is known.

E(y) = .5 x the mean of 2x2 pixels of the first 2 channels,   D(z) repeats z, a third channel of zeros
eps_hat(z_t, c) = a z_t + mean(c),      prompts embed as the mean of their ids
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.objectives.sdd import time_distribution
from sdd_jax.types import ModelBundle

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SLOPE = 0.3
FROZEN = {
    "teacher": {"unet": {"a": jnp.float32(SLOPE)}}, "vae": {}, "text": {}, "null_context": jnp.zeros((1, 1, 1)),
    "timesteps": time_distribution((500,), len(ACP)),
}  # fmt: skip


def denoise(params, z, t, context, *, added_cond=None):
    return params["a"] * z + context.mean((1, 2))[:, None, None, None]


def encode(vae, image, rng=None):
    b, h, w, _ = image.shape
    return 0.5 * image[..., :2].reshape(b, h // 2, 2, w // 2, 2, 2).mean((2, 4))


def decode(vae, z):
    repeated = jnp.repeat(jnp.repeat(z, 2, 1), 2, 2)
    return jnp.concatenate([repeated, jnp.zeros_like(repeated[..., :1])], -1)


def embed_text(params, ids, ids_2=None):
    return 0.1 * jnp.asarray(ids, jnp.float32)[..., None], None


def tokenize(texts):
    return np.asarray([[len(text) % 5, 1] for text in texts], np.int32)


def make_model(**changes):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    toy = {
        "denoise": denoise, "encode": encode, "decode": decode, "embed_text": embed_text, "tokenize": tokenize,
        "prediction": "eps", "alphas_cumprod": ACP, "downsampling": 2, "latent_channels": 2, "sample_size": 4,
        "source": "toy", "content_hash": "toy", "configs": {"unet": {}},
    }  # fmt: skip
    return ModelBundle(**{**fields, **toy, **changes})


class Noise:
    """A source of `count` random pictures of 8x8 pixels, with captions."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return {"image": image, "caption": "x" * index, "position": index}
