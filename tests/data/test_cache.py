"""Arrays made once: a file per content, whole or not at all."""

import numpy as np
import pytest

from sdd_jax.data import cache, portraits
from sdd_jax.data.cache import cached_array, rendered_portraits


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SDD_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def maker(counter, value=1.0, rows=(2, 3)):
    def chunks():
        counter.append(1)
        for n in rows:
            yield np.full((n, 2), value, np.float32)

    return chunks


def test_the_second_call_reads_the_file(directory):
    counter = []
    first = cached_array("a", "key", (5, 2), "float16", maker(counter))
    again = cached_array("a", "key", (5, 2), "float16", maker(counter))
    assert len(counter) == 1 and first.dtype == again.dtype == np.float16
    np.testing.assert_array_equal(again, np.ones((5, 2)))
    assert isinstance(again, np.memmap) and not again.flags.writeable
    assert len(list(directory.iterdir())) == 1


def test_every_part_of_the_key_makes_its_own_file(directory):
    counter = []
    for name, key, shape, dtype in [
        ("a", "k", (5, 2), "float32"), ("b", "k", (5, 2), "float32"), ("a", "l", (5, 2), "float32"),
        ("a", "k", (5, 2), "float16"),
    ]:  # fmt: skip
        cached_array(name, key, shape, dtype, maker(counter))
    cached_array("a", "k", (2, 2), "float32", maker(counter, rows=(2,)))
    assert len(counter) == 5 and len(list(directory.glob("*.npy"))) == 5


def test_an_interrupted_build_leaves_no_file(directory):
    def interrupted():
        yield np.ones((2, 2), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_array("a", "key", (5, 2), "float32", interrupted)
    assert list(directory.iterdir()) == []
    with pytest.raises(RuntimeError, match="a: made 2 rows of 5"):
        cached_array("a", "key", (5, 2), "float32", maker([], rows=(2,)))
    assert list(directory.iterdir()) == []
    counter = []
    assert cached_array("a", "key", (5, 2), "float32", maker(counter)).shape == (5, 2) and counter


def test_renders_are_kept_by_the_renderers_source(directory, monkeypatch):
    drawn = []
    monkeypatch.setattr(portraits, "image", lambda i: drawn.append(i) or np.full((64, 64, 3), i % 256, np.uint8))
    monkeypatch.setattr(cache, "CHUNK", 2)
    images = rendered_portraits("heldout", 3)
    assert drawn == list(portraits.split_indices("heldout")[:3]) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], [i % 256 for i in drawn])
    rendered_portraits("heldout", 3)
    assert len(drawn) == 3
    monkeypatch.setattr(cache, "renderer_hash", lambda: "another renderer")
    rendered_portraits("heldout", 3)
    assert len(drawn) == 6
