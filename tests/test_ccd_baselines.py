"""The chains of CCD's baselines, run to run: GD -> GD -> fine-tuning -> CM, on states that are saved, not trained."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from saved_run import CONFIGS, save_run

from sdd_jax import evaluate, export, jobs, sample
from sdd_jax.config import defaults_of, load_config
from sdd_jax.data.conditions import random_mask
from sdd_jax.jobs.ccd import conditional
from sdd_jax.jobs.ccd import report as ccd_report
from sdd_jax.jobs.ccd import runs as ccd_runs
from sdd_jax.jobs.ccd.data import heldout_rng
from sdd_jax.jobs.protocols.exported import open_exported_network
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.jobs.protocols.makers import make_maker
from sdd_jax.models.card import read_record
from sdd_jax.models.save import save
from sdd_jax.runs import open_run
from sdd_jax.train import EngineConfig

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def chain(tiny_world, tmp_path_factory):
    """{name: (workdir, saved parameters)} of a GD chain, and of adapter-only fine-tunings and a CM."""
    root = tmp_path_factory.mktemp("chain")
    model, small = f"model={tiny_world}", "adapter.embedding_channels=(4, 4, 8)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditional, "PREVIEW", 1)
        saved = {}

        def save(name, spec, *overrides, seed):
            saved[name] = root / name, save_run(root / name, spec, *overrides, seed=seed)

        save("gd8", "gd.py", model, "objective.guidance_scale=1", seed=1)
        save("gd4", "gd.py:halve", model, f"teacher.workdir={root / 'gd8'}", seed=2)
        save("gd", "finetune.py:gd,canny", model, small, f"teacher.workdir={root / 'gd4'}", seed=3)
        save("tuned", "finetune.py:canny,adapter", model, small, seed=4)
        save("depth", "finetune.py:depth,adapter,t2i", model, seed=5)
        save("hidden", "finetune.py:inpaint,adapter", model, small, seed=7)
        save("cm", "cm.py:adapter", f"teacher.workdir={root / 'tuned'}", seed=6)
        yield saved


@pytest.fixture(scope="module")
def opened(chain):
    """{name: (job, parameters, step)}, read back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditional, "PREVIEW", 1)
        return {name: open_run(workdir) for name, (workdir, _) in chain.items()}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_each_stage_starts_from_the_one_before(chain, opened, tiny_model):
    same(opened["gd8"][0].frozen["teacher"]["unet"], tiny_model[1]["unet"])
    same(opened["gd4"][0].frozen["teacher"]["unet"], chain["gd8"][1]["unet"])
    same(opened["gd"][0].frozen["teacher"]["unet"], chain["gd4"][1]["unet"])
    assert opened["gd"][0].objective.grid_steps == 4 == opened["gd4"][0].objective.grid_steps
    phi = opened["cm"][0].frozen["teacher"]
    same(phi["adapter"], chain["tuned"][1]["adapter"])
    same(phi["unet"], tiny_model[1]["unet"])
    job = opened["cm"][0]
    same(jax.eval_shape(job.objective.init, jax.random.key(0), job.frozen), jax.eval_shape(lambda: opened["cm"][1]))
    prints = [opened[name][0].fingerprint for name in ("gd8", "gd4", "gd", "tuned", "cm")]
    assert len({json.dumps(dict(one), sort_keys=True) for one in prints}) == 5 - 1, "gd8 and tuned share the teacher"


def test_a_changed_stage_is_noticed(chain, tmp_path):
    """A run that was trained on another fine-tuned model than its workdir holds now is refused."""
    workdir = tmp_path / "cm"
    save_run(workdir, "cm.py:adapter", f"teacher.workdir={chain['tuned'][0]}", seed=6)
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["teacher"]["workdir"] = str(chain["gd"][0])
    (workdir / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was trained against another |belongs to another"):
        open_run(workdir)


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ("cm.py", "gd8", "is a 'gd' run: give one of finetune"),
        ("gd.py", "tuned", "is a 'finetune' run: give one of gd"),
        ("finetune.py", "cm", "is a 'cm' run: give one of gd"),
        ("cm.py", "nowhere", "holds no run"),
    ],
)
def test_a_stage_of_the_wrong_kind_is_refused(chain, tmp_path, spec, name, message):
    workdir = chain[name][0] if name in chain else tmp_path
    config = load_config(f"{CONFIGS}/{spec}", [f"teacher.workdir={workdir}"], defaults_of(EngineConfig))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        jobs.build(config)
    assert "\n" not in str(error.value)


def picture(path, value=128):
    Image.fromarray(np.full((40, 50, 3), value, np.uint8)).save(path)
    return path


