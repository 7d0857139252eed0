"""LoRA against PyTorch peft through diffusers: values, files both ways, and what a training step does not compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sdd_jax.models import convert, lora
from sdd_jax.models.lora import ICD_TARGETS, LoraSpec
from sdd_jax.models.lora_files import METADATA_KEY, export, load_lora
from sdd_jax.models.lora_kohya import to_kohya
from sdd_jax.models.unet import make_unet

CONFIG = dict(
    sample_size=4,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=2,
    cross_attention_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
SPEC = LoraSpec(rank=3, alpha=1.5)


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * torch.randn(p.shape, generator=generator))
    return module.eval()


def oracle() -> Any:
    return randomise(diffusers.UNet2DConditionModel(**CONFIG), 0)


@pytest.fixture(scope="module")
def params() -> Any:
    state = {name: value.numpy() for name, value in oracle().state_dict().items()}
    return jax.tree.map(jnp.asarray, convert.torch_to_flax(state))


@pytest.fixture(scope="module")
def adapter(params: Any) -> lora.Lora:
    """A fresh adapter whose B is random too."""
    rng = np.random.default_rng(0)
    fresh = lora.init(jax.random.key(0), params, SPEC)
    return {
        path: {**pair, "b": jnp.asarray(rng.normal(size=pair["b"].shape), jnp.float32)} for path, pair in fresh.items()
    }


@pytest.fixture(scope="module")
def denoise() -> Any:
    unet = make_unet(CONFIG)
    return jax.jit(lambda params, *args: unet.apply({"params": params}, *args))


def arguments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    z, context = rng.standard_normal((2, 4, 4, 4)), rng.standard_normal((2, 5, 8))
    return z.astype(np.float32), np.array([9, 700], np.int32), context.astype(np.float32)


def torch_output(unet: Any) -> np.ndarray:
    z, t, context = arguments()
    with torch.no_grad():
        out = unet(
            torch.from_numpy(np.ascontiguousarray(z.transpose(0, 3, 1, 2))),
            torch.from_numpy(t),
            torch.from_numpy(context),
        )
    return out.sample.numpy().transpose(0, 2, 3, 1)


def assert_close(ours: Any, theirs: Any, bound: float = 1e-4) -> None:
    assert np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max() < bound


def test_exported_adapter_gives_the_same_output_in_pytorch(
    params: Any, adapter: Any, denoise: Any, tmp_path: Path
) -> None:
    export(adapter, SPEC, tmp_path / "lora.safetensors")
    ours = denoise(jax.jit(lora.merge, static_argnums=2)(params, adapter, SPEC), *arguments())
    unet = oracle()
    plain = torch_output(unet)
    unet.load_lora_adapter(tmp_path / "lora.safetensors", prefix="unet")
    theirs = torch_output(unet)
    assert_close(ours, theirs)
    assert np.abs(theirs - plain).max() / np.abs(plain).max() > 0.1
    pipe, fresh = diffusers.StableDiffusionPipeline, oracle()
    state, alphas, metadata = pipe.lora_state_dict(tmp_path / "lora.safetensors", return_lora_metadata=True)
    assert metadata["unet.r"] == metadata["unet.lora_alpha"] == SPEC.rank
    pipe.load_lora_into_unet(state, alphas, fresh, metadata=metadata)
    assert_close(ours, torch_output(fresh))
    back, spec = load_lora(tmp_path / "lora.safetensors", params)
    assert (spec.rank, spec.alpha) == (SPEC.rank, SPEC.alpha)
    jax.tree.map(np.testing.assert_array_equal, back, adapter)


def test_kohyas_names_give_the_same_output_in_pytorch(
    params: Any, adapter: lora.Lora, denoise: Any, tmp_path: Path
) -> None:
    export(adapter, SPEC, tmp_path / "peft.safetensors")
    to_kohya(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors")
    pipe, unet = diffusers.StableDiffusionPipeline, oracle()
    state, alphas = pipe.lora_state_dict(tmp_path / "kohya.safetensors")
    pipe.load_lora_into_unet(state, alphas, unet)
    assert_close(
        denoise(jax.jit(lora.merge, static_argnums=2)(params, adapter, SPEC), *arguments()), torch_output(unet)
    )


def test_adapting_layers_equals_merging_kernels(params: Any, adapter: Any, denoise: Any) -> None:
    merged = denoise(jax.jit(lora.merge, static_argnums=2)(params, adapter, SPEC, 0.5), *arguments())
    unet = make_unet(CONFIG, remat="block")
    adapted = lora.adapt(lambda p, *args: unet.apply({"params": p}, *args), SPEC)
    assert_close(
        jax.jit(lambda one: adapted(params, one, *arguments(), lora_scale=0.5))(adapter), np.asarray(merged), 1e-5
    )


def test_fresh_adapter_changes_nothing(params: Any) -> None:
    fresh = lora.init(jax.random.key(1), params, SPEC)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, fresh, SPEC), params)
    for path, pair in fresh.items():
        bound = np.prod(pair["a"].shape[:-1]) ** -0.5
        assert 0.5 * bound < np.abs(pair["a"]).max() <= bound, path


def test_training_through_adapt_makes_no_frozen_gradients(params: Any, adapter: Any) -> None:
    unet = make_unet(CONFIG)

    def apply(p: Any, *args: Any) -> Any:
        return unet.apply({"params": p}, *args)

    def flops(loss: Any) -> float:
        return jax.jit(jax.grad(loss)).lower(adapter).cost_analysis()["flops"]

    forward = jax.jit(apply).lower(params, *arguments()).cost_analysis()["flops"]
    adapted = lora.adapt(apply, SPEC)
    through_layers = flops(lambda one: adapted(params, one, *arguments()).sum())
    through_kernels = flops(lambda one: apply(lora.merge(params, one, SPEC), *arguments()).sum())
    assert through_kernels > 2.9 * forward
    assert through_layers < through_kernels - 0.5 * forward


def test_a_peft_adapter_loads_here(params: Any, denoise: Any, tmp_path: Path) -> None:
    unet = oracle()
    unet.add_adapter(
        peft.LoraConfig(
            r=2, lora_alpha=3, target_modules=["to_q", "conv1", "proj_in"], rank_pattern={"conv1": 4},
            alpha_pattern={"to_q": 5},
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if ".lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    unet.save_lora_adapter(tmp_path)
    (file,) = tmp_path.iterdir()
    back, spec = load_lora(file, params)
    merged = jax.jit(lora.merge, static_argnums=2)(params, back, spec)
    assert_close(denoise(merged, *arguments()), torch_output(unet))


def write_kohya(adapter: lora.Lora, path: Path, alpha: float) -> None:
    state: dict[str, np.ndarray] = {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": np.float32(1.0)}
    for module, pair in adapter.items():
        name = "lora_unet_" + lora.module_name(module).replace(".", "_")
        tree = {"lora_down": {"kernel": pair["a"]}, "lora_up": {"kernel": pair["b"]}}
        state |= {f"{name}.{key}": value for key, value in convert.flax_to_torch(tree).items()}
        state[f"{name}.alpha"] = np.float32(alpha)
    save_file({key: np.asarray(value) for key, value in state.items()}, path)


def test_kohya_files_load_with_their_alpha(params: Any, adapter: Any, tmp_path: Path, caplog: Any) -> None:
    write_kohya(adapter, tmp_path / "kohya.safetensors", 1.5)
    back, spec = load_lora(tmp_path / "kohya.safetensors", params)
    assert spec.scale == pytest.approx(0.5)
    jax.tree.map(np.testing.assert_array_equal, back, adapter)
    assert "1 tensors are for another part" in caplog.text


def test_plain_peft_keys_mean_strength_one(params: Any, adapter: Any, tmp_path: Path) -> None:
    export(adapter, SPEC, tmp_path / "a.safetensors")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "plain.safetensors")
    assert load_lora(tmp_path / "plain.safetensors", params)[1].scale == 1.0


def test_targets_are_ends_of_dotted_names(params: Any) -> None:
    names = {lora.module_name(path) for path in lora.kernels(params) if SPEC.matches(path)}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0" in names
    assert {"down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"} <= names
    assert not names & {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    # peft's own reading of the same list, as plain suffixes
    plain = [target.replace("\\.", ".") for target in ICD_TARGETS]
    unet = oracle()
    unet.add_adapter(peft.LoraConfig(r=1, target_modules=plain))
    assert names == {
        name.removesuffix(".lora_A.default") for name, _ in unet.named_modules() if name.endswith("lora_A.default")
    }


def test_errors_name_what_is_wrong(params: Any, adapter: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'to_quux' matches no"):
        lora.init(jax.random.key(0), params, LoraSpec(rank=1, alpha=1, targets=("to_q", "to_quux")))
    with pytest.raises(ValueError, match="rank >= 1"):
        LoraSpec(rank=0, alpha=1)
    with pytest.raises(ValueError, match="'mid_block.nothing'"):
        lora.merge(params, {"mid_block/nothing": adapter["mid_block/resnets_0/conv1"]}, SPEC)
    with pytest.raises(FileNotFoundError, match="none.safetensors is missing"):
        load_lora(tmp_path / "none.safetensors", params)
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_lora(file, params)
    a, b = np.zeros((2, 16), np.float32), np.zeros((16, 2), np.float32)
    where = "unet.mid_block.attentions.0.proj_in"
    for state, message in [
        ({f"{where}.lora_A.weight": a}, "only one of A and B"),
        ({f"{where}.lora_A.weight": a, f"{where}.lora_B.weight": b}, "for another model"),
        ({f"{where}.hada_w1_a": a}, "only plain LoRA"),
        ({"unet.absent.lora_A.weight": a}, "'absent'"),
        ({"text_encoder.x.lora_A.weight": a}, "no LoRA for unet"),
    ]:
        save_file(state, file)
        with pytest.raises(ValueError, match=message):
            load_lora(file, params)
    state = {
        f"{where}.lora_A.weight": np.zeros((2, 32), np.float32),
        f"{where}.lora_B.weight": np.zeros((32, 2), np.float32),
    }
    save_file(state, file, metadata={METADATA_KEY: json.dumps({"unet.use_dora": True})})
    with pytest.raises(ValueError, match="DoRA"):
        load_lora(file, params)
