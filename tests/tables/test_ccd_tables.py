"""CCD's tables: jobs accept every row's config, the paper's own figures hold its claims, a copy holds none, and rows
are measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import jobs
from sdd_jax.config import defaults_of, load_config, to_plain
from sdd_jax.data import portraits
from sdd_jax.data.conditions import draw_edit
from sdd_jax.evals.instruments import Readings
from sdd_jax.jobs.ccd import report as ccd_report
from sdd_jax.jobs.ccd.data import ConditionConfig, heldout_rng
from sdd_jax.objectives.ccd import CCD
from sdd_jax.tables import TABLES as TABLE_NAMES
from sdd_jax.tables import ccd, ccd_grids, ccd_measures, ccd_rows, ccd_tasks, find_table
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge, order
from sdd_jax.tables.run import estimate, tasks
from sdd_jax.tables.types import Claim, Row, Stat
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
def test_a_row_takes_15_minutes_and_a_table_4_hours(table, tmp_path, monkeypatch):
    """What a row starts from included."""
    monkeypatch.chdir(ROOT)
    for row in table.rows:
        assert row.not_run or sum(needed.minutes for needed in with_needs(row.training)) <= 15, row.name
    cache = Cache(tmp_path)
    assert estimate(tasks(table.rows, cache), cache) <= 240


def test_the_planned_steps_are_the_configs(tmp_path, monkeypatch):
    """Minutes are planned from the number of steps that a config really has, and one comparison has one number."""
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    steps = {name: cache.config(training, 0).steps for name, training in TRAININGS.items()}
    for name, training in TRAININGS.items():
        config = cache.config(training, 0)
        assert config.batch_size == ccd_rows.BATCH
        forwards = (training.minutes * 60 / config.steps - ccd_rows.MUON) * ccd_rows.RATE / config.batch_size
        least, most = (2.6, 11) if config.task in ("ccd", "finetune") else (4.9, 7.4)
        assert least < forwards < most, name
    assert ccd.FULL.minutes == pytest.approx(ccd.STEPS * ccd_rows.BATCH / 15.1 / 60, abs=0.05), "as measured"
    sees = {row.name: steps[str(row.training)] for table in TABLES[:3] for row in table.rows if row.training}
    assert set(sees.values()) == {ccd.STEPS}
    assert {steps[str(t)] for t in (ccd_tasks.DEPTH, ccd_tasks.CONTROL, ccd_tasks.EDIT, ccd_tasks.TUNED_EDIT)} == {800}
    rows = [row for name in TABLE_NAMES for row in find_table(name).rows if row.training]
    tuned = [row.training for row in rows if row.training.config == ccd_tasks.TUNED_EDIT.config]
    assert len({cache.key(training, 0) for training in tuned}) == 1, "a run of several tables is trained once"


PAPER = {
    "CCD, 4 steps": (19.64, 0.2656), "CCD adapter only, 4 steps": (25.21, 0.2941), "CM, 4 steps": (30.63, 0.3066),
    "CM, 4 steps, lower rate": (30.63, 0.3066), "GD, 4 steps": (27.81, 0.3172),
    "DPM-Solver++, 4 steps": (30.03, 0.3073), "DPM-Solver, 4 steps": (30.12, 0.3077),
    "Fine-tuned, 4 steps": (30.99, 0.3070), "Fine-tuned, 50 steps": (18.63, 0.2551), "Bicubic": (60.0, 0.6),
}  # fmt: skip


def table1(figures, spreads=()):
    """Verdicts on Table 1's claims; spreads: of the FID of rows with two trainings of two samplings each."""
    rows = {
        name: {
            "frechet": Stat(a, dict(spreads).get(name, 0.0), 4 if name in dict(spreads) else 2),
            "clip_distance": Stat(b, 0.0, 2),
        }
        for name, (a, b) in figures.items()
    }
    return [judge(claim, rows) for claim in ccd.TABLE1.claims]


def test_the_papers_figures_hold_its_claims():
    """Table 1's FID and LPIPS; with methods swapped the claims about them fail, as they do for a copy."""

    def holds(figures):
        return [verdict.holds for verdict in table1(figures)]

    assert holds(PAPER) == [True] * 6
    swapped = {**PAPER, "CCD, 4 steps": PAPER["CM, 4 steps"], "CM, 4 steps": PAPER["CCD, 4 steps"]}
    assert holds(swapped) == [False, False, False, False, True, True]
    assert holds({**PAPER, "DPM-Solver, 4 steps": (20.0, 0.3)})[4] is False
    assert holds({**PAPER, "CCD, 4 steps": PAPER["Bicubic"]})[5] is False
    assert holds({**PAPER, "CCD, 4 steps": (19.64, 0.29)})[3] is False, "close in one metric only"


