"""Every job from its config to a traced training step on a real batch, and what it exports, on the tiny world."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import sdd_jax
from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config, validate
from sdd_jax.data import portraits
from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.jobs.ccd.conditional import make_sampler
from sdd_jax.jobs.ccd.data import ConditionalData, ConditionConfig, heldout_rows
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.world import first_stage
from sdd_jax.jobs.world.directory import read_instruments
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.vae import posterior
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import create_state
from sdd_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIGS = Path(__file__).parents[1] / "configs"
PRETRAIN, CCD = CONFIGS / "pretrain_portraits.py", CONFIGS / "ccd_sr.py"
TINY_VAE = [f"vae.block_out_channels={(4, 4, 4)}", "vae.norm_num_groups=2"]
TINY_UNET = [f"unet.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in tiny.UNET.items()]


@pytest.fixture
def build(tiny_world, array_cache, tmp_path):
    """build(spec, *overrides): the job on the tiny world, 4 portraits, batches of 2."""

    def call(spec, *overrides, world=tiny_world):
        place = [f"world={world}"] if PRETRAIN.name in str(spec) else [f"model={world}"]
        shrink = ["data.count=4", "batch_size=2", *place]
        if not any(name in str(spec) for name in (PRETRAIN.name, "gd.py", "ccd_t2i")):
            shrink.append("adapter.embedding_channels=(4, 4, 8)")
        return jobs.build(load_config(str(spec), [*shrink, *overrides], defaults_of(EngineConfig)))

    return call


def traced_step(job, batch: HostBatch):
    """Shapes of one training step's results; nothing is compiled."""
    engine = engine_config(job.config)
    optimizer, schedule = make_optimizer(engine.optimizer, engine.steps)

    def run(key, frozen, batch):
        state = create_state(key, job.objective, optimizer, frozen, with_ema=engine.ema is not None)
        step = make_train_step(job.objective, optimizer, schedule=schedule, ema_decay=engine.ema)
        return state, *step(state, frozen, batch, key)

    return jax.eval_shape(run, jax.random.key(0), job.frozen, {k: jnp.asarray(v) for k, v in batch.items()})


