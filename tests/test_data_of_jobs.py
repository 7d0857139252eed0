"""One data section for every job on images from disk: each source and each of its options reaches a batch."""

import itertools
import shutil
import tarfile
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest
from PIL import Image

import sdd_jax
from sdd_jax import jobs
from sdd_jax.command import is_ours
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.sources import IMAGE_OPTIONS
from sdd_jax.train import EngineConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE = 16
JOBS = {
    "ccd": ("ccd_canny.py", ["adapter.embedding_channels=(4, 4, 8)"]),
    "gd": ("gd.py", []),
    "sdd": ("sdd_latent.py", ["data.prompt={caption}, angry", "timesteps.given=(500,)", "timesteps.rule="]),
    "dds": ("dds_translate.py", []),
}
OTHERS = {
    "icd": ("icd.py:stage1,sd15,full,debug", ["dtype=float32"]),
    "pairs": ("ccd_edit.py", ["adapter.embedding_channels=(4, 4, 8)"]),
}
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Eight pictures of 40x16, one grey left and another right, as a folder and as shards; number 7 is damaged."""
    folder, shards = (tmp_path_factory.mktemp("data") / name for name in ("folder", "shards"))
    folder.mkdir(), shards.mkdir()
    for i in range(8):
        pixels = np.full((16, 40, 3), 20 * i, np.uint8)
        pixels[:, 20:] = 255 - 20 * i
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"cat {i}")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    for shard in range(2):
        with tarfile.open(shards / f"{shard}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 4):
                for member, file in (("png", "png"), ("txt", "txt"), ("before.png", "png")):
                    tar.add(folder / f"{i}.{file}", f"{i}.{member}")
    return {"folder": folder, "tar": shards}


@pytest.fixture
def build(tiny_world, tiny_model, array_cache, places, monkeypatch):
    """build(job, source, *overrides): the job on the tiny world and pictures of 16 px, batches of 4."""
    for module in ("ccd.job", "ccd.baselines", "sdd.job", "dds.job", "icd.guidance_distill"):
        monkeypatch.setattr(f"sdd_jax.jobs.{module}.load", lambda *_, **__: tiny_model)

    def call(name, source, *overrides):
        file, own = {**JOBS, **OTHERS}[name]
        common = ["batch_size=4", f"model={tiny_world}", f"data.source={source}", f"data.path={places[source]}"]
        common += [f"data.size={SIZE}", "data.max_bad_share=0.2"]
        return jobs.build(load_config(str(CONFIGS / file), [*common, *own, *overrides], defaults_of(EngineConfig),
                                      IMAGE_OPTIONS))  # fmt: skip

    return call


def seen(job, count=2):
    return [dict(batch) for batch in itertools.islice(job.stream(0), count)]


@pytest.mark.parametrize("name", JOBS)
def test_every_job_reads_every_option_of_every_source(build, name):
    want = seen(build(name, "folder", "data.crop=random", "data.flip=true"))
    assert want[0]["image"].shape == (4, SIZE, SIZE, 3) and "input_ids" in want[0]
    rows = np.concatenate([batch["image"][:, 8, :, 0] for batch in want])
    assert len({(row < row.mean()).tobytes() for row in rows}) > 3, "cut out at random places, and mirrored"
    shards = seen(build(name, "tar", "data.crop=random", "data.flip=true"))
    for one, two in zip(want, shards, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    plain = np.concatenate([batch["image"] for batch in seen(build(name, "tar"))])
    assert np.all(plain[:, :, :8] == plain[:, :1, :1]) and np.all(plain[:, :, 8:] == plain[:, :1, -1:]), "the middle"
    bare = seen(build(name, "tar", "data.caption_dropout=1.0", "data.min_size=16", "data.max_aspect=2.5"))
    assert len(np.unique(np.concatenate([batch.get("source_ids", batch["input_ids"]) for batch in bare]), axis=0)) == 1


@pytest.mark.parametrize("name", JOBS)
def test_what_no_job_reads_is_refused(build, name, tiny_world):
    file, own = JOBS[name]
    base = [f"model={tiny_world}", *(override for override in own if "prompt" not in override)]
    for overrides, message in (
        (["data.source=folder"], "config.data: source='folder' needs a path"),
        (["data.source=zip"], "config.data: source='zip' is not known; use .*folder, tar, tfds, coco"),
        (["data.flip=true"], "config.data: flip=True is of images on disk: source='portraits' does not read it"),
        (["data.source=folder", "data.path=x", "data.crop=left"], "config.data: crop='left' is not known"),
    ):
        with pytest.raises(ValueError, match=message):
            jobs.build(load_config(str(CONFIGS / file), [*base, *overrides], defaults_of(EngineConfig), IMAGE_OPTIONS))


@pytest.mark.parametrize("source", ["folder", "tar"])
def test_a_pair_is_read_together(build, places, source):
    """Every picture before its edit is the picture itself; the damaged one is left out with its partner."""
    place = places["folder"] if source == "folder" else "before.png"
    for batch in seen(build("pairs", source, f"condition.path={place}")):
        np.testing.assert_array_equal(batch["condition"], batch["image"])


@pytest.mark.parametrize("name", [*JOBS, "icd"])
def test_what_workers_are_sent_makes_the_same_batches(build, name, monkeypatch):
    """Sources and transforms pickle, without arrays of a device: to read one a worker would have to open the device."""
    options = ["data.crop=random", "data.flip=true", "data.caption_dropout=0.5"]
    want = seen(build(name, "tar", *options))

    def sent(source, transform, **others):
        data = cloudpickle.dumps((source, transform))
        assert b"_reconstruct_array" in cloudpickle.dumps(jax.numpy.zeros(1)) and b"_reconstruct_array" not in data
        return make_stream(*cloudpickle.loads(data), **others)

    monkeypatch.setattr("sdd_jax.jobs.streams.portraits.make_stream", sent)
    for one, two in zip(want, seen(build(name, "tar", *options)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_worker_makes_the_same_batches(build):
    want = seen(build("ccd", "tar", "data.flip=true"))
    stream = build("ccd", "tar", "data.flip=true", "workers=1").stream(0)
    for batch in want:
        jax.tree.map(np.testing.assert_array_equal, batch, dict(next(stream)))
    stream.close()


def test_an_error_of_a_worker_is_one_line(build, places, tmp_path):
    folder = Path(shutil.copytree(places["folder"], tmp_path / "copy"))
    stream = build("ccd", "folder", f"data.path={folder}", "workers=1").stream(0)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    # a worker's threads read side by side: the second damaged record ends it, others may be met by then
    message = "[2-8] of 8 records cannot be read, more than config.data.max_bad_share"
    with pytest.raises(ValueError, match=message) as error:
        next(stream)
    assert is_ours(error.value) and "\n" not in str(error.value)
    stream.close()


def test_pairs_of_files_are_not_cut_apart(tiny_world, places):
    overrides = [f"model={tiny_world}", "data.source=folder", f"data.path={places['folder']}", "data.flip=true",
                 f"condition.path={places['folder']}"]  # fmt: skip
    with pytest.raises(ValueError, match="edit of images on disk reads pairs of files, which are cropped alike"):
        jobs.build(load_config(str(CONFIGS / "ccd_edit.py"), overrides, defaults_of(EngineConfig), IMAGE_OPTIONS))


def test_the_search_and_previews_see_square_pictures(build):
    """A job's own search, and its grids, read the middle of each picture whatever training crops."""
    job = build("sdd", "tar", "data.crop=random")
    records = sdd_jax.jobs.sdd.job.EditData(**{**job.config.data.to_dict()}).open()
    assert {record["image"].shape for record in (records[i] for i in range(8))} == {(SIZE, SIZE, 3)}
