"""The translator: its three outputs at the start, whom its embeddings reach, its cost, and its files."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sdd_jax.diffusion.parameterization import to_x0
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models.bundle import make_bundle
from sdd_jax.models.translator import Translator, load_translator, save_translator, with_time_features
from sdd_jax.training.flops import count_flops

pytestmark = pytest.mark.usefixtures("compile_quickly")
TASK = jnp.asarray([1, 0])


@pytest.fixture(scope="module")
def z():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 4))


@pytest.fixture(scope="module")
def made(tiny_model):
    """make(output): (translator, params) with contexts of 3 tokens for 2 tasks."""
    bundle, params = tiny_model
    context = jax.random.normal(jax.random.key(1), (2, 3, 16))

    def make(output="residual"):
        translator = Translator(model=bundle, output=output)
        return translator, translator.init(params["unet"], context)

    return make


@pytest.fixture(scope="module")
def apply(made):
    """apply(output)(params, z, task): compiled once each."""
    compiled = {}

    def choose(output):
        translator, _ = made(output)
        return compiled.setdefault(output, jax.jit(translator.apply))

    return choose


@pytest.fixture(scope="module")
def teacher(tiny_model, z):
    """What the untouched teacher says about z at T/2 under the tasks' contexts."""
    bundle, params = tiny_model
    context = jax.random.normal(jax.random.key(1), (2, 3, 16))
    return jax.jit(bundle.denoise)(params["unet"], z, jnp.full((2,), 500), context[TASK])


def test_a_residual_translator_starts_as_the_identity(made, apply, z):
    _, params = made("residual")
    np.testing.assert_array_equal(apply("residual")(params, z, TASK), z)


def test_the_others_start_from_the_teacher_at_half_time(made, apply, z, teacher):
    translator, params = made("direct")
    np.testing.assert_allclose(apply("direct")(params, z, TASK), teacher, atol=1e-5)
    level = Schedule(translator.model.alphas_cumprod).at(jnp.full((2,), 500))
    want = to_x0(teacher, z, level, translator.model.prediction)
    np.testing.assert_allclose(apply("denoised")(made("denoised")[1], z, TASK), want, atol=1e-4)


def test_each_task_has_its_own_context_and_time(made, apply, z):
    _, params = made("direct")
    run = apply("direct")
    before = np.asarray(run(params, z, TASK))
    for name in ("task", "time"):
        moved = {**params, name: params[name].at[1].add(1.0)}
        changed = np.abs(np.asarray(run(moved, z, TASK)) - before).max((1, 2, 3))
        assert changed[0] > 1e-4 and changed[1] == 0, f"{name} of task 1 is read by the sample of task 1 alone"


def test_every_parameter_gets_a_gradient_once_the_output_is_open(made, z):
    translator, params = made("direct")
    grads = jax.jit(jax.grad(lambda p: jnp.sum(translator.apply(p, z, TASK) ** 2)))(params)
    still = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
    assert still == []


def test_a_translation_is_one_forward(made, z, tiny_model):
    bundle, weights = tiny_model
    translator, params = made()
    forward = count_flops(bundle.denoise, weights["unet"], z, jnp.zeros(2, jnp.int32), params["task"]).total
    assert count_flops(translator.apply, params, z, TASK).total == forward


def test_features_of_a_timestep_are_that_timestep(tiny_model, made, z, teacher):
    bundle, weights = tiny_model
    _, params = made()
    denoise = jax.jit(lambda t, f: with_time_features(bundle.denoise, f)(weights["unet"], z, t, params["task"][TASK]))
    np.testing.assert_allclose(denoise(jnp.full((2,), 7), params["time"][TASK]), teacher, atol=1e-5)


def test_sdxl_learns_a_pooled_state_a_task(tiny_model, z):
    xl = {**tiny.UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    described = {**tiny_model[0].configs, "unet": {**xl, "projection_class_embeddings_input_dim": 8 + 6 * 4}}
    seen = {}

    def denoise(params, z, t, context, *, added_cond):
        seen.update(added_cond)
        return z

    bundle = dataclasses.replace(make_bundle(described, tiny_model[0].tokenize), denoise=denoise)
    translator = Translator(model=bundle, output="direct")
    pooled = jnp.arange(16.0).reshape(2, 8)
    params = translator.init({"conv_out": {}}, jnp.zeros((2, 3, 16)), pooled)
    translator.apply(params, z[:, :, :6], TASK)
    np.testing.assert_array_equal(seen["text_embeds"], pooled[TASK])
    np.testing.assert_array_equal(seen["time_ids"], [[32, 24, 0, 0, 32, 24]] * 2)


def test_files_bring_it_back(made, tiny_model, apply, z, tmp_path):
    _, weights = tiny_model
    translator, params = made()
    params = jax.tree.map(lambda x: x + 0.01, params)
    others = {name: part for name, part in weights.items() if name != "unet"}
    for _ in range(2):
        save_translator(translator, params, others, ("dog", "lion"), tmp_path / "out")
    again, found, parts, tasks = load_translator(tmp_path / "out")
    assert tasks == ("dog", "lion") and again.output == "residual" and set(parts) == set(others)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, params)
    with pytest.raises(FileNotFoundError, match="holds no translator"):
        load_translator(tmp_path)


@pytest.mark.parametrize("output", ["residual", "denoised"])
def test_exported_files_draw_the_same_images_in_pytorch(made, tiny_model, z, tmp_path, output):
    """diffusers' own UNet and decoder on the files, the two learned conditions put in as the docstring's table says."""
    bundle, weights = tiny_model
    translator, params = made(output)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)
    save_translator(translator, params, {k: v for k, v in weights.items() if k != "unet"}, ("a", "b"), tmp_path / "out")
    ours = jax.jit(lambda p, z: bundle.decode(weights["vae"], translator.apply(p, z, TASK)))(params, z)

    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").eval()
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae").eval()
    learned = load_file(tmp_path / "out" / "translator" / "model.safetensors")
    features, context = learned["time"][TASK.tolist()], learned["task"][TASK.tolist()]
    unet.time_proj.forward = lambda t: features
    latents = torch.from_numpy(np.array(z)).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = unet(latents, 500, context, return_dict=False)[0]
        acp = float(bundle.alphas_cumprod[500])
        moved = latents + out if output == "residual" else (latents - (1 - acp) ** 0.5 * out) / acp**0.5
        theirs = vae.decode(moved / vae.config.scaling_factor, return_dict=False)[0].permute(0, 2, 3, 1).numpy()
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_an_unknown_output_is_named(tiny_model):
    with pytest.raises(ValueError, match="output='delta' is not known; use residual, denoised, direct"):
        Translator(model=tiny_model[0], output="delta")
