"""Two gloo processes of two devices train as one process of four, share the writing, stop together, and do not outlive
each other."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_job
from ml_collections import ConfigDict

from sdd_jax import train
from sdd_jax.main import STOPPED
from sdd_jax.runs import read_config

STEPS = 8
HEARTBEAT = 8
_CONFIG = f"""
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({{
        "steps": 10**8, "batch_size": 8, "accumulate": 2, "ema": 0.9, "compile_cache": "", "log_every": 1,
        "checkpoint_every": {STEPS}, "optimizer": {{"learning_rate": 1e-2}},
        "mesh": {{"fsdp": 2, "min_shard_size": 100}},
        "start": "", "objective": {{"noise": 0.1, "poison_from": 10**9, "poison_until": 10**9}},
    }})
"""
_WAITS = f"""
import time
from sdd_jax.training.distributed import join_processes, last_word
join_processes({HEARTBEAT})
with last_word():
    print("joined")
    time.sleep(600)
"""


class Processes:
    """`count` processes of one command, each with `devices` CPU devices, writing to LOGS/i.log."""

    def __init__(self, command, logs, count, devices):
        logs.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [logs / f"{index}.log" for index in range(count)]
        self.running = []
        for index, log in enumerate(self.logs):
            environment = {
                **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index),
            }  # fmt: skip
            together = ["--distributed", f"--heartbeat={HEARTBEAT}"] if count > 1 else []
            with log.open("w") as output:
                started = subprocess.Popen([*command, *together], env=environment, stdout=output, stderr=output)
                self.running.append(started)

    def kill(self, index):
        """Kills one process and returns the others' exit statuses."""
        self.running[index].kill()
        return self.ended(process for process in self.running if process is not self.running[index])

    def stop(self, index):
        """Asks one process to stop and returns the exit statuses of all."""
        self.running[index].terminate()
        return self.ended(self.running)

    def ended(self, processes):
        """Waits for processes and returns their exit statuses; none of the job is left."""
        try:
            return [process.wait(60) for process in processes]
        finally:
            for process in self.running:
                process.kill()

    def text(self, index):
        return self.logs[index].read_text()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.py"
    path.write_text(_CONFIG)
    return path


def toy(config, workdir, *more):
    """The toy job's command line."""
    return [sys.executable, toy_job.__file__, f"--config={config}", f"--workdir={workdir}", *more]


def records(workdir):
    """The complete lines of a run's metrics."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_until(true, seconds=300):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


def saved(workdir):
    """The newest checkpoint, which a killed job left whole."""
    steps = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return workdir / "checkpoints" / str(max(steps)) / "default" if steps else None


def test_two_processes_train_as_one_and_end_with_each_other(config, tmp_path):
    runs = {}
    for name, count, devices in (("one", 1, 4), ("two", 2, 2)):
        workdir = tmp_path / name
        runs[name] = Processes(toy(config, workdir), tmp_path / f"{name}_logs", count, devices)
        wait_until(lambda at=workdir: len(records(at)) >= STEPS and saved(at) is not None)
        began = time.monotonic()
        others = runs[name].kill(count - 1)
    assert others[0] not in (0, 2) and time.monotonic() - began < 2 * HEARTBEAT

    one, two = runs["one"].text(0), runs["two"].text(0)
    assert "mesh {'data': 2, 'fsdp': 2}" in one and "mesh {'data': 2, 'fsdp': 2}" in two and "spans islands" not in two
    assert f"step {STEPS}/" in two and "step" not in runs["two"].text(1), "process 0 alone logs"
    ours, theirs = (records(tmp_path / name)[:STEPS] for name in ("one", "two"))
    assert [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose([x[name] for x in theirs], [x[name] for x in ours], rtol=2e-5)
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*"))) == 1
    for index in range(2):
        assert list((saved(tmp_path / "two") / f"ocdbt.process_{index}").rglob("d/*")), "every process writes its part"

    # a helper that outlives the process has the last word
    wait_until(lambda: "ended early" in runs["two"].text(0), 20)
    last = runs["two"].text(0).splitlines()[-1]
    assert last.startswith("error: process 0 of 2 ended early. If another one died") and "same command resumes" in last


def test_the_others_end_with_the_first_process(tmp_path):
    """At once: it is the one that counts the heartbeats. They do no work here."""
    both = Processes([sys.executable, "-c", _WAITS], tmp_path / "logs", 2, 1)
    wait_until(lambda: all("joined" in both.text(index) for index in range(2)), 120)
    began = time.monotonic()
    (other,) = both.kill(0)
    assert other not in (0, 2) and time.monotonic() - began < HEARTBEAT
    wait_until(lambda: "error: process 1 of 2 ended early" in both.text(1), 20)


def test_a_stop_asked_of_one_process_saves_both_and_one_process_goes_on(config, tmp_path, monkeypatch):
    """The job starts from a run, which each process reads: as CM does, and iCD's stage 2."""
    monkeypatch.setattr("sdd_jax.jobs.build", toy_job.build)
    start, workdir, whole = (tmp_path / name for name in ("start", "two", "whole"))
    train.run(toy_job.build(toy_job.make_config(steps=3)), start)
    both = Processes(toy(config, workdir, f"--config.start={start}"), tmp_path / "logs", 2, 2)
    wait_until(lambda: len(records(workdir)) >= 3)
    assert both.stop(1) == [STOPPED] * 2, both.text(0) + both.text(1)

    stopped = int(saved(workdir).parent.name)
    assert f"stopping as asked: saved step {stopped} of" in both.text(0) and len(records(workdir)) == stopped
    for index in range(2):
        assert list((saved(workdir) / f"ocdbt.process_{index}").rglob("d/*")), "every process saves its part"

    alone = ConfigDict(read_config(workdir).to_dict())
    alone.steps, alone.checkpoint_every, alone.mesh.fsdp = stopped + 3, 10**6, 1
    for directory in (workdir, whole):
        assert int(train.run(toy_job.build(alone), directory).step) == stopped + 3
    ours, theirs = ([line["loss"] for line in records(directory)] for directory in (workdir, whole))
    assert len(theirs) == stopped + 3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
