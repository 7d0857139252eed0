"""The Stable Diffusion 1.5 variant of the main job at its real size: random weights in sharded files, PNGs, two steps.

Slow and large, outside `make test`:

    python -m pytest -m slow -s tests/test_full_size_run.py
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import transformers
from PIL import Image

from sdd_jax.data import portraits
from sdd_jax.models.published import PUBLISHED
from sdd_jax.models.tokenizer import train_tokenizer

GIB = 2**30
MEMORY = sum(
    int(line.split()[1]) * 1024
    for line in Path("/proc/meminfo").read_text().splitlines()
    if line.startswith(("MemTotal:", "SwapTotal:"))
)
CONTROLNET, UNET = 361_279_120, 859_520_964
VAE_BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
OVERRIDES = {
    "batch_size": 1, "steps": 2, "log_every": 1, "checkpoint_every": 2, "remat": "block", "compile_cache": "",
    "optimizer.warmup_steps": 0, "dtype": "float32",
}  # fmt: skip
"""In float32: XLA computes in it on a CPU, and would copy bfloat16 weights."""


def write_model(root, configs, shard):
    """A Stable Diffusion as diffusers and transformers write it, in half precision and in shards of at most `shard`."""
    networks = {
        "unet": lambda: diffusers.UNet2DConditionModel.from_config(dict(configs["unet"])),
        "vae": lambda: diffusers.AutoencoderKL.from_config({**configs["vae"], **VAE_BLOCKS}),
        "text_encoder": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"])),
    }
    for name, make in networks.items():
        make().half().save_pretrained(root / name, max_shard_size=shard)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(configs["scheduler"])))
    train_tokenizer(portraits.caption_corpus(), 768, root / "tokenizer", 77)
    for name in ("unet", "text_encoder"):
        assert len(list((root / name).glob("*-of-*.safetensors"))) > 1, "in shards"
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    configs = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    return write_model(tmp_path_factory.mktemp("sd15") / "model", configs, "100MB")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two photograph-sized PNGs with captions."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        coarse = np.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text("a photo of a smiling lion")
    return root


def two_steps(variant, weights, pictures, workdir, *overrides):
    """Runs the job's command in a process: its output, the seconds it took, its peak memory in bytes."""
    command = [
        *(sys.executable, "-u", "-m", "sdd_jax.main", f"--config=configs/ccd_sr.py:{variant}"),
        *(f"--config.model={weights}", f"--config.data.path={pictures}", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in OVERRIDES.items()),
        *overrides,
    ]
    began, peak = time.monotonic(), 0
    with (workdir.parent / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1])
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.2)
        output.seek(0)
        text = output.read()
    assert process.returncode == 0, text
    return text, time.monotonic() - began, peak


def held(pid):
    """The most bytes that a process had in memory so far, and those in swap now; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM:", "VmSwap:")))


def check(output, workdir, trained):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert f"{trained:,}" in output, "the parameter overview's total"
    assert (workdir / "checkpoints" / "2" / "MANIFEST.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "trained", "needed"),
    [("sd15,adapter", CONTROLNET, 20 * GIB), ("sd15", CONTROLNET + UNET, 48 * GIB)],
    ids=["adapter", "full"],
)
def test_two_steps_of_the_main_job(variant, trained, needed, weights, pictures, tmp_path):
    if MEMORY < needed:
        pytest.skip(f"needs {needed // GIB} GiB of memory and swap, this machine has {MEMORY / GIB:.0f}")
    output, seconds, peak = two_steps(variant, weights, pictures, tmp_path / "run")
    print(output)
    print(f"{variant}: two steps of {trained / 1e6:.0f}M trained in {seconds:.0f} s, at most {peak / GIB:.1f} GiB")
    check(output, tmp_path / "run", trained)
    assert peak < needed
