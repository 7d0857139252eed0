"""SDD's tables: rows name what exists and share trainings, and their own checks decide by hand figures."""

import importlib
import json
from pathlib import Path

import pytest

from sdd_jax.config import defaults_of, load_config, to_plain
from sdd_jax.data.cache import renderer_hash
from sdd_jax.data.prompts import PORTRAIT_FIELDS, check_template, edit_of
from sdd_jax.jobs.sdd import tables as sdd_tables
from sdd_jax.jobs.sdd.data import EditData
from sdd_jax.jobs.sdd.hqs import DEFAULT_RULE, Search
from sdd_jax.jobs.sdd.style_codes import StyleData
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.objectives.selection import parse_rule
from sdd_jax.tables import cache as cache_module
from sdd_jax.tables import dds, edit_grids, sdd, sdd_fig4, sdd_rows
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.sdd_fig4 import FIG4, READINGS, TIMESTEPS
from sdd_jax.tables.sdd_rows import EDITS, PINNED, PROMPTS, SEARCH, STRATEGIES
from sdd_jax.tables.types import Stat, Table
from sdd_jax.train import EngineConfig

ROOT = Path(__file__).parents[2]
TABLES = [value for module in (sdd, sdd_fig4) for value in vars(module).values() if isinstance(value, Table)]


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
    singles = sum(map(len, TIMESTEPS.values()))
    others = len(EDITS) * 2  # CLIP guidance, and eq. 8's three best
    assert len({cache.key(training, 0) for training in trained}) == 3 * len(STRATEGIES) + singles + others


def test_another_search_trains_again_only_what_reads_it(tmp_path, monkeypatch):
    """Readings differ in what is pinned, so that single timesteps and random ones stay when the config's changes."""
    monkeypatch.chdir(ROOT)
    other = READINGS["eq. 8, w = 7.5"]
    changed = {name for name in SEARCH if len({reading[name] for reading in READINGS.values()}) > 1}
    assert changed == {override.partition("=")[0].removeprefix("search.") for override in PINNED}
    load = cache_module.load_config

    def edited(path, overrides, *rest):
        return load(path, [*(f"search.{name}={value}" for name, value in other.items()), *overrides], *rest)

    rows = {row.name: row for table in (sdd.TABLE3, FIG4) for row in table.rows if row.training}
    before, after = Cache(tmp_path), Cache(tmp_path)
    kept = {name: before.key(row.training, 0) for name, row in rows.items()}
    monkeypatch.setattr(cache_module, "load_config", edited)
    moved = {name for name, row in rows.items() if after.key(row.training, 0) != kept[name]}
    assert moved == {f"{strategy}, {edit}" for strategy in STRATEGIES if strategy != "random" for edit in EDITS}
    for name in rows.keys() - moved:
        assert rows[name].options == {"search": SEARCH}, "their mean score is read by what the others search by"


def test_trainings_fit_their_minutes_by_count():
    """100 F a second and core, two cores: five minutes a manipulator, of which one and a half for what is not steps."""
    config = load_config(f"{ROOT / sdd_rows.LATENT}", (), defaults_of(EngineConfig))
    assert 5 * config.steps * config.batch_size / 200 < 3.5 * 60
    search = HQSOptions(**config.search)
    assert search.images * len(search.times()) * search.evaluations / 200 < 30


def test_prompts_rules_and_timesteps_are_possible():
    assert len(PROMPTS) >= 6 and set(EDITS) <= set(PROMPTS)
    assert len(TIMESTEPS) >= 3 and all(len(set(times)) >= 6 for times in TIMESTEPS.values())
    edits = [edit_of(prompt) for prompt in PROMPTS.values()]
    assert len(set(edits)) == len(edits)
    for prompt in PROMPTS.values():
        check_template(prompt, PORTRAIT_FIELDS)
    assert all(parse_rule(rule or DEFAULT_RULE) for rule in STRATEGIES.values())
    grid = set(HQSOptions(**SEARCH).times().tolist())
    assert all(set(times) <= grid for times in TIMESTEPS.values())
    for edit, variant in EDITS.items():
        for path in (sdd_rows.LATENT, sdd_rows.STYLE):
            config = load_config(f"{ROOT / path}:{variant}")
            assert config.data.prompt == PROMPTS[edit]
            assert HQSOptions(**config.search) == HQSOptions(**SEARCH), "scores are of what trainings select by"