def test_an_ordering_within_the_noise_between_trainings_does_not_hold():
    """Full and adapter-only CCD, 5.6 apart: held against spreads of 3 and 3, not against 4 and 4; the row with one
    training, GD at 27.81 beside 25.21, has the others' spread."""
    names = ("CCD, 4 steps", "CCD adapter only, 4 steps")
    holds = {width: [v.holds for v in table1(PAPER, dict.fromkeys(names, width))][:2] for width in (1.0, 3.0, 4.0)}
    assert holds == {1.0: [True, True], 3.0: [True, False], 4.0: [False, False]}
    evidence = table1(PAPER, dict.fromkeys(names, 2.0))[1].evidence
    assert "GD, 4 steps 27.81 ± 2, within the seeds' spread 2.8" in evidence


def test_the_noise_is_pooled_over_the_rows_that_were_trained_again():
    """sqrt((3^2 + 4^2) / 2) = 3.54 for every row; a row whose second training is missing does not count."""
    run = {"training": ccd.FULL, "evaluation": "module:function"}
    rows = [Row(name=name, seeds=(0, 1), **run) for name in ("a", "b", "half")] + [Row(name="c", **run)]
    (claim,) = ccd_rows.with_noise(rows, [Claim(text="c beats a", check=order("x", "c", "a", better="higher"))])
    measured = {"a": Stat(0, 3, 4), "b": Stat(0, 4, 3), "half": Stat(0, 100, 2), "c": Stat(5.01, 0, 2)}
    for value, holds in ((5.01, True), (4.99, False)):
        found = {name: {"x": value_} for name, value_ in {**measured, "c": Stat(value, 0, 2)}.items()}
        assert claim.check.decide(found).holds is holds
    assert judge(claim, {"a": {"x": measured["a"]}}).holds is None


COPIES = {
    "Depth": {"depth": 1.0, "psnr": 14.0, "attributes": 0.3, "frechet": 60.0, "clip_distance": 0.6},
    "Editing": {"success": 0.0, "preserved": 1.0, "exact": 0.0, "psnr": 30.0, "frechet": 1.0, "clip_distance": 0.02},
    "Inpainting": {"psnr_hidden": 15.0, "known_error": 0.0, "psnr": 25.0, "frechet": 2.0, "attributes": 0.8},
    "Edges": {"edges": 1.0, "psnr": 9.0, "attributes": 0.3, "frechet": 80.0, "clip_distance": 0.7},
    "Text-to-image": {"frechet": 90.0, "attributes": 0.2},
}
GOOD = {
    "Depth": {"depth": 0.9, "psnr": 17.0, "frechet": 8.0, "clip_distance": 0.2},
    "Editing": {"success": 0.9, "preserved": 1.0, "exact": 0.7},
    "Inpainting": {"psnr_hidden": 18.0},
    "Edges": {"edges": 0.8, "psnr": 16.0, "clip_distance": 0.2},
    "Text-to-image": {"frechet": 8.0, "attributes": 0.95},
}
BLIND = {"depth": 0.4, "psnr": 10.0, "edges": 0.3, "psnr_hidden": 11.0, "frechet": 12.0, "clip_distance": 0.4}


def tasks_claims(own):
    """Verdicts on the other tasks' claims: CCD's rows read as `own`, copies as copies, all others as the blind teacher;
    whoever edits otherwise does not edit either."""
    rows = {}
    for row in ccd.OTHER_TASKS.rows:
        task = row.name.split(":")[0]
        figures = {**COPIES[task], **({} if task == "Editing" else BLIND), "attributes": 0.5}
        if row.options.get("output") == "condition":
            figures = COPIES[task]
        if "CCD" in row.name:
            figures = {**COPIES[task], **own[task]}
        if row.name == "Text-to-image: teacher, 50 steps":
            figures = GOOD[task]
        rows[row.name] = {name: Stat(value, 0.0, 2) for name, value in figures.items()}
    return {claim.text: judge(claim, rows).holds for claim in ccd.OTHER_TASKS.claims}


