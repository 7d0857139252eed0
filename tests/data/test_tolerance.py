"""Damaged records: each reader judges by what it has read itself, and neither chance nor a run of them stops a job."""

import io
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from sdd_jax.command import is_ours, log_to_stdout
from sdd_jax.data import tolerance
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.sources import ImageData
from sdd_jax.data.sources.images import ImageSource
from sdd_jax.data.sources.raw import RawRecord
from sdd_jax.data.tolerance import ENOUGH, Tolerance


def reader(bad):
    def read(index):
        if index in bad:
            raise ValueError(f"record {index} is damaged")
        return index

    return read


def test_a_successor_stands_in_and_each_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr(tolerance._log, "warning", lambda text, *values: said.append(text % values))
    met = Tolerance("x", 8, 0.5)
    assert [met.read(i, reader({3, 4, 7})) for i in (2, 3, 4, 7, 3)] == [2, 5, 5, 0, 5]
    assert met.bad == tuple(f"record {i} is damaged" for i in (3, 4, 7))
    assert said == [f"skipped a record ({n} so far): {reason}" for n, reason in enumerate(met.bad, 1)]
    assert pickle.loads(pickle.dumps(met)).read(3, reader(())) == 5, "a worker knows what its parent met"


def test_more_than_the_share_of_a_small_source_is_an_error_at_once():
    met = Tolerance("x", 12, 0.1)
    met.read(5, reader({5}))
    with pytest.raises(ValueError, match="^x: 2 of 12 records cannot be read, .*max_bad_share=0.1 .*: record 7 is"):
        met.read(7, reader({5, 7}))
    with pytest.raises(ValueError, match="x: none of the 4 records from 1 on can be read"):
        Tolerance("x", 4, 1.0).read(1, reader(range(4)))


def test_what_was_read_is_judged_and_not_the_start():
    """A twentieth is damaged: beyond .01 that shows within the first hundreds of a million, below .1 it never does."""
    order = np.random.default_rng(0).permutation(10**6)[:4000].tolist()
    bad = reader(range(0, 10**6, 20))
    tolerant = Tolerance("x", 10**6, 0.1)
    for position in order:
        tolerant.read(position, bad)
    assert len(tolerant.bad) > 150
    strict = Tolerance("x", 10**6, 0.01)
    with pytest.raises(ValueError, match=rf"x: {ENOUGH + 1} of \d+ records asked for so far cannot be read") as error:
        for position in order:
            strict.read(position, bad)
    assert is_ours(error.value) and len(strict.bad) == ENOUGH + 1


def test_a_run_of_damaged_records_is_one_event():
    met = Tolerance("x", 10**6, 0.001)
    assert met.read(7, reader(range(7, 700))) == 700
    assert len(met.bad) == 693 and met.read(9000, reader(())) == 9000


def test_a_workers_lines_are_those_of_its_command(monkeypatch, capfd):
    """A worker is a process of its own, in which Python's logging would write bare lines to stderr."""
    monkeypatch.setattr(tolerance._log, "handlers", [])
    monkeypatch.setattr(tolerance._log, "propagate", True)
    log_to_stdout()
    source = ImageSource(Raw(), ImageData(path="x", size=2, max_bad_share=0.5))
    next(make_stream(source, pictures, batch_size=60, seed=1, workers=1))
    out, err = capfd.readouterr()
    assert re.search(r"^\d\d:\d\d:\d\d skipped a record \(1 so far\): \d+0 is not a readable image", out, re.M), out
    assert "skipped" not in err


def pictures(record, rng):
    return {"image": record["image"]}


class Raw:
    """A source of 2400 pictures, a tenth of them nothing."""

    title = "raw"

    def __init__(self):
        data = io.BytesIO()
        Image.new("RGB", (2, 2)).save(data, format="PNG")
        self._picture = data.getvalue()

    def __len__(self):
        return 2400

    def __getitem__(self, index):
        return RawRecord(str(index), b"" if index % 10 == 0 else self._picture, ())


def test_each_of_several_processes_finds_it_in_its_part_of_the_first_epoch():
    """6 processes see 40 of 240 damaged records each, fewer than .05 of all: what they read tells them."""
    data = ImageData(path="x", size=2, max_bad_share=0.05)
    for process in (0, 5):
        source = ImageSource(Raw(), data)
        stream = make_stream(source, pictures, batch_size=60, seed=1, process_index=process, process_count=6)
        with pytest.raises(ValueError, match=r"raw: 2\d of .* asked for so far cannot be read, more than .*share=0.05"):
            for _ in range(2400 // 60):
                next(stream)
