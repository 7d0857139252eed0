"""Precomputed latents are what the networks give, are gone on with after a kill, and train the job that reads them."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax import jobs
from sdd_jax import precompute as command
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data import portraits
from sdd_jax.data.degrade_spec import preset
from sdd_jax.data.latent_records import MANIFEST, LatentRecords
from sdd_jax.data.latent_rows import degraded_latents, text_to_image
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.jobs.icd.teacher import Teacher
from sdd_jax.jobs.streams.captioned import captioned_data
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.train import EngineConfig

CONFIG = Path(__file__).parents[1] / "configs" / "ccd_sr.py"
COUNT = 7
pytestmark = pytest.mark.usefixtures("compile_quickly")


def arguments(world, out, *more):
    return [
        f"--config={CONFIG}:debug", f"--out={out}", f"--config.model={world}", f"--config.data.count={COUNT}",
        "--config.adapter.embedding_channels=(4, 4, 8)", "--config.compile_cache=", "--batch=2", "--shard=4", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny_world, tmp_path_factory):
    """A finished directory, made by the command."""
    out = tmp_path_factory.mktemp("precomputed") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "array_cache"))
        assert command.main(arguments(tiny_world, out)) == 0
    return out


@pytest.fixture(scope="module")
def encoded(tiny_model):
    """moments and context of the portraits' pictures and full captions, straight from the networks."""
    bundle, params = tiny_model
    source = PortraitSource("train", COUNT, cached=False)
    images = jnp.stack([to_float(source[i]["image"]) for i in range(COUNT)])
    return jax.jit(bundle.moments)(params["vae"], images)


def test_records_are_what_the_networks_give(made, tiny_model, encoded):
    bundle, params = tiny_model
    records = LatentRecords(made, bundle.content_hash)
    assert len(records) == COUNT and [path.name for path in sorted(made.glob("records*"))] == records.manifest.shards
    assert records.manifest.data["captions"] == "random" and records.manifest.model == bundle.source
    null = bundle.embed_text(params, bundle.tokenize([""]))[0]
    np.testing.assert_allclose(records.null_context, null, atol=1e-5)
    for index in range(COUNT):
        record = records[index]
        np.testing.assert_array_equal(record["image"], portraits.image(portraits.split_indices("train")[index]))
        np.testing.assert_allclose(record["moments"], encoded[index], atol=2e-3, rtol=2e-3)
    contexts = np.stack([records[i]["context"] for i in range(COUNT)])
    captions = captions_of(COUNT)
    np.testing.assert_allclose(contexts, bundle.embed_text(params, bundle.tokenize(captions))[0], atol=3e-3, rtol=3e-3)


def captions_of(count):
    """The captions that the stream with the config's seed draws, in the source's order."""

    def caption(record, rng):
        return {"text": np.asarray(portraits.random_caption(portraits.portrait(record["index"]), rng))}

    stream = make_stream(PortraitSource("train", count, cached=False), caption, batch_size=1, seed=0, shuffle=False)
    return [str(next(stream)["text"][0]) for _ in range(count)]


def test_a_job_reads_them_as_it_reads_pictures(made, tiny_model):
    bundle, params = tiny_model
    records = LatentRecords(made, bundle.content_hash)
    transform = degraded_latents(records, preset("portraits", 64))
    batch = next(make_stream(records, transform, batch_size=2, seed=1))
    assert batch["condition"].shape == (2, 64, 64, 3) and batch.keys() == {"condition", "moments", "context"}
    plain = next(make_stream(records, text_to_image, batch_size=2, seed=1))
    np.testing.assert_array_equal(plain["moments"], batch["moments"])
    # the same draw from the posterior as from the picture, with the same key
    index = [int(np.argmin([np.abs(records[i]["moments"] - m).max() for i in range(COUNT)])) for m in batch["moments"]]
    images = {"image": jnp.stack([to_float(records[i]["image"]) for i in index])}
    frozen = {"vae": params["vae"], "text": params}
    drawn = latents_of(bundle, frozen, {k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(3))
    wanted = jax.jit(lambda x: latents_of(bundle, frozen, x, jax.random.key(3)))(images)
    np.testing.assert_allclose(drawn, wanted, atol=5e-3)
    context, added = text_of(bundle, frozen, batch)
    assert context.shape == (2, *records.null_context.shape[1:]) and added is None


def test_a_ccd_job_takes_them_as_its_data(made, tiny_world, tiny_model, array_cache):
    given = [f"model={tiny_world}", "adapter.embedding_channels=(4, 4, 8)", "data.source=latents", f"data.path={made}"]
    load = functools.partial(load_config, f"{CONFIG}:debug", defaults=defaults_of(EngineConfig), optional=IMAGE_OPTIONS)
    job = jobs.build(load([*given, "data.degradation=portraits", "data.max_bad_share=0.2"]))
    batch = next(job.stream(0))
    assert batch.keys() == {"condition", "moments", "context"} and batch["condition"].shape == (4, 64, 64, 3)
    with pytest.raises(ValueError, match="these latents are of pictures with sharpening None, config.data.degradation"):
        jobs.build(load([*given, "data.degradation=real_esrgan"])).stream(0)
    with pytest.raises(ValueError, match="config.data.source=latents holds no condition for canny"):
        jobs.build(load([*given, "data.degradation=", "condition.task=canny"]))
    with pytest.raises(ValueError, match="source='latents' needs a path"):
        jobs.build(load([*given, "data.path="]))
    with pytest.raises(ValueError, match="flip=True is of images on disk: source='latents' does not read it"):
        jobs.build(load([*given, "data.flip=true"]))


def test_both_stages_of_icd_take_them_as_their_data(made, tiny_world, tiny_model, monkeypatch):
    """Stage 2's teacher has a UNet of its own: the latents are those of the model that stage 1 started from."""
    bundle, params = tiny_model
    monkeypatch.setattr("sdd_jax.jobs.icd.guidance_distill.load", lambda *_, **__: tiny_model)
    student = dataclasses.replace(bundle, content_hash="")
    teacher = Teacher(student, params, "a hash of its UNet", bundle.content_hash)
    monkeypatch.setattr("sdd_jax.jobs.icd.job.open_teacher", lambda *_: teacher)
    given = ["dtype=float32", "data.source=latents", f"data.path={made}", "data.size=64"]
    for stage, more in ((2, "teacher.model=x"), (1, f"model={tiny_world}")):
        spec = f"{CONFIG.with_name('icd.py')}:stage{stage},sd15,full,debug"
        job = jobs.build(load_config(spec, [*given, more], defaults_of(EngineConfig)))
        batch = next(job.stream(0))
        assert batch.keys() == {"moments", "context"} and batch["moments"].shape == (4, 16, 16, 8)
    key = jax.random.key(0)
    student_params = jax.eval_shape(job.objective.init, key, job.frozen)
    loss, _ = jax.eval_shape(
        lambda params, batch: job.objective.loss(params, job.frozen, batch, key, 0), student_params, batch
    )
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 512}, "were made with size=64, config.data.size is 512"),
        ({"captions": "first"}, "were made with captions=random, config.data.captions is first"),
        ({"count": 8}, "were made with count=7, config.data.count is 8"),
        ({"path": ""}, "source='latents' needs a path"),
        ({"caption_dropout": 0.1}, "caption_dropout=0.1 is of images on disk: source='latents' does not read it"),
    ],
)
def test_settings_are_those_that_they_were_made_with(made, tiny_model, changes, message):
    bundle = tiny_model[0]
    section = {"source": "latents", "path": str(made), "size": 64}
    assert len(captioned_data(section).open(bundle, bundle.content_hash)) == COUNT
    with pytest.raises(ValueError, match=message) as error:
        captioned_data({**section, **changes}).open(bundle, bundle.content_hash)
    assert "\n" not in str(error.value)


