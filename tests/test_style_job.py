"""The style generator's job on the tiny world: a traced step, previews, its export, and the export read back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.jobs.world import style
from sdd_jax.models.e4e import encode
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import create_state
from sdd_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = Path(__file__).parents[1] / "configs" / "pretrain_style.py"
SMALL = [
    "batch_size=2", "data.count=4", "generator.style_dim=4", "generator.max_channels=4", "generator.channel_base=128",
    "encoder.body.widths=(4, 4, 4, 4)", "encoder.body.reduction=2", "encoder.body.groups=2",
]  # fmt: skip


def load(variant, *overrides):
    return load_config(f"{CONFIG}:{variant}", overrides, defaults_of(EngineConfig))


@pytest.fixture
def build(tiny_world, array_cache, monkeypatch):
    """build(*overrides): the debug job on the tiny world, 4 portraits, batches of 2."""
    monkeypatch.setattr(style, "PREVIEW", 2)
    monkeypatch.setattr(style, "STATISTICS", 64)
    return lambda *overrides: jobs.build(load("debug", *SMALL, f"world={tiny_world}", *overrides))


def drawn(job):
    """Random parameters of a job's objective."""
    shapes = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), shapes)


def test_a_batch_goes_through_the_training_step(build):
    job = build("optimizer.name=muon")
    batch = next(job.stream(0))
    assert set(batch) == {"image"} and batch["image"].shape == (2, 64, 64, 3)
    engine = engine_config(job.config)
    optimizer, schedule = make_optimizer(engine.optimizer, engine.steps)

    def run(key, frozen, batch):
        state = create_state(key, job.objective, optimizer, frozen, with_ema=True)
        step = make_train_step(job.objective, optimizer, schedule=schedule, ema_decay=engine.ema)
        return state, *step(state, frozen, batch, key)

    before, after, metrics = jax.eval_shape(run, jax.random.key(0), job.frozen, {"image": jnp.asarray(batch["image"])})
    assert set(before.params) == {"encoder", "generator"}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert {"l1", "psnr", "delta", "perceptual", "code"} < set(metrics) and metrics["loss"].dtype == jnp.float32


def test_previews(build, tmp_path):
    job = build()
    job.previews(drawn(job), None, job.frozen, 2, tmp_path)
    with Image.open(tmp_path / "00000002.png") as grid:
        assert grid.height > 3 * 64 and grid.width > 2 * 64


def test_the_export_is_read_back(build, tmp_path):
    """The networks within half precision, the mean code moved from the encoder's biases to `latent_avg`."""
    job, world = build(), tmp_path / "world"
    params = drawn(job)
    for _ in range(2):
        job.export(params, world)
    assert sorted(str(path.relative_to(world)) for path in world.rglob("*.*")) == [
        "style/config.json", "style/encoder/config.json", "style/encoder/model.safetensors", "style/model.safetensors",
    ]  # fmt: skip
    generator, encoder = style.read_style(world)
    assert (generator.config, encoder.config) == (job.objective.generator, job.objective.encoder)
    want = job.objective.generator_params(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), generator.params, want)
    source = PortraitSource("train", 64, cached=False)
    images = np.stack([to_float(source[i]["image"]) for i in range(64)])
    codes = jax.jit(lambda *args: encode(encoder.config, *args, images))
    zeros = np.zeros_like(encoder.latent_avg)
    before, after = codes(params["encoder"], zeros), codes(encoder.params, encoder.latent_avg)
    np.testing.assert_allclose(after, before, atol=0.02 * float(jnp.std(before)))
    np.testing.assert_allclose(encoder.latent_avg, before.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(generator.latent_avg, encoder.latent_avg)


def test_the_shipped_size(tiny_world, tmp_path):
    """Half precision files of the `style` variant stay below 6 MB."""
    job = jobs.build(load("style", f"world={tiny_world}"))
    shapes = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 5.9e6
    assert job.objective.generator.num_ws == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generator.size=32"], "config.generator: size=32, but portraits are 64 px"),
        (["generator.mapping_layers=2"], "config.generator: mapping_layers=2 would never be trained"),
        (["encoder.body.groups=5"], "config.encoder.body: groups=5 does not divide"),
        (["objective.generator_gain=0"], "config.objective: generator_gain=0.0 must be above 0"),
        (["remat=block"], "config.remat='block': the task 'style_autoencoder' trains no UNet"),
    ],
)
def test_a_bad_value_is_one_line(tiny_world, overrides, message):
    with pytest.raises(ValueError) as error:
        jobs.build(load("debug", f"world={tiny_world}", *overrides))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_world_without_one_says_how_to_make_it(tiny_world):
    with pytest.raises(
        FileNotFoundError, match="style has no weights: train them with --config=configs/pretrain_style"
    ):
        style.read_style(tiny_world)
