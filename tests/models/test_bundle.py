"""Loading and saving against PyTorch's pipelines: tensors, outputs, every file form, and errors of one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import sdd_jax
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models import bundle as bundles
from sdd_jax.models import convert, hub
from sdd_jax.models.save import save_component
from sdd_jax.models.tokenizer import train_tokenizer

UNET = dict(
    sample_size=4,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
VAE = dict(
    block_out_channels=(8, 16),
    norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    scaling_factor=0.25,
)
SCHEDULER = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def randomise(module: torch.nn.Module, seed: int) -> Any:
    """Makes every tensor random: 0.1 normal noise, around one for norms' scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * torch.randn(p.shape, generator=generator))
    return module.eval()


def text_encoder(tokenizer: Any, kind: str, seed: int, width: int, **fields: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.eos_token_id - 1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
        **fields,
    )
    return randomise(getattr(transformers, kind)(config), seed)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> Any:
    return train_tokenizer(["a lion", "a small cat"], 530, tmp_path_factory.mktemp("tok"), model_max_length=8)


@pytest.fixture(scope="module")
def sd15(tokenizer: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """A small StableDiffusionPipeline and the directory that PyTorch diffusers wrote."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 0),
        unet=randomise(diffusers.UNet2DConditionModel(cross_attention_dim=8, **UNET), 1),
        text_encoder=text_encoder(tokenizer, "CLIPTextModel", 2, 8),
        tokenizer=tokenizer.backend,
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    directory = tmp_path_factory.mktemp("sd15") / "model"
    pipe.save_pretrained(directory)
    return pipe, directory


@pytest.fixture(scope="module")
def loaded(sd15: tuple[Any, Path]) -> tuple[Any, Any]:
    return sdd_jax.load(sd15[1])


@pytest.fixture()
def copied(sd15: tuple[Any, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd15[1], tmp_path / "model"))


def nchw(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def relative_error(ours: Any, theirs: torch.Tensor) -> float:
    expected = theirs.detach().numpy()
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def assert_same_trees(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


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


def test_sdxl_text_states_and_round_trip(tokenizer: Any, tmp_path: Path) -> None:
    xl = UNET | dict(
        cross_attention_dim=20, addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 8 + 6,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 0),
        unet=randomise(diffusers.UNet2DConditionModel(**xl), 1),
        text_encoder=text_encoder(tokenizer, "CLIPTextModel", 2, 8),
        text_encoder_2=text_encoder(
            tokenizer, "CLIPTextModelWithProjection", 3, 12, projection_dim=6, hidden_act="gelu"
        ),
        tokenizer=tokenizer.backend,
        tokenizer_2=tokenizer.backend,
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


def test_legacy_names_sharded_and_msgpack_files_give_the_same_weights(loaded: Any, copied: Path) -> None:
    params = loaded[1]
    vae_file = copied / "vae" / "diffusion_pytorch_model.safetensors"
    legacy = {}
    for key, value in load_file(vae_file).items():
        if ".attentions." in key and ".to_" in key:
            for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                key = key.replace(f".{new}.", f".{old}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        legacy[key] = value
    assert any("proj_attn" in key for key in legacy)
    save_file(legacy, vae_file)

    unet_dir = copied / "unet"
    state = load_file(unet_dir / "diffusion_pytorch_model.safetensors")
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shards = [{key: state[key] for key in sorted(state)[i::2]} for i in (0, 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, unet_dir / name)
    index = {
        "metadata": {},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (unet_dir / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (unet_dir / "diffusion_pytorch_model.safetensors").unlink()

    # as Flax's CLIP wrote it: layers nested by number, the causal-mask buffer's ids beside the embeddings
    tree = jax.tree.map(np.asarray, params["text_encoder"])
    encoder = tree["text_model"].pop("encoder")
    tree["text_model"]["encoder"] = {"layers": {name.removeprefix("layers_"): layer for name, layer in encoder.items()}}
    (copied / "text_encoder" / "model.safetensors").unlink()
    (copied / "text_encoder" / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))

    assert_same_trees(sdd_jax.load(copied)[1], params)
    (unet_dir / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{names[1]} is missing"):
        sdd_jax.load(copied)


def test_half_precision_variant_is_read_only_where_alone(copied: Path) -> None:
    vae_dir = copied / "vae"
    full = vae_dir / "diffusion_pytorch_model.safetensors"
    half = vae_dir / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(full, half)
    assert hub.weight_files(vae_dir) == [full]
    full.unlink()
    assert hub.weight_files(vae_dir) == [half]


def spoil(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda d: (d / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet has no weights"),
        (lambda d: os.truncate(d / "vae" / "diffusion_pytorch_model.safetensors", 5000), "vae.*damaged or truncated"),
        (lambda d: os.truncate(d / "vae" / "diffusion_pytorch_model.safetensors", 0), "vae.*damaged or truncated"),
        (
            lambda d: (d / "unet" / "diffusion_pytorch_model.safetensors").rename(
                d / "unet" / "diffusion_pytorch_model.bin"
            ),
            "unet/diffusion_pytorch_model.bin is a pickle.*save_pretrained",
        ),
        (lambda d: (d / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda d: (d / "vae" / "config.json").write_text("{"), "vae/config.json is not valid JSON"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer holds no tokenizer"),
        (lambda d: spoil(d / "model_index.json", unet=[None, None]), "no 'unet'"),
        (lambda d: spoil(d / "unet" / "config.json", class_embed_type="timestep"), "class_embed_type"),
        (
            lambda d: spoil(d / "unet" / "config.json", layers_per_block=2),
            "unet.*does not fit its config.json: .*missing",
        ),
        (lambda d: spoil(d / "vae" / "config.json", shift_factor=0.1), "vae/config.json: shift_factor"),
        (
            lambda d: spoil(d / "text_encoder" / "config.json", hidden_act="relu"),
            "text_encoder/config.json: hidden_act",
        ),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", prediction_type="flow"), "prediction_type"),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler"), "_class_name"),
        (lambda d: spoil(d / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"), "beta_schedule"),
    ],
)
def test_a_spoilt_model_is_refused_in_one_line(copied: Path, spoilt: Any, message: str) -> None:
    spoilt(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        sdd_jax.load(copied)
    assert "\n" not in str(error.value)


def test_names_that_are_no_model(sd15: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a directory, nor a hub id"):
        sdd_jax.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="owner/none cannot be had") as error:
        sdd_jax.load("owner/none")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no revision 'main'"):
        sdd_jax.load(sd15[1], revision="main")


def test_hub_downloads_one_form_of_each_component() -> None:
    files = [
        "model_index.json", "v1-5-pruned.safetensors", "unet/config.json", "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors.index.json", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors",
    ]  # fmt: skip
    assert hub.needed_files(files, "owner/name") == [
        "model_index.json", "unet/config.json", "tokenizer/merges.txt", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="owner/name/unet/diffusion_pytorch_model.bin is a pickle"):
        hub.needed_files(["unet/diffusion_pytorch_model.bin"], "owner/name")


def test_content_hash_follows_the_bytes_alone(sd15: Any, loaded: Any, copied: Path) -> None:
    files = lambda root: [hub.weight_files(root / part)[0] for part in ("vae", "unet", "text_encoder")]  # noqa: E731
    same = hub.content_hash(files(copied), copied)
    assert same == loaded[0].content_hash and len(same) == 64
    with (copied / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x07")
    assert hub.content_hash(files(copied), copied) != same


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


def test_a_bundle_from_configs_alone(loaded: Any, tokenizer: Any, tmp_path: Path) -> None:
    configs = {name: config for name, config in loaded[0].configs.items() if name != "model_index"}
    bundle = bundles.make_bundle(configs, tokenizer)
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
