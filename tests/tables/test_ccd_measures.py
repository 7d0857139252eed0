"""How rows of CCD's tables are measured and drawn: outputs and their metrics, shuffled conditions, copies, grids."""

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
from sdd_jax.evals.conditional import inpainting_metrics
from sdd_jax.evals.instruments import Readings
from sdd_jax.jobs.ccd import grids as shown_grids
from sdd_jax.jobs.ccd import heldout as ccd_heldout
from sdd_jax.jobs.ccd import report as ccd_report
from sdd_jax.jobs.ccd.data import ConditionConfig, heldout_rng
from sdd_jax.objectives.ccd import CCD
from sdd_jax.tables import ccd_grids, ccd_measures, ccd_tasks
from sdd_jax.tables.cache import Cache
from sdd_jax.train import EngineConfig

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("compile_quickly")


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
    monkeypatch.setattr(ccd_heldout, "open_run", lambda _: (job, params, 4))
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
        ({"output": "teacher", "steps": 4, "guidance": 2.0}, "output='teacher' has no solver, no guidance and is not"),
        ({"output": "teacher", "steps": 4, "shuffled": True}, "output='teacher' has no solver, no guidance and is not"),
        ({"output": "truth"}, "output='truth' is not known; use model, condition, teacher, autoencoder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        ccd_measures.heldout(tmp_path, 0, options)
    assert message in str(error.value) and "\n" not in str(error.value)


def heldout_of(task, **rows):
    return ccd_heldout.Heldout(None, {}, 0, ConditionConfig(task=task), rows, np.zeros((0, 0)))


def test_a_copy_of_a_masked_picture_has_its_hole_filled():
    """Three known pixels of .3, .6, .9 and a hidden one: .6 fills it, whatever the hole held."""
    shown = np.array([0.3, 0.6, 0.9, 0.0]).reshape(1, 2, 2, 1).repeat(3, -1)
    mask = np.array([-1.0, -1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
    found = ccd_report.copied(heldout_of("inpaint", condition=np.concatenate([shown, mask], -1)))
    np.testing.assert_allclose(found[0, ..., 0].ravel(), [0.3, 0.6, 0.9, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(ccd_report.copied(heldout_of("depth", condition=shown)), shown)


def test_shuffled_conditions_are_the_next_portraits(monkeypatch):
    """A model that paints what it is given on the left; in a hole, which stays where it was, another's picture. One
    that paints the same whatever it is given is the same shuffled."""

    def paints(s, params, frozen, rows, *_):
        return rows["condition"][:, :, [0, 0], :3]

    monkeypatch.setattr(ccd_measures, "make_sampler", lambda *_: None)
    shown = np.array([-0.5, 0.2, 0.6]).reshape(3, 1, 1, 1) * np.ones((3, 1, 2, 3))
    hidden = np.array([-1.0, 1.0]).reshape(1, 1, 2, 1) * np.ones((3, 1, 2, 1))
    job = SimpleNamespace(objective=CCD(model=SimpleNamespace(), adapter=None), frozen={})
    for task, condition, expected in (
        ("depth", shown, [[0.2, 0.2], [0.6, 0.6], [-0.5, -0.5]]),
        ("inpaint", np.concatenate([shown, hidden], -1), [[-0.5, 0.2], [0.2, 0.6], [0.6, -0.5]]),
    ):
        found = heldout_of(task, condition=condition, image=shown)._replace(job=job)
        monkeypatch.setattr(ccd_measures, "sample_all", paints)
        drawn = ccd_measures.outputs(found, ccd_measures.Options(steps=4, shuffled=True), 0)[""]
        np.testing.assert_allclose(drawn[:, 0, :, 1], expected)
        plain = ccd_measures.outputs(found, ccd_measures.Options(steps=4), 0)[""]
        np.testing.assert_allclose(plain, shown)
        monkeypatch.setattr(ccd_measures, "sample_all", lambda *_: np.full_like(shown, 0.3))
        blind = [
            ccd_measures.outputs(found, ccd_measures.Options(steps=4, shuffled=roll), 0)[""] for roll in (True, False)
        ]
        hole = slice(1, None) if task == "inpaint" else slice(None)
        np.testing.assert_array_equal(*(drawn[:, :, hole] for drawn in blind))
    with pytest.raises(ValueError, match="options.shuffled=true: the run has no condition to shuffle"):
        ccd_measures.outputs(heldout_of("none")._replace(job=job), ccd_measures.Options(steps=4, shuffled=True), 0)


def test_known_pixels_are_the_samplers(monkeypatch):
    """A sampler that does not put them back is found out; a model given another's picture has its own put back."""
    monkeypatch.setattr(ccd_measures, "make_sampler", lambda *_: None)
    monkeypatch.setattr(ccd_measures, "sample_all", lambda *_: np.full((3, 1, 2, 3), 0.3))
    shown = np.array([-0.5, 0.2, 0.6]).reshape(3, 1, 1, 1) * np.ones((3, 1, 2, 3))
    condition = np.concatenate([shown, np.array([-1.0, 1.0]).reshape(1, 1, 2, 1) * np.ones((3, 1, 2, 1))], -1)
    job = SimpleNamespace(objective=CCD(model=SimpleNamespace(), adapter=None), frozen={})
    found = heldout_of("inpaint", condition=condition, image=shown)._replace(job=job)
    off = [
        inpainting_metrics(
            ccd_measures.outputs(found, ccd_measures.Options(steps=4, shuffled=roll), 0)[""], shown, condition
        )["known_error"]
        for roll in (False, True)
    ]
    assert off[0] > 50 and off[1] == 0


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
    assert shown == [((cache.workdir(training, 0), shown_grids.SHOWN), tmp_path / "out" / "ccd_depth.png")]


def drawn_grid(task, monkeypatch, outputs, **rows):
    """Labels of rows, what is in them and labels of columns of a task's grid."""
    found = {}
    monkeypatch.setattr(shown_grids, "write_grid", lambda path, *parts: found.update(parts=parts))
    job = SimpleNamespace(config=SimpleNamespace(task="ccd"))
    shown_grids.show(heldout_of(task, **rows)._replace(job=job), outputs, Path("x.png"))
    images, labels, columns = found["parts"]
    return dict(zip(labels, images, strict=True)), columns


def test_a_grid_says_what_was_asked(monkeypatch):
    """Of text-to-image and edits, above every column; a condition that shows it needs no words."""
    index = np.asarray(portraits.split_indices("heldout")[:10])
    images = np.zeros((10, 64, 64, 3), np.float32)
    _, columns = drawn_grid("none", monkeypatch, {"CCD, 1 step": images}, image=images, index=index)
    wanted = portraits.portrait(int(index[1])).attributes
    assert len(columns) == 8 and columns[1] == f"{wanted.species}\n{wanted.expression}\n{wanted.accessory}"
    _, columns = drawn_grid("edit", monkeypatch, {}, image=images, condition=images, index=index)
    edit = draw_edit(int(index[3]), heldout_rng(3))
    assert len(columns) == 8 and columns[3] == f"{edit.attribute}=\n{edit.new}"
    rows, columns = drawn_grid("depth", monkeypatch, {"CCD, 1 step": images}, image=images, condition=images)
    assert columns == [] and list(rows) == ["condition", "CCD, 1 step", "truth"]


def test_a_grid_of_edges_has_those_of_the_output(monkeypatch):
    """Of the model's last row, below it: an edge where a square begins, and none in a flat picture."""
    flat = np.zeros((2, 64, 64, 3), np.float32)
    square = flat.copy()
    square[:, 16:48, 16:48] = 1.0
    outputs = {"edges": flat, "CCD, 1 step": flat, "CCD, 4 steps": square, "autoencoder": flat}
    rows, _ = drawn_grid("canny", monkeypatch, outputs, image=flat, condition=flat)
    assert list(rows) == ["condition", "edges", "CCD, 1 step", "CCD, 4 steps", "its edges", "autoencoder", "truth"]
    edges = rows["its edges"][1, ..., 0] > 0
    assert edges[30, 14:19].any() and not edges[30, 20:44].any() and not edges[:, :12].any()
