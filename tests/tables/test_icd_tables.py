"""iCD's tables: every row can be built in its time; claims, read at the paper's own figures where it has any, hold."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

from sdd_jax.config import defaults_of, load_config
from sdd_jax.jobs import TASKS
from sdd_jax.tables import TABLES, find_table, icd, icd_editing, icd_figures, icd_grids, icd_rows
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.types import stat
from sdd_jax.train import EngineConfig, engine_config

ROOT = Path(__file__).parents[2]
NAMES = [name for name in TABLES if name.startswith("icd")]
ROWS = [row for name in NAMES for row in find_table(name).rows]
TRAININGS = {str(row.training): row.training for row in ROWS if row.training}


def twice(value, apart=0.0):
    """A metric of two trainings, each on two sets of pictures."""
    return stat({(seed, pictures): value + (pictures - 0.5) * apart for seed in (0, 1) for pictures in (0, 1)})


def measured(metric, values):
    return {row: {metric: twice(value)} for row, value in values.items()}


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
    assert training.minutes == pytest.approx(1.5 + config.steps * config.batch_size * cost / 140 / 60) and cost >= 5
    assert training.minutes <= 15 and config.data.count <= 6000
    assert config.ema_warmup, "the average at the first checkpoints is of what was trained, not of the start"
    for key, needed in training.needs.items():
        assert key == "teacher.workdir" and config.teacher.workdir == "" and needed is icd_rows.STAGE1


def test_the_scales_are_those_of_stage_1():
    scales = config_of(icd_rows.STAGE1).objective.scales
    assert scales == icd_rows.SCALES == config_of(icd_rows.WITH_BOTH).objective.scales == (1, 2, 3, 4, 6)


def test_guidance_is_written_in_the_options_and_trained():
    """What enters an evaluation's key: no row is guided at a scale chosen at run time, or that no student has seen."""

    def scales(options):
        for name, value in options.items():
            if isinstance(value, dict):
                yield from scales(value)
            elif name in ("w", "encoding_w", "guidance"):
                yield value

    rows = {row.name: list(scales(row.options)) for row in ROWS if not row.not_run}
    assert set().union(*rows.values()) == {1.0, icd_rows.W, icd_rows.EDITING_W} <= {1.0, *icd_rows.SCALES}
    frames = ("source", "autoencoder")
    edits = [row for row in ROWS if "edit" in row.evaluation and row.options["method"] not in frames]
    assert all(list(scales(row.options)) == [icd_rows.EDITING_W] for row in edits) and len(edits) > 15
    assert rows["DDIM50, guided"] == rows["H: 4 steps, guided"] == [icd_rows.W] and not rows["C: 4 steps"]


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


def test_the_ablations_are_trained_once():
    seeds = {str(row.training): row.seeds for row in ROWS if row.training}
    once = {name for name, planned in seeds.items() if planned == (0,)}
    twice_trained = {name for name, planned in seeds.items() if planned == (0, 1)}
    assert once == set(map(str, (icd_rows.TWO, icd_rows.THREE, icd_rows.ONLY_LF, icd_rows.THREE_WITH_BOTH)))
    assert once | twice_trained == set(seeds) and len(twice_trained) == 5
    assert all(row.seeds == seeds[str(row.training)] for row in ROWS if row.training), "a training of several rows"
    assert all(row.sampling_seeds == (0, 1) for row in ROWS if not row.not_run)


@pytest.mark.parametrize(
    ("table", "number", "once"),
    [(icd.TABLE2, 0, "A: 2 steps, B: 3 steps"), (icd.TABLE2, 1, "A: 2 steps, B: 3 steps, E: L_f"), (icd.TABLE2, 2, ""),
     (icd.TABLE4, 0, ""), (icd.TABLE4, 2, "CD3, tau .7"), (icd.TABLE5, 0, "3 steps, unguided"),
     (icd_editing.FIG12, 0, "iCD, 6 steps")],
)  # fmt: skip
def test_a_claim_of_trainings_of_two_seeds_waits_for_the_second(table, number, once):
    """One that reads a row trained once is decided at that training's seed, and says so."""
    check = table.claims[number].check
    curves = (f"{name}@{x}" for name in ("success", "psnr_outside") for x in (0, 1))
    metrics = ("psnr", "latent_mse", "frechet", "clip_score", *curves)
    first = {name: stat({(0, 0): 1.0, (0, 1): 1.1}) for name in metrics}
    verdict = judge(table.claims[number], {row: first for row in check.rows})
    assert (f"of training seed 0, the only one of {once}" in verdict.evidence) is bool(once)
    assert (verdict.holds is None and "has one seed so far" in verdict.evidence) is (not once)


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


def inverted(figures):
    """Rows with these PSNR, and errors of the latents that fall with it."""
    return {
        row: {"psnr": twice(value, 4.0), "latent_mse": twice(10 ** (-value / 10))} for row, value in figures.items()
    }


@pytest.mark.parametrize("claim", icd.TABLE2.claims, ids=lambda claim: claim.text)
def test_the_papers_figures_of_table_2_hold_its_claims(claim):
    """Portraits of the two runs are 4 dB apart, more than most rows: run by run the paper's orderings hold."""
    assert judge(claim, inverted(PSNR)).holds
    turned = {name: 50 - value for name, value in PSNR.items()}
    near = claim.text == "G is near the teacher"
    assert judge(claim, inverted(turned)).holds == near
    assert judge(claim, {}).holds is None


