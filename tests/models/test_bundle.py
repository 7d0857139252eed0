"""Loading and saving against PyTorch's pipelines: tensors, outputs, dtypes; their files are in `test_bundle_files`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util
from safetensors.numpy import load_file
from torch_parity import nchw, relative_error
from torch_pipelines import (
    SCHEDULER,
    UNET,
    VAE,
    assert_same_trees,
    assert_same_weights,
    randomise,
    stable_diffusion,
    text_encoder,
)

import sdd_jax
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models import bundle as bundles
from sdd_jax.models import convert
from sdd_jax.models.save import save_component

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_functions_match_the_pytorch_pipeline(sd15: Any, loaded: Any) -> None:
    (pipe, _), (bundle, params) = sd15, loaded
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    z, t = rng.standard_normal((2, 4, 4, 4)).astype(np.float32), np.array([7, 801], np.int32)
    ids = bundle.tokenize(["a lion", "a small cat, somewhere"])
    context, pooled = jax.jit(bundle.embed_text)(params, ids)
    pred = jax.jit(bundle.denoise)(params["unet"], z, t, context)
    moments, latents = jax.jit(lambda p, x: (bundle.moments(p, x), bundle.encode(p, x)))(params["vae"], image)
    with torch.no_grad():
        want_context = pipe.text_encoder(torch.from_numpy(ids).long()).last_hidden_state
        assert pooled is None and relative_error(context, want_context) < 1e-4
        assert relative_error(pred, pipe.unet(nchw(z), torch.from_numpy(t), want_context).sample) < 1e-4
        posterior = pipe.vae.encode(nchw(image)).latent_dist
        assert relative_error(moments, posterior.parameters) < 1e-4
        assert relative_error(latents, posterior.mode() * 0.25) < 1e-4
        assert relative_error(jax.jit(bundle.decode)(params["vae"], z), pipe.vae.decode(nchw(z) / 0.25).sample) < 1e-4
    np.testing.assert_allclose(bundle.alphas_cumprod, pipe.scheduler.alphas_cumprod.numpy(), rtol=2e-5)
    facts = (bundle.prediction, bundle.latent_scale, bundle.downsampling, bundle.latent_channels, bundle.sample_size)
    assert facts == ("eps", 0.25, 2, 4, 4)


def test_saved_model_loads_in_pytorch_with_identical_weights(sd15: Any, loaded: Any, tmp_path: Path) -> None:
    (pipe, _), (bundle, params) = sd15, loaded
    out = sdd_jax.save(bundle, params, tmp_path / "out")
    again = diffusers.StableDiffusionPipeline.from_pretrained(out)
    for part in ("unet", "vae", "text_encoder"):
        assert_same_weights(getattr(again, part), getattr(pipe, part))
    read, written = ({k: v for k, v in p.scheduler.config.items() if k != "_use_default_values"} for p in (again, pipe))
    assert read == written
    assert again.tokenizer(["a cat"])["input_ids"] == pipe.tokenizer(["a cat"])["input_ids"]
    keys = load_file(out / "text_encoder" / "model.safetensors").keys()
    assert all(key.startswith("text_model.") for key in keys)
    reloaded, reloaded_params = sdd_jax.load(out)
    assert_same_trees(reloaded_params, params)
    assert os.listdir(tmp_path) == ["out"]


def test_float16_files_and_replacing_a_model(loaded: Any, tmp_path: Path) -> None:
    bundle, params = loaded
    sdd_jax.save(bundle, params, tmp_path / "out")
    sdd_jax.save(bundle, params, tmp_path / "out", dtype=np.float16)
    assert (
        load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype == np.float16
    )
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    assert pipe.text_encoder.dtype == torch.float16
    _, half = sdd_jax.load(tmp_path / "out", param_dtype=jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float16(b)), half, params)
    beyond = {**params, "vae": jax.tree.map(lambda x: x * 1e9, params["vae"])}
    with pytest.raises(ValueError, match="vae: .* beyond float16"):
        sdd_jax.save(bundle, beyond, tmp_path / "out", dtype=np.float16)
    assert (tmp_path / "out" / "unet" / "config.json").is_file() and os.listdir(tmp_path) == ["out"]


def test_save_refuses_a_directory_of_something_else(loaded: Any, tmp_path: Path) -> None:
    for name in ("notes.txt", "config.json"):  # a training workdir has a config.json too
        directory = tmp_path / name.split(".")[0]
        directory.mkdir()
        (directory / name).write_text('{"seed": 1}')
        with pytest.raises(ValueError, match="not empty and not a model directory"):
            sdd_jax.save(*loaded, directory)
        assert (directory / name).read_text() == '{"seed": 1}'


def test_dtype_and_placement(sd15: Any) -> None:
    bundle, params = sdd_jax.load(sd15[1], dtype=jnp.bfloat16, on_host=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    out = jax.eval_shape(bundle.denoise, params["unet"], jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros((1, 8, 8)))
    assert out.dtype == jnp.float32


def test_a_model_of_sd21s_shape_and_its_round_trip(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """v-prediction, linear projections, heads per level, gelu in the text encoder."""
    unet = dict(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True)
    pipe = stable_diffusion(tiny_tokenizer, unet, dict(prediction_type="v_prediction"), hidden_act="gelu")
    pipe.save_pretrained(tmp_path / "sd21")
    bundle, params = sdd_jax.load(tmp_path / "sd21")
    rng = np.random.default_rng(1)
    z, t = rng.standard_normal((2, 4, 4, 4)).astype(np.float32), np.array([3, 977], np.int32)
    ids = bundle.tokenize(["a lion", "a small cat"])
    context = jax.jit(lambda p, ids: bundle.embed_text(p, ids)[0])(params, ids)
    prediction = jax.jit(bundle.denoise)(params["unet"], z, t, context)
    again = diffusers.StableDiffusionPipeline.from_pretrained(sdd_jax.save(bundle, params, tmp_path / "out"))
    outputs = []
    for one in (pipe, again):
        with torch.no_grad():
            states = one.text_encoder(torch.from_numpy(ids).long()).last_hidden_state
            outputs.append((states, one.unet(nchw(z), torch.from_numpy(t), states).sample))
    for ours, theirs, saved in zip((context, prediction), *outputs, strict=True):
        assert relative_error(ours, theirs) < 1e-4 and torch.equal(saved, theirs)
    assert_same_weights(again.vae, pipe.vae)
    assert bundle.prediction == "v" and again.scheduler.config.prediction_type == "v_prediction"


def test_sdxl_text_states_and_round_trip(tiny_tokenizer: Any, tmp_path: Path) -> None:
    xl = UNET | dict(
        cross_attention_dim=20, addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 8 + 6,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 0),
        unet=randomise(diffusers.UNet2DConditionModel(**xl), 1),
        text_encoder=text_encoder(tiny_tokenizer, "CLIPTextModel", 2, 8),
        text_encoder_2=text_encoder(
            tiny_tokenizer, "CLIPTextModelWithProjection", 3, 12, projection_dim=6, hidden_act="gelu"
        ),
        tokenizer=tiny_tokenizer.backend,
        tokenizer_2=tiny_tokenizer.backend,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **SCHEDULER),
    )
    pipe.save_pretrained(tmp_path / "xl")
    bundle, params = sdd_jax.load(tmp_path / "xl")
    texts = ["a lion", "a small cat"]
    assert bundle.tokenize_2 is not None and bundle.prediction == "v"
    context, pooled = jax.jit(bundle.embed_text)(params, bundle.tokenize(texts), bundle.tokenize_2(texts))
    with torch.no_grad():
        want, _, want_pooled, _ = pipe.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
    assert relative_error(context, want) < 1e-4 and relative_error(pooled, want_pooled) < 1e-4
    with pytest.raises(ValueError, match="two text encoders"):
        bundle.embed_text(params, bundle.tokenize(texts))
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(sdd_jax.save(bundle, params, tmp_path / "out"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert_same_weights(getattr(again, part), getattr(pipe, part))


@pytest.mark.parametrize(
    "fields",
    [
        dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
        dict(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3),
        dict(SCHEDULER, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ],
)
def test_schedules_match_diffusers(fields: Any) -> None:
    scheduler = diffusers.DDIMScheduler(**fields)
    table = bundles.read_schedule(dict(scheduler.config))
    np.testing.assert_allclose(table, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7)
    Schedule.from_alphas_cumprod(table)


def test_a_bundle_from_configs_alone(loaded: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    configs = {name: config for name, config in loaded[0].configs.items() if name != "model_index"}
    bundle = bundles.make_bundle(configs, tiny_tokenizer)
    params = bundles.init_params(configs, jax.random.key(0))
    shapes = jax.tree.map(np.shape, params)
    assert shapes == jax.tree.map(np.shape, loaded[1])
    stds = {k: float(np.std(v)) for k, v in traverse_util.flatten_dict(params, sep="/").items() if k.endswith("kernel")}
    assert min(stds.values()) > 0
    sdd_jax.save(bundle, params, tmp_path / "new")
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "new")


def test_one_component_loads_in_pytorch(sd15: Any, loaded: Any, tmp_path: Path) -> None:
    bundle, params = loaded
    out = save_component(params["unet"], bundle.configs["unet"], tmp_path / "unet", "UNet2DConditionModel")
    state = diffusers.UNet2DConditionModel.from_pretrained(out).state_dict()
    assert_same_trees(convert.torch_to_flax({k: v.numpy() for k, v in state.items()}), params["unet"])
    save_component(params["text_encoder"], bundle.configs["text_encoder"], out, "CLIPTextModel")
    assert_same_weights(transformers.CLIPTextModel.from_pretrained(out), sd15[0].text_encoder)
