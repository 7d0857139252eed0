"""The published models' `config.json`s, so that their shapes are known without their files.

| name | model | latents |
| --- | --- | --- |
| stable-diffusion-v1-5/stable-diffusion-v1-5 | SD 1.5 (Rombach et al. 2022), 512 px, predicts eps | 64 |
| stabilityai/stable-diffusion-2-1-base | SD 2.1, 512 px, predicts eps | 64 |
| stabilityai/stable-diffusion-2-1 | SD 2.1, 768 px, predicts v | 96 |
| stabilityai/stable-diffusion-xl-base-1.0 | SDXL (Podell et al. 2023), 1024 px, predicts eps | 128 |

Each is the dict of configs that `models.bundle.make_bundle` takes; fields at diffusers' defaults are left out.
"""

from __future__ import annotations

from typing import Any

Configs = dict[str, dict[str, Any]]

_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "sample_size": 64,
}
_CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}
_CLIP_H: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "eos_token_id": 2,
}
_CLIP_BIG_G: dict[str, Any] = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "eos_token_id": 2,
}
_UNET_2: dict[str, Any] = {
    **_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_UNET_XL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}

PUBLISHED: dict[str, Configs] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": _CLIP_L,
        "scheduler": _SCHEDULER,
    },
    "stabilityai/stable-diffusion-2-1-base": {
        "unet": _UNET_2,
        "vae": _VAE,
        "text_encoder": _CLIP_H,
        "scheduler": _SCHEDULER,
    },
    "stabilityai/stable-diffusion-2-1": {
        "unet": {**_UNET_2, "sample_size": 96},
        "vae": {**_VAE, "sample_size": 768},
        "text_encoder": _CLIP_H,
        "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"},
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": _UNET_XL,
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
        "scheduler": _SCHEDULER,
    },
}
