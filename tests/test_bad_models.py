"""Models that a command cannot take: one line, a non-zero exit, and nothing written."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from sdd_jax import jobs, sample
from sdd_jax import main as entry
from sdd_jax.config import defaults_of, load_config, to_plain
from sdd_jax.jobs.ccd import conditional, runs
from sdd_jax.train import EngineConfig

CONFIG = Path(__file__).parents[1] / "configs" / "ccd_sr.py"
pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_a_model_with_a_field_that_is_not_supported(one_line, tiny_world, tmp_path):
    world = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    described = json.loads((world / "unet" / "config.json").read_text())
    (world / "unet" / "config.json").write_text(json.dumps({**described, "class_embed_type": "timestep"}))
    workdir = tmp_path / "run"
    line = one_line(entry, f"--config={CONFIG}:debug", f"--workdir={workdir}", f"--config.model={world}")
    assert "class_embed_type='timestep' is not supported" in line
    assert not any(workdir.iterdir()), "another model may be trained there"


@pytest.fixture
def an_adapter(tiny_world, array_cache, tmp_path, monkeypatch):
    """The workdir of a run of an adapter alone on the tiny world, with parameters that were never trained."""
    overrides = [f"model={tiny_world}", "data.count=4", "adapter.embedding_channels=(4, 4, 8)"]
    config = load_config(f"{CONFIG}:debug,adapter", overrides, defaults_of(EngineConfig))
    workdir = tmp_path / "adapter"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"config": to_plain(config)}))
    monkeypatch.setattr(conditional, "PREVIEW", 1)
    job = jobs.build(config)
    shapes = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    monkeypatch.setattr(runs, "open_run", lambda _: (job, params, 4))
    return workdir


def test_an_adapter_on_a_model_of_another_architecture(one_line, an_adapter, tiny_world, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    where = [f"--workdir={an_adapter}", f"--control={tmp_path / 'x.png'}", f"--out={tmp_path / 'out.png'}"]
    line = one_line(sample, *where, "--model=portraits")
    assert f"--model=portraits is of another architecture than {tiny_world}, the run's teacher" in line
    assert not (tmp_path / "out.png").exists()
