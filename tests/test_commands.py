"""One tiny CCD run from the command line to a picture, a table and weights that PyTorch reads; and users' mistakes."""

import json
import os
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from sdd_jax import evaluate, export, sample, train
from sdd_jax import main as entry
from sdd_jax.evals.restoration import COLUMNS
from sdd_jax.jobs.ccd import conditional, runs
from sdd_jax.jobs.protocols.exported import open_exported_network
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.jobs.protocols.makers import make_maker
from sdd_jax.models.card import read_record
from sdd_jax.runs import open_run
from sdd_jax.sampling.generate import initial_noise

CONFIG = Path(__file__).parents[1] / "configs" / "ccd_sr.py"
SMALL = [
    "--config.steps=2", "--config.checkpoint_every=1", "--config.preview_every=2", "--config.data.count=4",
    "--config.adapter.embedding_channels=(4, 4, 8)", "--config.compile_cache=", "--config.ema=0.5",
    "--config.optimizer.warmup_steps=0", "--config.optimizer.learning_rate=0.01",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory):
    """The workdir of a finished run, its last state, and what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "ccd"
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDD_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "array_cache"))
        patch.setattr(conditional, "PREVIEW", 2)
        patch.setattr(conditional, "PREVIEW_STEPS", (1,))
        patch.setattr(entry, "run", lambda job, workdir: kept.append(train.run(job, workdir)) or kept[0])
        arguments = [f"--config={CONFIG}:debug", f"--workdir={workdir}", f"--config.model={tiny_world}", *SMALL]
        assert entry.main(arguments) == 0
    return workdir, kept[0]


@pytest.fixture(scope="module")
def opened(finished):
    """(job, params, step) of the finished run, read back."""
    return open_run(finished[0])


def test_the_run_left_what_it_says(finished, tiny_world):
    workdir, state = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line[name]) for line in lines for name in ("loss", "consistency", "reconstruction"))
    terms = sum(lines[0][name] for name in ("consistency", "reconstruction", "hint"))
    assert terms == pytest.approx(lines[0]["loss"], rel=1e-4)
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["model"] == str(tiny_world) and len(record["fingerprint"]["teacher_hash"]) == 64
    with Image.open(workdir / "samples" / "00000002.png") as grid:
        assert grid.height > 2 * 64
    assert int(state.step) == 2 and int(state.skipped) == 0


def test_a_run_is_read_back_as_its_average(finished, opened):
    _, state = finished
    job, params, step = opened
    assert step == 2 and job.objective.train_unet
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, state.ema)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_sample_writes_a_picture(finished, tmp_path, capsys):
    Image.new("RGB", (20, 30), (200, 100, 50)).save(tmp_path / "low.png")
    arguments = [
        f"--workdir={finished[0]}",
        f"--control={tmp_path / 'low.png'}",
        "--steps=2",
        "--samples=2",
        "--beside",
    ]
    assert sample.main([*arguments, f"--out={tmp_path / 'new' / 'out.png'}", "--prompt=a lion"]) == 0
    with Image.open(tmp_path / "new" / "out.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[0] == 64 and pixels.shape[1] >= 3 * 64
    first, second = pixels[:, 66:130], pixels[:, 132:196]
    assert np.abs(pixels[:, :64].astype(int) - [200, 100, 50]).max() <= 1, "the control comes first"
    assert np.any(first != second), "samples start from their own noise"
    assert "step 2" in capsys.readouterr().out


def test_evaluate_measures_and_writes(finished, tiny_world, capsys):
    workdir = finished[0]
    arguments = [f"--workdir={workdir}", "--samples=4", "--steps=1", f"--world={tiny_world}"]
    assert evaluate.main(arguments) == 0
    report = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert list(report["rows"]) == ["bicubic", "CCD, 1 step", "autoencoder"] and report["samples"] == 4
    for row in report["rows"].values():
        assert set(row) == set(COLUMNS) and all(np.isfinite(value) for value in row.values())
    assert report["rows"]["bicubic"]["psnr"] > 12, "the conditions belong to their originals"
    assert report["rows"]["bicubic"]["psnr"] > report["rows"]["CCD, 1 step"]["psnr"], "two steps restore nothing"
    out = capsys.readouterr().out
    assert "| CCD, 1 step |" in out and (workdir / "evaluation" / "grid.png").is_file()


def test_exported_weights_are_pytorchs(finished, opened, tmp_path):
    """diffusers loads both networks; its ControlNet gives the same residuals as ours."""
    job, params, _ = opened
    assert export.main([f"--workdir={finished[0]}", f"--out={tmp_path / 'out'}"]) == 0
    controlnet = diffusers.ControlNetModel.from_pretrained(tmp_path / "out" / "controlnet").eval()
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    unet = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    kernel = np.asarray(params["unet"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(unet["conv_in.weight"], kernel.transpose(3, 2, 0, 1))
    teacher = np.asarray(job.frozen["teacher"]["unet"]["conv_in"]["kernel"])
    assert np.abs(kernel - teacher).max() > 1e-4, "the trained UNet is exported, not the teacher"

    rng = np.random.default_rng(0)
    z, context = rng.normal(size=(2, 16, 16, 4)), rng.normal(size=(2, 7, 16))
    image = rng.uniform(-1, 1, (2, 64, 64, 3))
    z, context, image = (x.astype(np.float32) for x in (z, context, image))
    t = np.asarray([19, 979])

    @jax.jit
    def ours(params):
        hint = job.objective.adapter.prepare({}, image)
        return job.objective.adapter.residuals(params, hint, z, t, context)

    residuals = ours(params["adapter"])
    nchw = lambda x: torch.from_numpy(x.transpose(0, 3, 1, 2).copy())  # noqa: E731
    with torch.no_grad():
        down, mid = controlnet(
            nchw(z), torch.from_numpy(t), torch.from_numpy(context), nchw(image / 2 + 0.5), return_dict=False
        )
    for found, want in zip((*residuals.down, residuals.mid), (*down, mid), strict=True):
        expected = want.numpy().transpose(0, 2, 3, 1)
        assert np.linalg.norm(expected) > 1e-3
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4


def test_the_exported_run_draws_the_same_image_in_pytorch(opened, tiny_world, tmp_path):
    """diffusers' ControlNet pipeline on unet/ and controlnet/, from the same latents, with trailing DDIM steps. Two
    updates leave a ControlNet that nobody hears: it is made to speak ten times as loud."""
    job, trained, _ = opened
    controlnet = {
        name: jax.tree.map(lambda x: 10 * x, part) if name.startswith("controlnet_") and "cond" not in name else part
        for name, part in trained["adapter"]["controlnet"].items()
    }
    params = {**trained, "adapter": {"controlnet": controlnet}}
    job.export(params, tmp_path)
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        tiny_world,
        unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet"),
        controlnet=diffusers.ControlNetModel.from_pretrained(tmp_path / "controlnet"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    pipe.set_progress_bar_config(disable=True)
    prompts, model = ["a smiling lion", "a cat at night"], job.objective.model
    condition = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    key = jax.random.key(5)
    sampler, ids = conditional.make_sampler(job.objective), model.tokenize(prompts)
    ours = np.asarray(sampler(params, job.frozen, condition, ids, key, 2))
    noise = np.asarray(initial_noise(key, (2, 16, 16, 4)))
    theirs = pipe(
        prompts,
        image=torch.from_numpy(condition.transpose(0, 3, 1, 2) / 2 + 0.5),
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="np",
    ).images
    found = np.clip(ours / 2 + 0.5, 0, 1)
    assert found.std() > 0.01 and np.abs(found - theirs).max() < 0.5 / 255
    silent = {**params, "adapter": jax.tree.map(np.zeros_like, params["adapter"])}
    plain = np.clip(np.asarray(sampler(silent, job.frozen, condition, ids, key, 2)) / 2 + 0.5, 0, 1)
    assert np.abs(plain - theirs).max() > 10 / 255, "the ControlNet is heard"


def test_a_workdir_without_a_run(one_line, finished, tmp_path):
    picture = tmp_path / "x.png"
    Image.new("RGB", (64, 64)).save(picture)
    out = f"--out={tmp_path / 'out'}"
    for command, extra in (
        (sample, [f"--control={picture}", out]), (evaluate, []), (export, [out]),
    ):  # fmt: skip
        assert "holds no run (no config.json)" in one_line(command, f"--workdir={tmp_path}", *extra)
    shutil.copy(finished[0] / "config.json", tmp_path / "config.json")
    assert "has no checkpoint yet" in one_line(export, f"--workdir={tmp_path}", out)
    assert not (tmp_path / "out").exists()


def test_a_missing_control_and_impossible_numbers(one_line, finished, tmp_path):
    where = [f"--workdir={finished[0]}", f"--out={tmp_path / 'out.png'}"]
    assert "no such image" in one_line(sample, *where, f"--control={tmp_path / 'none.png'}")
    (tmp_path / "text.png").write_text("not a picture")
    assert "text.png is not a readable image" in one_line(sample, *where, f"--control={tmp_path / 'text.png'}")
    assert "--samples=0: ask for at least one" in one_line(sample, *where, "--control=x.png", "--samples=0")
    assert "--samples=1: evaluate takes 2 to 10000" in one_line(evaluate, where[0], "--samples=1")
    assert "--steps=1,x: give numbers" in one_line(evaluate, where[0], "--steps=1,x")
    missing = one_line(evaluate, where[0], f"--world={tmp_path}", "--samples=2")
    assert "pretrain_portraits.py:classifier and export them" in missing
    assert not (tmp_path / "out.png").exists()


def test_weights_that_changed_since_are_refused(one_line, finished, tiny_world, tmp_path):
    """A teacher that is truncated, or another one than the run was trained on."""
    world, workdir = tmp_path / "world", tmp_path / "run"
    shutil.copytree(tiny_world, world)
    shutil.copytree(finished[0], workdir)
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["model"] = str(world)
    (workdir / "config.json").write_text(json.dumps(record))
    weights = world / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    out = f"--out={tmp_path / 'out'}"
    assert "was trained against another teacher" in one_line(export, f"--workdir={workdir}", out)
    os.truncate(weights, len(data) // 2)
    assert "is damaged or truncated" in one_line(export, f"--workdir={workdir}", out)
    again = [f"--config={CONFIG}:debug", f"--workdir={tmp_path / 'new'}", f"--config.model={world}", *SMALL]
    assert "is damaged or truncated" in one_line(entry, *again)
    shutil.rmtree(world / "unet")
    assert "unet" in one_line(entry, *again)


def test_an_adapter_for_another_architecture(one_line, tiny_world, tmp_path):
    arguments = [f"--config={CONFIG}:debug", f"--workdir={tmp_path}", f"--config.model={tiny_world}", *SMALL]
    line = one_line(entry, *arguments, "--config.adapter.embedding_channels=(4, 8)")
    assert "config.adapter.embedding_channels=(4, 8) scales by 2" in line


def test_a_finished_workdir_keeps_its_config(one_line, finished, tiny_world):
    arguments = [f"--config={CONFIG}:debug", f"--workdir={finished[0]}", f"--config.model={tiny_world}", *SMALL]
    line = one_line(entry, *arguments, "--config.objective.y_weight=2")
    assert "config.objective has no key 'y_weight'" in line
    assert "belongs to another job: ema" in one_line(entry, *arguments, "--config.ema=0.9")


def test_a_folder_that_cannot_be_read(one_line, tiny_world, tmp_path):
    arguments = [
        f"--config={CONFIG}:debug,adapter",
        f"--config.model={tiny_world}",
        *SMALL,
        "--config.data.source=folder",
    ]
    missing = one_line(entry, *arguments, f"--workdir={tmp_path / 'a'}", f"--config.data.path={tmp_path / 'none'}")
    assert "none is not a directory: set config.data.path" in missing
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a photograph")
    broken = one_line(entry, *arguments, f"--workdir={tmp_path / 'b'}", f"--config.data.path={tmp_path / 'pictures'}")
    assert "x.jpg is not a readable image" in broken


def test_the_restoration_protocol_takes_the_run(finished, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "open_run", lambda workdir: opened)
    arguments = ["--protocol=restoration", f"--workdir={finished[0]}", "--steps=1", "--benchmark=portraits"]
    assert evaluate.main([*arguments, "--samples=2", "--batch=2", f"--out={tmp_path}"]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["samples"] == 2 and set(report["metrics"]) == {"psnr", "ssim"} and report["metrics"]["psnr"] > 3
    made = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    assert "step 2" in made[0]["settings"]["model"] and made[0]["settings"]["settings"]["start"] == "condition"
    assert [row["evaluations"] for row in made[1:]] == [1, 1]
    first, second = (np.asarray(Image.open(tmp_path / "images" / f"{i:06d}.png"), int) for i in range(2))
    assert first.shape == (64, 64, 3) and np.abs(first - second).max() > 0


def test_the_exported_run_is_restored_with(finished, opened, tiny_world, tmp_path):
    """The export on its teacher is the run, and asked as the run is."""
    job, params, _ = opened
    assert export.main([f"--workdir={finished[0]}", f"--out={tmp_path}"]) == 0
    flags = ["--protocol=restoration", f"--model={tiny_world}", f"--exported={tmp_path}", "--benchmark=portraits"]
    parsed = parse([*flags, "--steps=2", "--out=x"])
    network, read, frozen = open_exported_network(parsed, read_record(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, read, params)
    jax.tree.map(np.testing.assert_array_equal, frozen["vae"], job.frozen["vae"])
    assert type(network) is type(job.objective) and network.grid_steps == job.objective.grid_steps
    settings = {"steps": 2, "guidance": 1.0, "solver": "ddim", "start": "condition", "size": 64, "batch": 8}
    assert make_maker(parsed).settings == settings
    with pytest.raises(ValueError, match="--model=portraits is not the teacher of --exported="):
        make_maker(parse([flags[0], "--model=portraits", *flags[2:], "--out=x"]))
