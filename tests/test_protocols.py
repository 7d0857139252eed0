"""Every protocol from the command line on a tiny world: made, measured, interrupted, continued."""

import json
import shutil
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sdd_jax import evaluate
from sdd_jax.data.sources import ImageData, open_source
from sdd_jax.evals.protocols.benchmarks import read_pairs
from sdd_jax.images import write_png
from sdd_jax.jobs.ccd.data import ConditionConfig, file_condition, heldout_rng, partners_of
from sdd_jax.jobs.protocols import conditions as protocol_conditions
from sdd_jax.jobs.protocols import makers as protocol_makers
from sdd_jax.jobs.protocols import run as protocols
from sdd_jax.jobs.protocols.makers import Maker

pytestmark = pytest.mark.usefixtures("compile_quickly", "array_cache")


def run(*arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def rows(out, name):
    (file,) = out.glob(f"{name}*.jsonl")
    return {row["id"]: row for row in map(json.loads, file.read_text().splitlines()[1:])}


def test_generation(tiny_world, tmp_path):
    run("--protocol=generation", f"--model={tiny_world}", f"--world={tiny_world}", "--benchmark=portraits",
        "--samples=2", "--batch=2", "--steps=1", "--guidance=3", f"--out={tmp_path}")  # fmt: skip
    report = metrics(tmp_path)
    assert report["samples"] == 2 and set(report["metrics"]) == {"world_clip_t", "world_frechet"}
    assert all(np.isfinite(value) for value in report["metrics"].values())
    scores = rows(tmp_path, "scores")
    assert np.mean([row["world_clip_t"] for row in scores.values()]) == report["metrics"]["world_clip_t"]
    images = [np.asarray(Image.open(tmp_path / "images" / f"{i:06d}.png")) for i in range(2)]
    assert images[0].shape == (64, 64, 3) and np.any(images[0] != images[1])
    assert [row["evaluations"] for row in rows(tmp_path, "made").values()] == [2.0] * 2


def test_editing(tiny_world, tmp_path):
    run("--protocol=editing", f"--model={tiny_world}", "--benchmark=portraits", "--method=sdedit", "--option",
        "steps=2", "--samples=3", "--batch=2", f"--out={tmp_path}")  # fmt: skip
    assert set(metrics(tmp_path)["metrics"]) == {"psnr", "ssim"} and len(rows(tmp_path, "scores")) == 3


def stand_in(asked):
    """A maker whose pictures follow from the samples' places, and from the whole batch, which it writes down."""

    def make(items, numbers):
        asked.append(list(numbers))
        levels = np.array(numbers) / 10 + sum(numbers) / 100 - 0.5
        return np.ones((len(items), 64, 64, 3)) * levels[:, None, None, None], 4.0

    return lambda flags: Maker("stand-in", {"batch": flags.batch}, make)


def test_an_interrupted_run_continues_to_the_same_result(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(protocols, "make_maker", stand_in(asked))
    arguments = ["--protocol=inversion", "--model=x", "--benchmark=portraits", "--method=ddib", "--samples=5",
                 "--batch=2"]  # fmt: skip
    run(*arguments, f"--out={tmp_path / 'whole'}")
    assert asked == [[0, 1], [2, 3], [4, 4]], "the last batch is filled up"
    out = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (out / "images" / "000003.png").unlink()
    for name in ("made", "scores"):
        (file,) = out.glob(f"{name}*.jsonl")
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    (out / "metrics.json").unlink()
    asked.clear()
    run(*arguments, f"--out={out}")
    assert asked == [[2, 3], [4, 4]], "in the batches that they were in"
    assert "3 of 5 pictures are there already" in capsys.readouterr().out
    for name in ("metrics.json", *(f"images/{i:06d}.png" for i in range(5))):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert set(metrics(out)["metrics"]) == {"psnr", "ssim"} and metrics(out)["samples"] == 5
    assert evaluate.main([*arguments, f"--out={out}", "--seed=1"]) == 2
    assert "holds results of another run (seed: 0, now 1)" in capsys.readouterr().err


def test_results_made_elsewhere_are_measured(tmp_path, capsys):
    """The degraded portraits themselves as restorations: no model, no weights."""
    first = ["--protocol=restoration", "--benchmark=portraits", "--samples=4", f"--out={tmp_path}"]
    home = protocols.write_benchmark(tmp_path / "benchmark", 4)
    run(*first, f"--results={home / 'degraded'}")
    assert 10 < metrics(tmp_path)["metrics"]["psnr"] < 35
    assert "| restoration, 4 samples | psnr | ssim |" in capsys.readouterr().out
    half = tmp_path / "half"
    write_png(half / "0.png", np.zeros((64, 64, 3), np.uint8))
    assert evaluate.main([*first, f"--results={half}"]) == 2
    assert "has no picture of sample 000001" in capsys.readouterr().err


def test_each_sample_can_bring_its_own_blend(tmp_path, monkeypatch):
    """--blend asks for one sample at a time, with its words; what is made is what was asked."""
    asked = []

    def fake_edit(method, request):
        asked.append((request.source, dict(request.options)))
        return protocol_result(request.image)

    def protocol_result(image):
        from sdd_jax.jobs.editing.methods import EditResult

        return EditResult(image, 4.0)

    class Model:
        source, content_hash, sample_size, downsampling = "model", "hash", 16, 4

    monkeypatch.setattr(protocol_makers, "edit", fake_edit)
    monkeypatch.setattr(protocol_makers, "EditRequest", lambda **fields: type("Request", (), fields))
    monkeypatch.setattr(protocol_makers, "open_model", lambda flags: (Model, {}))
    run("--protocol=editing", "--model=x", "--benchmark=portraits", "--samples=3", "--batch=2", "--blend",
        "--method=p2p", f"--out={tmp_path}")  # fmt: skip
    assert len(asked) == 3 and all(len(source) == 1 for source, _ in asked)
    assert sum("blend_source" in options for _, options in asked) >= 2
    assert metrics(tmp_path)["metrics"]["ssim"] == pytest.approx(1.0)


def test_a_run_restores_what_it_is_given(tiny_world, tmp_path, monkeypatch, capsys):
    """A stand-in for a CCD run that gives its condition back; a run of another condition is refused."""

    class Model:
        source, content_hash, sample_size, downsampling = "model", "hash", 16, 4
        tokenize_2 = None
        tokenize = staticmethod(lambda prompts: np.zeros((len(prompts), 4), np.int32))

    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    network = type("Network", (), {"model": Model, "grid_steps": 50})
    monkeypatch.setattr(protocol_conditions, "read_config", lambda workdir: ConfigDict({"task": "ccd"}))
    monkeypatch.setattr(protocol_conditions, "condition_of", lambda workdir: {"task": "superres"})
    monkeypatch.setattr(protocol_makers, "open_runs", lambda workdirs, weights: (network, {}, {}))
    monkeypatch.setattr(
        protocol_makers, "make_sampler", lambda objective, solver, start: lambda params, frozen, low, *others: low
    )
    arguments = [f"--workdir={tmp_path / 'run'}", "--benchmark=portraits", "--samples=3", "--batch=2", "--steps=4"]
    run("--protocol=restoration", *arguments, f"--out={tmp_path / 'out'}")
    for i in range(3):
        given = np.asarray(Image.open(tmp_path / "out" / "benchmark" / "degraded" / f"{i:06d}.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "images" / f"{i:06d}.png")), given)
    assert {row["evaluations"] for row in rows(tmp_path / "out", "made").values()} == {4.0}
    assert metrics(tmp_path / "out")["settings"]["steps"] == 4
    assert "step 7 hash" in (tmp_path / "out" / "made.jsonl").read_text()
    wide = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for folder in ("low", "high"):
        write_png(tmp_path / folder / "x.png", wide)
    pair = [
        arguments[0],
        f"--data={tmp_path / 'low'}",
        f"--reference={tmp_path / 'high'}",
        f"--out={tmp_path / 'wide'}",
    ]
    run("--protocol=restoration", *pair)
    assert metrics(tmp_path / "wide")["metrics"] == {"ssim": pytest.approx(1.0)}, "equal pictures, so no PSNR either"
    refused(capsys, "--size=30: sides are multiples of 4", "--protocol=restoration", *pair, "--size=30")
    refused(capsys, "--option x=1: runs of ccd, finetune, cm, gd take none", "--protocol=restoration", *pair,
            "--option=x=1")  # fmt: skip
    refused(capsys, "--condition=x: superres reads no second images", "--protocol=restoration", *pair, "--condition=x")
    refused(capsys, "has the condition 'superres': generation takes 'none' runs", "--protocol=generation", *arguments,
            f"--world={tiny_world}", f"--out={tmp_path / 'other'}")  # fmt: skip


def refused(capsys, message, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1, err


def test_options_of_a_method_are_read_before_a_model_is(tmp_path, capsys):
    refused(capsys, "rounds=0: an inversion step", "--protocol=editing", "--method=ddib", "--option=rounds=0",
            "--model=/no/model", "--benchmark=portraits", f"--out={tmp_path / 'out'}")  # fmt: skip


def test_mistakes_are_one_line_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(protocols, "make_maker", lambda flags: Maker("x", {}, lambda *a: pytest.fail("made")))
    base = ["--model=portraits", f"--out={tmp_path / 'out'}"]
    editing, generation = ["--protocol=editing", *base], ["--protocol=generation", *base]
    refused(capsys, "needs --method", *editing, "--benchmark=portraits")
    refused(capsys, "needs --data, or --benchmark=portraits", *editing, "--method=p2p")
    refused(capsys, "needs --csv, or --benchmark=portraits", *generation)
    refused(capsys, "--data is COCO's directory in place of --csv", *generation, "--csv=x", "--data=y")
    refused(capsys, "--steps=0: at least 1", *generation, "--csv=x", "--steps=0")
    refused(capsys, "none.csv: no such file", *generation, "--csv=none.csv")
    refused(capsys, "leave them out", *generation, "--benchmark=portraits", "--csv=x")
    refused(capsys, "ImageReward needs its weights", *generation, "--benchmark=portraits", "--image-reward=x")
    refused(capsys, "--lpips=vgg: give alex or vgg", *editing, "--method=p2p", "--lpips=vgg", "--benchmark=portraits")
    refused(capsys, "nothing to measure with", *generation, "--benchmark=portraits", "--samples=2")
    refused(capsys, "--exported=x needs --model", "--protocol=generation", "--results=y", "--exported=x", base[1])
    (tmp_path / "g.csv").write_text("caption\nx\n")
    refused(capsys, "the benchmark has 1", *generation, f"--csv={tmp_path / 'g.csv'}", "--samples=2")
    refused(capsys, "FID needs --reference", *generation, f"--csv={tmp_path / 'g.csv'}", "--inception=x")
    refused(capsys, "no such weights file", *editing, "--method=p2p", "--benchmark=portraits", "--samples=2",
            "--lpips=alex,none.pth,none.pth")  # fmt: skip
    for flag, whose in (("--steps=4", "generation"), ("--guidance=0", "generation"), ("--solver=ddim", "generation")):
        refused(capsys, f"{flag[: flag.index('=')]} is of {whose}", *editing, "--method=p2p", flag)
    for flag in ("--method=p2p", "--blend", "--condition=x", "--lpips=alex,a,b", "--dinov2=x"):
        refused(capsys, f"{flag.split('=')[0]} is of", *generation, flag)
    elsewhere = ["--protocol=restoration", "--results=x", base[1]]
    unread = "--option=x=1 --steps=4 --solver=ddim --condition=x --revision=x --clip=x --csv=x --size=8"
    for flag in unread.split():
        refused(capsys, f"{flag.split('=')[0]} is of", *elsewhere, flag)
    refused(capsys, "--dtype is of --model: a run keeps its config.dtype", *elsewhere[:1], "--workdir=x", base[1],
            "--dtype=float32")  # fmt: skip
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        refused(capsys, "file is a file, name a directory", *elsewhere[:2], f"--out={tmp_path / out}")
    assert not (tmp_path / "out" / "images").exists()


def test_a_checkpoint_without_torch_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"x")
    home = protocols.write_benchmark(tmp_path / "benchmark", 2)
    refused(capsys, "w.pth is a PyTorch checkpoint: install the torch extra", "--protocol=restoration",
            f"--results={home / 'degraded'}", "--benchmark=portraits", "--samples=2", f"--out={tmp_path}",
            f"--inception={tmp_path / 'w.pth'}")  # fmt: skip


def test_one_sample_has_no_distance_of_distributions(tiny_world, tmp_path, capsys):
    home = protocols.write_benchmark(tmp_path / "benchmark", 1)
    run("--protocol=restoration", f"--results={home / 'degraded'}", "--benchmark=portraits", "--samples=1",
        f"--world={tiny_world}", f"--out={tmp_path}")  # fmt: skip
    assert set(metrics(tmp_path)["metrics"]) == {"psnr", "ssim"}
    assert "one sample has no distribution" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["canny", "inpaint", "depth", "edit"])
def test_a_samples_condition_is_what_training_makes_of_the_same_files(tmp_path, task):
    folders = [tmp_path / "images", tmp_path / "seconds"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        for i in range(2):
            drawn = np.random.default_rng([number, i]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(drawn).save(folder / f"{i}.png")
    config = ConditionConfig(task=task, path=str(folders[1]), thresholds=(100.0, 200.0))
    source = open_source(ImageData(path=str(folders[0]), size=32), partners_of(config))
    items = read_pairs(folders[0], folders[0], folders[1])
    for i, item in enumerate(items):
        want = file_condition(config)(source[i], heldout_rng(i)).condition
        np.testing.assert_allclose(protocol_conditions.read_condition(item, i, config, 32), want, atol=1e-6)
