"""The shipped teacher: what PyTorch diffusers makes of it, and that it is a teacher at all.

python -m pytest -s tests/test_embedded_teacher.py -k pytorch        prints how far apart the two programs' images are
"""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sdd_jax
from sdd_jax.data import portraits
from sdd_jax.data.records import to_float
from sdd_jax.diffusion.guidance import guided
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.world.directory import read_instruments
from sdd_jax.jobs.world.style import read_style
from sdd_jax.models.e4e import encode
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.stylegan2 import make_generator
from sdd_jax.sampling.generate import sample

PROMPTS = ["a photo of a smiling lion with white fur, wearing glasses", "an angry cat at night, snowing"]
STEPS, GUIDANCE = 8, 3.0


@pytest.fixture(scope="module")
def teacher():
    return sdd_jax.load("portraits")


def test_pytorch_diffusers_draws_the_same_image_from_the_same_latents(teacher):
    bundle, params = teacher
    shape = (len(PROMPTS), bundle.sample_size, bundle.sample_size, bundle.latent_channels)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    @jax.jit
    def draw(params, noise, ids):
        context, _ = bundle.embed_text(params, ids)
        null_context, _ = bundle.embed_text(params, jnp.asarray(bundle.tokenize([""])))
        network = guided(functools.partial(bundle.denoise, params["unet"]), null_context)
        times, schedule = sampling_times(STEPS), Schedule(bundle.alphas_cumprod)
        z = sample(lambda z, t: network(z, t, context, GUIDANCE), noise, times, schedule, bundle.prediction)
        return bundle.decode(params["vae"], z)

    ours = np.clip(np.asarray(draw(params, noise, bundle.tokenize(PROMPTS))) / 2 + 0.5, 0, 1)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(PORTRAITS, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).mean()
    print(f"mean absolute difference from PyTorch's images, {STEPS} steps at w = {GUIDANCE:g}: {255 * error:.4f} / 255")
    assert error < 1 / 255


@pytest.fixture(scope="module")
def heldout():
    """64 portraits f32[64,64,64,3] and their labels i64[64,7]."""
    chosen = [portraits.portrait(i) for i in portraits.split_indices("heldout")[:64]]
    images = np.stack([to_float(portraits.image(p)) for p in chosen])
    return images, np.stack([portraits.labels(p.attributes) for p in chosen])


def psnr(recon, images):
    return np.mean(10 * np.log10(4 / np.mean((np.clip(recon, -1, 1) - images) ** 2, axis=(1, 2, 3))))


def test_the_autoencoder_keeps_the_attributes_of_heldout_portraits(teacher, heldout):
    bundle, params = teacher
    images, labels = heldout
    recon = jax.jit(lambda vae, x: bundle.decode(vae, bundle.encode(vae, x)))(params["vae"], images)
    instruments = read_instruments(PORTRAITS)
    assert psnr(recon, images) >= 30
    assert np.mean(instruments.read(images).labels == labels) >= 0.98
    assert np.mean(instruments.read(np.asarray(recon)).labels == labels) >= 0.95


def test_the_style_generator_draws_heldout_portraits_from_their_codes(heldout):
    images, labels = heldout
    generator, encoder = read_style(PORTRAITS)
    codes = encode(encoder.config, encoder.params, encoder.latent_avg, images)
    recon = np.asarray(jax.jit(make_generator(generator.config).synthesis)(generator.params, codes))
    agree = np.mean(read_instruments(PORTRAITS).read(recon).labels == labels, 0)
    print(f"{psnr(recon, images):.2f} dB; classifier {agree.round(3)}")
    assert psnr(recon, images) >= 21 and agree.min() >= 0.9 and agree.mean() >= 0.98
    np.testing.assert_array_equal(generator.latent_avg, encoder.latent_avg)


def test_the_package_is_small(teacher):
    size = sum(path.stat().st_size for path in PORTRAITS.rglob("*") if path.is_file())
    assert size <= 30e6
