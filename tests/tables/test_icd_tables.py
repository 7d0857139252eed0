"""iCD's tables: every row can be built in its time, and the claims, read at the paper's own figures, hold."""

import importlib
from pathlib import Path

import pytest

from sdd_jax.config import defaults_of, load_config
from sdd_jax.jobs import TASKS
from sdd_jax.jobs.icd.subjects import CANDIDATES
from sdd_jax.tables import TABLES, find_table, icd, icd_editing, icd_figures, icd_rows
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.icd_checks import comparable, exponential, rises, settles, undominated
from sdd_jax.tables.types import Claim, Stat
from sdd_jax.train import EngineConfig, engine_config

ROOT = Path(__file__).parents[2]
NAMES = [name for name in TABLES if name.startswith("icd")]
ROWS = [row for name in NAMES for row in find_table(name).rows]
TRAININGS = {str(row.training): row.training for row in ROWS if row.training}


def measured(metric, values):
    return {row: {metric: Stat(value, 0.0, 1)} for row, value in values.items()}


def config_of(training):
    return load_config(f"{ROOT}/{training.config}", training.overrides, defaults_of(EngineConfig))


def test_the_tables_are_those_of_the_paper():
    tables, figures = (f"icd-table{i}" for i in range(1, 6)), (f"icd-fig{i}" for i in (4, 5, 9, 11, 12))
    assert set(NAMES) == {"icd-stage1", "icd-editing", *tables, *figures}
    assert [find_table(name).name for name in NAMES] == NAMES


@pytest.mark.parametrize("training", TRAININGS.values(), ids=str)
def test_a_training_is_a_config_of_fifteen_minutes(training):
    config = config_of(training)
    assert engine_config(config).steps > 0 and config.task in TASKS
    stage = "stage2" if training.needs else "stage1"
    assert icd_rows.STEPS[stage] == (config.steps, config.batch_size) and config.preview_every == 0
    cost = 5 if stage == "stage1" else sum(icd_rows.COST[name] for name in icd_rows.COST if config.objective[name])
    assert training.minutes == pytest.approx(2 + config.steps * config.batch_size * cost / 75 / 60) and cost >= 5
    assert training.minutes <= 15 and config.data.count <= 6000
    for key, needed in training.needs.items():
        assert key == "teacher.workdir" and config.teacher.workdir == "" and needed is icd_rows.STAGE1


def test_the_scales_are_those_of_stage_1():
    scales = config_of(icd_rows.STAGE1).objective.scales
    assert scales == icd_rows.SCALES == config_of(icd_rows.WITH_BOTH).objective.scales == (1, 2, 3, 4, 6)
    assert scales[1:] == CANDIDATES


def test_a_training_of_several_rows_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    keys = {cache.key(training, 0) for row in ROWS if (training := row.training)}
    assert len(keys) == len(TRAININGS) == 9
    kept = {
        str(row.training).split("keep=")[1].split()[0] for row in ROWS if "boundaries=4_tau0.7" in str(row.training)
    }
    assert kept == {"2", "7"}
    assert {training.minutes for training in TRAININGS.values()} <= {
        icd_rows.planned("stage2", c) for c in (9, 10, 14, 18)
    } | {icd_rows.planned("stage1", 5)}
    of_icd = [row for row in ROWS if row.training]
    assert all(row.seeds == (0, 1) and row.sampling_seeds == (0, 1) for row in of_icd)


def test_only_jumps_and_losses_differ_between_runs_of_stage_2():
    configs = [config_of(training).to_dict() for training in TRAININGS.values() if training.needs]
    for config in configs:
        for name in ("boundaries", *icd_rows.COST):
            del config["objective"][name]
        del config["keep"]
    assert all(config == configs[0] for config in configs) and len(configs) == 8


def test_an_evaluation_is_a_function():
    for row in ROWS:
        if not row.not_run:
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


