"""SDD's tables: their rows name configs and evaluations that exist, and their own checks decide by hand figures."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.prompts import PORTRAIT_FIELDS, check_template, edit_of
from sdd_jax.jobs.sdd import tables as sdd_tables
from sdd_jax.jobs.sdd.hqs import Search
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.selection import parse_rule
from sdd_jax.tables import sdd
from sdd_jax.tables.claims import judge
from sdd_jax.tables.types import Stat, Table
from sdd_jax.train import EngineConfig

ROOT = Path(__file__).parents[2]
TABLES = [value for value in vars(sdd).values() if isinstance(value, Table)]


def test_every_table_of_the_paper_is_there():
    names = {"sdd-fig1", "sdd-fig4", "sdd-fig7", "sdd-table1", "sdd-table2", "sdd-table3", "sdd-cost"}
    assert {table.name for table in TABLES} == names


def test_rows_name_what_exists():
    rows = {row.name: row for table in TABLES for row in table.rows if not row.not_run}
    for training in {str(row.training): row.training for row in rows.values() if row.training}.values():
        load_config(f"{ROOT / training.config}", training.overrides, defaults_of(EngineConfig))
    for evaluation in {row.evaluation for row in rows.values()}:
        module, function = evaluation.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_prompts_rules_and_timesteps_are_possible():
    assert len(sdd.PROMPTS) >= 6 and set(sdd.EDITS) <= set(sdd.PROMPTS) and len(sdd.TIMESTEPS) >= 6
    edits = [edit_of(prompt) for prompt in sdd.PROMPTS.values()]
    assert len(set(edits)) == len(edits)
    for prompt in sdd.PROMPTS.values():
        check_template(prompt, PORTRAIT_FIELDS)
    assert all(parse_rule(rule) for rule in sdd.STRATEGIES.values())
    assert set(sdd.TIMESTEPS) <= set(HQSOptions(**sdd.SEARCH).times().tolist())
    for edit, variant in sdd.EDITS.items():
        assert load_config(f"{ROOT / sdd.CONFIG}:{variant}").data.prompt == sdd.PROMPTS[edit]


def stat(value):
    return Stat(value, 0.0, 1)


def single(successes, scores):
    measured = {name: {"success": stat(s)} for name, s in zip(sdd.SINGLE.values(), successes, strict=True)}
    measured["HQS, white hair"] = {f"hqs@{t}": stat(s) for t, s in zip(sdd.SINGLE, scores, strict=True)}
    return measured


@pytest.mark.parametrize(
    ("successes", "holds"), [(np.linspace(0, 1, 9), True), (np.linspace(1, 0, 9), False), ([0.5] * 9, None)]
)
def test_the_central_claim_is_a_rank_correlation(successes, holds):
    verdict = judge(sdd.FIG4.claims[0], single(successes, np.arange(9) / 9))
    assert verdict.holds is holds
    if holds is not None:
        assert f"rank correlation {1 if holds else -1:.2f} over 9 timesteps" in verdict.evidence


def test_break_even_of_rows():
    measured = {
        "SDD, white hair": {"training": stat(60.0), "seconds": stat(0.5)},
        "SDEdit, white hair": {"seconds": stat(10.5)},
        "DDIB, white hair": {"seconds": stat(0.4)},
    }
    sdedit, ddib = (judge(claim, measured) for claim in sdd.COST.claims[2:])
    assert sdedit.holds and "break-even at 6 images" in sdedit.evidence
    assert not ddib.holds and f"break-even at {math.inf:.3g}" in ddib.evidence


def test_scores_are_of_two_disjoint_sets_of_images(monkeypatch, tiny_world):
    seeds = []

    def search(model, frozen, source, prompt, options, data):
        seeds.append(options.seed)
        hqs = (0.1, 0.5, 0.9) if options.seed % 2 else (0.2, 0.9, 0.5)
        return Search(prompt=prompt, model="", options={}, t=(1, 2, 3), H=hqs, N=hqs, hqs=hqs, stderr=hqs, selected=(1,), rule="all")  # fmt: skip  # noqa: E501

    monkeypatch.setattr(sdd_tables, "job_search", search)
    options = {"prompt": "an angry {species}", "search": {"images": 4}, "model": str(tiny_world)}
    found = sdd_tables.scores(None, 3, options)
    assert seeds == [6, 7] and found["agreement"] == pytest.approx(0.5)
    assert found["hqs@2"] == 0.9 and set(found) == {
        "agreement",
        *(f"{n}@{t}" for n in ("hqs", "H", "N") for t in (1, 2, 3)),
    }
