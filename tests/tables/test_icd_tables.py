"""iCD's tables: every row can be built, and the claims, read at the paper's own figures, hold."""

import importlib
from pathlib import Path

import pytest

from sdd_jax.config import defaults_of, load_config
from sdd_jax.jobs import TASKS
from sdd_jax.tables import icd
from sdd_jax.tables.claims import judge
from sdd_jax.tables.types import Stat, Table
from sdd_jax.train import EngineConfig, engine_config

ROOT = Path(__file__).parents[2]
TABLES = [table for table in vars(icd).values() if isinstance(table, Table)]
TRAININGS = {str(row.training): row.training for table in TABLES for row in table.rows if row.training}


def measured(metric, values):
    return {row: {metric: Stat(value, 0.0, 1)} for row, value in values.items()}


def test_the_tables_are_those_of_the_paper():
    assert [table.name for table in TABLES] == [
        "icd-table1", "icd-table2", "icd-table3", "icd-table4", "icd-table5", "icd-fig4", "icd-stage1"
    ]  # fmt: skip


@pytest.mark.parametrize("training", TRAININGS.values(), ids=str)
def test_a_training_is_a_config(training):
    config = load_config(f"{ROOT}/{training.config}", training.overrides, defaults_of(EngineConfig))
    assert engine_config(config).steps > 0 and config.task in TASKS
    for key in training.needs:
        assert key == "teacher.workdir" and config.teacher.workdir == ""


def test_an_evaluation_is_a_function():
    for table in TABLES:
        for row in table.rows:
            module, function = row.evaluation.split(":")
            assert callable(getattr(importlib.import_module(module), function)), row.evaluation


PSNR = {
    "DDIM50": 22.98, "A: 2 steps": 17.75, "B: 3 steps": 18.42, "C: 4 steps": 19.19, "E: L_f without forward CD": 16.40,
    "F: C + L_f": 20.01, "G: F + L_r": 22.27, "DDIM50, guided": 14.12, "DDIM50, guided, d.CFG": 19.58,
    "H: 4 steps, guided": 13.87, "I: H + d.CFG": 16.72, "J: I + L_f": 17.98, "K: J + L_r": 19.66,
}  # fmt: skip


@pytest.mark.parametrize("claim", icd.TABLE2.claims, ids=lambda claim: claim.text)
def test_the_papers_figures_of_table_2_hold_its_claims(claim):
    assert judge(claim, measured("psnr", PSNR)).holds
    turned = {name: 50 - value for name, value in PSNR.items()}
    near = claim.text == "G is near the teacher"
    assert judge(claim, measured("psnr", turned)).holds == near
    assert judge(claim, {}).holds is None


def test_generation_claims_have_two_sides():
    rows = {row.name: {} for row in icd.TABLE4.rows}
    for name, frechet, score in (("constant", 30.0, 0.30), ("d.CFG", 25.0, 0.29)):
        for row in rows:
            if row.endswith(name):
                rows[row] = {
                    "frechet": Stat(frechet, 0.1, 2), "clip_score": Stat(score, 0.001, 2), "attributes": Stat(0.9, 0, 2)
                }  # fmt: skip
    assert all(judge(claim, rows).holds for claim in icd.TABLE4.claims)
    worse = {row: {**value, "clip_score": Stat(0.3, 0.001, 2)} for row, value in rows.items()}
    assert [judge(claim, worse).holds for claim in icd.TABLE4.claims] == [False, False, True]


def test_the_threshold_claim_reads_the_curve():
    falling = {f"mse@{tau:g}": Stat(0.1 * 2**tau, 0, 1) for tau in icd.TAUS}
    (claim,) = icd.FIG4.claims
    assert judge(claim, {"DDIM50": falling}).holds
    assert not judge(claim, {"DDIM50": {**falling, "mse@0.2": Stat(9.0, 0, 1)}}).holds
