"""Full-size Stable Diffusion 1.5 against PyTorch diffusers on random weights. Slow, 16 GB: outside `make test`.

python -m pytest -m slow -s tests/models/test_full_size.py
"""

import diffusers
import jax
import numpy as np
import pytest
import torch
from torch_parity import nchw, randomise, relative_error

from sdd_jax.models.unet import make_unet
from sdd_jax.models.vae import AutoencoderKL, VAEConfig

UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": 2,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}


@pytest.mark.slow
def test_the_unet_of_sd15_matches_at_64x64_latents():
    oracle = diffusers.UNet2DConditionModel(**UNET)
    params = randomise(oracle, seed=0)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1, 64, 64, 4)).astype(np.float32)
    context = rng.standard_normal((1, 77, 768)).astype(np.float32)
    t = np.array([481], np.int32)
    with torch.no_grad():
        theirs = oracle(nchw(z), torch.from_numpy(t).long(), torch.from_numpy(context)).sample
    ours = jax.jit(make_unet(UNET).apply)({"params": params}, z, t, context)
    error = relative_error(ours, theirs)
    print(f"SD1.5 UNet, 1 x 64 x 64 x 4, {sum(x.size for x in jax.tree.leaves(params)) / 1e6:.0f}M: {error:.2e}")
    assert error <= 1e-4


@pytest.mark.slow
def test_the_vae_of_sd15_matches_at_512_pixels():
    oracle = diffusers.AutoencoderKL(**VAE)
    params = randomise(oracle, seed=1)
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (1, 512, 512, 3)).astype(np.float32)
    z = rng.standard_normal((1, 64, 64, 4)).astype(np.float32)
    vae = AutoencoderKL(VAEConfig.from_json(VAE))
    with torch.no_grad():
        moments, decoded = oracle._encode(nchw(image)), oracle.decode(nchw(z)).sample
    encode = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="encode"))
    decode = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="decode"))
    errors = relative_error(encode(params, image), moments), relative_error(decode(params, z), decoded)
    print(f"SD1.5 VAE, 512 px: encode {errors[0]:.2e}, decode {errors[1]:.2e}")
    assert max(errors) <= 1e-4