def test_orderings_ask_for_more_than_the_noise_of_seeds():
    noisy = {row: {"psnr": Stat(value, 0.7, 4)} for row, value in PSNR.items()}
    holds = {claim.text: judge(claim, noisy) for claim in icd.TABLE2.claims}
    between = holds["both preservation losses help: C < F < G"]
    assert not between.holds and "within the seeds' spread 0.99" in between.evidence
    assert holds["dynamic guidance lifts plain DDIM too"].holds


FRECHET = {
    "off": (11.0, 36.6, 63.4, 100.5), "0.6": (11.4, 23.5, 67.8, 102.6), "0.8": (15.0, 14.6, 52.2, 108.5),
    "constant": (19.0, 19.2, 19.0, 102.1),
}  # fmt: skip
NLL = (1.401, 1.409, 1.415, 1.428)


def test_the_papers_figures_of_table_1_hold_its_claims():
    rows = {
        name: {"nll": Stat(NLL[i], 0, 1), **{f"frechet_{way}": Stat(FRECHET[way][i], 0, 1) for way in FRECHET}}
        for i, name in enumerate(icd.ENCODINGS)
    }
    assert all(judge(claim, rows).holds for claim in icd.TABLE1.claims) and len(icd.TABLE1.claims) == 5
    turned = dict(zip(rows, list(rows.values())[::-1], strict=True))
    assert not any(judge(claim, turned).holds for claim in icd.TABLE1.claims)


GENERATED = {
    "DDIM50": (18.73, 0.266, 0.201), "CD4, tau .8": (18.45, 0.259, 0.194), "CD4, tau .7": (18.45, 0.259, 0.194),
    "CD3, tau .7": (17.96, 0.258, -0.009), "CD4, tau .8 + d.CFG": (16.25, 0.254, -0.193),
    "CD4, tau .7 + d.CFG": (16.38, 0.253, -0.217), "CD3, tau .7 + d.CFG": (17.66, 0.251, -0.351),
}  # fmt: skip


def test_generation_claims_have_two_sides():
    """The paper's figures; ImageReward, of which 4 steps lose more than 5 points, closer to DDIM's."""
    names = ("frechet", "clip_score", "attributes")
    rows = {
        row: {name: Stat(x, 0, 1) for name, x in zip(names, found, strict=True)} for row, found in GENERATED.items()
    }
    assert all(judge(claim, rows).holds for claim in icd.TABLE4.claims)
    same = {row: {**value, "clip_score": Stat(0.25, 0.0, 1)} for row, value in rows.items()}
    assert [judge(claim, same).holds for claim in icd.TABLE4.claims] == [False] * 3 + [True] * 2
    worse = {**rows, "CD4, tau .8": {**rows["CD4, tau .8"], "attributes": Stat(0.1, 0, 1)}}
    assert [judge(claim, worse).holds for claim in icd.TABLE4.claims][3:] == [False, True]


def test_three_steps_invert_as_four_by_the_papers_figures():
    found = {"3 steps, unguided": 22.21, "4 steps, unguided": 22.27}
    found |= {"3 steps, guided, d.CFG": 19.76, "4 steps, guided, d.CFG": 19.66}
    assert all(judge(claim, measured("psnr", found)).holds for claim in icd.TABLE5.claims)
    assert not judge(icd.TABLE5.claims[0], measured("psnr", {**found, "3 steps, unguided": 21.0})).holds


def curve(metric, values, spread=0.0):
    return {f"{metric}@{x:g}": Stat(value, spread, 1) for x, value in values.items()}


def test_the_threshold_claims_read_the_curve():
    whole, exponent = icd_figures.FIG4.claims
    rows = {"DDIM50": curve("mse", {tau: 0.01 * 20**tau for tau in icd_figures.TAUS})}
    assert judge(whole, rows).holds and judge(exponent, rows).holds
    straight = {"DDIM50": curve("mse", {tau: 0.1 + tau for tau in icd_figures.TAUS})}
    assert judge(whole, straight).holds and not judge(exponent, straight).holds
    rows["DDIM50"]["mse@0.2"] = Stat(9.0, 0, 1)
    assert not judge(whole, rows).holds and judge(whole, {"DDIM50": curve("mse", {1.0: 2.0})}).holds is None


