"""A table of toy rows: trainings of `toy_job`, slowed down so that a test can stop them, and an evaluation of them.

Run as a script it is `sdd_jax.main` for toy jobs.
"""

import json
import sys
import time

import toy_job

from sdd_jax import jobs
from sdd_jax.main import main
from sdd_jax.tables.claims import close, order
from sdd_jax.tables.types import Claim, Column, Plot, Row, Table, Training

CONFIG = """
import ml_collections


def get_config(arg=""):
    config = ml_collections.ConfigDict({"steps": 12, "batch_size": 8, "ema": 0.9})
    config.update({"log_every": 2, "checkpoint_every": 2, "compile_cache": "", "objective": {"noise": 0.1}})
    config.update({"teacher": {"workdir": ""}, "optimizer": {"learning_rate": 0.01}})
    return config
"""
PAUSE = 0.1


def measure(workdir, seed, options):
    """The last loss, worse by `handicap`, at 1 and 2 steps; without a workdir only the handicap."""
    fit = 0.0
    if workdir is not None:
        fit = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["fit"]
        taught = json.loads((workdir / "config.json").read_text())["config"]["teacher"]["workdir"]
        assert not taught or json.loads((type(workdir)(taught) / "config.json").read_text())
    if options.get("broken"):
        raise ValueError("this row cannot be measured")
    value = fit + options.get("handicap", 0.0) + 1e-3 * seed
    return {"fit": value, "fit@1": value + 1, "fit@2": value}


def make_table(config):
    """Rows: two that share a training, a student of it, an untrained one, one that fails and an external one."""
    taught = Training(config=str(config), minutes=0.1)
    student = Training(
        config=str(config), overrides=("objective.noise=0.2",), needs={"teacher.workdir": taught}, minutes=0.1
    )
    measured = {"evaluation": "toy_table:measure"}
    rows = (
        Row(name="Taught", training=taught, seeds=(0, 1), **measured),
        Row(name="Taught, worse", training=taught, options={"handicap": 100.0}, sampling_seeds=(0,), **measured),
        Row(name="Student", training=student, sampling_seeds=(0,), **measured),
        Row(name="Nothing", options={"handicap": 50.0}, **measured, note="trains nothing"),
        Row(name="Broken", options={"broken": True}, sampling_seeds=(0,), **measured),
        Row(name="External", not_run="its weights are not here"),
    )
    claims = (
        Claim(text="training helps", check=order("fit", "Taught", "Taught, worse", better="lower")),
        Claim(text="nothing is as good", check=close("fit", "Nothing", "Taught", margin=1)),
        Claim(text="better than the others", check=order("fit", "Taught", "External", better="lower")),
    )
    return Table(
        name="toy",
        title="Toys",
        paper="A paper, Table 0",
        rows=rows,
        claims=claims,
        columns=(Column(metric="fit", better="lower"),),
        plots=(Plot(name="steps", metric="fit"), Plot(name="none", metric="psnr")),
        note="Toys are small.",
    )


def build(config):
    job = toy_job.build(config)
    stream = job.stream

    def slow(start_step):
        for batch in stream(start_step):
            time.sleep(PAUSE)
            yield batch

    return type(job)(**{**{name: getattr(job, name) for name in job.__dataclass_fields__}, "stream": slow})


if __name__ == "__main__":
    jobs.build = build
    sys.exit(main())