def test_a_copy_of_the_condition_holds_no_claim():
    """Whatever a copy is good at; but known pixels, which the sampler puts back."""
    assert [text for text, holds in tasks_claims(COPIES).items() if holds] == ["Inpainting: unmasked pixels are intact"]
    assert set(tasks_claims(GOOD).values()) == {True}


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
    for name, value in (("d_x: none", 0.9), ("d_x: latent", 0.8)):
        figures[name]["saturation@4"] = Stat(value, 0, 1)
    assert judge(ccd.FIG5.claims[1], figures).holds is False, "more colour than a pale picture is not too much"


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
    monkeypatch.setattr(ccd_report, "open_run", lambda _: (job, params, 4))
    return tmp_path


def test_a_run_is_measured(a_run, tiny_world):
    """Points of a curve are named by their steps and differ; another seed is another figure; one number is plain."""
    options = {"steps": [1, 2], "samples": 2, "world": str(tiny_world)}
    found = ccd_measures.heldout(a_run, 0, options)
    names = {"psnr", "ssim", "clip_distance", "frechet", "attributes", "identity", "saturation", "sharpness"}
    assert set(found) == {*(f"{name}@{n}" for name in names for n in (1, 2)), "train_samples"}
    assert all(np.isfinite(value) for value in found.values()) and found["psnr@1"] != found["psnr@2"]
    assert found["train_samples"] == 4 * 4 / 1000
    other = ccd_measures.heldout(a_run, 1, {**options, "steps": 2, "solver": "dpm_solver_pp"})
    assert set(other) == {*names, "train_samples"} and other["psnr"] != found["psnr@2"]
    copy = ccd_measures.heldout(a_run, 0, {"output": "condition", "samples": 2, "world": str(tiny_world)})
    assert set(copy) == names and copy["psnr"] > found["psnr@1"], "an untrained network restores nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 1}, "options.stepz is not a field of Options"),
        ({}, "output='model' with steps=()"),
        ({"output": "condition", "steps": 4}, "output='condition' with steps=4"),
        ({"output": "teacher", "steps": 4, "guidance": 2.0}, "output='teacher' has no solver and no guidance"),
        ({"output": "truth"}, "output='truth' is not known; use model, condition, teacher, autoencoder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        ccd_measures.heldout(tmp_path, 0, options)
    assert message in str(error.value) and "\n" not in str(error.value)


def heldout_of(task, **rows):
    return ccd_report.Heldout(None, {}, 0, ConditionConfig(task=task), rows, np.zeros((0, 0)))


def test_a_copy_of_a_masked_picture_has_its_hole_filled():
    """Three known pixels of .3, .6, .9 and a hidden one: .6 fills it, whatever the hole held."""
    shown = np.array([0.3, 0.6, 0.9, 0.0]).reshape(1, 2, 2, 1).repeat(3, -1)
    mask = np.array([-1.0, -1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
    found = ccd_report.copied(heldout_of("inpaint", condition=np.concatenate([shown, mask], -1)))
    np.testing.assert_allclose(found[0, ..., 0].ravel(), [0.3, 0.6, 0.9, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(ccd_report.copied(heldout_of("depth", condition=shown)), shown)


def test_inpainting_stands_beside_its_fill_and_the_teacher_in_the_hole(monkeypatch):
    """The rows of an evaluation, in order; the teacher is asked without the condition, and known pixels stay."""
    asked = []

    def make_sampler(objective, *_):
        def sampler(params, frozen, hint, ids, key, steps, guidance):
            asked.append((hint is None, steps, guidance))
            return np.full((len(ids), 2, 2, 3), steps / 100, np.float32)

        return sampler

    monkeypatch.setattr(ccd_report, "make_sampler", make_sampler)
    monkeypatch.setattr(ccd_report, "autoencoded", lambda model, vae, images, batch: images)
    objective = CCD(model=SimpleNamespace(), adapter=None)
    job = SimpleNamespace(objective=objective, frozen={"vae": {}}, config=SimpleNamespace(task="ccd"))
    condition = np.array([-1, 0.3, 0, 0], "f4").reshape(1, 2, 2, 1) * np.ones((3, 2, 2, 3), "f4")
    mask = np.array([-1, -1, 1, 1], "f4").reshape(1, 2, 2, 1) * np.ones((3, 2, 2, 1), "f4")
    rows = {"image": condition, "condition": np.concatenate([condition, mask], -1), "input_ids": np.zeros((3, 4))}
    found = ccd_report.draw(heldout_of("inpaint", **rows)._replace(job=job), (), 0, 2, ())
    models = ["CCD, 1 step", "CCD, 2 steps", "CCD, 4 steps"]
    assert list(found) == ["hole filled", "teacher, 50 steps, w = 3", *models, "autoencoder"]
    np.testing.assert_allclose(found["teacher, 50 steps, w = 3"][2, ..., 1], [[-1, 0.3], [0.5, 0.5]])
    np.testing.assert_allclose(found["hole filled"][0, ..., 0], [[-1, 0.3], [-0.35, -0.35]], rtol=1e-6)
    assert asked == [(True, 50, 3.0)] * 2 + [(False, n, 1.0) for n in (1, 2, 4) for _ in range(2)]


def test_an_edit_is_exact_where_all_attributes_read_as_asked(monkeypatch):
    """Of three outputs one is a copy, one right, one right in the edited attribute alone."""
    index = np.asarray(portraits.split_indices("heldout")[:3])
    labels = np.stack([portraits.labels(portraits.portrait(int(i)).attributes) for i in index])
    names = list(portraits.VOCABULARY)
    edited = [names.index(draw_edit(int(i), heldout_rng(k)).attribute) for k, i in enumerate(index)]
    read = labels.copy()
    read[0, edited[0]] += 1
    read[2, (edited[2] + 1) % len(names)] += 1
    readings = Readings(read, np.zeros((3, 1)), np.zeros((3, 1)))
    monkeypatch.setattr(ccd_report.conditional, "shared_metrics", lambda *_: ({}, readings))
    found = ccd_report.measured(
        None, {"out": np.zeros((3, 8, 8, 3))}, heldout_of("edit", index=index, image=None)._replace(labels=labels)
    )
    expected = {"success": 2 / 3, "preserved": 1 - 1 / (3 * (len(names) - 1)), "exact": 1 / 3}
    assert found["out"] == pytest.approx(expected)


def test_rivals_are_rendered_once(array_cache, monkeypatch):
    """As they are rendered each time; other portraits have others."""
    index = np.asarray(portraits.split_indices("heldout")[:2])
    found = ccd_measures.rivals_of(index)
    np.testing.assert_allclose(found[1], ccd_report.rival_portraits(int(index[1])), atol=1e-6)
    monkeypatch.setattr(ccd_measures, "rival_portraits", lambda i: pytest.fail("rendered again"))
    np.testing.assert_array_equal(ccd_measures.rivals_of(index), found)
    with pytest.raises(pytest.fail.Exception):
        ccd_measures.rivals_of(index[::-1])


def test_samples_of_all_stages_are_counted(tmp_path):
    for name, before, steps in (("gd8", "", 2), ("gd4", "gd8", 2), ("gd", "gd4", 4)):
        start = str(tmp_path / before) if before else ""
        (tmp_path / name).mkdir()
        config = {"steps": steps, "batch_size": 16, "teacher": {"workdir": start}}
        (tmp_path / name / "config.json").write_text(json.dumps({"config": config}))
    assert ccd_measures.trained_samples(tmp_path / "gd") == 16 * 8


def test_grids_are_of_the_tasks_that_are_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ccd_grids, "use_compile_cache", lambda _: None)
    cache, shown = Cache(tmp_path / "cache"), []
    flags = [f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"]
    assert ccd_grids.main(flags) == 2
    assert "no task is trained" in capsys.readouterr().err
    training = ccd_tasks.TRAINED["depth"]
    last = cache.workdir(training, 0) / "checkpoints" / str(ccd_tasks.STEPS)
    last.mkdir(parents=True)
    (last / "MANIFEST.json").touch()
    monkeypatch.setattr(ccd_grids, "open_heldout", lambda workdir, count: (workdir, count))
    monkeypatch.setattr(ccd_grids, "draw", lambda *_: {})
    monkeypatch.setattr(ccd_grids, "show", lambda heldout, outputs, path: shown.append((heldout, path)))
    assert ccd_grids.main(flags) == 0
    assert shown == [((cache.workdir(training, 0), ccd_report.SHOWN), tmp_path / "out" / "ccd_depth.png")]