def test_a_killed_run_is_gone_on_with_and_ends_alike(made, tiny_world, tmp_path, array_cache, capsys, monkeypatch):
    out = tmp_path / "again"
    write_shard, kept = command.LatentWriter.write_shard, []

    def killed(self, index, rows):
        if kept:
            raise KeyboardInterrupt
        kept.append(index)
        write_shard(self, index, rows)

    monkeypatch.setattr(command.LatentWriter, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments(tiny_world, out))
    monkeypatch.undo()
    monkeypatch.setenv("SDD_JAX_CACHE", str(array_cache))
    capsys.readouterr()
    assert command.main(arguments(tiny_world, out)) == 0
    assert "1 of 2 shards to make" in capsys.readouterr().out
    for path in made.glob("records*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (out / MANIFEST).read_text() == (made / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.data.captions=full"], "holds other latents: data is"),
        (["--config.data.count=5"], "holds other latents: data is"),
        (["--shard=2"], "holds other latents: shard_size is 4 there and 2 here"),
        (["--shard=5"], "--shard=5 must be a multiple of --batch=2"),
        (["--config.data.source=folder"], "source='folder' needs a path"),
        (["--config.data.source=folder", "--config.data.path=/nowhere"], "/nowhere is not a directory"),
        (["--config.data.nonsense=1"], "has no key 'nonsense'"),
        (["--config.data.source=latents", "--config.data.path=x"], "config.data.source='latents' is what precompute"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(made, tiny_world, array_cache, capsys, extra, message):
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert command.main(arguments(tiny_world, made, *extra)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and message in error
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_configs_without_a_loaded_model_are_refused(tmp_path, capsys):
    config = CONFIG.with_name("pretrain_portraits.py")
    assert command.main([f"--config={config}:classifier", f"--out={tmp_path / 'out'}"]) == 2
    assert "has no config.model: precompute is for jobs on a loaded model" in capsys.readouterr().err


def test_pictures_from_disk_are_sharpened_where_the_degradation_does(tiny_world, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(portraits.image(index)).save(folder / f"{index}.png")
    (folder / "1.txt").write_text("a smiling lion")
    overrides = [
        f"model={tiny_world}", "data.source=folder", f"data.path={folder}", "data.degradation=real_esrgan",
        "data.captions=first",
    ]  # fmt: skip
    pictures = command.open_pictures(load_config(f"{CONFIG}:debug", overrides, defaults_of(EngineConfig)))
    spec = preset("real_esrgan", 64)
    assert pictures.settings["sharpening"] == [spec.sharpen_weight, spec.sharpen_window, spec.sharpen_threshold]
    assert pictures.settings["pictures"] and pictures.settings["path"] == str(folder)
    rng = np.random.default_rng(0)
    assert [pictures.caption(pictures.source[i], rng) for i in range(2)] == ["", "a smiling lion"]


@pytest.mark.parametrize("spec", ["gd.py:debug", "gd.py:sd15,debug", "icd.py:debug"])
def test_jobs_without_a_condition_keep_no_pictures(spec, tmp_path, array_cache):
    """GD has CCD's data section and no adapter."""
    folder = ["data.source=folder", f"data.path={tmp_path}"] if "sd15" in spec else ["data.count=3"]
    if folder[0] == "data.source=folder":
        Image.fromarray(portraits.image(0)).save(tmp_path / "0.png")
    config = load_config(str(CONFIG.with_name(spec)), folder, defaults_of(EngineConfig), IMAGE_OPTIONS)
    pictures = command.open_pictures(config)
    assert not pictures.settings["pictures"] and pictures.settings["sharpening"] is None
    assert len(pictures.source) == (1 if "sd15" in spec else 3)
