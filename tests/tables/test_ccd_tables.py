"""CCD's tables: jobs accept every row's config, the paper's own figures hold its claims, and rows are measured."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config, to_plain
from sdd_jax.tables import ccd, ccd_measures
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.run import estimate, tasks
from sdd_jax.tables.types import Stat
from sdd_jax.train import EngineConfig

ROOT = Path(__file__).parents[2]
TABLES = (ccd.TABLE1, ccd.FIG3, ccd.FIG5, ccd.OTHER_TASKS)
pytestmark = pytest.mark.usefixtures("compile_quickly")


class WeightsRead(Exception):
    """A job found its config in order and went on to the weights."""


def with_needs(training):
    for needed in training.needs.values():
        yield from with_needs(needed)
    yield training


TRAININGS = {str(t): t for table in TABLES for row in table.rows if row.training for t in with_needs(row.training)}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=str)
def test_jobs_accept_the_config(training, tmp_path, monkeypatch):
    """Every key and value is checked by the task before weights are read; needs are stood in for by their configs."""

    def refuse(*_, **__):
        raise WeightsRead

    monkeypatch.chdir(ROOT)
    for module in ("ccd.job", "ccd.baselines"):
        monkeypatch.setattr(f"sdd_jax.jobs.{module}.load", refuse)
    cache = Cache(tmp_path)
    for needed in training.needs.values():
        workdir = cache.workdir(needed, 0)
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps({"config": to_plain(cache.config(needed, 0))}))
    with pytest.raises(WeightsRead):
        jobs.build(cache.config(training, 0))


def test_rows_differ_in_what_they_are_about(monkeypatch, tmp_path):
    """The ablations change one thing each; the published method's training is one for all tables."""
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    published = {cache.key(table.rows[0].training, 0) for table in TABLES[:3]}
    assert len(published) == 1
    for table in (ccd.FIG3, ccd.FIG5):
        keys = [cache.key(row.training, 0) for row in table.rows if row.training]
        assert len(set(keys)) == len(keys)
    config = cache.config(ccd.FIG3.rows[0].training, 0).objective
    assert (config.predictor, config.ode_model, config.shared_time, config.x_space) == (
        "prev",
        "online",
        True,
        "latent",
    )
    assert cache.config(ccd.FIG3.rows[3].training, 0).objective.ode_model == "pretrained"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_training_takes_15_minutes_and_a_table_4_hours(table, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert all(training.minutes <= 15 for training in TRAININGS.values())
    cache = Cache(tmp_path)
    assert estimate(tasks(table.rows, cache), cache) <= 240


PAPER = {
    "CCD, 4 steps": (19.64, 0.2656), "CCD adapter only, 4 steps": (25.21, 0.2941), "CM, 4 steps": (30.63, 0.3066),
    "GD, 4 steps": (27.81, 0.3172), "DPM-Solver++, 4 steps": (30.03, 0.3073), "DPM-Solver, 4 steps": (30.12, 0.3077),
    "Fine-tuned, 4 steps": (30.99, 0.3070), "Fine-tuned, 50 steps": (18.63, 0.2551),
}  # fmt: skip


def test_the_papers_figures_hold_its_claims():
    """Table 1's FID and LPIPS; with methods swapped the claims about them fail."""

    def verdicts(figures):
        rows = {
            name: {"frechet": Stat(a, 0.0, 1), "clip_distance": Stat(b, 0.0, 1)} for name, (a, b) in figures.items()
        }
        return [judge(claim, rows).holds for claim in ccd.TABLE1.claims]

    assert verdicts(PAPER) == [True] * 5
    swapped = {**PAPER, "CCD, 4 steps": PAPER["CM, 4 steps"], "CM, 4 steps": PAPER["CCD, 4 steps"]}
    assert verdicts(swapped) == [False, False, False, False, True]
    assert verdicts({**PAPER, "DPM-Solver, 4 steps": (20.0, 0.3)})[-1] is False


def test_the_ablations_claims_read_their_curves():
    def rows(table, **better):
        """Every row's curves at 10, better rows at 5, and saturation and sharpness at 1."""
        flat = {f"{m}@{n}": Stat(10.0, 0, 1) for m in ("frechet", "clip_distance") for n in ccd.CURVE}
        found = {
            row.name: {**flat, "saturation@4": Stat(1.0, 0, 1), "sharpness@4": Stat(1.0, 0, 1)} for row in table.rows
        }
        return found

    figures = rows(ccd.FIG3)
    best = ccd.FIG3.rows[0].name
    assert [judge(claim, figures).holds for claim in ccd.FIG3.claims] == [False, False, False, True, False]
    for name in (best, "ddim, online"):
        figures[name] = {key: Stat(9.0 - (key == "frechet@8"), 0, 1) for key in figures[name]}
    assert [judge(claim, figures).holds for claim in ccd.FIG3.claims] == [True] * 5
    figures = rows(ccd.FIG5)
    figures["d_x: none"]["saturation@4"] = Stat(1.5, 0, 1)
    figures["d_x: latent"] |= {
        "frechet@4": Stat(1, 0, 1),
        "clip_distance@4": Stat(1, 0, 1),
        "sharpness@4": Stat(2, 0, 1),
    }
    assert [judge(claim, figures).holds for claim in ccd.FIG5.claims] == [True, True, True, True, None]


def test_appearance_by_hand():
    """A checkerboard of +-.5 against one of +-1: half as sharp; colour (1, 0, 0) against (.5, 0, 0): twice."""
    board = np.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0
    grey = np.repeat(board[None, :, :, None], 3, -1)
    coloured = grey + np.array([0.25, 0.0, 0.0])
    found = ccd_measures.appearance(0.5 * grey + np.array([0.5, 0.0, 0.0]), coloured)
    assert found["sharpness"] == pytest.approx(0.5) and found["saturation"] == pytest.approx(2.0)


@pytest.fixture
def a_run(tiny_world, array_cache, tmp_path, monkeypatch):
    """A workdir of CCD on the tiny world, with parameters that were never trained."""
    shrink = [f"model={tiny_world}", "data.count=4", "adapter.embedding_channels=(4, 4, 8)"]
    config = load_config(f"{ROOT}/configs/ccd_sr.py:debug,adapter", shrink, defaults_of(EngineConfig))
    (tmp_path / "config.json").write_text(json.dumps({"config": to_plain(config)}))
    job = jobs.build(config)
    shapes = jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32), shapes)
    monkeypatch.setattr(ccd_measures, "open_run", lambda _: (job, params, 4))
    return tmp_path


def test_restoration_measures_a_run(a_run, tiny_world):
    """Points of a curve are named by their steps and differ; another seed is another figure; one number is plain."""
    options = {"steps": [1, 2], "samples": 2, "world": str(tiny_world)}
    found = ccd_measures.restoration(a_run, 0, options)
    names = {"psnr", "ssim", "clip_distance", "frechet", "attributes", "identity", "saturation", "sharpness"}
    assert set(found) == {f"{name}@{n}" for name in names for n in (1, 2)}
    assert all(np.isfinite(value) for value in found.values()) and found["psnr@1"] != found["psnr@2"]
    other = ccd_measures.restoration(a_run, 1, {**options, "steps": 2, "solver": "dpm_solver_pp"})
    assert set(other) == names and other["psnr"] != found["psnr@2"]
    with pytest.raises(ValueError, match="options.stepz is not a field of RestorationOptions"):
        ccd_measures.restoration(a_run, 0, {"stepz": 1})
