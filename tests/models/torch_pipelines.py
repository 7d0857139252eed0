"""Small pipelines of PyTorch diffusers with random weights, and what is the same in two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers

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


def stable_diffusion(tokenizer: Any, unet: Mapping[str, Any], scheduler: Mapping[str, Any], **text: Any) -> Any:
    """A StableDiffusionPipeline: UNET, SCHEDULER and a text encoder of width 8, with the fields given."""
    return diffusers.StableDiffusionPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 0),
        unet=randomise(diffusers.UNet2DConditionModel(cross_attention_dim=8, **{**UNET, **unet}), 1),
        text_encoder=text_encoder(tokenizer, "CLIPTextModel", 2, 8, **text),
        tokenizer=tokenizer.backend,
        scheduler=diffusers.DDIMScheduler(**{**SCHEDULER, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def randomise(module: torch.nn.Module, seed: int) -> Any:
    """Makes every tensor random: 0.1 normal noise, around one for norms' scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * torch.randn(p.shape, generator=generator))
    return module.eval()


def text_encoder(tokenizer: Any, kind: str, seed: int, width: int, **fields: Any) -> Any:
    """A CLIP text encoder of two layers, of transformers' class `kind`."""
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


def assert_same_trees(ours: Any, theirs: Any) -> None:
    """Parameter trees, value by value."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """PyTorch modules, tensor by tensor."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
