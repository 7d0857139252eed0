"""DDS's tables: rows that can run, enough portraits and edits, trainings shared and within their time by count."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

from sdd_jax.config import defaults_of, load_config, to_plain, validate
from sdd_jax.data.edit_pairs import EDITS
from sdd_jax.jobs.dds import gradients, report, study
from sdd_jax.tables import TABLES, dds, dds_grids, dds_rows, find_table
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.types import Stat
from sdd_jax.train import EngineConfig

ROOT = Path(__file__).parents[2]
DDS_TABLES = [name for name in TABLES if name.startswith("dds-")]
OPTIONS = {
    f"{study.__name__}:editing_curve": study.CurveOptions,
    f"{study.__name__}:instructed": study.InstructedOptions,
    f"{study.__name__}:untouched": study.PairOptions,
    f"{study.__name__}:answers": study.PairOptions,
    f"{study.__name__}:drift": study.MethodOptions,
    f"{gradients.__name__}:teacher": gradients.GradientOptions,
    f"{gradients.__name__}:gaussian": gradients.GaussianOptions,
    f"{report.__name__}:translation": report.TranslationOptions,
}


@pytest.mark.parametrize("name", DDS_TABLES)
def test_every_row_names_an_evaluation_that_takes_its_options(name):
    table = find_table(name)
    assert table.name == name and table.rows and table.claims
    for row in table.rows:
        if row.evaluation:
            module, function = row.evaluation.split(":")
            assert callable(getattr(importlib.import_module(module), function))
            plain = json.loads(json.dumps(to_plain(dict(row.options))))
            assert validate(plain, OPTIONS[row.evaluation], "options")


def test_the_zero_shot_table_edits_enough_portraits_in_enough_ways():
    assert len(DDS_TABLES) == 6 and len(EDITS) >= 6
    assert all(len(EDITS) * row.options["count"] >= 64 for row in dds.FIG5.rows)


def test_what_a_curve_shows_is_one_of_its_points():
    for row in (row for name in DDS_TABLES for row in find_table(name).rows if "shown" in row.options):
        options = validate(to_plain(dict(row.options)), study.CurveOptions, "options")
        assert options.shown in (options.strengths or (options.settings["iterations"],)), row.name


def test_a_translator_that_two_tables_name_runs_once(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    rows = {row.name: row for table in (dds.TABLE2, dds.ABLATION) for row in table.rows}
    assert cache.key(rows["full"].training, 0) == cache.key(rows["DDS translator"].training, 0)
    asked = {name: row.options for name, row in rows.items() if "tasks" in row.options}
    rivals = {name: options["count"] * len(options["tasks"]) for name, options in asked.items()}
    assert rows["DDS translator"].options["samples"] == rivals["SDEdit"] == rivals["InstructPix2Pix-style, w = 3"] == 64
    assert {rows[name].options["samples"] for name in ("full", "SDS", "DDS translator, attributes")} == {256}
    trained = [row for row in rows.values() if row.training and "dds_translate" in row.training.config]
    assert len({cache.key(row.training, 0) for row in trained}) == len(trained) - 1 == 5
    sdedit = [row for table in (dds.FIG5, dds.FIG9) for row in table.rows if row.name == "SDEdit"]
    assert len({cache.evaluation_key(row, None, 0) for row in sdedit}) == 1


def test_a_translator_that_changes_nothing_wins_no_ablation():
    """It keeps everything, at the diversity of the answers; beside it an edit that collapsed."""
    figures = {"success": 0.02, "diversity": 1.0, "psnr": 19.0, "psnr_outside": 60.0}
    full = {name: Stat(value, 0.01, 2) for name, value in figures.items()}
    worse = {"success": 0.9, "diversity": 0.4, "psnr": 14.0, "psnr_outside": 17.0}
    others = {name: Stat(value, 0.01, 2) for name, value in worse.items()}
    measured = {"full": full, "no warm-up": others, "SDS": others}
    assert [judge(claim, measured).holds for claim in dds.ABLATION.claims] == [False, None, None]
    measured["full"] = {**full, "success": Stat(0.5, 0.01, 2)}
    assert [judge(claim, measured).holds for claim in dds.ABLATION.claims] == [True, None, None], "it does less"
    measured["full"] = {**full, "success": Stat(0.88, 0.01, 2)}
    assert [judge(claim, measured).holds for claim in dds.ABLATION.claims] == [True] * 3
    measured["full"] |= {"psnr": Stat(13.0, 0.01, 2)}
    assert judge(dds.ABLATION.claims[1], measured).holds is False
    measured["full"] |= {"diversity": Stat(1.9, 0.01, 2)}
    assert judge(dds.ABLATION.claims[0], measured).holds is False, "noise is not diversity"


def test_the_closed_form_is_asked_for_in_its_own_unit():
    """kappa is .015 at t = 750: off by a tenth of it is off. Cosines are compared as they are."""
    sizes, cosines = dds.FIG8.claims[-2:]
    kappa = {50: 0.99, 150: 0.9, 300: 0.6, 450: 0.28, 600: 0.08, 750: 0.0147, 900: 0.004}
    exact = {f"{name}_exact@{t}": k for name in ("aligned", "permuted", "cosine", "shuffled") for t, k in kappa.items()}
    found = {name.replace("_exact", ""): value for name, value in exact.items()}

    def holds(claim, **changes):
        values = {**exact, **found, **{name.replace("_at_", "@"): value for name, value in changes.items()}}
        return judge(claim, {"Gaussian data": {name: Stat(value, 0.0, 2) for name, value in values.items()}}).holds

    assert holds(sizes, aligned_at_750=1.04 * 0.0147) and not holds(sizes, aligned_at_750=0.9 * 0.0147)
    assert not holds(sizes, permuted_at_900=0.0045) and holds(sizes, cosine_at_50=0)
    assert holds(cosines, shuffled_at_450=0.29) and not holds(cosines, shuffled_at_450=0.32)
    assert not holds(cosines, cosine_at_450=0.25)


def test_a_translator_fits_its_quarter_of_an_hour_by_count():
    """70 F a second on one core, Muon's share within: fifteen minutes, of which five for what is not steps."""
    config = load_config(str(ROOT / "configs" / "dds_translate.py"), (), defaults_of(EngineConfig))
    assert 7 * config.steps * config.batch_size / 70 < 10 * 60
    assert config.objective.guidance == 3.0
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("muon", 1e-3)
    big = load_config(f"{ROOT / 'configs' / 'dds_translate.py'}:sd15", (), defaults_of(EngineConfig))
    assert big.objective.guidance == 7.5 and (big.optimizer.name, big.optimizer.learning_rate) == ("adamw", 1e-5)


