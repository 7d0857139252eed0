"""Every source of images feeds the same records into the same stream, and says in one line what is wrong with it."""

import io
import itertools
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from sdd_jax.command import is_ours
from sdd_jax.data import decode
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.sources import ImageData, augmented, open_source

COUNT, SIZE = 12, 8
NAMES = [f"{i:03d}" for i in range(COUNT)]
pytestmark = pytest.mark.usefixtures("array_cache")


def pixels(i, width=12, height=9):
    """A picture whose red channel says which one it is, to within what JPEG changes."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 20 * i
    image[:, width // 2 :, 1] = 200
    return image


def encoded(image, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(image).save(data, format=kind)
    return data.getvalue()


def caption(i):
    return f"picture {i}, é"


def make_folder(root, listing="txt", count=COUNT):
    root.mkdir(parents=True)
    for i in range(count):
        (root / f"{NAMES[i]}.png").write_bytes(encoded(pixels(i)))
        if listing == "txt":
            (root / f"{NAMES[i]}.txt").write_text(caption(i), encoding="utf-8")
    if listing == "jsonl":
        rows = [{"file_name": f"{NAMES[i]}.png", "text": caption(i), "other": i} for i in range(count)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    if listing == "csv":
        lines = ["id,caption,file_name", *(f'{i},"{caption(i)}",{NAMES[i]}.png' for i in range(count))]
        (root / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def add(tar, name, data, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def make_shards(root, shards=2):
    root.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * COUNT // shards, (shard + 1) * COUNT // shards):
                add(tar, f"./{NAMES[i]}.png", encoded(pixels(i)))
                if i % 2:
                    add(tar, f"./{NAMES[i]}.json", json.dumps({"caption": caption(i), "width": 3}).encode())
                else:
                    add(tar, f"./{NAMES[i]}.txt", caption(i).encode())
                    add(tar, f"./{NAMES[i]}.json", b'{"caption": "the text file counts"}')
    return root


def make_coco(root):
    (root / "annotations").mkdir(parents=True)
    images = [{"id": 100 + i, "file_name": f"{NAMES[i]}.png"} for i in range(COUNT)]
    rows = [{"id": i, "image_id": 100 + i, "caption": caption(i) + "\n"} for i in range(COUNT)]
    rows += [{"id": 50 + i, "image_id": 100 + i, "caption": "another"} for i in range(COUNT)]
    content = {"images": images[::-1], "annotations": rows[::-1]}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    (root / "val2017").mkdir()
    for i in range(COUNT):
        (root / "val2017" / f"{NAMES[i]}.png").write_bytes(encoded(pixels(i)))
    return root


MAKERS = {
    "text": ("folder", lambda root: make_folder(root, "txt")),
    "jsonl": ("folder", lambda root: make_folder(root, "jsonl")),
    "csv": ("folder", lambda root: make_folder(root, "csv")),
    "tar": ("tar", make_shards),
    "coco": ("coco", make_coco),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {name: (kind, str(make(root / name))) for name, (kind, make) in MAKERS.items()}


@pytest.fixture
def log(caplog, monkeypatch):
    """What this package logs, whatever handlers commands of other tests have left."""
    logger = logging.getLogger("sdd_jax")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "sdd_jax")
    return caplog


def opened(places, name, **changes):
    kind, path = places[name]
    return open_source(ImageData(source=kind, path=path, size=SIZE, split="val2017", **changes))


def transform(record, rng):
    text = np.frombuffer(record["caption"].encode()[:16].ljust(16), np.uint8)
    return {"image": record["image"], "text": text, "noise": rng.random(1)}


def batches(source, count=4, **options):
    return list(itertools.islice(make_stream(source, transform, batch_size=4, seed=1, **options), count))


@pytest.mark.parametrize("name", MAKERS)
def test_every_source_gives_the_same_records(places, name):
    source = opened(places, name, count=COUNT)
    assert len(source) == COUNT
    for i in (0, 1, COUNT - 1):
        record = source[i]
        assert record["caption"] == record["captions"][0] == caption(i) and NAMES[i] in record["name"]
        assert record["position"] == i and record["image"].dtype == np.uint8
        np.testing.assert_array_equal(record["image"].shape, (SIZE, SIZE, 3))
        assert abs(int(record["image"][0, 0, 0]) - 20 * i) <= 1
    assert len(source[0]["captions"]) == (2 if name == "coco" else 1)


@pytest.mark.parametrize("name", MAKERS)
def test_processes_and_pickles_see_the_same_batches(places, name):
    source = opened(places, name)
    want = batches(source)
    copy = pickle.loads(pickle.dumps(source))
    for processes in (2, 4):
        parts = [batches(copy, process_index=p, process_count=processes) for p in range(processes)]
        for step, rows in enumerate(zip(*parts, strict=True)):
            for key in want[0]:
                np.testing.assert_array_equal(np.concatenate([row[key] for row in rows]), want[step][key])


@pytest.mark.parametrize(
    ("name", "workers"),
    [("tar", 1), *(pytest.param(name, n, marks=pytest.mark.slow) for name in MAKERS for n in (1, 2, 3))],
)
def test_workers_see_the_same_batches(places, name, workers):
    source = opened(places, name)
    want = batches(source, 3)
    for step, batch in enumerate(batches(source, 3, workers=workers)):
        np.testing.assert_array_equal(batch["image"], want[step]["image"])


def test_augmentation_is_drawn_by_the_stream(places):
    data = ImageData(
        source="coco", path=places["coco"][1], split="val2017", size=SIZE,
        crop="random", flip=True, captions="random", caption_dropout=0.25,
    )  # fmt: skip
    source, change = open_source(data), augmented(data, lambda record, rng: record)
    assert source[3]["image"].shape == (SIZE, 11, 3), "the shorter side is scaled, the crop left to `augmented`"
    drawn = [change(source[3], np.random.default_rng(k)) for k in range(200)]
    again = change(source[3], np.random.default_rng(7))
    np.testing.assert_array_equal(again["image"], drawn[7]["image"])
    assert again["caption"] == drawn[7]["caption"]
    whole = source[3]["image"]
    windows = [whole[:, x : x + SIZE] for x in range(4)]
    views = {view.tobytes(): 0 for window in windows for view in (window, window[:, ::-1])}
    for record in drawn:
        views[record["image"].tobytes()] += 1
    assert len(drawn) == sum(views.values()) and min(views.values()) > 5, "every place and both sides, nothing else"
    shares = {text: np.mean([r["caption"] == text for r in drawn]) for text in ("", caption(3), "another")}
    assert sum(shares.values()) == 1 and abs(shares[""] - 0.25) < 0.1 and min(shares.values()) > 0.2
    plain = augmented(ImageData(path="x"), transform)(opened(places, "coco")[3], np.random.default_rng(0))
    assert plain["image"].shape == (SIZE, SIZE, 3) and plain["noise"] == np.random.default_rng(0).random(1)
    assert opened(places, "coco", captions="none")[0]["caption"] == ""


def test_filters_leave_records_out_for_good(tmp_path, log):
    root = make_folder(tmp_path / "x")
    (root / "000.png").write_bytes(encoded(pixels(0, 7, 30)))
    (root / "001.png").write_bytes(encoded(pixels(1, 60, 9)))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels(2, 12, 9)).save(root / "002.png", exif=turned)
    source = open_source(ImageData(path=str(root), size=SIZE, min_size=9, max_aspect=3.0))
    assert "kept 10 of 12 records; 1 are smaller than min_size=9, 1 longer than max_aspect=3" in log.text
    assert len(source) == 10 and [source[i]["name"][-7:-4] for i in range(2)] == ["002", "003"]
    with pytest.raises(ValueError, match="min_size=500 .* leave no record"):
        open_source(ImageData(path=str(root), size=SIZE, min_size=500))


def spoil(places, tmp_path, name):
    """A copy of a source in which the image of record 5 is cut off in the middle; the ImageData of it."""
    import shutil

    kind, path = places[name]
    shutil.copytree(path, tmp_path / "copy")
    victim = next((tmp_path / "copy").rglob("005.png"), None)
    if victim is not None:
        victim.write_bytes(victim.read_bytes()[:50])
    else:
        shard = tmp_path / "copy" / "00000.tar"
        data = bytearray(shard.read_bytes())
        with tarfile.open(shard) as tar:
            member = tar.getmember("./005.png")
        data[member.offset_data + 40 : member.offset_data + member.size] = bytes(member.size - 40)
        shard.write_bytes(bytes(data))
    return {"source": kind, "path": str(tmp_path / "copy"), "split": "val2017", "size": SIZE}


@pytest.mark.parametrize("name", ["text", "tar", "coco"])
def test_a_damaged_record_is_skipped_counted_and_named(places, tmp_path, log, name):
    where = spoil(places, tmp_path, name)
    source = open_source(ImageData(**where, max_bad_share=0.1))
    assert source[5]["caption"] == caption(6) and source[5]["position"] == 6, "its successor stands in for it"
    source[5]
    assert len(source.bad) == 1 and "005.png" in source.bad[0]
    assert [record.getMessage().split(":")[0] for record in log.records] == ["skipped a record (1 so far)"]
    assert "005.png" in log.text
    assert len(batches(source)) == 4
    with pytest.raises(
        ValueError, match=r"1 of 12 records cannot be read, more than .*max_bad_share=0.05.*005.png"
    ) as e:
        open_source(ImageData(**where, max_bad_share=0.05))
    assert is_ours(e.value) and "\n" not in str(e.value)


def test_a_source_that_is_wrong_throughout_fails_when_opened(tmp_path):
    root = make_folder(tmp_path / "x")
    for path in root.glob("*.png"):
        path.write_bytes(b"GIF89a, or so it says")
    with pytest.raises(ValueError, match="1 of 12 records cannot be read.*000.png is not a readable image"):
        open_source(ImageData(path=str(root), size=SIZE))
    with pytest.raises(ValueError, match="none of the 12 records from 0 on can be read"):
        open_source(ImageData(path=str(root), size=SIZE, max_bad_share=1.0))


def test_a_decompression_bomb_is_a_damaged_record(places, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    for name in ("text", "tar"):
        with pytest.raises(ValueError, match="12x9 pixels are more than 100"):
            opened(places, name)


def test_configs_are_checked():
    for wrong, message in [
        ({"source": "zip"}, "source='zip' is not known; use folder, tar, tfds, coco"),
        ({"path": ""}, "set config.data.path"),
        ({"crop": "left"}, "use center, random"),
        ({"caption_dropout": 1.5}, "caption_dropout=1.5 is a share"),
        ({"max_aspect": 0.5}, "at least 1, or 0"),
        ({"size": 0}, "size=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ImageData(**{"path": "x", **wrong})


def test_a_wrong_count_and_missing_parts_are_errors(places, tmp_path):
    with pytest.raises(ValueError, match="holds 12 records, config.data.count says 13"):
        opened(places, "tar", count=13)
    both = make_folder(tmp_path / "both", "csv")
    (both / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds both"):
        open_source(ImageData(path=str(both)))
    with pytest.raises(FileNotFoundError, match="captions_val2014.json: no such annotations"):
        open_source(ImageData(source="coco", path=places["coco"][1], split="val2014"))
    coco = make_coco(tmp_path / "coco")
    (coco / "val2017" / "003.png").unlink()
    with pytest.raises(FileNotFoundError, match="003.png: no such image, one of 1"):
        open_source(ImageData(source="coco", path=str(coco), split="val2017"))
    file = coco / "annotations" / "captions_val2017.json"
    whole = json.loads(file.read_text())
    mixed = [{**row, "id": str(row["id"]) if row["id"] < 50 else row["id"]} for row in whole["annotations"]]
    named = [{**row, "file_name": "a" * 400} for row in whole["images"]]
    for text, message in (
        ("{", "not valid JSON"), ("[" * 10**5, "not valid JSON .nested too deep"), ("[]", "holds list"),
        ('{"images": []}', "is missing in it"), (json.dumps({**whole, "annotations": mixed}), "'<' not supported"),
        (json.dumps({**whole, "images": named}), "aaa: no such image, one of 12 that"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            open_source(ImageData(source="coco", path=str(coco), split="val2017"))
        assert is_ours(error.value) and "\n" not in str(error.value)
