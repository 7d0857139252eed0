"""SDD's tables: rows name what exists and share trainings, and their own checks decide by hand figures."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from sdd_jax.config import defaults_of, load_config, to_plain
from sdd_jax.data.prompts import PORTRAIT_FIELDS, check_template, edit_of
from sdd_jax.jobs.sdd import tables as sdd_tables
from sdd_jax.jobs.sdd.data import EditData
from sdd_jax.jobs.sdd.hqs import Search
from sdd_jax.jobs.sdd.style_codes import StyleData
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.selection import parse_rule
from sdd_jax.tables import sdd, sdd_rows
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.sdd_rows import EDITS, PROMPTS, SEARCH, STRATEGIES, TIMESTEPS
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


def test_a_training_that_several_tables_name_runs_once(tmp_path, monkeypatch):
    """SDD of an edit is a row of five tables, and Table 3's small xi under another name."""
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)

    def keys(table, name):
        return {cache.key(row.training, 0) for row in table.rows if row.name == name}

    for edit in EDITS:
        (key,) = keys(sdd.TABLE1, f"SDD, {edit}")
        for table in (sdd.FIG1, sdd.TABLE2):
            assert keys(table, f"SDD, {edit}") == {key}
        assert keys(sdd.TABLE3, f"small xi, {edit}") == {key}
        assert keys(sdd.TABLE3, f"random, {edit}") != {key}
    assert keys(sdd.COST, "SDD, white hair") == keys(sdd.TABLE1, "SDD, white hair")
    trained = [row.training for table in TABLES for row in table.rows if row.training and "sdd_latent" in str(row.training)]  # fmt: skip  # noqa: E501
    assert len({cache.key(training, 0) for training in trained}) == 3 * len(STRATEGIES) + len(TIMESTEPS) + 3


def test_trainings_fit_their_minutes_by_count():
    """100 F a second and core, two cores: five minutes a manipulator, of which one and a half for what is not steps."""
    config = load_config(f"{ROOT / sdd_rows.LATENT}", (), defaults_of(EngineConfig))
    assert 5 * config.steps * config.batch_size / 200 < 3.5 * 60
    search = HQSOptions(**config.search)
    assert search.images * len(search.times()) * search.evaluations / 200 < 30


def test_prompts_rules_and_timesteps_are_possible():
    assert len(PROMPTS) >= 6 and set(EDITS) <= set(PROMPTS) and len(TIMESTEPS) >= 6
    edits = [edit_of(prompt) for prompt in PROMPTS.values()]
    assert len(set(edits)) == len(edits)
    for prompt in PROMPTS.values():
        check_template(prompt, PORTRAIT_FIELDS)
    assert all(parse_rule(rule) for rule in STRATEGIES.values())
    assert set(TIMESTEPS) <= set(HQSOptions(**SEARCH).times().tolist())
    for edit, variant in EDITS.items():
        for path in (sdd_rows.LATENT, sdd_rows.STYLE):
            config = load_config(f"{ROOT / path}:{variant}")
            assert config.data.prompt == PROMPTS[edit]
            assert HQSOptions(**config.search) == HQSOptions(**SEARCH), "scores are of what trainings select by"


def test_both_manipulators_search_once():
    """Latents and codes of the same portraits share the file of their scores; another cut of the data does not."""
    plain, style = (kind(prompt="an angry {species}").facts for kind in (EditData, StyleData))
    assert plain == style and plain["split"] == "train" and "prompt" not in plain
    assert EditData(prompt="x", count=5).facts != plain


@pytest.mark.parametrize("method", ["SDD", "CLIP guidance"])
def test_a_world_without_a_generator_says_so(tmp_path, method):
    row = sdd_rows.style_row(method, "angry", world=tmp_path)
    assert row.not_run == sdd_rows.NO_STYLE and "configs/pretrain_style.py" in row.not_run and not row.evaluation
    assert sdd_rows.priced(row) is row
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "model.safetensors").touch()
    found = sdd_rows.style_row(method, "angry", world=tmp_path)
    assert found.name == row.name and found.training.config == f"{sdd_rows.STYLE}:angry"


def stat(value):
    return Stat(value, 0.0, 1)


def single(successes, scores, name="HQS, white hair"):
    measured = {name: {"success": stat(s)} for name, s in zip(sdd.SINGLE.values(), successes, strict=True)}
    measured[name] = {f"hqs@{t}": stat(s) for t, s in zip(sdd.SINGLE, scores, strict=True)}
    return measured


