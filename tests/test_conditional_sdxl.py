"""On a model with two text encoders both tokenizers' ids, or their states, reach losses, samplers and the editor."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import sdd_jax
from sdd_jax import aot
from sdd_jax.benchmarks.workloads import abstract_program, plain_job
from sdd_jax.config import defaults_of, load_config
from sdd_jax.diffusion.guidance import guidance_embedding
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import BOUNDARIES
from sdd_jax.diffusion.transport import move
from sdd_jax.jobs.ccd.conditional import make_sampler
from sdd_jax.jobs.editing.methods import EditRequest, decode, edit, encode, frozen_of, texts
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.train import EngineConfig
from sdd_jax.training.sharding import MeshConfig, make_mesh

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("file", ["ccd_sr.py", "ccd_canny.py", "ccd_t2i.py"])
def test_a_step_and_a_sampler_of_two_text_encoders(file, tiny_xl):
    overrides = ["data.source=folder", f"model=shapes:{tiny_xl}", "batch_size=2"]
    overrides += ["data.degradation="] if file == "ccd_sr.py" else []
    overrides += ["adapter.embedding_channels=(4, 4, 8)"] if file != "ccd_t2i.py" else []
    config = load_config(str(CONFIGS / file), overrides, defaults_of(EngineConfig))
    job, _, batch = aot.config_jobs(config, from_moments=False)
    assert batch["input_ids"].shape == batch["input_ids_2"].shape == (2, tiny.XL_TOKENS)

    def step(rng, frozen, batch):
        params = job.objective.init(rng, frozen)
        frozen = {**frozen, "step_rng": rng, "target": params}
        loss, _ = job.objective.loss(params, frozen, batch, rng, jnp.int32(0))
        return loss, make_sampler(job.objective)(
            params, frozen, batch.get("condition"), batch, rng, 2, guidance=2.0, size=64
        )

    loss, images = jax.eval_shape(step, jax.random.key(0), job.frozen, batch)
    assert loss.shape == () and images.shape == (2, 64, 64, 3)

    without = {name: value for name, value in batch.items() if name != "input_ids_2"}
    with pytest.raises(ValueError, match="two text encoders"):
        jax.eval_shape(step, jax.random.key(0), job.frozen, without)


def test_a_plain_step_reads_pooled_text(tiny_xl):
    job, batch = plain_job(str(tiny_xl), batch_size=2)
    assert batch["pooled"].shape == (2, tiny.TEXT["projection_dim"]) and job.frozen["null_pooled"].shape == (1, 16)
    step = abstract_program(job, batch, make_mesh(MeshConfig(), jax.devices()[:1]))
    state, metrics = jax.eval_shape(step.program.step, *step.arguments)
    assert metrics["loss"].shape == () and "add_embedding" in state.params["unet"]


def test_the_prompt_switch_of_two_text_encoders(tiny_xl, compile_quickly):
    """Up under the source, down under its prompt and then the target's, the pooled state the target's all the way."""

    def tokenize(prompts):
        return np.asarray([[ord(text or "z") - ord("a")] * tiny.XL_TOKENS for text in prompts], np.int32)

    model, params = sdd_jax.load(f"random:{tiny_xl}+w")
    model = dataclasses.replace(model, tokenize=tokenize, tokenize_2=tokenize)
    unets = {"forward": params["unet"], "reverse": jax.tree.map(lambda x: 1.1 * x, params["unet"])}
    request = EditRequest(
        model=model, frozen={**frozen_of(model, params), **unets, "boundaries": BOUNDARIES["2"]},
        image=np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32),
        source=("a",), target=("b",), options={"guidance": 3.0, "tau": 0.6},
    )  # fmt: skip
    result = edit("icd", request)
    assert result.evaluations == 4

    denoise, schedule = jax.jit(model.denoise), Schedule(model.alphas_cumprod)
    (source, own), (target, pooled) = (
        (context, added["text_embeds"]) for context, added in (texts(request, (prompt,)) for prompt in "ab")
    )
    sizes = jnp.asarray([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])

    def jumped(name, z, t, s, context, pooled, w):
        scale, added = guidance_embedding(jnp.asarray([w])), {"text_embeds": pooled, "time_ids": sizes}
        t, s = jnp.asarray([t]), jnp.asarray([s])
        eps = denoise(unets[name], z, t, context, timestep_cond=scale, added_cond=added)
        return move(eps, z, schedule.at_boundary(t), schedule.at_boundary(s), "eps")

    z = add_noise(encode(request), initial_noise(jax.random.key(0), (1, 16, 16, 4)), schedule.at(19))
    for t, s in ((19, 519), (519, 999)):
        z = jumped("forward", z, t, s, source, own, 1.0)

    def down(first, last):
        half = jumped("reverse", z, 999, 519, source, first, 1.0)
        return decode(request, jumped("reverse", half, 519, 0, target, last, 3.0))

    np.testing.assert_allclose(result.image, down(pooled, pooled), atol=2e-4)
    for wrong in ((own, pooled), (pooled, own)):
        assert np.abs(result.image - down(*wrong)).max() > 2e-3
