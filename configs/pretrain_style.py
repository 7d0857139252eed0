"""The embedded world's style generator: a 64-px StyleGAN2 and its e4e encoder, trained by reconstruction.

    python -m sdd_jax.main --config=configs/pretrain_style.py --config.world=runs/world --workdir=runs/style
    python -m sdd_jax.export --workdir=runs/style --out=runs/world

The world needs its classifier (configs/pretrain_portraits.py). The export adds style/ to it, 5.4 MB in half precision,
which `sdd_jax.jobs.world.style.read_style` and `models.stylegan_convert.load_generator` read.

| variant | what | a CPU core |
| --- | --- | --- |
| style | 10 codes of 64, 128 to 32 channels: 1.0M parameters; encoder 1.7M | 65 min: 72 000 samples at 19 a second |
| debug | four steps of four pictures | seconds |
"""

import ml_collections

from sdd_jax.config import variants_of

VARIANTS = ("style", "debug")


def get_config(arg: str = "style") -> ml_collections.ConfigDict:
    """Returns the configuration of the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    config = ml_collections.ConfigDict()
    config.task = "style_autoencoder"
    config.world = "portraits"
    config.seed = 0
    config.steps = 9000
    config.batch_size = 8
    config.accumulate = 1
    config.ema = 0.995
    config.ema_warmup = True
    config.log_every = 50
    config.checkpoint_every = 500
    config.preview_every = 500
    config.optimizer = ml_collections.ConfigDict(
        {"name": "muon", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50}
    )
    config.data = ml_collections.ConfigDict({"split": "train", "count": 24_000})
    config.objective = ml_collections.ConfigDict(
        {"perceptual_weight": 0.5, "delta_weight": 1e-3, "generator_gain": 10.0}
    )
    config.generator = ml_collections.ConfigDict(
        {
            "size": 64,
            "style_dim": 64,
            "mapping_layers": 0,
            "channel_multiplier": 1,
            "channel_base": 2048,
            "max_channels": 128,
        }
    )
    config.encoder = ml_collections.ConfigDict(
        {"body": {"units": (1, 1, 1, 1), "widths": (24, 48, 96, 96), "reduction": 8, "groups": 8}}
    )
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        config.data.count = 64
    return config