@pytest.mark.parametrize(
    ("successes", "holds"), [(np.linspace(0, 1, 9), True), (np.linspace(1, 0, 9), False), ([0.5] * 9, None)]
)
def test_the_central_claim_is_a_rank_correlation(successes, holds):
    verdict = judge(sdd.FIG4.claims[0], single(successes, np.arange(9) / 9))
    assert verdict.holds is holds
    if holds is not None:
        assert f"rank correlation {1 if holds else -1:.2f} over 9 timesteps" in verdict.evidence
    assert judge(sdd.FIG4.claims[0], single(np.linspace(0, 1, 9), np.ones(9))).holds is None


def test_the_central_claim_is_asked_of_every_reading():
    eq_8 = "HQS, white hair, eq. 8, w = 7.5"
    (claim,) = (claim for claim in sdd.FIG4.claims if claim.check.rows[:2] == (eq_8, sdd.SINGLE[100]))
    verdict = judge(claim, single(np.linspace(0, 1, 9), np.arange(9), eq_8))
    assert verdict.holds and judge(sdd.FIG4.claims[0], single(np.ones(9), np.ones(9), eq_8)).holds is None
    row = next(row for row in sdd.FIG4.rows if row.name == eq_8)
    assert HQSOptions(**row.options["search"]) == HQSOptions(guidance=7.5, images=64)


def test_the_cost_claims_read_times_of_one_process():
    measured = {
        "SDD, white hair": {
            "seconds": stat(0.5), "seconds_sdedit": stat(10.5), "seconds_ddib": stat(0.4),
            "break_even_sdedit": stat(6.0), "break_even_ddib": stat(300.0),
        }
    }  # fmt: skip
    holds = [judge(claim, measured).holds for claim in sdd.COST.claims[:4]]
    assert holds == [True, True, False, False]


def test_a_manipulator_is_compared_with_a_curve_where_both_succeed():
    """SDEdit at success .4 lies half way between its points: 20 dB, against 22."""
    claim = next(one for one in sdd.FIG1.claims if one.text.startswith("angry: where both"))
    curve = {"success@0.2": 0.2, "psnr_outside@0.2": 25.0, "success@0.8": 0.6, "psnr_outside@0.8": 15.0}
    measured = {
        "SDEdit, angry": {name: stat(value) for name, value in curve.items()},
        "SDD, angry": {"success": stat(0.4), "psnr_outside": stat(22.0)},
    }
    verdict = judge(claim, measured)
    assert verdict.holds and "SDD, angry 22 at success 0.4, SDEdit, angry 20 at success 0.4" in verdict.evidence
    measured["SDD, angry"]["psnr_outside"] = stat(19.0)
    assert judge(claim, measured).holds is False


def fake_search(seen):
    def search(model, frozen, source, prompt, options, data):
        seen.append((options.seed, data))
        hqs = (0.1, 0.5, 0.9) if options.seed % 2 else (0.2, 0.9, 0.5)
        return Search(prompt=prompt, model="", options={}, t=(500, 600, 700), H=hqs, N=hqs, hqs=hqs, stderr=hqs, selected=(500,), rule="all")  # fmt: skip  # noqa: E501

    return search


def test_scores_are_means_of_two_disjoint_sets_of_images(monkeypatch, tiny_world):
    seen = []
    monkeypatch.setattr(sdd_tables, "job_search", fake_search(seen))
    prompt = "an angry {species}"
    found = sdd_tables.scores(None, 3, {"prompt": prompt, "search": {"images": 4}, "model": str(tiny_world)})
    assert [seed for seed, _ in seen] == [6, 7] and found["agreement"] == pytest.approx(0.5)
    assert all(data == EditData(prompt=prompt).facts for _, data in seen)
    assert found["hqs@600"] == pytest.approx(0.7) and set(found) == {
        "agreement",
        *(f"{n}@{t}" for n in ("hqs", "H", "N") for t in (500, 600, 700)),
    }


def test_options_of_rows_are_those_that_evaluations_take():
    kinds = {"manipulator": "ManipulatorOptions", "cost": "CostOptions", "editor": "EditorOptions",
             "answer": "AnswerOptions", "scores": "ScoreOptions"}  # fmt: skip
    for row in (row for table in TABLES for row in table.rows if not row.not_run):
        schema = getattr(sdd_tables, kinds[row.evaluation.split(":")[1]])
        plain = json.loads(json.dumps(to_plain(dict(row.options))))
        assert sdd_tables.validate(plain, schema, "options")