@pytest.mark.parametrize(
    ("spec", "overrides", "keys"),
    [
        (f"{PRETRAIN}:classifier", [], {"image", "labels"}),
        (f"{PRETRAIN}:regressor", [], {"image", "targets"}),
        (f"{PRETRAIN}:clip", [], {"image", "input_ids", "negative_ids"}),
        (f"{PRETRAIN}:vae", TINY_VAE, {"image"}),
        (f"{PRETRAIN}:unet", TINY_UNET, {"moments", "input_ids"}),
        (CCD, [], {"moments", "input_ids", "condition"}),
        (f"{CCD}:adapter", ["data.degradation=real_esrgan"], {"image", "input_ids", "condition"}),
        (f"{CCD}:mu", ["objective.shared_time=false"], {"moments", "input_ids", "condition"}),
        (CONFIGS / "ccd_depth.py", ["objective.ode_model=pretrained"], {"moments", "input_ids", "condition"}),
        (f"{CONFIGS / 'ccd_edit.py'}:t2i,adapter", [], {"moments", "input_ids", "condition"}),
        (CONFIGS / "ccd_inpaint.py", ["objective.x_space=pixel"], {"moments", "input_ids", "condition"}),
        (f"{CONFIGS / 'ccd_canny.py'}:mu", ["init=random"], {"moments", "input_ids", "condition"}),
        (CONFIGS / "ccd_t2i.py", ["objective.boundary_scaling=true"], {"moments", "input_ids"}),
        (f"{CONFIGS / 'finetune.py'}:gd", ["objective.caption_dropout=0.1"], {"moments", "input_ids", "condition"}),
        (CONFIGS / "gd.py", [], {"moments", "input_ids"}),
    ],
    ids=lambda value: Path(str(value)).name if "configs" in str(value) else "",
)
def test_a_batch_goes_through_the_training_step(build, spec, overrides, keys):
    job = build(spec, *overrides)
    batch = next(job.stream(0))
    assert set(batch) == keys and all(len(value) == 2 for value in batch.values())
    again = next(job.stream(1))
    assert any(not np.array_equal(batch[key], again[key]) for key in batch)
    before, after, metrics = traced_step(job, batch)
    same = lambda a, b: (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)  # noqa: E731
    assert all(jax.tree.leaves(jax.tree.map(same, before, after))), "another type after a step compiles it twice"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(before.params))
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_a_folder_in_bfloat16(build, tmp_path):
    """The variant for Stable Diffusion 1.5, at the tiny world's size."""
    for i in range(3):
        Image.new("RGB", (80, 70), (60 * i, 100, 200)).save(tmp_path / f"{i}.png")
    job = build(f"{CCD}:sd15", f"data.path={tmp_path}", "data.size=64")
    assert {leaf.dtype for leaf in jax.tree.leaves(job.frozen["teacher"])} == {jnp.dtype("bfloat16")}
    before, _, metrics = traced_step(job, next(job.stream(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(before.params))
    assert metrics["loss"].dtype == jnp.float32 and str(tmp_path) in job.name
    assert job.previews is None


def test_moments_are_those_of_the_renders(tiny_model, array_cache):
    bundle, params = tiny_model
    source = PortraitSource("train", 4)
    found = encoded_portraits(bundle, params["vae"], source)
    images = np.stack([to_float(source[i]["image"]) for i in range(4)])
    np.testing.assert_allclose(found, jax.jit(bundle.moments)(params["vae"], images), atol=5e-3)
    assert found.shape == (4, 16, 16, 8) and found.dtype == np.float16


def test_a_tree_is_hashed_by_names_and_values():
    tree = {"a": np.ones(3), "b": {"c": np.zeros(2)}}
    assert tree_hash(tree) == tree_hash({"b": {"c": np.zeros(2)}, "a": np.ones(3)})
    assert (
        len({tree_hash(t) for t in (tree, {**tree, "a": np.ones(3) * 2}, {"a": np.ones(3), "b": {"d": np.zeros(2)}})})
        == 3
    )


def drawn(job):
    """Random parameters of a job's objective."""
    shapes = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32), shapes)


