"""Tar shards: truncation anywhere is noticed, nothing hostile in one is read, and the index is made once."""

import gzip
import os
import pickle
import tarfile

import pytest
from test_sources import COUNT, add, caption, encoded, make_shards, pixels

from sdd_jax.command import is_ours
from sdd_jax.data.sources import tar as module
from sdd_jax.data.sources.tar import TarSource

pytestmark = pytest.mark.usefixtures("array_cache")


def shard(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data, fields in members:
            add(tar, name, data, **fields)
    return path


def refused(path, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        TarSource(path)
    assert is_ours(error.value) and "\n" not in str(error.value)


def test_a_shard_cut_off_anywhere_is_refused(tmp_path):
    whole = (make_shards(tmp_path / "x", shards=1) / "00000.tar").read_bytes()
    end = max(i for i in range(len(whole)) if whole[i]) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for length in [0, 100, *range(512, end + 512, 512), end + 700]:
        cut.write_bytes(whole[:length])
        refused(cut, "cut.tar is (not an uncompressed tar file, or is cut off|cut off or damaged)")
    cut.write_bytes(whole[: end + 1024])
    assert len(TarSource(cut)) == COUNT


def test_a_damaged_header_does_not_end_a_shard_early(tmp_path):
    path = make_shards(tmp_path / "x", shards=1) / "00000.tar"
    with tarfile.open(path) as tar:
        place = tar.getmembers()[7].offset
    data = bytearray(path.read_bytes())
    data[place + 3] ^= 1
    path.write_bytes(bytes(data))
    refused(path, "cut off or damaged after byte")


def test_hostile_members_are_refused(tmp_path):
    image = encoded(pixels(1))
    for name, fields, message in [
        ("../out.png", {}, "leads outside"),
        ("/etc/out.png", {}, "leads outside"),
        ("a/../../out.png", {}, "leads outside"),
        ("x.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "a link or special file"),
        ("x.png", {"type": tarfile.LNKTYPE, "linkname": "../other", "size": 0}, "a link or special file"),
        ("x.png", {"type": tarfile.CHRTYPE, "size": 0}, "a link or special file"),
        ("x.png", {"type": tarfile.FIFOTYPE, "size": 0}, "a link or special file"),
    ]:
        data = b"" if fields else image
        refused(shard(tmp_path / "bad.tar", ("good.png", image, {}), (name, data, fields)), message)


def test_only_images_and_captions_are_ever_opened(tmp_path):
    """A pickle that would run code, and a webdataset URL, stay bytes."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    members = [
        ("a.png", encoded(pixels(1)), {}),
        ("a.pkl", pickle.dumps(Evil()), {}),
        ("a.pyd", pickle.dumps(Evil()), {}),
        ("a.pth", pickle.dumps(Evil()), {}),
        ("a.json", b'{"url": "pipe:touch ran", "caption": "an image"}', {}),
        ("b.txt", b"no image of this name", {}),
    ]
    source = TarSource(shard(tmp_path / "x.tar", *members))
    assert len(source) == 1 and source[0].captions == ("an image",) and not ran.exists()
    assert source[0].name.endswith("x.tar: a.png")


def test_layouts_that_are_not_webdatasets(tmp_path):
    image = encoded(pixels(1))
    refused(tmp_path / "none", "neither a .tar file nor a directory of some")
    refused(tmp_path, "neither a .tar file nor a directory of some")
    refused(shard(tmp_path / "text.tar", ("a.txt", b"x", {})), "holds no images")
    refused(shard(tmp_path / "two.tar", ("a.png", image, {}), ("a.jpg", image, {})), "two images are called a")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "two.tar").read_bytes()))
    refused(tmp_path / "x.tar.gz", "not an uncompressed tar file")


def test_bad_captions_are_errors_of_their_record(tmp_path):
    image = encoded(pixels(1))
    path = shard(
        tmp_path / "x.tar", ("a.png", image, {}), ("a.txt", b"caf\xe9", {}), ("b.png", image, {}), ("b.json", b"{", {}),
        ("c.png", image, {}), ("c.json", b"[1]", {}), ("d.png", image, {}),
        ("e.png", image, {}), ("e.json", b"[" * 10**5, {}), ("f.png", image, {}),
        ("f.json", b'{"text": ' + b"[" * 90 + b"]" * 90 + b"}", {}),
    )  # fmt: skip
    source = TarSource(path)
    for i, name in enumerate("ab"):
        with pytest.raises(ValueError, match=f"{name}.png: its caption is not"):
            source[i]
    assert [source[i].captions for i in (2, 3)] == [(), ()]
    with pytest.raises(ValueError, match="e.png: its caption is not UTF-8 text or JSON .nested too deep"):
        source[4]
    with pytest.raises(ValueError, match=r"f.png: a caption is \[+\.\.\.\]+, not a text"):
        source[5]


def test_shards_are_indexed_once(tmp_path, monkeypatch):
    root = make_shards(tmp_path / "x")
    first = TarSource(root)
    assert [first[i].captions[0] for i in range(COUNT)] == [caption(i) for i in range(COUNT)]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_scan", lambda path, partner: pytest.fail("scanned again"))
        again = TarSource(root)
        assert [again[i] for i in (0, 7, 11)] == [first[i] for i in (0, 7, 11)]
    with open(root / "00001.tar", "ab") as file:
        file.write(bytes(512))
    calls = []
    scan = module._scan
    monkeypatch.setattr(module, "_scan", lambda path, partner: calls.append(path) or scan(path, partner))
    assert len(TarSource(root)) == COUNT and len(calls) == 2, "a shard that changed is looked at again"


def test_pairs_are_members_of_one_sample(tmp_path):
    """The second image by the rest of its member's name; without it in the config a member like any other."""
    image, before = encoded(pixels(1)), encoded(pixels(2))
    members = [(f"{name}.png", image, {}) for name in "ab"] + [(f"{name}.Before.png", before, {}) for name in "ba"]
    path = shard(tmp_path / "x.tar", *members)
    assert TarSource(path)[0].partner is None
    for partner in ("before.png", ".before.png"):
        source = TarSource(path, partner=partner)
        assert [(source[i].image, source[i].partner) for i in range(2)] == [(image, before)] * 2
    path = shard(tmp_path / "less.tar", *members[:-1])
    with pytest.raises(
        ValueError, match="less.tar: a has no before.png, the condition, one of 1 such samples"
    ) as error:
        TarSource(path, partner="before.png")
    assert is_ours(error.value) and "\n" not in str(error.value)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    root = make_shards(tmp_path / "x", 1)
    source = TarSource(root)
    os.truncate(root / "00000.tar", 700)
    with pytest.raises(ValueError, match="became shorter since it was opened"):
        source[11]
