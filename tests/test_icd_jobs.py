"""iCD's jobs on the tiny world: both stages, their reports and measures, an edit, and weights that PyTorch reads."""

import csv
import json
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from icd_runs import STAGE1, STAGE2, build, optimizer_of, write_run
from PIL import Image

import sdd_jax
from sdd_jax import edit, evaluate, export, sample
from sdd_jax.diffusion.timegrid import BOUNDARIES
from sdd_jax.images import to_uint8
from sdd_jax.jobs.editing import models, pictures
from sdd_jax.jobs.editing.methods import EditResult, Static, TrainedScales
from sdd_jax.jobs.icd import guidance_distill as stage1
from sdd_jax.jobs.icd import job as stage2
from sdd_jax.jobs.icd import measures, subjects, teacher
from sdd_jax.jobs.icd import report as icd_report
from sdd_jax.models import lora
from sdd_jax.runs import open_run
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.training.state import create_state
from sdd_jax.training.step import make_train_step

TERMS = ("reverse_cd", "forward_cd", "forward_preservation", "reverse_preservation")
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def runs(tiny_world, tmp_path_factory):
    """Workdirs of a run of stage 1 (all weights) and of stage 2 (LoRA) from it."""
    root = tmp_path_factory.mktemp("icd")
    write_run(build("stage1,debug", f"model={tiny_world}", *STAGE1), root / "1")
    write_run(build("stage2,lora,debug", f"teacher.workdir={root / '1'}", *STAGE2), root / "2")
    return root / "1", root / "2"


