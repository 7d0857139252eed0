"""The streams' rates divide samples by processor time, after the warm-up."""

import itertools

import numpy as np
import pytest

from sdd_jax import bench_data
from sdd_jax.data.latent_rows import text_to_image
from sdd_jax.data.pipeline import make_stream


def test_samples_per_core_second(monkeypatch):
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr(bench_data.time, "process_time", lambda: next(clock))
    taken = []
    stream = ({"x": np.zeros(6), "n": taken.append(i)} for i in itertools.count())
    assert bench_data.samples_per_core_second(stream, seconds=2.0, warm_up=3) == pytest.approx(24 / 2.0)
    assert len(taken) == 3 + 4


def test_the_records_it_reads_have_the_shapes_it_names(tmp_path):
    records = bench_data.random_latents(tmp_path / "r", {"moments": (4, 4, 8), "context": (5, 6)}, count=3)
    batch = next(make_stream(records, text_to_image, batch_size=2, seed=0))
    assert {name: value.shape for name, value in batch.items()} == {"moments": (2, 4, 4, 8), "context": (2, 5, 6)}
