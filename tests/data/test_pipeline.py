"""The stream is a function of (source, seed, step): any process count, worker count or starting step sees the same."""

import itertools
import time

import numpy as np
import pytest

from sdd_jax.data.pipeline import Prefetch, make_stream


class Numbers:
    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"index": np.int32(index)}


def transform(record, rng):
    return {"index": record["index"], "noise": rng.normal(size=3).astype(np.float32)}


def batches(count=12, **changes):
    arguments = {"batch_size": 4, "seed": 3, **changes}
    stream = make_stream(arguments.pop("source", Numbers()), transform, **arguments)
    return list(itertools.islice(stream, count))


def joined(parts, key):
    return np.concatenate([part[key] for part in parts])


@pytest.fixture(scope="module")
def reference():
    return batches()


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_array_equal(a["noise"], b["noise"])


def test_epochs_are_permutations_and_differ(reference):
    order = joined(reference, "index")[:40].reshape(4, 10)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in order}) == 4
    assert tuple(order[0]) != tuple(range(10))


def test_noise_is_fresh_for_every_sample(reference):
    assert len(np.unique(joined(reference, "noise")[:, 0])) == 48


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_see_contiguous_blocks_of_the_same_global_batches(reference, processes):
    parts = [batches(process_index=index, process_count=processes) for index in range(processes)]
    whole = [{key: joined(row, key) for key in ("index", "noise")} for row in zip(*parts, strict=True)]
    assert_equal(whole, reference)


def test_workers_change_nothing(reference):
    assert_equal(batches(6, workers=2), reference[:6])


@pytest.mark.parametrize("start", [1, 7])
def test_starting_at_a_step_is_dropping_the_steps_before(reference, start):
    assert_equal(batches(5, start_step=start), reference[start : start + 5])


def test_a_far_step_costs_nothing_to_reach():
    began = time.monotonic()
    batches(1, start_step=10**9)
    assert time.monotonic() - began < 5


def test_seeds_differ_and_order_can_be_kept(reference):
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(batches(seed=4), reference, strict=True))
    np.testing.assert_array_equal(joined(batches(3, shuffle=False), "index"), [*range(10), 0, 1])


def test_bad_sizes_are_one_line():
    with pytest.raises(ValueError, match="empty"):
        batches(source=Numbers(0))
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of the 3 processes"):
        batches(process_count=3)


def test_prefetch_keeps_order_and_looks_only_a_little_ahead():
    made = []
    prefetch = Prefetch(({"x": np.full(1, n)} for n in itertools.count()), lambda b: made.append(1) or int(b["x"][0]))
    assert [next(prefetch) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.3)
    assert len(made) <= 5 + 3  # two waiting, one in the thread's hand
    prefetch.close()
    assert not prefetch._thread.is_alive()


def test_prefetch_raises_what_the_stream_raised_where_it_raised_it():
    def stream():
        yield {"x": np.zeros(1)}
        raise RuntimeError("a broken record")

    prefetch = Prefetch(stream(), lambda batch: batch)
    next(prefetch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a broken record"):
            next(prefetch)
    prefetch.close()


def test_prefetch_counts_the_seconds_that_its_consumer_stood_waiting():
    def stream():
        yield {"x": np.zeros(1)}
        time.sleep(0.3)
        yield {"x": np.zeros(1)}

    prefetch = Prefetch(stream(), lambda batch: batch)
    next(prefetch)
    before = prefetch.waited
    next(prefetch)
    assert 0.2 < prefetch.waited - before < 2.0
    prefetch.close()
