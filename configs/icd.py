"""iCD: invertible few-step models for text-guided editing. Stage 1 distils guidance, stage 2 the jumps.

    python -m sdd_jax.main --config=configs/icd.py:stage1 --workdir=runs/icd_stage1
    python -m sdd_jax.main --config=configs/icd.py:stage2 --workdir=runs/icd --config.teacher.workdir=runs/icd_stage1
    python -m sdd_jax.evaluate --workdir=runs/icd
    python -m sdd_jax.edit --method=icd --workdir=runs/icd --image=in.png --source="..." --target="..." --out=out.png

| variant | what | hardware |
| --- | --- | --- |
| stage1 (and none) | guidance distillation of the embedded teacher, w in {1, 2, 3, 4, 6}, all weights | two CPU cores |
| stage2 | both models in 4 jumps, tau .8 (sdxl: .7), full weights; set config.teacher.workdir | two CPU cores |
| long | four times the steps of either | two CPU cores |
| lora | LoRA of rank 64, alpha 8, in place of full weights (stage 1: with the projection of w) | |
| full | full weights with sd15, sd21 or sdxl | |
| reverse, forward | one of the two models alone; forward takes the other one from config.partner.workdir | |
| sd15, sd21, sdxl | Stable Diffusion at its own size on captioned images: set config.data.path; LoRA | accelerators |
| debug | any of them, shrunk to seconds | |

Stage 2's other configurations of jumps: `--config.objective.boundaries=4_tau0.7`, `3_tau0.7`, `2`, or the times where
the reverse model's jumps start, `259,519,779,999`. `--config.objective.alternating=true`: an optimiser update for each
loss in place of one for their sum, each with moments of its own; the released code alternates, too, but there the two
losses of a model share an optimiser.

Published: SD1.5 w in {1, 8, 12, 16, 20}, batch 512, SDXL ten scales up to 20, batch 128; 6000 iterations at 8e-6, 36 h
and 68 h on 8 A100. Variants combine with commas: `configs/icd.py:stage2,sd15`.

The embedded stages are planned to fit 15 minutes on two CPU cores, at 140 F a second (F: a forward of the UNet for one
sample; one core makes 85) and a minute or two of compilation: 1400 steps of 16 samples at 5F, 112 thousand F, and 240
of 8 at 18F, 35 thousand.
"""

import ml_collections

from sdd_jax.config import variants_of

MODELS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1-base",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
SCALES = {
    "sd15": (1.0, 8.0, 12.0, 16.0, 20.0),
    "sd21": (1.0, 8.0, 12.0, 16.0, 20.0),
    "sdxl": (1.0, 4.0, 6.0, 8.0, 10.0, 12.0, 13.0, 16.0, 18.0, 20.0),
}
LORA_TARGETS = (
    r"to_q", r"to_k", r"to_v", r"to_out\.0", r"proj_in", r"proj_out", r"ff\.net\.0\.proj", r"ff\.net\.2", r"conv1",
    r"conv2", r"conv_shortcut", r"downsamplers\.0\.conv", r"upsamplers\.0\.conv", r"time_emb_proj",
)  # fmt: skip
STAGE2_ONLY = ("reverse", "forward")
VARIANTS = ("stage1", "stage2", "long", "lora", "full", *STAGE2_ONLY, *MODELS, "debug")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration with the variants named in `arg`, separated by commas."""
    names = variants_of(arg, VARIANTS, __file__)
    of_stage2 = [name for name in names if name in STAGE2_ONLY]
    if "stage1" in names and ("stage2" in names or of_stage2):
        raise ValueError(f"configs/icd.py: {', '.join(names)} names both stages; run them one after the other")
    model = next((name for name in MODELS if name in names), "")
    is_second = "stage2" in names or bool(of_stage2)
    config = ml_collections.ConfigDict()
    config.dtype = "float32"
    config.seed = 0
    steps, batch_size, often = (240, 8, 40) if is_second else (1400, 16, 100)
    config.update(steps=steps, batch_size=batch_size, log_every=20, checkpoint_every=often, preview_every=3 * often)
    config.update(ema=0.98, ema_warmup=True)
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "muon",
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 20,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    config.data = ml_collections.ConfigDict({"source": "portraits", "split": "train", "count": 6_000})
    config.objective = ml_collections.ConfigDict({"scales": SCALES.get(model, (1.0, 2.0, 3.0, 4.0, 6.0))})
    if "lora" in names or (model and "full" not in names):
        config.objective.lora = ml_collections.ConfigDict({"rank": 64, "alpha": 8.0, "targets": LORA_TARGETS})
    else:
        config.objective.lora = None
    (_second if is_second else _first)(config, names, model)
    if "long" in names:
        config.update(steps=4 * steps, ema=0.995, checkpoint_every=4 * often, preview_every=12 * often)
        config.data.count = 24_000
    if model:
        _stable_diffusion(config, model)
    if "debug" in names:
        config.update(steps=4, batch_size=4, log_every=1, checkpoint_every=2, preview_every=4)
        if "count" in config.data and config.data.source == "portraits":
            config.data.count = 64
    return config


def _first(config: ml_collections.ConfigDict, names: list[str], model: str) -> None:
    config.task = "guidance_distill"
    config.model = MODELS.get(model, "portraits")
    config.revision = ml_collections.config_dict.placeholder(str)
    config.objective.interval = False


def _second(config: ml_collections.ConfigDict, names: list[str], model: str) -> None:
    config.task = "icd"
    config.teacher = ml_collections.ConfigDict(
        {"workdir": "", "model": "", "revision": ml_collections.config_dict.placeholder(str)}
    )
    config.partner = ml_collections.ConfigDict({"workdir": ""})
    of_one = {"reverse", "forward"} & set(names)
    config.objective.update(
        boundaries="4_tau0.7" if model == "sdxl" else "4_tau0.8",
        alternating=False,
        grid_steps=50,
        reverse_weight=float("forward" not in names),
        forward_weight=float("reverse" not in names),
        forward_preservation=0.0 if "reverse" in names else 1.5,
        reverse_preservation=0.0 if of_one else 1.5,
    )


def _stable_diffusion(config: ml_collections.ConfigDict, model: str) -> None:
    config.dtype = "bfloat16"
    is_xl = model == "sdxl"
    config.update(steps=6000, batch_size=128 if is_xl else 512, log_every=50, checkpoint_every=500, preview_every=0)
    config.ema = None
    config.optimizer.update(name="adamw", learning_rate=8e-6, schedule="constant", warmup_steps=0)
    config.data = ml_collections.ConfigDict(
        {"source": "folder", "path": "", "size": 1024 if is_xl else 512, "captions": "random", "caption_dropout": 0.0}
    )
