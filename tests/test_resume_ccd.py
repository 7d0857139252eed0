"""The main job with its own optimiser, killed at random steps. Slow, four processes: outside `make test`.

python -m pytest -m slow -s tests/test_resume_ccd.py
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sdd_jax.runs import open_state

STEPS = 24


def command(workdir, cache):
    overrides = {"steps": STEPS, "checkpoint_every": 4, "preview_every": 0, "compile_cache": cache}
    overrides["optimizer.name"] = "muon"  # as the job that is shrunk here
    return [
        *(sys.executable, "-u", "-m", "sdd_jax.main", "--config=configs/ccd_sr.py:debug", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


def kill_past(step, arguments, workdir):
    """SIGKILLs the command a random moment after it has committed a checkpoint past `step`; returns its output."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    while process.poll() is None:
        if any(path.name.isdigit() and int(path.name) > step for path in workdir.glob("checkpoints/*")):
            time.sleep(random.uniform(0.0, 1.0))
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    return output


@pytest.mark.slow
def test_ccd_killed_twice_ends_with_bitwise_the_same_state(tmp_path):
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "xla"
    subprocess.run(command(whole, cache), check=True, cwd=Path(__file__).parents[1])
    for step in (0, 8):
        kill_past(step, command(broken, cache), broken)
    last = subprocess.run(
        command(broken, cache), check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ).stdout
    print(last)
    assert 8 < int(last.split("resuming from step ")[1].split()[0]) < STEPS
    states = [open_state(directory)[1] for directory in (whole, broken)]
    assert all(int(state.step) == STEPS and state.ema is not None for state in states)
    jax.tree.map(np.testing.assert_array_equal, *states)
    count = len(jax.tree.leaves(states[0]))
    print(f"{count} arrays of params, EMA and optimiser state are equal bit by bit")
