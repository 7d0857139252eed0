"""The loop end to end: bitwise resume after kills, clean stops, and one line for everything a user can get wrong."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_job

from sdd_jax import jobs
from sdd_jax.config import split_overrides
from sdd_jax.main import STOPPED, main
from sdd_jax.train import run
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.state import TrainState

_CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
    if arg not in ("", "debug"):
        raise ValueError(f"unknown variant {arg!r}; variants: debug")
    return ConfigDict({
        "steps": 5 if arg else 60, "batch_size": 8, "ema": 0.9, "log_every": 1, "checkpoint_every": 5,
        "compile_cache": "", "optimizer": {"learning_rate": 1e-2},
        "objective": {"noise": 0.1, "poison_from": 10**9, "poison_until": 10**9},
    })
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.py"
    path.write_text(_CONFIG)
    return path


@pytest.fixture
def command(config_file, tmp_path, monkeypatch, capsys):
    """Runs `sdd_jax.main` on the toy job in this process; returns (exit status, stdout, stderr)."""
    monkeypatch.setattr(jobs, "build", toy_job.build)

    def call(*arguments, variant=":debug", workdir=None):
        status = main([f"--config={config_file}{variant}", f"--workdir={workdir or tmp_path / 'run'}", *arguments])
        return (status, *capsys.readouterr())

    return call


def arguments(config_file, workdir, *more):
    return [sys.executable, toy_job.__file__, f"--config={config_file}", f"--workdir={workdir}", *more]


def environment():
    root = Path(__file__).parents[1]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}


def interrupt(command_line, workdir, after_step, number):
    """Sends the signal once a checkpoint past `after_step` is committed; returns (status, output)."""
    process = subprocess.Popen(command_line, env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        names = [path.name for path in workdir.glob("checkpoints/*")]
        if any(name.isdigit() and int(name) > after_step for name in names):
            break
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def final_state(workdir, like):
    layout = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    record = json.loads((workdir / "config.json").read_text())
    with Checkpoints(workdir, keep=2, config=record["config"], fingerprint=record["fingerprint"]) as checkpoints:
        state = checkpoints.restore(layout)
    assert isinstance(state, TrainState)
    return state


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}, len(lines)


def test_killed_and_restarted_ends_bitwise_like_the_uninterrupted_run(tmp_path, config_file, command):
    status, output, _ = command(variant="", workdir=tmp_path / "whole")
    assert status == 0 and "starting at step 0" in output and "finished: step 60" in output

    workdir = tmp_path / "broken"
    resumed = []
    for after_step, number, expected in ((0, signal.SIGKILL, -signal.SIGKILL), (20, signal.SIGTERM, STOPPED)):
        status, output = interrupt(arguments(config_file, workdir), workdir, after_step, number)
        assert status == expected, output
        assert "finished" not in output
        resumed.append(output)
    assert "resuming from step " in resumed[1] and "stopping as asked: saved step " in resumed[1]
    status, output, _ = command(variant="", workdir=workdir)
    assert status == 0
    start = int(output.split("resuming from step ")[1].split()[0])
    assert 20 < start < 60

    like = run_layout(config_file)
    whole, broken = (final_state(tmp_path / name, like) for name in ("whole", "broken"))
    assert int(whole.step) == 60
    jax.tree.map(np.testing.assert_array_equal, whole, broken)
    assert losses(tmp_path / "whole") == losses(workdir)


def run_layout(config_file):
    """The toy job's state tree: what a run of no steps returns."""
    config = toy_job.make_config(steps=0)
    with tempfile.TemporaryDirectory() as directory:
        return run(toy_job.build(config), Path(directory))


def test_the_workdir_holds_what_the_design_says(command, tmp_path):
    status, output, _ = command()
    assert status == 0
    workdir = tmp_path / "run"
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["optimizer"]["name"] == "adamw" and record["config"]["steps"] == 5
    assert record["fingerprint"] == {"teacher": "numpy seed 0"}
    assert losses(workdir)[0].keys() == {1, 2, 3, 4, 5}
    assert list(workdir.glob("events.out.tfevents.*")) and (workdir / "checkpoints" / "5").is_dir()
    first, second = output.splitlines()[:2]
    assert "toy: a linear teacher" in first and "mesh" in second
    assert "dense/kernel" in output and "samples/s  ETA" in output

    status, output, _ = command()
    assert status == 0 and "resuming from step 5" in output and "finished: step 5" in output
    status, output, _ = command("--config.steps=8")
    assert status == 0 and "finished: step 8" in output and losses(workdir)[0].keys() == set(range(1, 9))


