"""SDD's job on the tiny world: from the config to a trained manipulator, its report, and what it exports."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdd_jax
from sdd_jax import evaluate, export, jobs
from sdd_jax import main as entry
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.evals.editing import COLUMNS as EDITED
from sdd_jax.jobs.sdd import job as sdd_job
from sdd_jax.jobs.sdd import pictures
from sdd_jax.jobs.sdd import report as sdd_report
from sdd_jax.jobs.sdd import tables as sdd_tables
from sdd_jax.jobs.sdd.cost import TrainingCost
from sdd_jax.jobs.sdd.data import EditData
from sdd_jax.jobs.sdd.hqs import Search, write_search
from sdd_jax.models.translator import load_translator
from sdd_jax.runs import open_run
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.optim import make_optimizer
from sdd_jax.training.state import create_state
from sdd_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = Path(__file__).parents[1] / "configs" / "sdd_latent.py"
SMALL = [
    "steps=2",
    "checkpoint_every=1",
    "preview_every=2",
    "data.count=4",
    "compile_cache=",
    "optimizer.warmup_steps=0",
]


LOAD = functools.lru_cache(maxsize=1)(sdd_jax.load)


@pytest.fixture
def build(tiny_world, array_cache, monkeypatch):
    """build(variant, *overrides): the job on the tiny world, 4 portraits, batches of 2."""
    monkeypatch.setattr(sdd_job, "load", LOAD)

    def call(variant, *overrides):
        small = ["batch_size=2", "data.count=4", f"model={tiny_world}"]
        if "clip" in variant:
            small.append(f"clip.path={tiny_world}")
        return jobs.build(load_config(f"{CONFIG}:{variant}", [*small, *overrides], defaults_of(EngineConfig)))

    return call


def traced_step(job, batch):
    engine = engine_config(job.config)
    optimizer, schedule = make_optimizer(engine.optimizer, engine.steps)

    def run(key, frozen, batch):
        state = create_state(key, job.objective, optimizer, frozen, with_ema=True)
        step = make_train_step(job.objective, optimizer, schedule=schedule, ema_decay=engine.ema)
        return state, *step(state, frozen, batch, key)

    return jax.eval_shape(run, jax.random.key(0), job.frozen, {k: jnp.asarray(v) for k, v in batch.items()})


def write_scores(path, prompt, model="another", options=()):
    t, scores = (100, 300, 500), (-0.5, 0.75, 0.25)
    search = Search(
        prompt=prompt, model=model, options=dict(options), t=t, H=scores, N=scores, hqs=scores, stderr=scores,
        selected=(300,), rule="argmax",
    )  # fmt: skip
    write_search(path, search)
    return path


@pytest.mark.parametrize(
    ("variant", "overrides", "metrics"),
    [
        ("debug", ["objective.top_k=16"], {"gradient", "l2"}),
        ("clip,debug", [], {"clip", "l2"}),
        ("side_view,debug", ["manipulator.reencode=true", "manipulator.output=denoised"], {"gradient", "l2"}),
    ],
)
def test_a_batch_goes_through_the_training_step(build, variant, overrides, metrics):
    job = build(variant, *overrides)
    batch = next(job.stream(0))
    assert set(batch) == {"moments", "input_ids"} and all(len(value) == 2 for value in batch.values())
    before, after, found = traced_step(job, batch)
    assert set(before.params) == {"unet", "task", "time"}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert metrics < set(found) and found["loss"].dtype == jnp.float32


def test_a_folder_with_an_identity_loss(build, tiny_world, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (70, 66), (90, 30, 200)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a dog called {name}")
    overrides = [
        f"data.path={tmp_path}", "data.size=64", "data.prompt={caption}, angry", "identity.kind=regressor",
        f"identity.path={tiny_world}", "objective.identity_weight=0.1", "timesteps.given=(500,)", "timesteps.rule=",
    ]  # fmt: skip
    job = build("sd15,angry", *overrides)
    batch = next(job.stream(0))
    assert batch["image"].shape == (2, 64, 64, 3)
    tokens = job.objective.model.tokenize(["a dog called a, angry", "a dog called b, angry"])
    assert {tuple(row) for row in batch["input_ids"]} == {tuple(row) for row in tokens}
    _, _, metrics = traced_step(job, batch)
    assert {"gradient", "l2", "identity"} < set(metrics) and job.objective.top_k == 1024


def drawn(job):
    """{t: probability} of what a job trains on."""
    p = job.frozen["timesteps"]
    return {int(t): float(p[t]) for t in np.flatnonzero(p)}


def test_timesteps_come_from_a_file_a_rule_or_the_config(build, tmp_path, caplog):
    path = write_scores(tmp_path / "hqs.json", "another prompt")
    selected = drawn(build("white_hair", f"timesteps.path={path}"))
    assert selected == {300: 1.0}
    ruled = build("white_hair", f"timesteps.path={path}", "timesteps.rule=top:2", "timesteps.weights=hqs")
    assert drawn(ruled) == pytest.approx({300: 1.75 / 3, 500: 1.25 / 3}, rel=1e-6)
    job = build("debug", "timesteps.given=(20,40)")
    assert drawn(job) == {20: 0.5, 40: 0.5} and job.fingerprint["timesteps"] == [20, 40]
    assert list(drawn(build("random"))) == list(range(100, 901, 50)), "which needs no scores"


def test_a_file_of_another_reading_is_said(build, tmp_path, caplog):
    path = write_scores(tmp_path / "hqs.json", "x", options={"jacobian": True, "absolute": True, "images": 3})
    with caplog.at_level("WARNING", "sdd_jax"):
        build("white_hair", f"timesteps.path={path}")
    assert "was searched on another for 'x'" in caplog.text and "jacobian=True, config.search has False" in caplog.text
    assert "absolute=" not in caplog.text and "images=" not in caplog.text, "as the config's, or not of the reading"


def test_a_run_is_opened_without_its_search(build, tmp_path):
    path = write_scores(tmp_path / "hqs.json", "x")
    job = build("white_hair", f"timesteps.path={path}", "timesteps.weights=hqs", "timesteps.rule=top:2")
    path.unlink()
    again = jobs.reopen(job.config, {"timesteps": [300, 500]})
    assert drawn(again) == {300: 0.5, 500: 0.5} and again.fingerprint == job.fingerprint
    assert again.config is job.config, "what was asked, for whoever reads it"
    with pytest.raises(FileNotFoundError, match="no such file; make it with"):
        jobs.build(job.config)


def test_a_prompt_without_an_exact_answer_has_previews(build, tmp_path, monkeypatch):
    """Two attributes at once: originals and edits alone."""
    monkeypatch.setattr(pictures, "PREVIEW", 2)
    job = build("debug", "data.prompt=a photo of an angry {species} with white {coat}")
    params = job.objective.init(jax.random.key(0), job.frozen)
    job.previews(params, None, job.frozen, 1, tmp_path)
    with Image.open(tmp_path / "00000001.png") as grid:
        assert 2 * 64 < grid.height < 3 * 64


def test_without_a_file_the_job_searches(build, monkeypatch):
    asked = []

    def search(model, frozen, source, prompt, options, made_of):
        asked.append((prompt, options.images, len(source), made_of["split"]))
        scores = (0.1, 0.9)
        return Search(prompt=prompt, model="", options={}, t=(100, 200), H=scores, N=scores, hqs=scores, stderr=scores, selected=(100, 200), rule="all")  # fmt: skip  # noqa: E501

    monkeypatch.setattr(sdd_job, "job_search", search)
    assert drawn(build("argmax", "search.images=2")) == {200: 1.0}
    assert asked == [("a photo of a {species} with white {coat}", 2, 4, "train")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompt={colour} fur"], "config.data: prompt='{colour} fur' has a field {colour}"),
        (["data.source=folder"], "config.data: source='folder' needs a path"),
        (["data.source=disk"], "config.data: source='disk' is not known"),
        (["manipulator.output=best"], "config.manipulator: output='best' is not known"),
        (["identity.kind=arc"], "config.identity: kind='arc' recognises nobody"),
        (["objective.identity_weight=1"], "config.objective: identity_weight=1.0 has no network"),
        (["objective.top_k=0"], "config.objective: top_k=0 keeps nothing"),
        (["timesteps.given=(2000,)"], "config.timesteps: timesteps=(2000,)"),
        (["timesteps.given=()", "timesteps.rule=best"], "config.timesteps: rule='best' selects no timesteps"),
        (["search.images=1"], "config.search: images=1 must be at least 2"),
        (["timesteps.given=()", "timesteps.rule=top:18"], "config.timesteps.rule: cannot select 18 of 17 timesteps"),
    ],
)
def test_a_bad_value_is_one_line(build, overrides, message):
    with pytest.raises(ValueError) as error:
        build("debug", *overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_published_clip_without_a_directory_names_the_key(build):
    with pytest.raises(ValueError, match="config.clip: kind='clip' has no weights: set config.clip.path"):
        build("sd15,clip", "clip.path=portraits")


def test_a_clip_of_another_width(build):
    with pytest.raises(ValueError, match="config.clip: the CLIP of portraits reads text states of width 128"):
        build("clip,debug", "clip.path=portraits")


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run") / "sdd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "array_cache"))
        patch.setattr(pictures, "PREVIEW", 2)
        overrides = [f"--config.{text}" for text in (*SMALL, f"model={tiny_world}")]
        assert entry.main([f"--config={CONFIG}:debug", f"--workdir={workdir}", *overrides]) == 0
    return workdir


def test_a_run_trains_previews_and_exports(finished, tmp_path):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line[name]) for line in lines for name in ("loss", "gradient", "l2"))
    assert lines[0]["l2"] == 0 and lines[1]["l2"] > 0, "the manipulator starts as the identity"
    with Image.open(finished / "samples" / "00000002.png") as grid:
        assert grid.height > 3 * 64
    _, params, _ = open_run(finished)
    assert export.main([f"--workdir={finished}", f"--out={tmp_path / 'out'}"]) == 0
    translator, loaded, _, tasks = load_translator(tmp_path / "out")
    assert tasks == ("a photo of a {species} with white {coat}",) and translator.output == "residual"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), loaded, params)


def test_protocols_take_the_run_and_its_export(finished, tmp_path):
    """Prompts are not read: the run's one edit is made, and the one task of its exported translator."""
    assert export.main([f"--workdir={finished}", f"--out={tmp_path / 'translator'}"]) == 0
    pictures = {}
    for method, where in (("manipulate", f"--workdir={finished}"), ("translate", f"--model={tmp_path / 'translator'}")):
        arguments = ["--protocol=editing", f"--method={method}", where, "--benchmark=portraits", "--samples=2"]
        assert evaluate.main([*arguments, "--batch=2", f"--out={tmp_path / method}"]) == 0
        made = [json.loads(line) for line in (tmp_path / method / "made.jsonl").read_text().splitlines()[1:]]
        assert [row["evaluations"] for row in made] == [1, 1]
        images = sorted((tmp_path / method / "images").iterdir())
        pictures[method] = np.stack([np.asarray(Image.open(path), int) for path in images])
    assert pictures["manipulate"].shape == (2, 64, 64, 3)
    assert np.abs(pictures["manipulate"] - pictures["translate"]).max() <= 1
    assert np.abs(np.diff(pictures["translate"], axis=0)).max() > 0


