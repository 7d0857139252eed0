"""CCD with a T2I-Adapter: what its job exports draws the same images in diffusers' adapter pipeline."""

from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config
from sdd_jax.jobs.ccd.conditional import make_sampler
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.train import EngineConfig

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = Path(__file__).parents[1] / "configs" / "ccd_sr.py"
ATTENTION = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}


def test_the_exported_run_draws_the_same_image_in_pytorch(tiny_world, tmp_path):
    """On a teacher with attention at every level, without which an adapter has no published format."""
    world = tiny.make_variant(tiny_world, tmp_path / "world", **ATTENTION)
    overrides = [f"model={world}", "data.count=4"]
    job = jobs.build(load_config(f"{CONFIG}:t2i,debug", overrides, defaults_of(EngineConfig)))
    rng = np.random.default_rng(0)
    start = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    params = {name: tiny.draw(rng, tree) for name, tree in start.items()}
    job.export(params, tmp_path / "out")
    pipe = diffusers.StableDiffusionAdapterPipeline.from_pretrained(
        world,
        unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet"),
        adapter=diffusers.T2IAdapter.from_pretrained(tmp_path / "out" / "t2i_adapter"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    pipe.set_progress_bar_config(disable=True)
    prompts, key = ["a smiling lion", "a cat at night"], jax.random.key(5)
    condition = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    sampler, ids = make_sampler(job.objective), job.objective.model.tokenize(prompts)
    ours = np.asarray(sampler(params, job.frozen, condition, ids, key, 2))
    theirs = pipe(
        prompts,
        image=torch.from_numpy(condition.transpose(0, 3, 1, 2) / 2 + 0.5),
        latents=torch.from_numpy(np.array(initial_noise(key, (2, 16, 16, 4))).transpose(0, 3, 1, 2).copy()),
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="np",
    ).images
    found = np.clip(ours / 2 + 0.5, 0, 1)
    assert found.std() > 0.01 and np.abs(found - theirs).max() < 2 / 255
    silent = {**params, "adapter": jax.tree.map(jnp.zeros_like, params["adapter"])}
    plain = np.asarray(sampler(silent, job.frozen, condition, ids, key, 2))
    assert np.abs(plain - ours).max() > 0.05, "the adapter is heard"