def test_sampling_a_consistency_model_and_a_composition(chain, opened, tmp_path, capsys, monkeypatch):
    """Two adapters on one teacher, at another size than they were trained on: weight 0 silences one, 1 leaves one as it
    was trained. One run takes a weight too, wherever it starts."""
    monkeypatch.setattr(ccd_runs, "open_run", lambda workdir: opened[workdir.name])
    canny, depth = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 30)
    out = tmp_path / "out.png"
    runs = [f"--workdir={chain['tuned'][0]}", f"--workdir={chain['depth'][0]}"]
    controls = [f"--control={canny}", f"--control={depth}"]

    def drawn(*arguments):
        assert sample.main([*arguments, "--steps=1", "--size=96", f"--out={out}"]) == 0
        with Image.open(out) as image:
            return np.asarray(image, int)

    alone = drawn(runs[0], controls[0])
    halved = drawn(*runs, *controls, "--weight=1", "--weight=0.5", "--beside")
    assert alone.shape == (96, 96, 3) and halved.shape[0] == 96 and halved.shape[1] >= 3 * 96
    assert np.abs(drawn(*runs, *controls, "--weight=1", "--weight=0") - alone).max() <= 1
    assert np.abs(halved[:, -96:] - alone).max() > 10
    assert np.abs(drawn(runs[0], controls[0], "--weight=0.5", "--start=condition") - alone).max() > 10

    assert sample.main([f"--workdir={chain['cm'][0]}", controls[0], "--steps=2", f"--out={out}"]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([*runs, controls[0]], "1 --control for 2 runs with a condition"),
        ([runs[0], f"--workdir={chain['gd'][0]}", *controls], "trained its UNet too"),
        ([runs[0], f"--workdir={chain['cm'][0]}", *controls], "is sampled by consistency, --workdir="),
        ([runs[0], controls[0], "--size=70"], "sides are multiples of 4"),
        ([runs[0], controls[0], "--size=-64"], "--size=-64: give a side in pixels"),
        ([runs[0], controls[0], "--size=0"], "--size=0: give a side in pixels"),
        ([*runs, *controls, f"--mask={canny}"], "is read by runs of inpainting, not of canny, depth: leave it out"),
        ([runs[0], controls[0], "--steps=2000"], "cannot sample in 2000 steps on a grid of 1000"),
    ):
        assert sample.main([*arguments, f"--out={tmp_path / 'none.png'}"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "none.png").exists()


def test_an_adapter_works_on_another_model_of_its_kind(opened, tiny_world, tmp_path):
    """The other model's weights, all of them; refused for a trained UNet and for another architecture."""
    job, params, _ = opened["tuned"]
    model = job.objective.model
    other = jax.tree.map(lambda x: x + 1, {"unet": job.frozen["teacher"]["unet"], "vae": job.frozen["vae"]})
    save(model, {**other, **job.frozen["text"]}, tmp_path / "other")
    found = sample.on_another_model(str(tmp_path / "other"), model, params, job.frozen)
    same(found["teacher"], {"unet": other["unet"]})
    same(found["vae"], other["vae"])
    with pytest.raises(ValueError, match="the run trained its UNet too"):
        sample.on_another_model(str(tiny_world), model, opened["gd"][1], job.frozen)
    with pytest.raises(ValueError, match="is of another architecture"):
        sample.on_another_model("portraits", model, params, job.frozen)


def test_reports_measure_what_each_condition_asks(chain, tiny_world, capsys, monkeypatch):
    monkeypatch.setattr(conditional, "PREVIEW", 1)
    monkeypatch.setattr(ccd_report, "SOLVER_NAMES", {"dpm_solver_pp": "DPM-Solver++"})
    workdir = chain["gd"][0]
    assert evaluate.main([f"--workdir={workdir}", "--samples=2", f"--world={tiny_world}", "--steps=4"]) == 0
    rows = json.loads((workdir / "evaluation" / "metrics.json").read_text())["rows"]
    solvers = ["", ", DPM-Solver++"]
    assert list(rows) == ["condition", *(f"fine-tuned, 4 steps{name}" for name in solvers), "autoencoder"]
    assert rows["fine-tuned, 4 steps, DPM-Solver++"] != rows["fine-tuned, 4 steps"]
    assert all("edges" in row and np.isfinite(row["psnr"]) for row in rows.values())
    assert "| psnr | ssim | clip_distance | frechet | attributes | edges |" in capsys.readouterr().out
    assert (workdir / "evaluation" / "grid.png").is_file()


@pytest.mark.parametrize("name", ["cm", "gd4", "gd"])
def test_exported_baselines_are_put_together_with_their_teacher(chain, opened, tiny_world, tmp_path, name):
    """A CM's card has what its config leaves to the run that it started from."""
    workdir, params = chain[name]
    assert export.main([f"--workdir={workdir}", f"--out={tmp_path}"]) == 0
    flags = parse(["--protocol=generation", f"--model={tiny_world}", f"--exported={tmp_path}", "--csv=x", "--out=x"])
    network, read, frozen = open_exported_network(flags, read_record(tmp_path))
    job = opened[name][0]
    assert type(network) is type(job.objective) and network.adapter == job.objective.adapter
    assert network.grid_steps == job.objective.grid_steps
    same(read["adapter"], params["adapter"])
    same(read["unet"], params.get("unet", job.frozen["teacher"]["unet"]))
    same(frozen["vae"], job.frozen["vae"])
    if name == "gd4":
        settings = make_maker(flags).settings
        assert (settings["start"], settings["steps"]) == ("noise", 4)
    else:
        asked = parse(["--protocol=restoration", *(f"--{k}={getattr(flags, k)}" for k in ("model", "exported", "out"))])
        settings = make_maker(asked).settings
        assert (settings["steps"], settings["solver"]) == (4, "consistency" if name == "cm" else "ddim")
        with pytest.raises(ValueError, match="has the condition 'canny': generation takes 'none' runs"):
            make_maker(flags)


@pytest.fixture
def restore(chain, opened, tmp_path, monkeypatch):
    """Restores with a run of the chain in batches of two: the exit status."""
    monkeypatch.setattr(ccd_runs, "open_run", lambda workdir: opened[workdir.name])

    def call(name, *flags):
        arguments = ["--protocol=restoration", f"--workdir={chain[name][0]}", "--batch=2", f"--out={tmp_path / name}"]
        return evaluate.main([*arguments, *flags])

    return call


def made(out):
    return [json.loads(line) for line in (out / "made.jsonl").read_text().splitlines()]


def drawn(out):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((out / "images").iterdir())])


def test_restoration_fills_in_what_it_hides_and_nothing_else(restore, tmp_path, capsys):
    """The masks are those of `data.conditions`, a sample's own; other guidance or another solver is another run."""
    rng = np.random.default_rng(0)
    for i in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"a cat {i}")
    flags = [f"--data={tmp_path / 'photos'}", "--steps=1"]
    assert restore("hidden", *flags, "--guidance=2", "--solver=dpm_solver") == 0
    out = tmp_path / "hidden"
    settings, *rows = made(out)
    settings = settings["settings"]["settings"]
    assert (settings["guidance"], settings["solver"], settings["steps"]) == (2.0, "dpm_solver", 1)
    assert [(row["target"], row["evaluations"]) for row in rows] == [("a cat 0", 2), ("a cat 1", 2)]
    masks = [random_mask((64, 64), heldout_rng(i)) for i in range(2)]
    assert np.any(masks[0] != masks[1])
    for i, (picture, mask) in enumerate(zip(drawn(out), masks, strict=True)):
        changed = np.any(picture != np.asarray(Image.open(tmp_path / "photos" / f"{i}.png")), -1)
        assert not changed[~mask].any() and changed[mask].mean() > 0.9
    assert set(json.loads((out / "metrics.json").read_text())["metrics"]) == {"psnr", "ssim"}
    for others in (["--solver=dpm_solver"], ["--guidance=2"]):
        assert restore("hidden", *flags, *others) == 2
        assert "holds results of another run (settings: " in capsys.readouterr().err


def test_restoration_reads_pairs_of_files(restore, chain, tmp_path, capsys):
    """Depth maps beside the pictures that they are of; in another order they make other pictures."""
    assert restore("depth", "--benchmark=portraits", "--samples=2", "--steps=1") == 0
    home = tmp_path / "depth" / "benchmark"
    rows = made(tmp_path / "depth")[1:]
    assert [row["target"] for row in rows] == [(home / "images" / f"00000{i}.txt").read_text() for i in range(2)]
    other = tmp_path / "other"
    other.mkdir()
    for i in range(2):
        shutil.copy(home / "depth" / f"00000{1 - i}.png", other / f"00000{i}.png")
    data = [f"--data={home / 'images'}", "--steps=1"]
    assert restore("depth", *data, f"--condition={other}", f"--out={tmp_path / 'swapped'}") == 0
    assert np.any(drawn(tmp_path / "swapped") != drawn(tmp_path / "depth"))
    capsys.readouterr()
    for flags, message in (
        (data, "depth reads pairs of images and config.condition.path='' is no directory: give --condition"),
        ([*data, "--condition=none"], "depth reads pairs of images and 'none' is no directory"),
        ([*data, f"--condition={other}", f"--data={chain['depth'][0]}"], "holds no images"),
        (["--benchmark=portraits", "--condition=x"], "leave them out"),
    ):
        assert restore("depth", *flags, f"--out={tmp_path / 'new'}") == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_few_steps_are_the_methods_own(opened):
    steps = {name: conditional.default_steps(opened[name][0].objective) for name in ("gd8", "gd4", "gd", "tuned", "cm")}
    assert steps == {"gd8": 8, "gd4": 4, "gd": 4, "tuned": 50, "cm": 4}
