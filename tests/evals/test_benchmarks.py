"""The published CSVs and PIE-bench with all their quirks, and a log that survives being cut off."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdd_jax.command import is_ours
from sdd_jax.data import portraits
from sdd_jax.data.conditions import depth_of
from sdd_jax.data.decode import read_plane
from sdd_jax.evals.protocols.benchmarks import (
    blended_words,
    decode_mask,
    read_coco,
    read_editing,
    read_generation,
    read_inversion,
    read_pairs,
    read_pie_bench,
)
from sdd_jax.evals.protocols.log import SampleLog
from sdd_jax.evals.protocols.portraits import write_benchmark


def pictures(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def one_line(call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        call()
    assert is_ours(error.value) and "\n" not in str(error.value)


def test_generation_numbers_its_rows(tmp_path):
    file = tmp_path / "g.csv"
    file.write_text(',file_name,caption\n132871,a.jpg,"Green, commercial."\n31526,a.jpg,An airplane \n')
    items = read_generation(file)
    assert [item.id for item in items] == ["000000", "000001"], "a file name may stand for several captions"
    assert [item.target for item in items] == ["Green, commercial.", "An airplane"]
    file.write_text(",id,caption\n0,0,A city in 4-dimensional space-time\n")
    assert read_generation(file)[0].target == "A city in 4-dimensional space-time"


def test_coco_gives_the_first_caption_of_each_validation_image(tmp_path):
    pictures(tmp_path / "val2017", "000.png", "007.png")
    file = tmp_path / "annotations" / "captions_val2017.json"
    one_line(lambda: read_coco(tmp_path), r"annotations holds no captions_val\*.json: give COCO's directory as --data")
    file.parent.mkdir()
    images = [{"id": 9, "file_name": "007.png"}, {"id": 4, "file_name": "000.png"}]
    captions = [(9, 3, "A red bus. "), (4, 2, "later"), (9, 5, "later"), (4, 1, "Two cats.")]
    annotations = [{"image_id": image, "id": number, "caption": text} for image, number, text in captions]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    file.with_name("captions_train2017.json").write_text("{}")
    items = read_coco(tmp_path)
    assert [(item.id, item.target) for item in items] == [("000000", "Two cats."), ("000001", "A red bus.")]
    file.with_name("captions_val2014.json").write_text("{}")
    one_line(lambda: read_coco(tmp_path), "holds captions of val2014 and val2017")


@pytest.mark.parametrize(
    ("text", "source", "target", "blend"),
    [
        ("('child', 'lion')", "A young child sitting.", "A young lion sitting.", ("child", "lion")),
        ("cat dog", "a cat, sitting", "a dog, sitting", ("cat", "dog")),
        (" ", "white flowers", "an oil painting of white flowers", None),
        ("puppy puppy", "a golden retriever", "a golden retriever", None),
        ("And chair rock", "a woman on a chair", "a woman on a rock", ("chair", "rock")),
        ("('PLANE', 'CROCODILE')", "A PLANE.", "A CROCODILE.", ("PLANE", "CROCODILE")),
        ("('broken", "broken", "broken", None),
        ("(1, 2)", "1", "2", None),
        ("__import__('os').system('x')", "a", "b", None),
        ("dog", "dog", "dog", None),
    ],
)
def test_blended_words_of_every_spelling(text, source, target, blend):
    assert blended_words(text, source, target) == blend


def test_editing_and_inversion_read_images_beside_prompts(tmp_path):
    images = pictures(tmp_path / "images", "a.jpg")
    file = tmp_path / "e.csv"
    file.write_text(
        ",Unnamed: 0,file_name,old_caption,edited_caption,blended_words\n"
        "0,0,a.jpg,a child on a bench,a lion on a bench,\"('child', 'lion')\"\n"
        "1,1,a.jpg,a cat,a cat with a hat,\n"
    )
    first, second = read_editing(file, images)
    assert (first.source, first.target) == ("a child on a bench", "a lion on a bench")
    assert first.blend == ("child", "lion") and second.blend is None
    assert first.image == first.reference == images / "a.jpg"
    (tmp_path / "i.csv").write_text("file_name,caption\na.jpg,a cat\n")
    (item,) = read_inversion(tmp_path / "i.csv", images)
    assert item.source == item.target == "a cat"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column 'file_name'; it has none"),
        ("file_name,old_caption\na.jpg,x\n", "has no column 'edited_caption'; it has file_name, old_caption"),
        ("file_name,old_caption,edited_caption\n", "has no rows"),
        ("file_name,old_caption,edited_caption\na.jpg,x,\n", "line 2: edited_caption is empty"),
        ("file_name,old_caption,edited_caption\na.jpg,x\n", "line 2: edited_caption is empty"),
        ("file_name,old_caption,edited_caption\nb.jpg,x,y\n", "b.jpg: no such image, one of 1"),
        ("file_name,old_caption,edited_caption\n../a.jpg,x,y\n", "not a file inside"),
        ("file_name,old_caption,edited_caption\na.jpg,caf\xe9,y\n", "not CSV in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_one_line(tmp_path, content, message):
    file = tmp_path / "e.csv"
    file.write_bytes(content.encode("latin-1"))
    images = pictures(tmp_path / "images", "a.jpg")
    one_line(lambda: read_editing(file, images), message)
    one_line(lambda: read_generation(tmp_path / "none.csv"), "none.csv: no such file")


def entry(**changes):
    given = {
        "image_path": "0_random/000000000000.jpg",
        "original_prompt": "a [round] cake on a plate",
        "editing_prompt": "a [square]  cake on a plate",
        "blended_word": "cake cake",
        "mask": [0, 2, 512 * 256 + 256, 100],
    }
    return {**given, **changes}


def test_pie_bench(tmp_path):
    pictures(tmp_path / "annotation_images", "0_random/000000000000.jpg")
    file = tmp_path / "mapping_file.json"
    file.write_text(json.dumps({"000000000000": entry(), "000000000001": entry(mask=[], blended_word="")}))
    first, second = read_pie_bench(tmp_path)
    assert first.source == "a round cake on a plate" and first.target == "a square cake on a plate"
    assert first.blend == ("cake", "cake") and second.blend is None and second.mask is None
    mask = decode_mask(first.mask, 512)[..., 0]
    assert mask[256, 256:356].all() and not mask[256, 250:256].any() and not mask[256, 356:511].any()
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert mask.sum() == 100 + 4 * 511
    small = decode_mask(first.mask, 64)
    assert small.shape == (64, 64, 1) and small.sum() == 13 + 4 * 63, "columns 256..355 touch 13 pixels of 8"
    assert decode_mask(first.mask, 1024).sum() == 4 * mask.sum()
    for changes, message in [
        ({"image_path": "../x.jpg"}, "not a file inside"),
        ({"image_path": "1.jpg"}, "1.jpg: no such image"),
        ({"mask": [1, 2, 3]}, "the mask is not of PIE-bench's kind"),
        ({"mask": ["x", 1]}, "the mask is not of PIE-bench's kind"),
        ({"original_prompt": None}, "is missing or of another kind"),
    ]:
        file.write_text(json.dumps({"0": entry(**changes)}))
        one_line(lambda: read_pie_bench(tmp_path), message)
    for content, message in (("{}", "lists no edits"), ("[1]", "holds list"), ('{"0": 1}', "another kind")):
        file.write_text(content)
        one_line(lambda: read_pie_bench(tmp_path), message)
    one_line(lambda: read_pie_bench(tmp_path / "none"), "mapping_file.json: no such file")


def test_pairs_are_matched_by_name(tmp_path):
    low = pictures(tmp_path / "low", "a.png", "deep/b.jpg")
    high = pictures(tmp_path / "high", "a.jpg", "deep/b.png", "more.png")
    items = read_pairs(low, high)
    assert [(item.id, item.reference.name) for item in items] == [("a", "a.jpg"), ("deep_b", "b.png")]
    assert [item.target for item in items] == ["", ""]
    one_line(lambda: read_pairs(high, low), "has no original of .*more.png")
    one_line(lambda: read_pairs(tmp_path / "none", high), "none holds no images")
    depth = pictures(tmp_path / "depth", "a.webp", "deep/b.png")
    assert [item.condition for item in read_pairs(low, high, depth)] == [depth / "a.webp", depth / "deep" / "b.png"]
    (depth / "a.webp").unlink()
    one_line(lambda: read_pairs(low, high, depth), "a.png: no such file .* the condition of .*a.png")
    (low / "deep" / "b.txt").write_text("a text")
    assert [item.target for item in read_pairs(low, high)] == ["", "a text"]
    (low / "captions.csv").write_text("file_name,caption\ndeep/b.jpg,a listing\n")
    assert [(item.id, item.target) for item in read_pairs(low, high)] == [("deep_b", "a listing")]
    pictures(low, "a.jpg")
    one_line(lambda: read_pairs(low, high), "differ by their suffix alone")


def test_a_log_survives_being_cut_off_anywhere(tmp_path):
    settings = {"seed": 0, "model": "x", "option": ("a",)}
    path = tmp_path / "out" / "log.jsonl"
    log = SampleLog(path, settings)
    log.add([{"id": "a", "x": 1.5}, {"id": "b", "x": None}])
    log.add([{"id": "c", "x": 2.0}])
    whole = path.read_bytes()
    assert SampleLog(path, settings).rows == log.rows
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        again = SampleLog(path, settings)
        assert set(again.rows) == set("abc"[: max(0, whole[:length].count(b"\n") - 1)])
        again.add([{"id": "z"}])
        assert "z" in SampleLog(path, settings).rows
    path.write_bytes(whole)
    one_line(lambda: SampleLog(path, {**settings, "seed": 1}), r"another run \(seed: 0, now 1\)")
    one_line(lambda: SampleLog(path, {**settings, "new": 1}), r"another run \(new: None, now 1\)")
    path.write_text("{}\n")
    one_line(lambda: SampleLog(path, settings), "is no log of samples")


def test_logs_of_several_processes_become_one(tmp_path):
    """Killed with three processes, continued with two: every sample once, in order, and no other file."""
    path, settings = tmp_path / "log.jsonl", {"seed": 0}
    logs = [SampleLog(path, settings, process) for process in range(3)]
    logs[0].add([{"id": "a", "x": 1}])
    logs[2].add([{"id": "c", "x": 3}, {"id": "d", "x": 4}])
    third = tmp_path / "log.2.jsonl"
    third.write_bytes(third.read_bytes()[:-3])
    logs = [SampleLog(path, settings, process) for process in range(2)]
    assert all(set(log.rows) == {"a", "c"} for log in logs), "the sample cut off is to be made again"
    logs[1].add([{"id": "d", "x": 4}, {"id": "a", "x": 5}])
    logs[0].add([{"id": "b", "x": 2}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            logs[0].merge("abcd")
    assert SampleLog(path, settings).rows == SampleLog(path, settings, 1).rows, "killed while it is merged"
    log = SampleLog(path, settings)
    log.merge("abcd")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"settings": settings},
        *({"id": name, "x": x} for name, x in zip("abcd", (5, 2, 3, 4), strict=True)),
    ]
    assert set(log.rows) == {*"abcd"}
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
    stamp = path.stat().st_mtime_ns
    log.merge("abcd")
    assert path.stat().st_mtime_ns == stamp, "a log of one process is left as it is"
    SampleLog(path, settings, 1)
    one_line(lambda: SampleLog(path, {"seed": 1}), r"another run \(seed: 0, now 1\)")


def test_portraits_come_in_every_layout(tmp_path):
    home = write_benchmark(tmp_path, 8)
    stamps = {path: path.stat().st_mtime_ns for path in home.rglob("*.png")}
    assert len(stamps) == 32
    edits = read_editing(home / "editing.csv", home / "images")
    assert len(edits) == len(read_generation(home / "generation.csv")) == 8
    assert all(item.source != item.target for item in edits)
    assert len([item for item in edits if item.blend]) >= 6, "most edits change one word"
    assert [item.target for item in read_pairs(home / "degraded", home / "images")] == [item.source for item in edits]
    for item in read_pairs(home / "degraded", home / "images"):
        degraded, image = (np.asarray(Image.open(path), float) for path in (item.image, item.reference))
        assert 1 < np.abs(degraded - image).mean() < 40
    changed = [np.asarray(Image.open(home / "counterfactuals" / item.image.name), float) for item in edits]
    assert all(
        np.abs(new - np.asarray(Image.open(item.image))).max() > 30 for new, item in zip(changed, edits, strict=True)
    )
    before = read_pairs(home / "counterfactuals", home / "counterfactuals", home / "images")
    for item, edit in zip(before, edits, strict=True):
        assert item.condition == edit.image and item.target, "the instruction of the edit"
    depth = read_pairs(home / "images", home / "images", home / "depth")
    for item, index in zip(depth, portraits.split_indices("heldout"), strict=False):
        assert item.target == portraits.caption(portraits.portrait(index).attributes)
        np.testing.assert_array_equal(read_plane(item.condition), depth_of(index))
    write_benchmark(tmp_path, 8)
    assert stamps == {path: path.stat().st_mtime_ns for path in home.rglob("*.png")}, "nothing is drawn twice"
    one_line(lambda: write_benchmark(tmp_path, 0), "--samples=0")
