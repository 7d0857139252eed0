"""Metrics come late but complete, in means, on disk once, and with an honest speed."""

import json

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from sdd_jax.training import metrics
from sdd_jax.training.metrics import Late, Mean, Progress, Writer


def test_late_hands_back_every_step_in_order_depth_behind():
    late, seen = Late(depth=2), []
    for step in range(1, 6):
        seen += list(late.push(step, {"loss": jnp.float32(step)}))
    assert seen == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (3, {"loss": 3.0})]
    assert [step for step, _ in late.drain()] == [4, 5]


def test_mean_skips_the_non_finite_and_keeps_the_last_counter():
    mean = Mean()
    for loss, skipped in ((1.0, 0.0), (float("nan"), 1.0), (3.0, 1.0)):
        mean.add({"loss": loss, "skipped": skipped})
    assert mean.take() == {"loss": 2.0, "skipped": 1.0}
    mean.add({"loss": float("inf")})
    assert mean.take() == {"loss": float("inf")}


def test_progress_leaves_pauses_and_the_first_step_out(monkeypatch):
    clock = iter([100.0, 112.0, 122.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    progress = Progress(total_steps=3621, batch_size=8)
    progress.start(1)
    progress.start(2)
    progress.pause(2.0)
    assert progress.measure(11) == (pytest.approx(8.0), "1:00:10")
    assert progress.measure(21) == (pytest.approx(8.0), "1:00:00")
    assert Progress(10, 8).measure(1) == (None, "?")


def test_the_share_of_time_spent_waiting_for_data(monkeypatch):
    clock, waits = iter([100.0, 112.0, 122.0]), iter([7.0, 8.0, 8.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    progress = Progress(100, 8, waited=lambda: next(waits))
    progress.start(1)  # the first batch, waited for 7 s, is not counted
    progress.pause(2.0)
    progress.measure(11)
    assert progress.data_wait == pytest.approx(1.0 / 10.0)
    progress.measure(21)
    assert progress.data_wait == 0.0


def test_resuming_drops_lines_past_the_restored_step_and_a_torn_one(tmp_path):
    writer = Writer(tmp_path, 0)
    for step in (5, 10, 15):
        writer.write(step, {"loss": step / 2, "grad_norm": float("inf")})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2')
    writer = Writer(tmp_path, 10)
    writer.write(15, {"loss": 0.0})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 2.5), (10, 5.0), (15, 0.0)]
    assert lines[0]["grad_norm"] is None


def test_tensorboard_events_hold_the_same_scalars(tmp_path):
    writer = Writer(tmp_path, 0)
    writer.write(5, {"loss": 0.25})
    writer.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content, scalars, offset = path.read_bytes(), {}, 0
    while offset < len(content):  # records: length u64, its crc u32, payload, its crc u32
        length = int.from_bytes(content[offset : offset + 8], "little")
        event = Event.FromString(content[offset + 12 : offset + 12 + length])
        scalars.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
        offset += 16 + length
    assert scalars == {("loss", 5): 0.25}


def test_other_processes_write_nothing(tmp_path):
    writer = Writer(tmp_path, 0, active=False)
    writer.write(1, {"loss": 1.0})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []
