"""SDD's StyleGAN job on the tiny world: networks, codes from three sources, a run, its export, and the lowered step."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from test_sdd_job import traced_step
from tiny_style import ENCODER, GENERATOR, make_style

import sdd_jax
from sdd_jax import export, jobs
from sdd_jax import main as entry
from sdd_jax.aot import config_jobs
from sdd_jax.benchmarks.workloads import abstract_program, forward_flops
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.edit import parse_size
from sdd_jax.jobs.editing.methods import EditRequest, edit
from sdd_jax.jobs.protocols.exported import open_exported
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.jobs.protocols.makers import make_maker
from sdd_jax.jobs.sdd import job as sdd_job
from sdd_jax.jobs.sdd import pictures, style
from sdd_jax.jobs.sdd import tables as sdd_tables
from sdd_jax.jobs.sdd.editing import editing_model
from sdd_jax.models import e4e
from sdd_jax.models.card import Record, read_record
from sdd_jax.models.style_mappers import MapperConfig, load_mapper
from sdd_jax.models.stylegan2 import make_generator
from sdd_jax.runs import open_run
from sdd_jax.train import EngineConfig
from sdd_jax.training.sharding import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = Path(__file__).parents[1] / "configs" / "sdd_stylegan.py"
LOAD = functools.lru_cache(maxsize=1)(sdd_jax.load)
SHAPE = (GENERATOR.num_ws, GENERATOR.style_dim)


@pytest.fixture(scope="module")
def style_world(tmp_path_factory):
    return make_style(tmp_path_factory.mktemp("style"))


def read(variant, *overrides):
    return load_config(f"{CONFIG}:{variant}", overrides, defaults_of(EngineConfig), IMAGE_OPTIONS)


@pytest.fixture
def build(tiny_world, style_world, array_cache, monkeypatch):
    monkeypatch.setattr(sdd_job, "load", LOAD)

    def call(variant, *overrides):
        small = ["batch_size=2", "data.count=4", f"model={tiny_world}", f"manipulator.generator={style_world}"]
        if "clip" in variant:
            small.append(f"clip.path={tiny_world}")
        return jobs.build(read(variant, *small, *overrides))

    return call


@pytest.mark.parametrize(
    ("variant", "overrides", "metrics"),
    [
        ("debug", ["objective.top_k=16"], {"gradient", "l2"}),
        ("clip,stylespace,debug", [], {"clip", "l2"}),
    ],
)
def test_portraits_are_encoded_once(build, variant, overrides, metrics):
    job = build(variant, *overrides)
    batch = next(job.stream(0))
    assert set(batch) == {"codes", "input_ids"} and batch["codes"].shape == (2, *SHAPE)
    before, after, found = traced_step(job, batch)
    names = {"coarse", "medium"} if "stylespace" not in variant else {f"mapper_{i}" for i in (0, 2, 3, 5, 6)}
    assert set(before.params) == names, "nothing but the mapper is trained"
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert metrics < set(found) and {"generator", "encoder"} < set(job.fingerprint)


def test_a_folder_is_encoded_and_keeps_its_captions(build, style_world, tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (70, 66), (90, 30, 10 * len(name))).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a face called {name}")
    overrides = [
        f"data.path={tmp_path}", "data.size=32", "data.prompt={caption}, old", "identity.kind=none",
        "objective.identity_weight=0.0", "timesteps.given=(500,)", "timesteps.rule=",
    ]  # fmt: skip
    job = build("sd15_images,angry", *overrides)
    batch = next(job.stream(0))
    loaded = e4e.load_e4e(style_world / "style" / "encoder")
    assert loaded.config == ENCODER
    first = np.asarray(Image.open(tmp_path / "a.png").resize((32, 32)), np.float32) / 127.5 - 1
    want = jax.jit(lambda p, x: e4e.encode(ENCODER, p, loaded.latent_avg, x))(loaded.params, first[None])
    np.testing.assert_allclose(batch["codes"][0], want[0], rtol=1e-3, atol=1e-3)
    ids = job.objective.model.tokenize([f"a face called {name}, old" for name in "abc"])
    assert {tuple(row) for row in batch["input_ids"]} <= {tuple(row) for row in ids}


def test_codes_are_sampled_with_truncation(build, style_world):
    prompt = "data.prompt=white hair"
    overrides = ["data.source=sampled", prompt, "timesteps.given=(500,)", "timesteps.rule="]
    codes = next(build("white_hair", *overrides, "batch_size=4").stream(0))["codes"]
    assert codes.shape == (4, *SHAPE) and np.all(codes == codes[:, :1]), "one code for all layers"
    z = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    data = style.StyleData(prompt="white hair", source="sampled")
    params = style.read_networks(data, style.StyleConfig(generator=str(style_world))).generator
    w = np.asarray(make_generator(GENERATOR).mapping(params.params, jnp.asarray(z)))
    np.testing.assert_allclose(np.sort(codes[:, 0, 0]), np.sort(w[:, 0]), rtol=1e-4)
    near = next(build("white_hair", *overrides, "batch_size=4", "data.truncation=0.5").stream(0))["codes"]
    mean = np.asarray(params.latent_avg)[0]
    np.testing.assert_allclose(np.sort(near[:, 0, 0]), np.sort(mean[0] + 0.5 * (w[:, 0] - mean[0])), rtol=1e-3)


def test_codes_come_from_a_file(build, tmp_path):
    codes = torch.randn(3, *SHAPE)
    torch.save(codes, tmp_path / "codes.pt")
    overrides = [f"data.path={tmp_path / 'codes.pt'}", "identity.kind=none", "objective.identity_weight=0.0"]
    overrides += ["manipulator.delta_scale=1.5"]
    job = build("sd15,debug", *overrides)
    batch = next(job.stream(0))
    assert {row.tobytes() for row in batch["codes"]} <= {row.numpy().tobytes() for row in codes}
    assert job.objective.manipulator.mapper.levels == ("medium", "fine") and job.fingerprint["timesteps"] == [500, 700]
    assert job.objective.manipulator.delta_scale == 1.5
    torch.save(codes[:, :3], tmp_path / "few.pt")
    with pytest.raises(ValueError, match=r"few.pt: codes of this generator are one tensor \[count, 6, 6\], not \(3, 3"):
        build("sd15,debug", *overrides, f"data.path={tmp_path / 'few.pt'}")


def test_generated_pictures_are_what_timesteps_are_searched_on(build, monkeypatch):
    seen = []

    def search(model, frozen, source, prompt, options, made_of):
        seen.append((source[1], len(source), made_of))
        return sdd_job.read_search("none")

    monkeypatch.setattr(sdd_job, "job_search", search)
    with pytest.raises(FileNotFoundError):
        build("white_hair", "data.source=sampled", "data.prompt=white hair")
    record, count, made_of = seen[0]
    assert record["image"].shape == (64, 64, 3) and record["image"].dtype == np.uint8 and record["caption"] == ""
    assert count == 4 and len(made_of["generator"]) == 64


def test_timesteps_are_searched_at_the_teachers_size(build, tmp_path, monkeypatch):
    """Images on disk are read at the encoder's, 32; other files under the same path are another search."""
    seen = []

    def search(model, frozen, source, prompt, options, made_of):
        seen.append((source[0]["image"].shape, dict(made_of)))
        return sdd_job.read_search("none")

    monkeypatch.setattr(sdd_job, "job_search", search)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 48)).save(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            build("white_hair", "data.source=folder", f"data.path={tmp_path}", "data.size=32", "data.prompt=white hair")
    assert [shape for shape, _ in seen] == [(64, 64, 3)] * 2
    first, second = (made_of for _, made_of in seen)
    assert first.pop("files") != second.pop("files") and first == second


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["manipulator.kind=gan"], "config.manipulator.kind='gan' is no manipulator; use latent, stylegan"),
        (["manipulator.generator="], "config.manipulator: generator='': set config.manipulator.generator"),
        (["manipulator.generator=random:big"], "config.manipulator: generator='random:big': give a size"),
        (["manipulator.mapping=best"], "config.manipulator: kind='best' is not a mapper"),
        (["manipulator.delta_scale=0.0"], "config.manipulator: delta_scale=0.0 must be above 0"),
        (["data.source=disk"], "config.data: source='disk' is not known; use portraits, folder"),
        (["data.source=codes", "data.prompt=x"], "config.data: source='codes' needs a file"),
        (["data.source=sampled"], "config.data: prompt='a photo of a {species} with white {coat}' has a field"),
        (["data.truncation=0.7"], "config.data: truncation=0.7 is of sampled codes"),
        (
            ["data.source=folder", "data.path=x", "data.prompt=x", "data.flip=true"],
            "config.data: flip=True: images are",
        ),
        (["identity.kind=arcface"], "config.identity: kind='arcface' has no weights: set config.identity.path"),
        (["manipulator.generator=random:8"], "config.data.source='portraits' needs an encoder of images"),
    ],
)
def test_a_bad_value_is_one_line_before_the_model_is_read(style_world, monkeypatch, overrides, message):
    monkeypatch.setattr(sdd_job, "load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError) as error:
        jobs.build(read("debug", f"manipulator.generator={style_world}", *overrides))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_files_that_are_not_there_or_do_not_fit(style_world, tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(sdd_job, "load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(FileNotFoundError, match="style.* has no weights: train them with"):
        jobs.build(read("debug", f"manipulator.generator={tiny_world}"))
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        codes = ["data.source=codes", f"data.path={tmp_path / 'codes.pt'}", "data.prompt=x"]
        jobs.build(read("debug", f"manipulator.generator={style_world}", *codes))
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        jobs.build(read("debug", f"manipulator.generator={tmp_path / 'none.pt'}"))
    other = e4e.E4EConfig(num_ws=4, style_dim=6, side=32, body=ENCODER.body)
    shapes = jax.eval_shape(lambda key: e4e.init_e4e(key, other), jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    e4e.save_e4e(e4e.Encoder(other, params, np.zeros((4, 6), np.float32)), tmp_path / "encoder")
    with pytest.raises(ValueError, match="gives 4 codes of 6, .* reads 6 of 6"):
        jobs.build(read("debug", f"manipulator.generator={style_world}", f"manipulator.encoder={tmp_path / 'encoder'}"))


@pytest.fixture(scope="module")
def finished(tiny_world, style_world, tmp_path_factory):
    """The workdir of a finished run of two steps."""
    workdir = tmp_path_factory.mktemp("run") / "style"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "array_cache"))
        patch.setattr(pictures, "PREVIEW", 2)
        small = ["steps=2", "checkpoint_every=1", "preview_every=2", "data.count=4", "compile_cache="]
        small += [f"model={tiny_world}", f"manipulator.generator={style_world}"]
        overrides = [f"--config.{text}" for text in small]
        assert entry.main([f"--config={CONFIG}:debug", f"--workdir={workdir}", *overrides]) == 0
    return workdir


def test_a_run_trains_previews_and_exports(finished, tmp_path):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line[name]) for line in lines for name in ("loss", "gradient", "l2"))
    assert lines[0]["l2"] == 0 and lines[1]["l2"] > 0, "the mapper starts as the identity"
    with Image.open(finished / "samples" / "00000002.png") as grid:
        assert grid.height > 3 * 64
    job, params, _ = open_run(finished)
    assert export.main([f"--workdir={finished}", f"--out={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["delta_scale"] == 0.1
    code = job.objective.manipulator.code_shapes
    read_back = load_mapper(tmp_path / "out" / "mapper.safetensors", MapperConfig(), code)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), read_back, params)
    model, frozen = editing_model(job, params)
    described = model.configs["manipulator"]
    edited = jax.eval_shape(described["edit"], frozen["manipulator"], frozen, np.zeros((2, 64, 64, 3), np.float32))
    assert edited.shape == (2, 64, 64, 3) and described["evaluations"] == 0
    assert parse_size("", model) == (GENERATOR.size,) * 2, "as the generator draws"
    wide = EditRequest(
        model=model, frozen=frozen, image=np.zeros((1, 32, 64, 3), np.float32), source=("",), target=("",)
    )
    with pytest.raises(ValueError, match="a generator's pictures are square; give --size one side"):
        edit("manipulate", wide)