def test_evaluate_compares_with_editors_and_says_when_training_pays(finished, tiny_world, capsys, monkeypatch):
    monkeypatch.setattr(sdd_report, "training_cost", lambda job, steps: TrainingCost(steps, step=1.5, search=4.0))
    arguments = [f"--workdir={finished}", "--samples=1", "--steps=2", f"--world={tiny_world}"]
    assert evaluate.main(arguments) == 0
    report = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert list(report["rows"]) == ["original", "SDD", "SDEdit, 2 steps", "DDIB, 2 steps", "counterfactual"]
    rows = report["rows"]
    assert all(np.isfinite(value) for row in rows.values() for value in row.values() if value is not None)
    assert rows["SDD"]["evaluations"] == 1 and rows["DDIB, 2 steps"]["evaluations"] > 2
    assert set(report["cost"]) == {"train", "manipulator", "editors", "break_even"} and report["cost"]["train"] == 7.0
    assert (report["edit"]["attribute"], report["edit"]["value"]) == ("hair", "white")
    out = capsys.readouterr().out
    assert "| SDD |" in out and "break-even" in out and (finished / "evaluation" / "grid.png").is_file()


@pytest.mark.usefixtures("array_cache")
def test_a_manipulators_row_measures_and_draws(finished, tiny_world, monkeypatch):
    seen, drawn = [], {}

    def search(model, frozen, source, prompt, options, made_of):
        seen.append((len(source), made_of, options.guidance))
        scores = (0.2, 0.9, 0.5)
        return Search(prompt=prompt, model="", options={}, t=(500, 600, 700), H=scores, N=scores, hqs=scores, stderr=scores, selected=(500,), rule="all")  # fmt: skip  # noqa: E501

    monkeypatch.setattr(sdd_tables, "job_search", search)
    monkeypatch.setattr(
        sdd_tables, "write_grid", lambda path, rows, labels: drawn.update(zip(labels, rows, strict=True))
    )
    found = sdd_tables.manipulator(finished, 0, {"samples": 2, "world": str(tiny_world), "search": {"guidance": 9.0}})
    assert {*EDITED, "clip_score", "clip_directional", "seconds"} <= {*found, "psnr_outside"}
    assert (found["evaluations"], found["timesteps"], found["mean_t"]) == (1, 2, 600)
    assert found["mean_hqs"] == pytest.approx(0.35), "of timesteps 500 and 700"
    assert {f"psnr@{share}" for share in ("0.25", "0.5", "0.75", "1", "1.25")} <= set(found)
    assert found["psnr@1"] == found["psnr"]
    assert seen == [(4, EditData(prompt="a photo of a {species} with white {coat}", count=4).facts, 9.0)]
    pairs = edit_pairs(["hair=white"], 2)
    np.testing.assert_array_equal(drawn["before"], pairs.image)
    np.testing.assert_array_equal(drawn["exact answer"], pairs.counterfactual)
    assert list(drawn) == ["before", "after", "exact answer"] and drawn["after"].shape == pairs.image.shape


@pytest.mark.usefixtures("array_cache")
def test_the_cost_row_times_editors_beside_the_pass(finished, monkeypatch):
    asked = []

    def edited(method, model, frozen, pairs, options, seed):
        asked.append((method, options, len(pairs.image)))
        return pairs.image, 100.0, 4.0 if method == "sdedit" else 0.5

    monkeypatch.setattr(sdd_tables, "edited", edited)
    monkeypatch.setattr(sdd_tables, "manipulated", lambda run, pairs: (pairs.image, 1.0, {}))
    monkeypatch.setattr(sdd_tables, "training_cost", lambda job, steps: TrainingCost(steps, step=10.0, search=10.0))
    found = sdd_tables.cost(finished, 0, {})
    assert asked == [("sdedit", {"steps": 50, "strength": 1.0}, 1), ("ddib", {"steps": 50}, 1)]
    assert found["break_even_sdedit"] == pytest.approx(10.0) and "break_even_ddib" not in found, "never pays"
    assert found["seconds_ddib"] == 0.5 and found["evaluations_sdedit"] == 100
    assert (found["training"], found["step"], found["search"]) == (30.0, 10.0, 10.0)
