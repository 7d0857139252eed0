"""The published numbers of iCD, as the configs of Stable Diffusion have them (the paper's, and its scripts')."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.config import defaults_of, load_config
from sdd_jax.diffusion.timegrid import BOUNDARIES
from sdd_jax.models.lora import ICD_TARGETS
from sdd_jax.objectives.inputs import added_conditions
from sdd_jax.train import EngineConfig
from sdd_jax.types import ModelBundle

CONFIG = Path(__file__).parents[1] / "configs" / "icd.py"
TARGETS = (
    r"to_q", r"to_k", r"to_v", r"to_out\.0", r"proj_in", r"proj_out", r"ff\.net\.0\.proj", r"ff\.net\.2", r"conv1",
    r"conv2", r"conv_shortcut", r"downsamplers\.0\.conv", r"upsamplers\.0\.conv", r"time_emb_proj",
)  # fmt: skip
SD15 = (1, 8, 12, 16, 20)
SDXL = (1, 4, 6, 8, 10, 12, 13, 16, 18, 20)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize(
    ("model", "batch", "side", "scales", "third"), [("sd15", 512, 512, SD15, 779), ("sdxl", 128, 1024, SDXL, 699)]
)
def test_the_published_training(stage, model, batch, side, scales, third):
    """third: where the third jump starts, for tau .8 and .7."""
    config = load_config(f"{CONFIG}:{stage},{model}", (), defaults_of(EngineConfig))
    assert (config.steps, config.batch_size, config.data.size, config.objective.scales) == (6000, batch, side, scales)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ("adamw", 8e-6, "constant")
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_steps) == (0.0, 1.0, 0)
    assert config.ema is None, "targets are the student itself"
    lora = config.objective.lora
    assert (lora.rank, lora.alpha, lora.targets) == (64, 8.0, TARGETS)
    if stage == "stage2":
        assert (config.objective.forward_preservation, config.objective.reverse_preservation) == (1.5, 1.5)
        assert BOUNDARIES[config.objective.boundaries].reverse == (259, 519, third, 999)
        assert config.objective.grid_steps == 50


def test_the_adapters_default_targets_are_the_published_ones():
    assert ICD_TARGETS == TARGETS


def test_sdxl_is_told_that_pictures_are_square_and_whole():
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    model = ModelBundle(**{**fields, "sample_size": 128, "downsampling": 8})
    added = added_conditions(model, jnp.zeros((2, 4)))
    np.testing.assert_array_equal(added["time_ids"], [[1024, 1024, 0, 0, 1024, 1024]] * 2)