@pytest.mark.parametrize("path", [sdd_rows.LATENT, sdd_rows.STYLE])
def test_both_guidances_are_as_loose_for_a_turn_of_the_head(path):
    def weight(variant):
        return load_config(f"{ROOT / path}:{variant}").objective.l2_weight

    share = weight("side_view") / weight("angry")
    assert weight("side_view,clip") / weight("angry,clip") == pytest.approx(share)
    assert weight("side_view,clip,sd15") == weight("angry,clip,sd15")


def test_both_manipulators_search_once():
    """Latents and codes of the same portraits share the file of their scores; another cut of the data does not."""
    plain, style = (kind(prompt="an angry {species}").facts for kind in (EditData, StyleData))
    assert plain == style and plain["split"] == "train" and "prompt" not in plain
    assert EditData(prompt="x", count=5).facts != plain
    assert (
        plain["renderer"] == renderer_hash() and "renderer" not in EditData(source="folder", path="a", prompt="x").facts
    )


def stat(value, runs=2):
    return Stat(value, 0.0, runs)


def test_a_turn_that_clip_makes_too_is_no_claim():
    measured = {"SDD, side view": {"success": stat(0.9)}, "CLIP guidance, white hair": {"success": stat(0.8)}}
    for success, holds in ((0.1, True), (0.4, False)):
        measured["CLIP guidance, side view"] = {"success": stat(success)}
        assert judge(sdd.FIG7.claims[0], measured).holds is holds
    measured["CLIP guidance, side view"] = {"success": stat(0.1)}
    for broken in ({"SDD, side view": {"success": stat(0.3)}}, {"CLIP guidance, white hair": {"success": stat(0.1)}}):
        assert judge(sdd.FIG7.claims[0], {**measured, **broken}).holds is False, "one of the two does not work at all"
    measured["CLIP guidance, side view"] = {"success": stat(0.1, 1)}
    verdict = judge(sdd.FIG7.claims[0], measured)
    assert verdict == (None, "CLIP guidance, side view has one seed so far: nothing says what a seed does")


@pytest.mark.parametrize(("table", "rival"), [(sdd.TABLE1, "SDEdit"), (sdd.TABLE2, "CLIP guidance")])
def test_what_changes_nothing_keeps_nothing_that_counts(table, rival):
    kept = {"SDD, angry": {"success": stat(0.0), "psnr_outside": stat(60.0)},
            f"{rival}, angry": {"success": stat(0.9), "psnr_outside": stat(20.0)}}  # fmt: skip
    wanted = ("SDD, angry", f"{rival}, angry")
    claims = [claim for claim in table.claims if claim.check.rows == wanted and "equal success" in claim.text]
    (claim,) = (claim for claim in claims if "psnr_outside" in claim.text or "keeps" in claim.text)
    assert judge(claim, kept).holds is None
    kept["SDD, angry"]["success"] = stat(0.9)
    assert judge(claim, kept).holds


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


def test_grids_are_those_of_measured_rows(tmp_path, monkeypatch, one_line):
    monkeypatch.chdir(ROOT)
    flags = [f"--cache={tmp_path / 'rows'}", f"--out={tmp_path / 'out'}"]
    assert "no edit is measured in" in one_line(edit_grids, *flags)
    rows = {row.training.config for table in (sdd.TABLE1, dds.TABLE2) for row in table.rows if row.training}
    assert {training.config for training, _ in edit_grids.GRIDS.values() if "style" not in training.config} <= rows
    monkeypatch.setattr(Cache, "is_trained", lambda cache, training, seed: "white_hair" not in training.config)
    cache = Cache(tmp_path / "rows")
    for name in ("sdd_white_hair", "sdd_angry", "dds_cats"):
        training, where = edit_grids.GRIDS[name]
        picture = cache.workdir(training, 0) / where
        picture.parent.mkdir(parents=True)
        picture.write_text(name)
    assert edit_grids.main(flags) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert written == {"sdd_angry.png": "sdd_angry", "dds_cats.png": "dds_cats"}, "trained, and with a picture"


def test_options_of_rows_are_those_that_evaluations_take():
    kinds = {"manipulator": "ManipulatorOptions", "cost": "CostOptions", "editor": "EditorOptions",
             "source": "AnswerOptions", "answer": "AnswerOptions", "rebuilt": "AnswerOptions",
             "scores": "ScoreOptions"}  # fmt: skip
    for row in (row for table in TABLES for row in table.rows if not row.not_run):
        schema = getattr(sdd_tables, kinds[row.evaluation.split(":")[1]])
        plain = json.loads(json.dumps(to_plain(dict(row.options))))
        assert sdd_tables.validate(plain, schema, "options")