def test_previews_are_written_in_the_workdir(tmp_path):
    seen = []
    config = toy_job.make_config(steps=5, preview_every=2)
    job = toy_job.build(config)
    job.__dict__["previews"] = lambda params, ema, frozen, step, directory: seen.append((step, directory, ema is None))
    run(job, tmp_path)
    assert seen == [
        (2, tmp_path / "samples", False),
        (4, tmp_path / "samples", False),
        (5, tmp_path / "samples", False),
    ]


@pytest.mark.parametrize(
    ("extra", "variant", "message"),
    [
        (["--config.optimizer.lr=1"], ":debug", "--config.optimizer.lr: config.optimizer has no key 'lr'"),
        (["--config.nonsense", "3"], ":debug", "config has no key 'nonsense'"),
        ([], ":fast", "unknown variant 'fast'; variants: debug"),
        (["--config.optimizer.name=adamx"], ":debug", "name='adamx' is not an optimizer; one of adamw"),
        (["--config.batch_size=7", "--config.accumulate=2"], ":debug", "config.batch_size=7 must be a multiple"),
        (["--config.mesh.fsdp=3"], ":debug", "config.mesh: data=-1 x fsdp=3 does not make"),
        (["--config.ema=1.5"], ":debug", "ema=1.5 must be in [0, 1)"),
        (["--config.keep=1"], ":debug", "keep=1 must be at least 2"),
    ],
)
def test_bad_configs_are_one_line_and_leave_no_checkpoint(command, tmp_path, extra, variant, message):
    status, _, stderr = command(*extra, variant=variant)
    assert status == 2 and message in stderr and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_of_another_job_is_refused_and_kept(command, tmp_path):
    command()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, _, stderr = command("--config.seed=1", "--config.objective.noise=0.2")
    assert status == 2 and stderr.count("\n") == 1
    assert "belongs to another job: objective.noise (0.1 there, 0.2 here), seed (0 there, 1 here)" in stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_an_unwritable_workdir_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("x")
    status, _, stderr = command(workdir=tmp_path / "file" / "run")
    assert status == 2 and "cannot be written (Not a directory)" in stderr and stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "x"


def test_a_workdir_in_use_is_one_line(command, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, stderr = command()
    assert status == 2 and "is in use by another running job" in stderr and stderr.count("\n") == 1


def test_corrupt_checkpoints_are_one_line_and_kept(command, tmp_path):
    command()
    (only,) = (tmp_path / "run" / "checkpoints").iterdir()
    victim = max((only / "default").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, _, stderr = command()
    assert status == 2 and "no usable checkpoint" in stderr and stderr.count("\n") == 1
    assert victim.read_bytes() == bytes(content) and (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_non_finite_steps_stop_the_run_by_name_and_keep_the_good_state(command, tmp_path):
    poison = ["--config.objective.poison_from=7", "--config.steps=40", "--config.nonfinite_limit=3"]
    status, output, stderr = command(*poison)
    assert status == 2 and stderr.count("\n") == 1
    assert "3 non-finite steps in a row, the last one step 10 (batch 9 of the data stream with seed 0)" in stderr
    assert "step 8 was not finite and is skipped (batch 7" in output
    assert (tmp_path / "run" / "checkpoints" / "5").is_dir()


def test_a_few_non_finite_steps_do_not(command, tmp_path):
    poison = ["--config.objective.poison_from=2", "--config.objective.poison_until=4", "--config.nonfinite_limit=3"]
    status, _, _ = command(*poison)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert status == 0 and last["skipped"] == 2 and last["streak"] == 0 and last["step"] == 5


def test_bugs_keep_their_traceback(command, monkeypatch):
    monkeypatch.setattr(jobs, "build", lambda config: int("a bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        command()


def test_overrides_in_both_spellings():
    given = ["--config=a.py", "--config.b=1", "--workdir", "d", "--config.c.d", "2", "--config.e"]
    assert split_overrides(given) == (["b=1", "c.d=2", "e"], ["--config=a.py", "--workdir", "d"])