def test_orderings_ask_every_run():
    rows = inverted(PSNR)
    mixed = {(seed, pictures): (17.0, 23.5)[pictures] for seed in (0, 1) for pictures in (0, 1)}
    rows["F: C + L_f"]["psnr"] = stat(mixed)  # ahead of C on the average, behind it on the first pictures
    holds = {claim.text: judge(claim, rows) for claim in icd.TABLE2.claims}
    between = holds["both preservation losses help: C < F < G, in PSNR"]
    assert not between.holds and "beats C: 4 steps 19.19 ± 0 in 2 of 4 runs" in between.evidence
    assert holds["both preservation losses help: C < F < G, in the latents"].holds
    assert holds["dynamic guidance lifts plain DDIM too"].holds


FRECHET = {
    "off": (11.0, 36.6, 63.4, 100.5), "0.6": (11.4, 23.5, 67.8, 102.6), "0.8": (15.0, 14.6, 52.2, 108.5),
    "constant": (19.0, 19.2, 19.0, 102.1),
}  # fmt: skip
NLL = (1.401, 1.409, 1.415, 1.428)


def test_the_papers_figures_of_table_1_hold_its_claims():
    rows = {
        name: {"nll": twice(NLL[i]), **{f"frechet_{way}": twice(FRECHET[way][i]) for way in FRECHET}}
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
    rows = {row: {name: twice(x) for name, x in zip(names, found, strict=True)} for row, found in GENERATED.items()}
    assert all(judge(claim, rows).holds for claim in icd.TABLE4.claims)
    same = {row: {**value, "clip_score": twice(0.25)} for row, value in rows.items()}
    assert [judge(claim, same).holds for claim in icd.TABLE4.claims] == [False] * 3 + [True] * 2
    worse = {**rows, "CD4, tau .8": {**rows["CD4, tau .8"], "attributes": twice(0.1)}}
    assert [judge(claim, worse).holds for claim in icd.TABLE4.claims][3:] == [False, True]


def test_three_steps_invert_as_four_by_the_papers_figures():
    found = {"3 steps, unguided": 22.21, "4 steps, unguided": 22.27}
    found |= {"3 steps, guided, d.CFG": 19.76, "4 steps, guided, d.CFG": 19.66}
    assert all(judge(claim, measured("psnr", found)).holds for claim in icd.TABLE5.claims)
    assert not judge(icd.TABLE5.claims[0], measured("psnr", {**found, "3 steps, unguided": 21.0})).holds


def curve(metric, values, apart=0.0):
    return {f"{metric}@{x:g}": twice(value, apart) for x, value in values.items()}


def test_the_threshold_claims_read_the_curve():
    whole, exponent = icd_figures.FIG4.claims
    growth = {tau: 0.01 * 20**tau for tau in icd_figures.TAUS}
    rows = {"DDIM50": {**curve("mse", growth), **curve("latent_mse", growth)}}
    assert judge(whole, rows).holds and judge(exponent, rows).holds
    straight = {tau: 0.1 + tau for tau in icd_figures.TAUS}
    rows = {"DDIM50": {**curve("mse", growth), **curve("latent_mse", straight)}}
    assert not judge(exponent, rows).holds, "the latents' error is read, to which the autoencoder adds nothing"
    rows["DDIM50"]["mse@0.2"] = twice(9.0)
    assert not judge(whole, rows).holds and judge(whole, {"DDIM50": curve("mse", {1.0: 2.0})}).holds is None


@pytest.mark.parametrize(("kept", "claimed"), [(0.30, True), (0.29, True), (0.26, False), (0.20, False)])
def test_dynamic_guidance_keeps_what_guidance_gains(kept, claimed):
    """No guidance at all keeps nothing of it, however near its attribute accuracy is."""
    rows = {"constant CFG": {**curve("mse", {1: 3.0}), **curve("clip_score", {1: 0.30}, 0.2)}}
    rows["constant CFG, off"] = {**curve("mse", {1: 1.0}), **curve("clip_score", {1: 0.20}, 0.2)}
    for tau in (0.7, 0.8):
        rows[f"tau1 = {tau:g}"] = {**curve("mse", {tau: 2.0}), **curve("clip_score", {tau: kept}, 0.2)}
    assert [judge(claim, rows).holds for claim in icd_figures.FIG5.claims[:2]] == [claimed] * 2
    assert len([x for ends in icd_figures.RAMPS.values() for x in ends]) == 8


def test_every_method_is_in_the_editing_table_and_shares_its_rows():
    methods = {row.options["method"] for row in icd_editing.METHODS.rows}
    assert methods == {"source", "autoencoder", "icd", "icd-switch", *icd_editing.RIVALS}
    shared = {row.name: row for row in icd_editing.METHODS.rows}
    for row in icd_editing.TABLE3.rows[:2]:
        same = shared[row.name]
        assert (row.training, row.evaluation, row.options) == (same.training, same.evaluation, same.options)


def test_the_grid_shows_what_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(icd_grids, "use_compile_cache", lambda _: None)
    cache, asked = Cache(tmp_path / "cache"), []
    flags = [f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}", "--seed=3"]
    assert icd_grids.main(flags) == 2 and "no iCD run is trained in" in capsys.readouterr().err
    last = cache.workdir(icd_rows.FOR_EDITING, 0) / "checkpoints" / str(icd_rows.STEPS["stage2"][0])
    last.mkdir(parents=True)
    (last / "MANIFEST.json").touch()

    def answers(workdir, seed, options, pairs):
        asked.append((workdir, seed, options["method"]))
        return pairs.image

    monkeypatch.setattr(icd_grids, "answers", answers)
    assert icd_grids.main(flags) == 0
    assert asked[0] == (cache.workdir(icd_rows.FOR_EDITING, 0), 3, "icd")
    assert asked[1:] == [(None, 3, method) for method in icd_editing.RIVALS]
    with Image.open(tmp_path / "out" / "icd_editing.png") as grid:
        assert grid.height > (3 + len(icd_editing.RIVALS)) * 64 and grid.width > 9 * 64