def test_the_worlds_jobs_export_a_world(build, tiny_world, tmp_path, monkeypatch):
    """Exports in the documented order into one directory, twice over, end in a model with its instruments."""
    monkeypatch.setattr(first_stage, "STATISTICS", 64)
    world = tmp_path / "world"
    trained = {}
    for name in ("classifier", "regressor", "clip"):
        job = build(f"{PRETRAIN}:{name}")
        trained[name] = drawn(job)
        for _ in range(2):
            job.export(trained[name], world)
    instruments = read_instruments(world)
    assert instruments.classifier[0].outputs == sum(len(v) for v in portraits.VOCABULARY.values())
    kernel = trained["regressor"]["head"]["kernel"]
    np.testing.assert_allclose(instruments.regressor[1]["head"]["kernel"], kernel, rtol=1e-3, atol=1e-5)

    job = build(f"{PRETRAIN}:vae", *TINY_VAE, world=world)
    vae = drawn(job)
    job.export(vae, world)
    source = PortraitSource("train", 64, cached=False)
    images = np.stack([to_float(source[i]["image"]) for i in range(64)])

    job = build(f"{PRETRAIN}:unet", *TINY_UNET, "unet.cross_attention_dim=128", world=world)
    unet = drawn(job)
    for _ in range(2):
        job.export(unet, world)
    bundle, params = sdd_jax.load(world)
    np.testing.assert_allclose(params["unet"]["conv_in"]["kernel"], unet["unet"]["conv_in"]["kernel"], atol=1e-3)
    assert read_instruments(world).clip[0] == instruments.clip[0]
    assert sorted(path.name for path in world.iterdir()) == sorted(
        ["classifier", "clip", "model_index.json", "regressor", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    )
    mean, std = posterior(jax.jit(bundle.moments)(params["vae"], images))
    np.testing.assert_allclose(mean.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose((mean**2 + std**2).mean((0, 1, 2)), 1, atol=0.05)


def test_mu_mixing_has_no_format_to_export(build, tmp_path):
    job = build(f"{CCD}:mu")
    with pytest.raises(
        ValueError, match="mu-mixing has no published format: train with config.adapter.kind=controlnet"
    ):
        job.export({}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_condition_has_held_out_rows(build):
    """The same individuals under each, with a condition of its own; edits are not the picture itself."""
    job = build(CCD)
    rows = {
        task: heldout_rows(ConditionalData(), job.objective.model, 2, ConditionConfig(task=task))
        for task in ("superres", "depth", "edit", "inpaint", "canny", "none")
    }
    assert "condition" not in rows.pop("none")
    for task, batch in rows.items():
        assert batch["condition"].shape == (2, 64, 64, 4 if task == "inpaint" else 3)
        np.testing.assert_array_equal(batch["image"], rows["depth"]["image"])
        assert np.abs(batch["condition"][..., :3] - batch["image"]).mean() > 1e-3
    assert np.any(rows["edit"]["input_ids"] != rows["depth"]["input_ids"]), "the instruction, not the caption"


def test_pairs_of_files_reach_a_batch(build, tmp_path):
    for name, colour in (("images", (200, 10, 10)), ("before", (10, 200, 10))):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (70, 66), colour).save(tmp_path / name / f"{i}.png")
            (tmp_path / "images" / f"{i}.txt").write_text("make it red")
    where = ["data.source=folder", f"data.path={tmp_path / 'images'}"]
    paired = f"condition.path={tmp_path / 'before'}"
    with pytest.raises(ValueError, match="edit of images on disk reads pairs of files: set config.data.source=folder"):
        build(CONFIGS / "ccd_edit.py", *where)
    job = build(CONFIGS / "ccd_edit.py", *where, paired)
    batch = next(job.stream(0))
    assert set(batch) == {"image", "condition", "input_ids"} and job.previews is None
    np.testing.assert_allclose((batch["image"][0, 5, 5] + 1) * 127.5, [200, 10, 10], atol=1)
    np.testing.assert_allclose((batch["condition"][0, 5, 5] + 1) * 127.5, [10, 200, 10], atol=1)
    np.testing.assert_array_equal(batch["input_ids"][0], job.objective.model.tokenize(["make it red"])[0])


def test_held_out_rows_are_fixed_and_held_out(build):
    job = build(CCD)
    data = validate(job.config.data, ConditionalData, "config.data")
    rows = [heldout_rows(data, job.objective.model, n) for n in (2, 3)]
    assert rows[1]["image"].shape == rows[1]["condition"].shape == (3, 64, 64, 3)
    assert rows[0]["index"].tolist() == list(portraits.split_indices("heldout")[:2])
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name][:2])


def test_sampling_refuses_more_steps_than_the_grid(build):
    job = build(CCD, "objective.grid_steps=4")
    sampler = make_sampler(job.objective)
    with pytest.raises(ValueError, match="cannot sample in 5 steps on a grid of 4 points"):
        sampler({}, job.frozen, np.zeros((1, 64, 64, 3)), np.zeros((1, 40), int), jax.random.key(0), 5)


def test_sampling_starts_at_noise_or_at_the_noised_condition(build):
    job = build(CCD)

    def silent(unet, z, t, context, *, added_cond=None, residuals=None):
        return jnp.zeros_like(z)

    model = dataclasses.replace(job.objective.model, denoise=silent, decode=lambda vae, z: z)
    network = ConditionalDiffusion(model=model, adapter=NoAdapter())
    condition = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    arguments = ({"adapter": {}, "unet": {}}, job.frozen, condition, np.zeros((2, 40), int), jax.random.key(0), 1)
    blind, seen = (np.asarray(make_sampler(network, start=start)(*arguments)) for start in ("noise", "condition"))
    # one step with eps_hat = 0 divides by alpha
    sigma = float(network.schedule.at(jnp.asarray([999])).sigma.squeeze())
    np.testing.assert_allclose(seen - sigma * blind, model.encode(job.frozen["vae"], condition), atol=2e-5)
    with pytest.raises(ValueError, match="unknown start 'middle'"):
        make_sampler(network, start="middle")