def test_the_exported_mapper_edits_as_the_run_does(finished, tiny_world, style_world, tmp_path):
    out = tmp_path / "out"
    assert export.main([f"--workdir={finished}", f"--out={out}"]) == 0
    asked = ["--protocol=editing", "--method=manipulate", f"--model={tiny_world}", f"--exported={out}"]
    flags = parse([*asked, "--benchmark=portraits", "--out=x"])
    opened = open_exported(flags, read_record(out)), editing_model(*open_run(finished)[:2])
    image = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    edit = opened[0][0].configs["manipulator"]["edit"]  # the same program: two of them would only compile twice
    found, want = (np.asarray(edit(frozen["manipulator"], frozen, image)) for _, frozen in opened)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert opened[0][0].content_hash == opened[1][0].content_hash and np.std(found) > 0
    assert make_maker(flags).settings["size"] == 64

    record = read_record(out)
    other = Record(record.config, {**record.made_from, "generator": "0" * 64})
    with pytest.raises(ValueError, match="its mapper is of another generator than config.manipulator.generator=.* has"):
        open_exported(flags, other)


def test_training_starts_from_a_trained_mapper(finished, build, tmp_path):
    assert export.main([f"--workdir={finished}", f"--out={tmp_path}"]) == 0
    job = build("debug", f"manipulator.mapper={tmp_path / 'mapper.safetensors'}")
    manipulator = job.objective.manipulator
    started = manipulator.init(jax.random.key(0), job.frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), started, open_run(finished)[1])
    fresh = manipulator.init(jax.random.key(0), {})
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (started, fresh)), strict=True))


