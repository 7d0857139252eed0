"""A protocol in two gloo processes gives what one process gives: pictures, rows and the summary, each sample once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sdd_jax import evaluate
from sdd_jax.jobs.protocols import run as protocols
from sdd_jax.jobs.protocols.makers import Maker

TESTS = Path(__file__).parent
SAMPLES = 7
IDS = [f"{i:06d}" for i in range(SAMPLES)]


def noise(flags):
    """A maker of random pictures that follow from their batch, and that says which batches it makes."""

    def make(items, numbers):
        print("makes", *numbers, flush=True)
        drawn = jax.random.uniform(jax.random.fold_in(jax.random.key(0), numbers[0]), (len(items), 64, 64, 3))
        return np.asarray(drawn) * 2 - 1, 4.0

    return Maker("noise", {"batch": flags.batch}, make)


def arguments(world, out):
    return ["--protocol=editing", "--model=x", "--method=p2p", "--benchmark=portraits", f"--samples={SAMPLES}",
            "--batch=2", f"--world={world}", f"--out={out}"]  # fmt: skip


def in_processes(count, command):
    """Runs the protocol's command in several processes; what each printed, and their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for index in range(count):
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(TESTS.parent),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }  # fmt: skip
        command_line = [sys.executable, __file__, *command, "--distributed"]
        running.append(
            subprocess.Popen(command_line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    said = [process.communicate(timeout=500)[0] for process in running]
    return said, [process.returncode for process in running]


def rows(out, name):
    (file,) = out.glob(f"{name}*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def numbers(row):
    return {name: value for name, value in row.items() if isinstance(value, float)}


def made(said):
    return [line.removeprefix("makes ") for line in said.splitlines() if line.startswith("makes")]


@pytest.mark.usefixtures("compile_quickly")
def test_two_processes_finish_what_others_began_as_one_does(tmp_path, tiny_world, monkeypatch, capsys):
    """Killed before: of batch 0 1 a picture is lost, of 2 3 the second line is cut off, 6 is whole."""
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr(protocols, "make_maker", noise)
    assert evaluate.main(arguments(tiny_world, one)) == 0
    assert made(capsys.readouterr().out) == ["0 1", "2 3", "4 5", "6 6"]

    (two / "images").mkdir(parents=True)
    lines = (one / "made.jsonl").read_bytes().splitlines(keepends=True)
    (two / "made.jsonl").write_bytes(b"".join(lines[:3]))
    (two / "made.1.jsonl").write_bytes(lines[0] + lines[3] + lines[4][:9])
    (two / "made.2.jsonl").write_bytes(lines[0] + lines[7])
    for name in ("000000.png", "000002.png", "000006.png"):
        (two / "images" / name).write_bytes((one / "images" / name).read_bytes())
    said, status = in_processes(2, arguments(tiny_world, two))
    assert status == [0, 0], said
    assert "3 of 7 pictures are there already" in said[0]
    assert [made(text) for text in said] == [["0 1", "4 5"], ["2 3"]], "batches are dealt out in turn, and kept whole"
    assert "| editing, 7 samples |" in said[0] and "samples" not in said[1], "the first process alone reports"

    for name in IDS:
        assert (two / "images" / f"{name}.png").read_bytes() == (one / "images" / f"{name}.png").read_bytes()
    for name in ("made", "scores"):
        ours, theirs = rows(two, name), rows(one, name)
        assert ours[0] == theirs[0] and [row["id"] for row in ours[1:]] == IDS
        for row, want in zip(ours[1:], theirs[1:], strict=True):
            assert row.keys() == want.keys() and numbers(row) == pytest.approx(numbers(want), rel=1e-4)
            assert [row[name] for name in row.keys() - numbers(row)] == [
                want[name] for name in row.keys() - numbers(row)
            ]
    ours, theirs = (json.loads((out / "metrics.json").read_text())["metrics"] for out in (two, one))
    assert {"psnr", "world_clip_d", "world_frechet"} <= set(ours) and ours == pytest.approx(theirs, rel=1e-3)


if __name__ == "__main__":
    protocols.make_maker = noise
    sys.exit(evaluate.main(sys.argv[1:]))
