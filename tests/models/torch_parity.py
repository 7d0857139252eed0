"""Reduced configs of the three model families, and helpers that hold a Flax network against diffusers' PyTorch one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

from sdd_jax.models.convert import torch_to_flax

_SHARED: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
SD15 = _SHARED | {"attention_head_dim": 8, "layers_per_block": 2}
SD21 = _SHARED | {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
LCM = SD21 | {"time_cond_proj_dim": 12, "mid_block_scale_factor": 1.5, "norm_eps": 1e-4}
SDXL = _SHARED | {
    "attention_head_dim": [2, 4, 4],
    "block_out_channels": [32, 64, 64],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
    "transformer_layers_per_block": [1, 2, 4],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
CONVOLUTIONAL = SD21 | {
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}


def control_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a ControlNet for a UNet's, whose condition has four times the latents' size."""
    encoder = {name: value for name, value in config.items() if name not in ("up_block_types", "time_cond_proj_dim")}
    return encoder | {"conditioning_embedding_out_channels": [8, 12, 16]}


def randomise(module: torch.nn.Module, seed: int) -> dict[str, Any]:
    """Fills every tensor with 0.05 times normal noise, plus one for norms' scales; returns them as a Flax tree.

    A ControlNet's condition embedding, narrow and without norms, gets 0.25: its output would vanish otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            deviation = 0.25 if name.startswith("controlnet_cond_embedding") else 0.05
            value.copy_(deviation * torch.randn(value.shape, generator=generator))
            if value.ndim == 1 and name.endswith("weight"):
                value.add_(1)
    module.eval()
    return torch_to_flax({name: value.numpy() for name, value in module.state_dict().items()})


def random_params(shapes: Any, seed: int) -> Any:
    """Random values for a tree of shapes, as `randomise` draws them; compiling an initialiser takes far longer."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        values = 0.05 * rng.standard_normal(leaf.shape).astype(np.float32)
        return values + 1 if path[-1].key == "scale" else values

    return jax.tree_util.tree_map_with_path(fill, shapes)


def relative_error(ours: Any, theirs: Any) -> float:
    """norm(ours - theirs) / norm(theirs), theirs a tensor; 4-D tensors are NCHW there and NHWC here."""
    expected = theirs.detach().numpy()
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    return float(np.linalg.norm(np.asarray(ours) - expected) / np.linalg.norm(expected))


def nchw(x: np.ndarray) -> torch.Tensor:
    """An NHWC array as an NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def inputs(config: Mapping[str, Any], size: tuple[int, int], condition_factor: int = 1) -> dict[str, Any]:
    """Random arguments for a batch of two, with timestep_cond or added_cond where the config has them."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    made: dict[str, Any] = {
        "z": normal(2, *size, 4),
        "t": np.array([3, 981], np.int32),
        "context": normal(2, 7, config["cross_attention_dim"]),
        "condition": rng.random((2, condition_factor * size[0], condition_factor * size[1], 3)).astype(np.float32),
    }
    if config.get("time_cond_proj_dim"):
        made["timestep_cond"] = normal(2, config["time_cond_proj_dim"])
    if config.get("addition_embed_type"):
        made["added_cond"] = {
            "text_embeds": normal(2, 20),
            "time_ids": np.array([[64, 48, 0, 4, 64, 64], [32, 32, 8, 0, 128, 96]], np.float32),
        }
    return made


def torch_arguments(made: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `inputs`, less the condition, as diffusers' UNet and ControlNet take them."""
    arguments: dict[str, Any] = {
        "sample": nchw(made["z"]),
        "timestep": torch.from_numpy(made["t"]),
        "encoder_hidden_states": torch.from_numpy(made["context"]),
    }
    if "timestep_cond" in made:
        arguments["timestep_cond"] = torch.from_numpy(made["timestep_cond"])
    if "added_cond" in made:
        arguments["added_cond_kwargs"] = {name: torch.from_numpy(value) for name, value in made["added_cond"].items()}
    return arguments