def test_the_step_on_random_weights_is_lowered(tiny_world, style_world, tmp_path, array_cache):
    """What `python -m sdd_jax.aot --config=configs/sdd_stylegan.py:sd15_random` compiles, at a size that fits here."""
    config = read(
        "sd15_random", f"model=random:{tiny_world}", f"manipulator.generator={style_world}", "identity.kind=none",
        "objective.identity_weight=0.0", "dtype=float32", "data.count=8",
    )  # fmt: skip
    job, _, batch = config_jobs(config, False)
    assert batch["codes"].shape == (2, *SHAPE)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    step = abstract_program(job, batch, mesh)
    text = step.program.step.trace(*step.arguments).lower().as_text()
    assert "convolution" in text and forward_flops(job, batch) > 0


def test_random_generators_are_as_training_starts_them():
    config, params, latent_avg = style.random_generator(8)
    assert config.size == 8 and latent_avg is None
    assert np.std(params["style_0"]["kernel"]) == pytest.approx(100, rel=0.05)
    assert not np.any(params["style_0"]["bias"]) and np.all(params["conv1"]["conv"]["modulation"]["bias"] == 1)


def test_the_frame_of_edits_of_codes(style_world, tiny_world, monkeypatch):
    """The source keeps all; the generator's answers are not the renderer's, and every picture has its own."""
    seen = {}
    monkeypatch.setattr(
        sdd_tables, "_measured", lambda world, pairs, images: seen.update(pairs=pairs, images=images) or {"psnr": 1.0}
    )
    options = {"prompt": "an angry {species}", "samples": 3, "world": str(tiny_world)}
    assert sdd_tables.source(None, 0, options) == {"psnr": 1.0}
    np.testing.assert_array_equal(seen["images"], seen["pairs"].image)
    sdd_tables.rebuilt(None, 0, {**options, "model": str(style_world)})
    side = GENERATOR.size
    assert seen["images"].shape == (3, side, side, 3) and np.abs(seen["images"]).max() <= 1
    assert np.abs(seen["images"][0] - seen["images"][1]).max() > 1e-3
    with pytest.raises(FileNotFoundError, match="configs/pretrain_style.py"):
        sdd_tables.rebuilt(None, 0, {**options, "model": str(tiny_world)})
