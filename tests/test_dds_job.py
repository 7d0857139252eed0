"""A translator from its config to a picture: data, one tiny run, evaluation, one-pass edits and export."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax import edit as edit_command
from sdd_jax import evaluate, export, jobs
from sdd_jax import main as entry
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data import portraits
from sdd_jax.evals.editing import COLUMNS
from sdd_jax.jobs.dds import job as dds_job
from sdd_jax.jobs.dds import report as dds_report
from sdd_jax.jobs.dds.data import (
    MatchingPortraits,
    TranslationData,
    TranslationTask,
    check_tasks,
    exact_moments,
    matching_indices,
    open_stock,
    translated,
)
from sdd_jax.jobs.dds.pairs import batch_size, distinct_pairs, joined, task_pairs
from sdd_jax.jobs.editing import models
from sdd_jax.jobs.editing.methods import EditRequest, edit, frozen_of
from sdd_jax.models.translator import load_translator
from sdd_jax.runs import open_run
from sdd_jax.train import EngineConfig

CONFIG = Path(__file__).parents[1] / "configs" / "dds_translate.py"
SMALL = ["steps=2", "batch_size=2", "checkpoint_every=2", "preview_every=2", "data.count=4", "compile_cache=",
         "ema=0.5", "optimizer.warmup_steps=0", "optimizer.learning_rate=0.01"]  # fmt: skip
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory):
    """The workdir of a finished run of two steps."""
    workdir = tmp_path_factory.mktemp("run") / "dds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "array_cache"))
        patch.setattr(dds_job, "PREVIEW", 2)
        overrides = [f"--config.{text}" for text in [*SMALL, f"model={tiny_world}"]]
        assert entry.main([f"--config={CONFIG}:debug", f"--workdir={workdir}", *overrides]) == 0
    return workdir


@pytest.fixture(scope="module")
def opened(finished):
    return open_run(finished)


def test_a_row_holds_a_task_and_both_captions(tiny_model, array_cache, monkeypatch):
    bundle, params = tiny_model
    tasks = [TranslationTask(target="lion"), TranslationTask(target="white fur")]
    data = TranslationData(count=3, only="cat")
    stock = open_stock(data, bundle, frozen_of(bundle, params), 0)
    monkeypatch.setattr(portraits, "image", lambda index: pytest.fail("rendered again, where only latents are read"))
    transform = translated(bundle, stock, tasks)
    rows = [transform(stock.source[i % 3], np.random.default_rng(i)) for i in range(12)]
    assert {int(row["task"]) for row in rows} == {0, 1}
    for i, row in enumerate(rows):
        attributes = portraits.portrait(stock.source[i % 3]["index"]).attributes
        assert attributes.species == "cat"
        edit_of = [("species", "lion"), ("hair", "white")][int(row["task"])]
        changed = portraits.counterfactual(portraits.portrait(stock.source[i % 3]["index"]), *edit_of).attributes
        captions = [portraits.caption(changed), portraits.caption(attributes)]
        np.testing.assert_array_equal([row["input_ids"], row["source_ids"]], bundle.tokenize(captions))
        assert row["moments"].shape == (16, 16, 8) and row["moments"].dtype == np.float32


def test_portraits_are_chosen_by_what_they_share():
    indices = MatchingPortraits("heldout", 5, "a smiling cat").indices
    assert len(indices) == 5 and indices[0] in portraits.split_indices("heldout")
    for i in indices:
        attributes = portraits.portrait(i).attributes
        assert (attributes.species, attributes.expression) == ("cat", "smiling")
    every = matching_indices("train")
    assert [next(every) for _ in range(3)] == list(portraits.split_indices("train")[:3])
    with pytest.raises(ValueError, match="the split 'heldout' has"):
        MatchingPortraits("heldout", 10_001)


def test_words_are_replaced_or_appended():
    task = TranslationTask(source="cat", target="lion")
    assert task.edit("a photo of a Cat, a catalogue") == "a photo of a lion, a catalogue"
    assert task.edit("a photo of a dog") == "a photo of a dog, lion"
    assert TranslationTask(target="snow", phrase="a snowy day").edit("") == "a snowy day"
    assert TranslationTask(target="snow").edit("") == "snow"


def test_the_teachers_samples_are_drawn_once(tiny_model, array_cache, monkeypatch):
    bundle, params = tiny_model
    frozen = frozen_of(bundle, params)
    data = TranslationData(source="teacher", count=3, captions=("a cat", "a dog"), sampling_steps=2, sampling_batch=2)
    stock = open_stock(data, bundle, frozen, 0)
    assert len(stock.source) == 3 and [stock.caption(stock.source[i]) for i in range(3)] == ["a cat", "a dog", "a cat"]
    assert stock.edited(stock.source[0], TranslationTask(source="cat", target="lion")) == "a lion"
    first = stock.source[0]["latents"]
    assert first.shape == (16, 16, 4) and np.isfinite(first).all() and np.abs(first - stock.source[2]["latents"]).max()
    monkeypatch.setattr("sdd_jax.jobs.dds.data.sample", lambda *_: pytest.fail("drawn again"))
    np.testing.assert_array_equal(open_stock(data, bundle, frozen, 0).source[0]["latents"], first)
    moments = stock.inputs(stock.source[0])["moments"]
    np.testing.assert_allclose(moments[..., :4] * bundle.latent_scale, first, rtol=1e-3)
    assert np.all(moments[..., 4:] == -30) and exact_moments({"latents": first}, 1.0)["moments"].dtype == np.float32


def test_captions_of_samples_are_portraits_where_none_are_given(tiny_model, array_cache):
    bundle, params = tiny_model
    data = TranslationData(source="teacher", count=2, only="cat", sampling_steps=2, sampling_batch=2)
    stock = open_stock(data, bundle, frozen_of(bundle, params), 0)
    text = stock.edited(stock.source[1], TranslationTask(target="bear"))
    assert " cat " in stock.caption(stock.source[1]) and " bear " in text


def test_a_folder_of_pictures(tiny_world, tmp_path, array_cache):
    for i in range(2):
        Image.new("RGB", (80, 70), (60 * i, 100, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a photo of a cat")
    overrides = [*SMALL, f"model={tiny_world}", "data.source=folder", f"data.path={tmp_path}"]
    job = jobs.build(load_config(str(CONFIG), overrides, defaults_of(EngineConfig)))
    batch = next(job.stream(0))
    assert batch["image"].shape == (2, 64, 64, 3) and str(tmp_path) in job.name
    model = job.objective.model
    np.testing.assert_array_equal(batch["source_ids"], model.tokenize(["a photo of a cat"] * 2))
    names = sorted(job.config.tasks)
    said = [f"a photo of a {names[k]}" for k in batch["task"]]
    np.testing.assert_array_equal(batch["input_ids"], model.tokenize(said))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=disk"], "config.data: source='disk' is not known; use portraits, teacher, folder"),
        (["data.source=folder"], "config.data: source='folder' needs a path"),
        (["data.only=unicorn"], "config.data: only='unicorn' names no attribute"),
        (["data.sampling_steps=0"], "config.data: cannot sample in 0 steps"),
        (["tasks.dog.target=unicorn"], "config.tasks.dog.target='unicorn' names no attribute of portraits"),
        (["tasks.dog.target="], "config.tasks.dog: target='' says nothing"),
        (["objective.output=delta"], "config.objective.output='delta' is not known"),
        (["objective.timesteps=none.json"], "timesteps=none.json: no such file"),
    ],
)
def test_a_mistake_is_named_before_weights_are_read(monkeypatch, overrides, message):
    monkeypatch.setattr("sdd_jax.jobs.dds.job.load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        jobs.build(load_config(str(CONFIG), overrides, defaults_of(EngineConfig)))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_searchs_timesteps_are_trained_on(tiny_world, tmp_path):
    path = tmp_path / "hqs.json"
    path.write_text('{"selected": [500, 300]}')
    overrides = [*SMALL, f"model={tiny_world}", f"objective.timesteps={path}"]
    job = jobs.build(load_config(str(CONFIG), overrides, defaults_of(EngineConfig)))
    assert job.objective.timesteps == (300, 500)


def test_no_tasks():
    with pytest.raises(ValueError, match="config.tasks is empty"):
        check_tasks({}, TranslationData())


def test_the_run_left_what_it_says(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for name in ("loss", "score", "change", "guidance", "identity_weight"):
        assert all(np.isfinite(line[name]) for line in lines), name
    assert lines[0]["change"] == 0 and lines[1]["change"] > 0, "a residual translator starts as the identity"
    assert lines[0]["guidance"] == 1 and lines[1]["guidance"] == 3
    with Image.open(finished / "samples" / "00000002.png") as grid:
        assert grid.height > 5 * 64


def test_one_pass_edits_from_the_run_and_from_its_export(finished, opened, tiny_world, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    common = ["--method=translate", f"--image={tmp_path / 'in.png'}"]
    assert export.main([f"--workdir={finished}", f"--out={tmp_path / 'out'}"]) == 0
    for where, name in ((f"--workdir={finished}", "run"), (f"--model={tmp_path / 'out'}", "export")):
        assert edit_command.main([*common, where, "--target=lion", f"--out={tmp_path / name}.png"]) == 0
    run, exported = (np.asarray(Image.open(tmp_path / f"{name}.png"), int) for name in ("run", "export"))
    assert np.abs(run - exported).max() <= 1
    capsys.readouterr()
    assert edit_command.main([*common, f"--workdir={finished}", "--target=cow", f"--out={tmp_path / 'x.png'}"]) == 2
    assert "--target='cow' is no task of this translator; use bear, dog, lion, squirrel" in capsys.readouterr().err

    job, params, _ = opened
    translator, found, parts, tasks = load_translator(tmp_path / "out")
    assert tasks == ("bear", "dog", "lion", "squirrel") and translator.output == job.objective.output
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, params)
    model, frozen = dds_job.editing_model(job, params)
    images = np.stack([pixels, pixels]).astype(np.float32) / 127.5 - 1
    request = EditRequest(model=model, frozen=frozen, image=images, source=("", ""), target=("lion", "dog"))
    result = edit("translate", request)
    assert result.evaluations == 1 and np.abs(result.image[0] - result.image[1]).max() > 0, "each image has its task"
    captions = dataclasses.replace(request, target=("a dog", "two dogs"), options={"task": "lion"})
    for image in edit("translate", captions).image:
        np.testing.assert_allclose(image, result.image[0], atol=1e-5)
    with pytest.raises(ValueError, match="--option task='cow' is no task of this translator"):
        edit("translate", dataclasses.replace(request, options={"task": "cow"}))


def test_the_editing_protocol_takes_captions(finished, opened, tmp_path, monkeypatch, capsys):
    """Portraits' captions name no task: it comes as an option."""
    monkeypatch.setattr(models, "open_run", lambda workdir: opened)
    arguments = ["--protocol=editing", "--method=translate", f"--workdir={finished}", "--benchmark=portraits"]
    arguments += ["--samples=2", "--batch=2", f"--out={tmp_path}"]
    assert evaluate.main([*arguments, "--option=task=lion"]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["samples"] == 2 and set(report["metrics"]) == {"psnr", "ssim"}
    made = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    assert "step 2" in made[0]["settings"]["model"] and [row["evaluations"] for row in made[1:]] == [1, 1]
    with Image.open(tmp_path / "images" / "000001.png") as image:
        assert image.size == (64, 64)
    assert evaluate.main([*arguments[:-1], f"--out={tmp_path / 'x'}"]) == 2
    assert "is no task of this translator; use bear, dog, lion, squirrel" in capsys.readouterr().err


def test_evaluate_measures_and_writes(finished, tiny_world, capsys):
    assert evaluate.main([f"--workdir={finished}", "--samples=8", f"--world={tiny_world}"]) == 0
    out = capsys.readouterr().out
    assert "| all tasks |" in out and "One image:" in out
    report = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert list(report["rows"]) == ["bear", "dog", "lion", "squirrel", "all tasks", "source", "answer, autoencoder"]
    for row in report["rows"].values():
        assert set(row) == {*COLUMNS, "clip", "diversity"}
    assert (finished / "evaluation" / "grid.png").is_file()
    assert evaluate.main([f"--workdir={finished}", "--samples=4", f"--world={tiny_world}"]) == 2
    assert evaluate.main([f"--workdir={finished}", "--steps=4", f"--world={tiny_world}"]) == 2
    err = capsys.readouterr().err
    assert "--samples=4: evaluate takes two portraits a task" in err and "leave --steps and --guidance out" in err


def test_what_has_no_outside_is_null_in_json(finished, tiny_world, monkeypatch):
    """Night changes every pixel."""
    figures = {**dict.fromkeys((*COLUMNS, "clip", "diversity"), 0.5), "psnr_outside": float("nan")}
    monkeypatch.setattr(dds_report, "make_measure", lambda *_: lambda images, pairs: figures)
    monkeypatch.setattr(dds_report, "run_edits", lambda method, model, frozen, pairs, *_: pairs.image)
    monkeypatch.setattr(dds_report, "measure_seconds", lambda run: 1.0)
    found = dds_report.evaluate(finished, 8, world=str(tiny_world))
    strict = json.loads((finished / "evaluation" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert strict["rows"]["lion"]["psnr_outside"] is None and strict["rows"]["lion"]["psnr"] == 0.5
    assert np.isnan(found["rows"]["lion"]["psnr_outside"])


def test_a_tables_row_times_editors_in_its_own_process(finished, tiny_world, monkeypatch):
    """Of evaluate's rows those of all tasks; SDEdit and PnP run on one image beside the translator."""
    calls, times = [], iter((0.1, 0.06, 8.0, 2.0))
    run_edits = dds_report.run_edits

    def edits(method, model, frozen, pairs, target, seed, options=None):
        calls.append((method, len(pairs.image), dict(options or {})))
        return run_edits(method, model, frozen, pairs, target, seed, options) if method == "translate" else pairs.image

    def seconds(run):
        run()
        return next(times)

    monkeypatch.setattr(dds_report, "run_edits", edits)
    monkeypatch.setattr(dds_report, "measure_seconds", seconds)
    options = {"samples": 8, "world": str(tiny_world), "strengths": [0.5, 0.0]}
    found = dds_report.translation(finished, 0, {**options, "timed": True})
    assert {name.partition("@")[2] for name in found if name.startswith("psnr@")} == {"0", "0.5", "1"}
    assert found["psnr@1"] == found["psnr"] and found["success@1"] == found["success"]
    assert calls.count(("translate", 2, {"strength": 0.5})) == 4, "each task's portraits"
    assert [call for call in calls if call[0] != "translate"] == [
        ("sdedit", 1, {"steps": 50, "strength": 1.0}), ("pnp", 1, {"steps": 50})
    ]  # fmt: skip
    assert (found["seconds"], found["seconds_sdedit"], found["seconds_pnp"]) == (0.1, 8.0, 2.0)
    assert found["speedup"] == pytest.approx(80) and found["seconds_autoencoder"] == 0.06
    assert found["speedup_latents"] == pytest.approx((8 - 0.06) / 0.04), "both without the autoencoder's passes"
    assert {f"success_{name}" for name in ("bear", "dog", "lion", "squirrel")} < set(found) and "diversity" in found
    times = iter((0.1, 0.06))
    alone = dds_report.translation(finished, 0, {**options, "strengths": []})
    assert "seconds_sdedit" not in alone and not any("@" in name for name in alone)
    with pytest.raises(ValueError, match="options.sample is not a field of TranslationOptions"):
        dds_report.translation(finished, 0, {"sample": 8})


def test_every_pair_has_a_portrait_of_its_own():
    """The tables' 72 are 72 individuals, so that no permuted caption is its own picture's."""
    pairs = distinct_pairs(count=8)
    assert len(pairs.index) == len(set(pairs.index.tolist())) == 72 and max(pairs.index) < pairs.index[0] + 200
    assert [pairs.edits.count(edit) for edit in dict.fromkeys(pairs.edits)] == [8] * 9
    assert not np.any(pairs.labels[np.arange(72), pairs.attribute] == pairs.value), "each lacks what it is to get"
    with pytest.raises(ValueError, match="0 pairs of 9 edits"):
        distinct_pairs(count=0)


@pytest.mark.parametrize(("count", "size"), [(72, 24), (64, 16), (32, 16), (18, 18), (1, 24), (67, 24)])
def test_batches_of_one_size_where_there_is_one(count, size):
    assert batch_size(count, 24) == size


def test_pairs_of_a_task_lack_what_it_puts_in():
    pairs = joined([task_pairs(TranslationTask(target=target), "cat", 2) for target in ("lion", "white fur")])
    assert pairs.edits == ("species=lion",) * 2 + ("hair=white",) * 2
    assert all(" cat " in text for text in pairs.source)
    for i, index in enumerate(pairs.index):
        source = portraits.portrait(int(index))
        assert source.attributes.species == "cat" and source.attributes.hair != "white" or i < 2
    assert jnp.all(pairs.mask.max((1, 2, 3)) == 1)


def test_a_diverged_edit_is_no_figure():
    """What may be lacking is named; a success of pictures that are not numbers is none."""
    assert dds_report.finite({"psnr": 1.0, "psnr_outside@0.5": float("nan")}) == {"psnr": 1.0}
    with pytest.raises(ValueError, match=r"psnr@15 are not finite: an edit diverged"):
        dds_report.finite({"psnr@15": float("nan"), "success@15": 0.1})
