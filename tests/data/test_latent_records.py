"""Latents on disk: what is written is what is read, half a directory is gone on with, and a wrong one is one line."""

import itertools
import json
import pickle

import numpy as np
import pytest

from sdd_jax.data.degrade import condition, degrade
from sdd_jax.data.degrade_spec import preset
from sdd_jax.data.latent_records import MANIFEST, LatentRecords, Manifest
from sdd_jax.data.latent_rows import degraded_latents, plain_latents, sharpening, text_to_image
from sdd_jax.data.latent_writer import LatentWriter
from sdd_jax.data.pipeline import make_stream

COUNT, SHARD = 7, 3
ARRAYS = {
    "moments": ((4, 4, 8), "float16"),
    "image": ((32, 32, 3), "uint8"),
    "context": ((5, 6), "float16"),
    "pooled": ((6,), "float16"),
}
NULL = {"context": np.full((1, 5, 6), 0.25, np.float32), "pooled": np.full((1, 6), -0.5, np.float32)}
SPEC = preset("portraits", 32)


def manifest(**changes):
    fields = {
        "model": "a model", "model_hash": "abc", "data": {"source": "folder", "sharpening": None}, "count": COUNT,
        "shard_size": SHARD, "arrays": ARRAYS,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def row(index):
    """Record `index`; every third one has an empty caption."""
    rng = np.random.default_rng(index)
    made = {
        name: rng.integers(0, 256, shape).astype(dtype) if dtype == "uint8" else rng.normal(size=shape).astype(dtype)
        for name, (shape, dtype) in ARRAYS.items()
    }
    return made if index % 3 else {name: value for name, value in made.items() if name in ("moments", "image")}


def write(directory, shards=(0, 1, 2), finish=True, **changes):
    writer = LatentWriter(directory, manifest(**changes))
    for shard in shards:
        writer.write_shard(shard, (row(i) for i in range(shard * SHARD, min(COUNT, (shard + 1) * SHARD))))
    if finish:
        writer.finish(NULL)
    return writer


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    directory = tmp_path_factory.mktemp("latents") / "made"
    write(directory)
    return directory


def test_records_come_back_as_they_were_written(latents):
    records = LatentRecords(latents, "abc")
    assert len(records) == COUNT and records.manifest.complete
    for index in range(COUNT):
        found, wanted = records[index], row(index)
        for name in ARRAYS:
            expected = wanted.get(name, NULL.get(name, [None])[0])
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype == (np.uint8 if name == "image" else np.float32)
    np.testing.assert_array_equal(records.null_context, NULL["context"])
    np.testing.assert_array_equal(records.null_pooled, NULL["pooled"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(records))[5]["moments"], row(5)["moments"])


def test_the_empty_prompt_is_stored_once(latents):
    with_text = sum(np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in ARRAYS.values())
    text = (5 * 6 + 6) * 2
    # a file of records has 64 KB blocks of overhead, the manifest does not: count what the writer packed
    records = LatentRecords(latents, "abc")
    assert [len(records._source[i]) for i in range(COUNT)] == [with_text - text * (i % 3 == 0) for i in range(COUNT)]


def test_the_stream_of_records_is_the_same_for_any_number_of_processes(latents):
    records = LatentRecords(latents, "abc")

    def batches(**changes):
        return list(itertools.islice(make_stream(records, text_to_image, batch_size=4, seed=3, **changes), 4))

    whole = batches()
    assert whole[0].keys() == {"moments", "context", "pooled"} and whole[0]["moments"].shape == (4, 4, 4, 8)
    for count in (2, 4):
        parts = [batches(process_index=index, process_count=count) for index in range(count)]
        for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(one["moments"], np.concatenate([piece["moments"] for piece in pieces]))
    records = pickle.loads(pickle.dumps(records))
    for one, again in zip(whole, batches(), strict=True):
        np.testing.assert_array_equal(one["moments"], again["moments"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_see_the_same_batches(latents, workers):
    records = LatentRecords(latents, "abc")
    streams = [make_stream(records, text_to_image, batch_size=4, seed=3, workers=n) for n in (0, workers)]
    for one, two in itertools.islice(zip(*streams, strict=False), 4):
        np.testing.assert_array_equal(one["moments"], two["moments"])


def test_conditions_are_drawn_anew_from_the_stored_picture(latents):
    records = LatentRecords(latents, "abc")
    transform = degraded_latents(records, SPEC)
    made, other = (transform(records[1], np.random.default_rng(seed)) for seed in (5, 6))
    truth, low = degrade(row(1)["image"], np.random.default_rng(5), SPEC)
    np.testing.assert_array_equal(made["condition"], condition(low, 32))
    np.testing.assert_array_equal(made["moments"], row(1)["moments"])
    assert not np.array_equal(made["condition"], other["condition"]) and "image" not in made
    with pytest.raises(ValueError, match="sharpening None, config.data.degradation sharpens"):
        degraded_latents(records, preset("real_esrgan", 32))
    assert plain_latents(records) is text_to_image


def test_latents_without_pictures_have_no_conditions(tmp_path):
    writer = LatentWriter(tmp_path, manifest(count=1, arrays={k: v for k, v in ARRAYS.items() if k != "image"}))
    writer.write_shard(0, [row(1)])
    writer.finish(NULL)
    with pytest.raises(ValueError, match="no pictures"):
        degraded_latents(LatentRecords(tmp_path, "abc"), SPEC)
    assert sharpening(preset("real_esrgan", 512)) == [0.5, 51.0, 10.0]


def test_latents_of_sharpened_pictures_are_for_the_job_that_sharpens(tmp_path):
    data = {"source": "folder", "sharpening": sharpening(preset("real_esrgan", 32))}
    write(tmp_path, data=data)
    with pytest.raises(ValueError, match=r"sharpening \[0.5, 7.0, 10.0\], this job sharpens None: precompute"):
        plain_latents(LatentRecords(tmp_path, "abc"))


def test_a_killed_writer_is_gone_on_with(tmp_path):
    writer = write(tmp_path, shards=(1,), finish=False)

    def killed():
        yield row(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(0, killed())
    with pytest.raises(ValueError, match="lacks 2 shards, the first 0"):
        writer.finish(NULL)
    with pytest.raises(ValueError, match="are not finished: the same precompute command goes on"):
        LatentRecords(tmp_path, "abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "records-00001.array_record"]
    again = LatentWriter(tmp_path, manifest())
    assert again.missing() == [0, 2]
    write(tmp_path, shards=(0, 2))
    assert LatentWriter(tmp_path, manifest()).missing() == []
    np.testing.assert_array_equal(LatentRecords(tmp_path, "abc")[0]["moments"], row(0)["moments"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "def", "model": "another"}, "model_hash is a model, abc there and another, def here"),
        ({"count": 8}, "count is 7 there and 8 here"),
        ({"data": {"source": "tar"}}, "data is "),
        ({"shard_size": 4}, "shard_size is 3 there and 4 here"),
    ],
)
def test_other_latents_are_not_mixed(latents, changes, message):
    before = {path: path.stat().st_mtime_ns for path in latents.iterdir()}
    with pytest.raises(ValueError, match=message) as error:
        LatentWriter(latents, manifest(**changes))
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in latents.iterdir()} == before


def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path):
    writer = LatentWriter(tmp_path, manifest())
    infinite = {**row(1), "moments": np.full((4, 4, 8), np.inf, np.float16)}
    short = {**row(1), "moments": np.zeros((4, 4, 4), np.float16)}
    for bad, message in ((infinite, "not finite in float16"), (short, r"moments is float16\[4, 4, 4\]")):
        with pytest.raises(ValueError, match=message):
            writer.write_shard(0, [bad] * 3)
    with pytest.raises(ValueError, match="made 2 records of 3"):
        writer.write_shard(0, [row(1)] * 2)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def harmed(tmp_path, harm):
    write(tmp_path)
    shard = tmp_path / "records-00001.array_record"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif harm == "missing":
        shard.unlink()
    elif harm == "manifest":
        (tmp_path / MANIFEST).write_text((tmp_path / MANIFEST).read_text()[:90])
    elif harm == "version":
        content = json.loads((tmp_path / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_text(json.dumps({**content, "version": 99}))
    elif harm == "null":
        (tmp_path / "null_context.npy").write_bytes(b"nonsense")
    else:
        (tmp_path / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        ("cut", ValueError, "records-00001.array_record is cut off or changed"),
        ("missing", FileNotFoundError, "records-00001.array_record is missing"),
        ("manifest", ValueError, "not a readable manifest"),
        ("version", ValueError, "is of version 99, this program reads 1"),
        ("null", ValueError, "null_context.npy is not readable"),
        ("empty", FileNotFoundError, "holds no latents"),
    ],
)
def test_a_damaged_directory_is_one_line(tmp_path, harm, kind, message):
    harmed(tmp_path, harm)
    with pytest.raises(kind, match=message) as error:
        LatentRecords(tmp_path, "abc")
    assert "\n" not in str(error.value)


def test_a_cut_shard_is_made_again(tmp_path):
    harmed(tmp_path, "cut")
    assert LatentWriter(tmp_path, manifest()).missing() == [1]
    write(tmp_path, shards=(1,))
    np.testing.assert_array_equal(LatentRecords(tmp_path, "abc")[4]["context"], row(4)["context"])


def test_a_damaged_record_is_skipped_counted_and_named(tmp_path):
    write(tmp_path)
    shard = tmp_path / "records-00000.array_record"
    content = bytearray(shard.read_bytes())
    where = content.find(row(1)["moments"].tobytes()[:64])
    assert where > 0
    content[where] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="1 of 7 records .*record 1 in .*records-00000.array_record is da") as error:
        LatentRecords(tmp_path, "abc")[1]
    assert "\n" not in str(error.value)
    records = LatentRecords(tmp_path, "abc", max_bad_share=0.2)
    found = [records[index] for index in (1, 0, 1, 2)]
    assert [record["position"] for record in found] == [2, 0, 2, 2], "its successor stands in, the others are whole"
    np.testing.assert_array_equal(found[0]["moments"], row(2)["moments"])
    assert len(records.bad) == 1 and "record 1 in" in records.bad[0]


def test_another_model_is_named(latents):
    with pytest.raises(ValueError, match=r"made by a model \(abc\), the job's model is def"):
        LatentRecords(latents, "def")