@pytest.mark.parametrize("variant", ["sd15", "sd21", "sdxl"])
def test_the_papers_data_of_a_translator(variant):
    """5000 samples of the teacher from 5 to 20 captions."""
    data = load_config(f"{ROOT / 'configs' / 'dds_translate.py'}:{variant}", (), defaults_of(EngineConfig)).data
    assert (data.source, data.count) == ("teacher", 5000) and 5 <= len(set(data.captions)) <= 20


def test_the_zero_shot_grid_has_the_tables_settings(tiny_world, tmp_path, monkeypatch):
    """Sources first, then each editor's answers, the exact ones last."""
    asked = {}

    def edits(method, model, frozen, pairs, target, seed, settings):
        asked[method] = (target == pairs.target, seed, settings)
        return -pairs.image

    monkeypatch.setattr(dds_grids, "run_edits", edits)
    monkeypatch.setattr(dds_grids, "use_compile_cache", lambda _: None)
    assert dds_grids.main([f"--world={tiny_world}", f"--out={tmp_path}", "--seed=3"]) == 0
    assert asked == {method: (True, 3, dds_rows.SCORE) for method in ("dds", "sds")} | {
        "sdedit": (True, 3, {"strength": dds_rows.SHOWN_STRENGTH})
    }
    assert dds_rows.SHOWN_STRENGTH in dds_rows.NOISED["strengths"]
    with Image.open(tmp_path / "dds_zero_shot.png") as grid:
        assert grid.width > len(EDITS) * 66 and grid.height > 5 * 66 - 2
