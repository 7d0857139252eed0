"""The embedded world's networks, one variant each, in the order they need each other.

    python -m sdd_jax.main --config=configs/pretrain_portraits.py:classifier --workdir=runs/classifier
    python -m sdd_jax.export --workdir=runs/classifier --out=runs/world

and the same for `regressor`, `clip`, `vae` (reads the classifier) and `unet` (reads clip and vae), each with
`--config.world=runs/world`. The last export completes the directory that `sdd_jax.load` and PyTorch diffusers read.

| variant | network | measured | expected on held-out data |
| --- | --- | --- | --- |
| classifier | 5 convolutions, 0.55M | 4 min on one CPU core | >= 98% of every attribute |
| regressor | the same, 16 outputs | 8 min on one CPU core | mean squared error < .6 of the variance |
| clip | text transformer 128 x 3, image tower 0.5M | 19 min on one CPU core | zero-shot >= 95% of every attribute |
| vae | AutoencoderKL f=4, 4 channels, 0.9M | 32 min on one CPU core | >= 30 dB PSNR |
| unet | UNet2DConditionModel 64, 128, 4.3M | 46 min on two cores | >= 85% mean attribute accuracy at 50 DDIM steps |
| debug | any of them, four steps of four pictures | seconds | |
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = ("classifier", "regressor", "clip", "vae", "unet", "debug")


def get_config(arg: str = "unet") -> ml_collections.ConfigDict:
    """Returns the configuration of the variants named in `arg`, separated by commas; the last network named wins."""
    names = variants_of(arg, VARIANTS, __file__)
    network = next((name for name in reversed(names) if name != "debug"), "unet")
    config = _common()
    {"classifier": _classifier, "regressor": _regressor, "clip": _clip, "vae": _vae, "unet": _unet}[network](config)
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
    return config


def _common() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = ""
    config.world = "portraits"
    config.seed = 0
    config.steps = 1000
    config.batch_size = 64
    config.accumulate = 1
    config.ema = 0.99
    config.ema_warmup = True
    config.log_every = 50
    config.checkpoint_every = 200
    config.preview_every = 200
    config.optimizer = ml_collections.ConfigDict(
        {"name": "muon", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50}
    )
    config.data = ml_collections.ConfigDict({"split": "train", "count": 24_000})
    config.objective = ml_collections.ConfigDict()
    return config


def _classifier(config: ml_collections.ConfigDict) -> None:
    config.task = "classifier"
    config.tower = ml_collections.ConfigDict({"widths": (32, 64, 128, 128, 192), "strides": (2, 2, 2, 1, 2)})
    config.objective.noise = 0.1


def _regressor(config: ml_collections.ConfigDict) -> None:
    config.task = "regressor"
    config.steps = 2000
    config.tower = ml_collections.ConfigDict({"widths": (32, 64, 128, 128, 192), "strides": (2, 2, 2, 1, 2)})
    config.objective.noise = 0.1


def _clip(config: ml_collections.ConfigDict) -> None:
    config.task = "clip"
    config.optimizer.learning_rate = 1e-3
    config.data.negatives = 3
    config.tower = ml_collections.ConfigDict(
        {"widths": (32, 64, 96, 128, 128), "strides": (2, 2, 2, 1, 2), "outputs": 128}
    )
    config.tokenizer = ml_collections.ConfigDict({"vocab_size": 768, "model_max_length": 40})
    config.text_encoder = ml_collections.ConfigDict(
        {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_act": "quick_gelu",
            "projection_dim": 128,
            "layer_norm_eps": 1e-5,
        }
    )


def _vae(config: ml_collections.ConfigDict) -> None:
    config.task = "vae"
    config.steps = 5000
    config.batch_size = 4
    config.ema = 0.995
    config.objective.update({"perceptual_weight": 0.1, "kl_weight": 1e-4})
    config.vae = ml_collections.ConfigDict(
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "act_fn": "silu",
            "sample_size": 64,
            "scaling_factor": 1.0,
        }
    )


def _unet(config: ml_collections.ConfigDict) -> None:
    config.task = "unet"
    config.steps = 4000
    config.batch_size = 16
    config.ema = 0.999
    config.checkpoint_every = 500
    config.preview_every = 500
    config.optimizer.learning_rate = 3e-3
    config.objective.caption_dropout = 0.1
    config.scheduler = ml_collections.ConfigDict(
        {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "timestep_spacing": "trailing",
        }
    )
    config.unet = ml_collections.ConfigDict(
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 128,
            "norm_num_groups": 16,
            "act_fn": "silu",
        }
    )
