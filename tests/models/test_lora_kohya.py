"""Kohya's names: the same adapter back with its own alpha, and the same strength in PyTorch diffusers' own reader."""

import numpy as np
import pytest
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch

from sdd_jax.models.lora import LoraSpec
from sdd_jax.models.lora_files import export, load_lora
from sdd_jax.models.lora_kohya import is_peft, to_kohya

SPEC = LoraSpec(rank=2, alpha=0.5, targets=("to_q", "conv1"))
LINEAR = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q"
CONV = "mid_block/resnets_0/conv1"


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture
def written(tmp_path):
    adapter = {
        LINEAR: {"a": draw(6, 2), "b": draw(2, 5)},
        CONV: {"a": draw(3, 3, 4, 2), "b": draw(1, 1, 2, 8)},
    }
    export(adapter, SPEC, tmp_path / "peft.safetensors")
    return adapter, to_kohya(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors")


def params():
    kernels = {LINEAR: draw(6, 5), CONV: draw(3, 3, 4, 8)}
    tree = {}
    for path, kernel in kernels.items():
        node = tree
        for part in path.split("/"):
            node = node.setdefault(part, {})
        node["kernel"] = kernel
    return tree


def test_the_adapter_comes_back_with_its_alpha(written):
    adapter, path = written
    back, spec = load_lora(path, params())
    assert spec.rank == 2 and spec.alpha == pytest.approx(0.5)
    for module, pair in adapter.items():
        for half in "ab":
            np.testing.assert_allclose(back[module][half], pair[half], rtol=1e-6)
    with safe_open(path, "numpy") as file:
        assert file.metadata()["ss_network_dim"] == "2" and float(file.metadata()["ss_network_alpha"]) == 0.5


def test_diffusers_reads_the_same_change_of_weights(written):
    """Its converter gives A, B and alpha by module; B A alpha / rank is what the adapter adds."""
    adapter, path = written
    state, alphas = _convert_non_diffusers_lora_to_diffusers(load_torch(path))
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    down = next(v for k, v in state.items() if k.startswith(module) and ("lora.down" in k or "lora_A" in k))
    up = next(v for k, v in state.items() if k.startswith(module) and ("lora.up" in k or "lora_B" in k))
    alpha = next(v for k, v in alphas.items() if k.startswith(module))
    change = (up @ down).numpy() * float(alpha) / 2
    want = (adapter[LINEAR]["a"] @ adapter[LINEAR]["b"]).T * SPEC.alpha / SPEC.rank
    np.testing.assert_allclose(change, want, rtol=1e-5)


def test_other_files_are_refused(tmp_path, written):
    other = tmp_path / "other.safetensors"
    save_file({"unet.x.lora_A.weight": draw(2, 3)}, other)
    assert not is_peft(other) and not is_peft(tmp_path / "none") and is_peft(tmp_path / "peft.safetensors")
    with pytest.raises(ValueError, match="is not a LoRA in PEFT's keys"):
        to_kohya(other, tmp_path / "out.safetensors")
    save_file({"unet.x.bias": draw(2)}, other, metadata={"lora_adapter_metadata": "{}"})
    with pytest.raises(ValueError, match="unet.x.bias"):
        to_kohya(other, tmp_path / "out.safetensors")
