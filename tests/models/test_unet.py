"""The UNet against PyTorch diffusers, and the identities that adapters and editing rely on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet

from sdd_jax.models.attention import AttentionEdit
from sdd_jax.models.convert import flax_to_torch
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.types import Residuals
import torch_parity as parity


def torch_arguments(made: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        "sample": parity.nchw(made["z"]),
        "timestep": torch.from_numpy(made["t"]),
        "encoder_hidden_states": torch.from_numpy(made["context"]),
    }
    if "timestep_cond" in made:
        arguments["timestep_cond"] = torch.from_numpy(made["timestep_cond"])
    if "added_cond" in made:
        arguments["added_cond_kwargs"] = {k: torch.from_numpy(v) for k, v in made["added_cond"].items()}
    return arguments


@pytest.mark.parametrize(
    ("config", "size"),
    [(parity.SD15, (8, 8)), (parity.SD21, (9, 7)), (parity.LCM, (8, 6)), (parity.SDXL, (8, 12))],
    ids=["sd15", "sd21-odd", "lcm", "sdxl"],
)
def test_matches_diffusers_on_random_weights(config: dict[str, Any], size: tuple[int, int]) -> None:
    theirs = TorchUNet.from_config(config)
    params = parity.randomise(theirs, seed=1)
    made = parity.inputs(config, size)
    made.pop("condition")
    unet = make_unet(dict(theirs.config))
    shapes = jax.eval_shape(lambda: init_unet(unet, jax.random.key(0)))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)

    ours = jax.jit(unet.apply)({"params": params}, **made)
    with torch.no_grad():
        assert parity.relative_error(ours, theirs(**torch_arguments(made)).sample) <= 1e-4