@pytest.fixture(scope="module")
def opened(runs):
    """(job, params, step) of both runs, read back; the commands below read the same, so that programs compile once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage1, "PREVIEW", 1)
        patch.setattr(stage1, "PREVIEW_STEPS", 1)
        patch.setattr(stage2, "PREVIEW", 2)
        read = {workdir: open_run(workdir) for workdir in runs}
        for module in (stage1, icd_report, measures, subjects, models, export):
            patch.setattr(module, "open_run", read.__getitem__)
        yield tuple(read.values())


@pytest.mark.parametrize("stage", [0, 1])
def test_a_batch_goes_through_the_training_step(opened, array_cache, stage):
    job = opened[stage][0]
    batch = next(job.stream(0))
    assert {name: value.shape for name, value in batch.items()} == {"moments": (2, 16, 16, 8), "input_ids": (2, 40)}
    optimizer, schedule = optimizer_of(job)

    def run(key, frozen, batch):
        state = create_state(key, job.objective, optimizer, frozen, with_ema=False)
        return state, *make_train_step(job.objective, optimizer, ema_decay=None, schedule=schedule)(
            state, frozen, batch, key
        )

    before, after, metrics = jax.eval_shape(run, jax.random.key(0), job.frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert set(metrics) >= {"loss", *(TERMS if stage else ("relative_rmse",))}
    if stage:
        assert set(before.params) == {"forward", "reverse"} and len(before.opt_state) == 1
        teacher = Path(job.fingerprint["teacher"])
        assert (teacher / "config.json").is_file() and len(job.fingerprint["teacher_hash"]) == 64


def test_alternating_updates_keep_moments_for_each_loss(runs, array_cache):
    """From the config to the step: four phases, each with an optimiser of its own."""
    job = build("stage2,lora,debug", f"teacher.workdir={runs[0]}", *STAGE2, "objective.alternating=true")
    assert len(job.objective.phases) == len(TERMS)
    optimizer, schedule = optimizer_of(job)

    def run(key, frozen, batch):
        state = create_state(key, job.objective, optimizer, frozen, with_ema=False)
        step = make_train_step(job.objective, optimizer, ema_decay=None, schedule=schedule)
        return state, *step(state, frozen, batch, key)

    before, after, metrics = jax.eval_shape(run, jax.random.key(0), job.frozen, next(job.stream(0)))
    assert len(before.opt_state) == len(after.opt_state) == len(TERMS)
    assert {f"phase{index}/{name}" for index, name in enumerate(job.objective.terms)} <= set(metrics)


def test_previews(opened, tmp_path):
    for name, (job, params, step) in zip("12", opened, strict=True):
        job.previews(params, None, job.frozen, step, tmp_path / name)
        with Image.open(tmp_path / name / "00000002.png") as grid:
            assert grid.height >= 4 * 64


def test_stage_2_starts_from_what_stage_1_trained(opened):
    (first, params, _), (second, adapters, _) = opened
    want = first.objective.student_unet(params, first.frozen)
    jax.tree.map(np.testing.assert_array_equal, second.frozen["teacher"]["unet"], want)
    assert np.abs(want["time_embedding"]["cond_proj"]["kernel"]).max() > 1e-4, "the projection is trained"
    assert (
        second.objective.boundaries == BOUNDARIES["2"]
        and second.objective.lora.scale == 4
        and second.objective.lora.targets[1] == "conv1"
    )
    for name in ("forward", "reverse"):
        assert any(np.abs(pair["b"]).max() > 1e-4 for pair in adapters[name].values())


def test_the_student_is_a_model_of_its_own(runs, opened, tmp_path):
    assert export.main([f"--workdir={runs[0]}", f"--out={tmp_path / 'student'}"]) == 0
    model, params = sdd_jax.load(tmp_path / "student")
    assert model.configs["unet"]["time_cond_proj_dim"] == 512
    job, trained, _ = opened[0]
    jax.tree.map(np.testing.assert_array_equal, params["unet"], job.objective.student_unet(trained, job.frozen))
    teacher = stage2.open_teacher(stage2.TeacherConfig(model=str(tmp_path / "student")), jnp.float32, "none")
    assert teacher.content_hash == model.content_hash


def test_exported_adapters_draw_the_same_images_in_pytorch(runs, opened, tmp_path):
    """In diffusers with peft: the reverse model's two jumps from one noise, decoded there, and the forward model's."""
    for workdir, name in zip(runs, ("student", "icd"), strict=True):
        assert export.main([f"--workdir={workdir}", f"--out={tmp_path / name}"]) == 0
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "student" / "vae").eval()
    job, params, _ = opened[1]
    model, frozen = stage2.editing_model(job, params)
    noise = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype(np.float32)
    ids = {"input_ids": jnp.asarray(model.tokenize(["a smiling lion", "a cat at night"]))}
    images, unguided = stage1.heldout_images(2), stage2.scale_over_time(model, 1.0)
    ours = np.asarray(stage2.generate(Static(model), frozen, ids, jnp.asarray(noise), jnp.float32(3.0)))
    our_noise = np.asarray(stage2.invert(Static(model), frozen, ids, images, jnp.asarray(noise), unguided))

    context = torch.from_numpy(np.array(model.embed_text(frozen["text"], ids["input_ids"])[0]))
    acp = np.concatenate([model.alphas_cumprod.astype(np.float64), [1.0]])

    def jumped(name, z, stops, w):
        unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "student" / "unet").eval()
        unet.load_lora_adapter(tmp_path / "icd" / name / "pytorch_lora_weights.safetensors", prefix="unet")
        angles = 1000.0 * (w - 1) * np.exp(-np.arange(256) * np.log(10000.0) / 255)
        embedded = np.concatenate([np.sin(angles), np.cos(angles)])[None].astype(np.float32)
        for t, s in stops:
            eps = unet(z, t, context, timestep_cond=torch.from_numpy(embedded).expand(2, -1), return_dict=False)[0]
            x0 = (z - (1 - acp[t]) ** 0.5 * eps) / acp[t] ** 0.5
            z = acp[s] ** 0.5 * x0 + (1 - acp[s]) ** 0.5 * eps
        return z

    drawn, x = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (noise, images))
    with torch.no_grad():
        z = jumped("reverse", drawn, ((999, 519), (519, -1)), 3.0)
        theirs = vae.decode(z / vae.config.scaling_factor, return_dict=False)[0].numpy().transpose(0, 2, 3, 1)
        start = (
            acp[19] ** 0.5 * vae.encode(x).latent_dist.mean * vae.config.scaling_factor + (1 - acp[19]) ** 0.5 * drawn
        )
        their_noise = jumped("forward", start, ((19, 519), (519, 999)), 1.0).numpy().transpose(0, 2, 3, 1)
    for found, want in ((ours, theirs), (our_noise, their_noise)):
        assert np.linalg.norm(found - want) < 1e-3 * np.linalg.norm(want)
    for name in ("forward", "reverse"):
        leaves = map(jax.tree.leaves, (frozen["teacher"]["unet"], frozen[name]))
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*leaves, strict=True))


def test_protocols_take_a_run(runs, opened, tiny_world, tmp_path, capsys):
    """The reverse model's jumps, from noise that follows from the seed and the sample's place; and there and back."""
    common = ["--benchmark=portraits", "--samples=2", "--batch=2", "--option=tau=0.6"]
    guided = ["--protocol=generation", *common, "--guidance=3", f"--world={tiny_world}", f"--out={tmp_path / 'a'}"]
    assert evaluate.main([*guided, f"--workdir={runs[1]}", "--seed=5"]) == 0
    model, frozen = stage2.editing_model(*opened[1][:2])
    captions = [row["caption"] for row in csv.DictReader((tmp_path / "a/benchmark/generation.csv").open())]
    noise = [jax.random.normal(jax.random.fold_in(jax.random.key(5), i), (16, 16, 4)) for i in range(2)]
    ids = {"input_ids": jnp.asarray(model.tokenize(captions))}
    want = stage2.generate(Static(model), frozen, ids, jnp.stack(noise), jnp.float32(3.0), tau=0.6)
    drawn = [np.asarray(Image.open(tmp_path / "a/images" / f"{i:06d}.png"), int) for i in range(2)]
    assert np.abs(np.stack(drawn) - to_uint8(want)).max() <= 1
    inversion = ["--protocol=inversion", "--method=icd", *common, f"--workdir={runs[1]}", f"--out={tmp_path / 'b'}"]
    assert evaluate.main([*inversion, "--option=guidance=3"]) == 0
    rows = list(csv.DictReader((tmp_path / "b/benchmark/inversion.csv").open()))
    ids = {"input_ids": jnp.asarray(model.tokenize([row["caption"] for row in rows]))}
    images = np.stack([np.asarray(Image.open(tmp_path / "b/benchmark/images" / row["file_name"])) for row in rows])
    images, unguided = images.astype(np.float32) / 127.5 - 1, stage2.scale_over_time(model, 1.0)
    z = stage2.invert(Static(model), frozen, ids, images, initial_noise(jax.random.key(0), (2, 16, 16, 4)), unguided)
    want = stage2.generate(Static(model), frozen, ids, z, jnp.float32(3.0), tau=0.6)
    back = [np.asarray(Image.open(tmp_path / "b/images" / f"{Path(row['file_name']).stem}.png"), int) for row in rows]
    assert np.abs(np.stack(back) - to_uint8(want)).max() <= 1
    assert evaluate.main([*inversion[:-1], f"--out={tmp_path / 'c'}", "--option=cross=0.2"]) == 2
    assert "--option.cross is not a field of SwitchedEdit; fields: guidance, tau" in capsys.readouterr().err
    for out, columns, evaluations in (("a", {"world_clip_t", "world_frechet"}, 2), ("b", {"psnr", "ssim"}, 4)):
        assert set(json.loads((tmp_path / out / "metrics.json").read_text())["metrics"]) == columns
        made = [json.loads(line) for line in (tmp_path / out / "made.jsonl").read_text().splitlines()[1:]]
        assert [row["evaluations"] for row in made] == [evaluations] * 2
    assert evaluate.main([*guided, f"--workdir={runs[0]}"]) == 2
    assert "--option tau: generation takes tau, ramp_to and start, of iCD runs alone" in capsys.readouterr().err


def test_evaluate_measures_both_stages(runs, opened, tiny_world, capsys, monkeypatch):
    monkeypatch.setattr(stage1, "comparison", lambda objective: lambda *_: ([np.zeros((1, 8, 8, 3))], ["as previewed"]))
    assert evaluate.main([f"--workdir={runs[0]}", "--samples=2", "--guidance=1,3"]) == 0
    report = json.loads((runs[0] / "evaluation" / "metrics.json").read_text())["metrics"]
    assert set(report) == {"relative_rmse@1", "relative_rmse@3", "student_f", "teacher_f"}
    assert report["teacher_f"] == 2 and 1 <= report["student_f"] < 1.05, "half the cost"
    assert "| 3 |" in capsys.readouterr().out and (runs[0] / "evaluation" / "grid.png").is_file()
    assert evaluate.main([f"--workdir={runs[1]}", "--samples=2", "--guidance=1", f"--world={tiny_world}"]) == 0
    (row,) = json.loads((runs[1] / "evaluation" / "metrics.json").read_text())["rows"].values()
    drawn = {"attributes", "clip_score", "frechet"}
    assert set(row) == {"psnr", "ssim", "mse", "clip_distance", "latent_mse", "nll", *drawn}
    assert all(np.isfinite(value) for value in row.values()) and "| w = 1 |" in capsys.readouterr().out


def test_schedules_of_a_run_frame_inversion_and_generation(runs, opened, tiny_world):
    """Guidance that never acts is no guidance, and one that always acts is constant."""
    asked = {"samples": 2, "world": str(tiny_world)}
    points = {"0": {"tau": 0.0}, "1": {}}
    found = measures.schedules(runs[1], 0, {**asked, "w": 2.0, "generation": True, "points": points})
    off, constant = (measures.inversion(runs[1], 0, {**asked, "w": w}) for w in (1.0, 2.0))
    for name in ("mse", "psnr", "latent_mse"):
        assert found[f"{name}@0"] == pytest.approx(off[name]) and found[f"{name}@1"] == pytest.approx(constant[name])
    assert found["mse@0"] != found["mse@1"] and found["latent_mse@0"] != found["latent_mse@1"]
    assert found["clip_score@1"] == pytest.approx(measures.generation(runs[1], 0, {**asked, "w": 2.0})["clip_score"])
    assert measures.inversion(runs[1], 1, {**asked, "w": 1.0})["mse"] != off["mse"], "a seed has portraits of its own"
    with pytest.raises(ValueError, match="is a 'guidance_distill' run: this measures runs of iCD's stage 2"):
        measures.inversion(runs[0], 0, asked)


def test_a_run_is_measured_at_its_checkpoints(runs, opened, tiny_world):
    assert measures.checkpoints(runs[1]) == [2]
    params = opened[1][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "open_run", open_run)
        jax.tree.map(np.testing.assert_array_equal, measures.params_at(runs[1], 2), params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "params_at", lambda workdir, step: params)
        found = measures.training(runs[1], 0, {"samples": 2, "world": str(tiny_world), "w": 2.0})
    assert set(found) == {f"{name}@{step}" for name in ("frechet", "mse", "psnr", "latent_mse") for step in (0, 2)}
    assert found["mse@0"] != found["mse@2"], "the start is the untrained student"


def test_edit_takes_both_models_from_a_run(runs, opened, tmp_path, monkeypatch):
    """What the method reads; the method itself is tested in test_edit_methods."""
    picture, asked = tmp_path / "in.png", []
    Image.new("RGB", (64, 64)).save(picture)
    monkeypatch.setattr(pictures, "edit", lambda name, request: asked.append(request) or EditResult(request.image, 6.0))
    arguments = ["--method=icd", f"--workdir={runs[1]}", "--image", str(picture), "--target", "a lion"]
    assert edit.main([*arguments, f"--out={tmp_path / 'out.png'}"]) == 0
    (job, params, _), frozen = opened[1], asked[0].frozen
    assert asked[0].model is job.objective.model and frozen["boundaries"] == BOUNDARIES["2"]
    for name in ("forward", "reverse"):
        merged = lora.merge(frozen["teacher"]["unet"], params[name], job.objective.lora)
        jax.tree.map(np.testing.assert_array_equal, frozen[name], merged)
    assert edit.main([*arguments, f"--out={tmp_path / 'out.png'}", "--option", "tau=0.6", f"--workdir={runs[0]}"]) == 0
    assert asked[1].model.configs["unet"]["time_cond_proj_dim"] == 512 and asked[1].options == {"tau": 0.6}
    assert asked[1].frozen["scales"] == frozen["scales"] == TrainedScales((1.0, 2.0, 3.0, 4.0, 6.0))


def test_sample_with_a_run(runs, opened, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample, "open_run", lambda workdir: dict(zip(runs, opened, strict=True))[workdir])
    arguments = [f"--workdir={runs[1]}", "--prompt=a cat", f"--out={tmp_path / 'out.png'}"]
    assert sample.main([*arguments, "--samples=2", "--guidance=3"]) == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (2 * 64 + 2, 64)
    drawn, draw = [], stage2.generate
    monkeypatch.setattr(stage2, "generate", lambda *a, **when: drawn.append(when) or draw(*a, **when))
    assert sample.main([*arguments, "--samples=2", "--guidance=3", "--tau=0.6", "--ramp-to=0.8"]) == 0
    assert drawn == [{"tau": 0.6, "ramp_to": 0.8}]
    for flag, message in (
        ("--guidance=5", "--guidance=5: this model was trained at 1, 2"),
        ("--size=32", "alone"),
        ("--tau=2", "guidance acts from start=0.0 to tau=2.0"),
        ("--ramp-to=0.5", "a guidance ramp falls from tau=1.0 to ramp_to=0.5"),
    ):
        assert sample.main([*arguments, flag]) == 2 and message in capsys.readouterr().err
    arguments[0] = f"--workdir={runs[0]}"
    for flag in ("--tau=0.6", "--ramp-to=0.8"):
        assert sample.main([*arguments, flag]) == 2
        assert f"{flag}: only runs of iCD are guided dynamically" in capsys.readouterr().err


def test_mistakes_in_the_teacher_and_the_partner(runs, opened, tiny_world, monkeypatch):
    monkeypatch.setattr(teacher, "open_run", lambda workdir: dict(zip(runs, opened, strict=True))[workdir])

    of_run = f"teacher.workdir={runs[0]}"
    cases = [
        (("stage2",), "config.teacher: give either workdir"),
        (("stage2", f"teacher.model={tiny_world}"), "does not read its guidance scale (no time_cond_proj_dim)"),
        (("stage2", f"teacher.workdir={runs[1]}"), "is a 'icd' run: name one of stage 1"),
        (("stage2", of_run, "objective.boundaries=249,999"), "boundaries [249] are not on the solver grid"),
        (("stage2", of_run, "objective.grid_steps=0"), "config.objective.grid_steps=0: a trailing grid of 0 steps"),
        (
            ("stage2", of_run, "objective.scales=(1.0,5.0)"),
            "has w=5: this model was trained at 1, 2, 3, 4, 6",
        ),
        (("stage2", of_run, "objective.boundaries=5_steps"), "config.objective.boundaries='5_steps': use 4_tau0.8"),
        (("forward", of_run), "config.partner.workdir is empty: a preservation loss of the forward model alone"),
        (("stage2", of_run, f"partner.workdir={runs[1]}"), "this run trains both models; leave it empty"),
        (("forward", of_run, f"partner.workdir={runs[1]}"), "has other boundaries or another LoRA"),
        (("forward", of_run, f"partner.workdir={runs[0]}"), "is no iCD run that trained the reverse model"),
        (("stage1", f"model={runs[0]}"), "model_index.json"),
    ]
    for arguments, message in cases:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            build(*arguments)
        assert message in str(error.value) and "\n" not in str(error.value), error.value
    alone = build("reverse", of_run)
    assert alone.objective.trained == ("reverse",) and "reverse from 259" in alone.name
    with pytest.raises(ValueError, match="this iCD run has no forward model"):
        stage2.editing_model(alone, {"reverse": alone.frozen["teacher"]["unet"]})
    partner = [f"partner.workdir={runs[1]}", *STAGE2[3:]]
    with pytest.raises(ValueError, match=r"was trained at config.objective.scales=\(1.0, 2.0, 3.0, 4.0, 6.0\): set"):
        build("forward,lora", of_run, *partner, "objective.scales=(1.0,2.0)")
    forward = build("forward,lora", of_run, *partner)
    assert forward.objective.trained == ("forward",) and set(forward.frozen) >= {"reverse", "teacher"}