def holds(check, rows):
    return judge(Claim(text="", check=check), rows).holds


def test_checks_along_curves():
    flat, up = curve("m", {0: 1.0, 1: 0.95, 2: 1.5}, 0.1), curve("m", {0: 1.0, 1: 0.5, 2: 1.5}, 0.1)
    assert holds(rises("m", "r"), {"r": flat}) and not holds(rises("m", "r"), {"r": up})
    assert not holds(rises("m", "r"), {"r": curve("m", {0: 1.0, 1: 1.05}, 0.1)}), "the rise is noise"
    assert holds(exponential("m", "r"), {"r": curve("m", {0: 1.0, 1: -1.0})}) is None
    settled = {0: 10.0, 60: 2.0, 120: 1.5}
    assert holds(settles("m", "r"), {"r": curve("m", settled)})
    assert not holds(settles("m", "r"), {"r": curve("m", {**settled, 120: 0.5})})
    assert not holds(settles("m", "r"), {"r": curve("m", {0: 1.0, 60: 1.0})}), "nothing was learned"


def test_a_trade_off_is_good_where_no_point_is_better_in_both():
    rows = {
        "a": {**curve("mse", {0.7: 1.0, 0.8: 2.0}), **curve("attributes", {0.7: 0.8, 0.8: 0.9})},
        "b": {**curve("mse", {1.0: 1.9}), **curve("attributes", {1.0: 0.95})},
    }
    rows["b"] |= {**curve("mse", {0.9: 3.0}), **curve("attributes", {0.9: 0.97})}
    assert holds(undominated(0.8, "a", ()), rows) and holds(undominated(0.7, "a", ("b",)), rows)
    assert not holds(undominated(0.8, "a", ("b",)), rows)
    assert holds(undominated(0.9, "a", ("b",)), rows) is None, "not measured there"


def test_curves_are_compared_at_equal_success():
    def row(*pairs):
        xs = (0.2, 0.5, 0.8)
        return {
            **curve("success", dict(zip(xs, (one for one, _ in pairs), strict=True))),
            **curve("preservation", dict(zip(xs, (two for _, two in pairs), strict=True))),
        }

    rows = {
        "a": row((0.8, 0.7), (0.6, 0.8), (0.2, 0.9)),
        "b": row((0.6, 0.83), (0.4, 0.86), (0.2, 0.9)),
        "c": row((0.9, 0.9), (0.8, 0.95), (0.2, 0.99)),
    }
    assert holds(comparable("preservation", "a", ("b",), margin=0.04), rows)
    assert not holds(comparable("preservation", "a", ("b",), margin=0.02), rows)
    assert not holds(comparable("preservation", "a", ("c",), margin=0.2), rows)
    assert not holds(comparable("preservation", "a", ("b", "c"), margin=0.04), rows), "one of two is not most"
    low = {"a": row(*((success / 10, kept) for success, kept in ((0.9, 0.7), (0.6, 0.8), (0.2, 0.9)))), "b": rows["b"]}
    assert holds(comparable("preservation", "a", ("b",), margin=0.04), low) is None, "nothing is edited"
    assert holds(comparable("preservation", "a", ("b", "b", "c"), margin=0.04), rows)


def test_every_method_is_in_the_editing_table_and_shares_its_rows():
    methods = {row.options["method"] for row in icd_editing.METHODS.rows}
    assert methods == {"source", "autoencoder", "icd", "icd-switch", *icd_editing.RIVALS}
    shared = {row.name: row for row in icd_editing.METHODS.rows}
    for row in icd_editing.TABLE3.rows[:2]:
        same = shared[row.name]
        assert (row.training, row.evaluation, row.options) == (same.training, same.evaluation, same.options)
