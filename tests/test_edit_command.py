"""`python -m sdd_jax.edit` on the tiny world: pictures, tables, and users' mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sdd_jax import edit
from sdd_jax.data.edit_pairs import edit_pairs
from sdd_jax.evals.editing import CEILING
from sdd_jax.jobs.editing import methods as editing
from sdd_jax.jobs.editing.methods import EditResult
from sdd_jax.jobs.editing.report import Editor
from sdd_jax.jobs.icd import edit_measures

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures, larger than the model's, one of them wide."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (80, 80, 3)), ("b", (70, 100, 3))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_a_batch_of_pictures_of_another_size(tiny_world, pictures, tmp_path, capsys):
    arguments = ["--method=masactrl", f"--model={tiny_world}", f"--out={tmp_path / 'x' / 'out.png'}", "--size=64x32"]
    arguments += ["--image", *(str(pictures / f"{name}.png") for name in "ab"), "--source", "a cat", "a dog"]
    assert edit.main([*arguments, "--target", "a lion", "--beside", "--option", "steps=2"]) == 0
    with Image.open(tmp_path / "x" / "out.png") as image:
        assert image.size == (4 * 64 + 3 * 2, 32)
        first = np.asarray(image)[:, :64]
    want = edit.read_image(pictures / "a.png", (32, 64))
    np.testing.assert_allclose(first, (want + 1) * 127.5, atol=0.51)
    assert "masactrl: 10 evaluations an image" in capsys.readouterr().out


def copy(request):
    """A method that changes nothing."""
    return EditResult(request.image, 1.0)


def invert(request):
    """A method that changes everything, as often as it is told."""
    return EditResult(-request.image, float(request.options["evaluations"]) / len(request.image))


def test_methods_on_portraits(tiny_world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(editing, "METHODS", {name: f"test_edit_command:{name}" for name in ("copy", "invert")})
    monkeypatch.setattr(edit, "METHODS", editing.METHODS)
    arguments = ["--method=copy,invert", f"--model={tiny_world}", f"--world={tiny_world}", f"--out={tmp_path}"]
    arguments += ["--benchmark=portraits", "--samples=2", "--edits=accessory=hat,weather=snowing", "--batch=3"]
    assert edit.main([*arguments, "--option", "invert.evaluations=6"]) == 0
    report = json.loads((tmp_path / "editing.json").read_text())
    assert list(report["rows"]) == ["source", "autoencoder", "copy", "invert"]
    assert list(report["rows"]["copy"]) == ["all", "accessory=hat", "weather=snowing"]
    source, copied, inverted = (report["rows"][name]["all"] for name in ("source", "copy", "invert"))
    assert source.items() < copied.items() and source["psnr_outside"] == CEILING > inverted["psnr_outside"]
    assert copied["evaluations"] == 1 and inverted["evaluations"] == 2 and copied["seconds"] > 0
    parts = [report["rows"]["invert"][edit]["psnr"] for edit in report["edits"]]
    assert inverted["psnr"] == pytest.approx(np.mean(parts))
    assert "| invert |" in capsys.readouterr().out and (tmp_path / "editing.png").is_file()


def remember(request):
    """A method that counts what it made once for all requests of the same pictures."""
    request.kept["made"] = request.kept.get("made", 0) + 1
    return EditResult(request.image, float(request.kept["made"]))


def test_methods_are_measured_for_tables(tiny_world, tiny_model, monkeypatch):
    known = {name: f"test_edit_command:{name}" for name in ("copy", "invert", "remember")}
    monkeypatch.setattr(editing, "METHODS", known)
    monkeypatch.setattr(edit_measures, "load", lambda name: tiny_model)
    where = {"model": str(tiny_world), "world": str(tiny_world)}
    asked = {**where, "samples": 2, "edits": ("accessory=hat", "weather=snowing")}
    found = {name: edit_measures.editing(None, 0, {**asked, "method": name}) for name in ("source", "copy")}
    assert found["source"].items() < found["copy"].items() and found["copy"]["success"] == np.mean(
        [found["copy"][f"success, {edit}"] for edit in asked["edits"]]
    )
    curve = edit_measures.editing_curve(None, 1, {**where, "samples": 1, "method": "invert", "points": POINTS})
    assert curve["evaluations@0.2"] == 3 * curve["evaluations@0.4"] > 0 and "seconds" in found["copy"]
    assert not [name for name in curve if name.startswith("seconds")], "points share work"
    shared = edit_measures.editing_curve(None, 1, {**where, "samples": 1, "method": "remember", "points": POINTS})
    assert shared["evaluations@0.4"] > shared["evaluations@0.2"], "a batch is kept from point to point"
    pairs = edit_pairs(("accessory=hat",), 2)
    np.testing.assert_array_equal(edit_measures.answers(None, 0, {**asked, "method": "copy"}, pairs), pairs.image)
    with pytest.raises(ValueError, match="options.point is not a field of EditingOptions"):
        edit_measures.editing(None, 0, {**asked, "method": "copy", "point": 1})


POINTS = {"0.2": {"evaluations": 36}, "0.4": {"evaluations": 12}}


def test_options_belong_to_methods(tiny_model):
    options = {"p2p.cross": 0.2, "steps": 4}
    editor = Editor(model=tiny_model[0], frozen={}, methods=("p2p", "ddib"), options=options)
    assert editor.options_of("p2p") == {"cross": 0.2, "steps": 4} and editor.options_of("ddib") == {"steps": 4}
    with pytest.raises(ValueError, match="--option p2p.cross: 'p2p' is not among the methods ddib"):
        dataclasses.replace(editor, methods=("ddib",)).options_of("ddib")


def test_frames_are_a_strip_or_a_gif(tmp_path):
    frames = np.random.default_rng(0).uniform(-1, 1, (3, 2, 8, 8, 3))
    edit.write_frames(tmp_path / "a" / "way.png", frames)
    with Image.open(tmp_path / "a" / "way.png") as strip:
        assert strip.size == (3 * 10 - 2, 2 * 10 - 2)
    edit.write_frames(tmp_path / "way.gif", frames)
    with Image.open(tmp_path / "way.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (18, 8)


def test_options_are_numbers_or_words():
    texts = ["steps=20", "tau=.5", "ramp_to=none", "layers=up_blocks_1/", "emphasis=hat:2", "x=True"]
    want = {"steps": 20, "tau": 0.5, "ramp_to": None, "layers": "up_blocks_1/", "emphasis": "hat:2", "x": True}
    assert edit.parse_options(texts) == want


def test_mistakes(one_line, tiny_world, pictures, tmp_path):
    picture = ["--image", pictures / "a.png", "--target", "a dog"]
    where = [f"--model={tiny_world}", f"--out={tmp_path / 'out.png'}"]
    cases = [
        (["--method=p3p", *picture], "--method=p3p is no editing method; use icd"),
        (["--method=p2p,npi", *picture], "one image is edited by one method; several need --benchmark"),
        (["--method=p2p"], "--image and --target: say what to edit"),
        (["--method=p2p", "--image", tmp_path / "no.png", "--target", "x"], "no.png: no such image"),
        (["--method=p2p", *picture, "--source", "a", "b"], "--source: 2 prompts for 1 images"),
        (["--method=p2p", *picture, "--option", "steps"], "--option steps: give it as key=value"),
        (["--method=p2p", *picture, "--size=63"], "--size=63: give a side, or WIDTHxHEIGHT, in multiples of 8"),
        (["--method=p2p", *picture, "--size=big"], "--size=big: give a side"),
        (["--method=p2p", *picture, "--frames=x.mp4"], "--frames=x.mp4: name a .png strip or a .gif"),
        (["--method=icd", *picture], "icd edits with a run of stage 2: name it as --workdir"),
        (["--method=manipulate", *picture], "manipulate edits with a run of sdd or clip_guidance"),
        (["--method=ddib", *picture, "--option", "strength=1"], "--option.strength is not a field of Inversion"),
        (["--method=ddib", *picture, "--benchmark=portraits"], "--benchmark has its own images and prompts"),
        (["--method=ddib", "--benchmark=portraits", "--edits=hat"], "'hat' is no edit of a portrait"),
        (["--method=ddib", "--benchmark=portraits", "--samples=0"], "--samples=0, --batch=16: ask for at least one"),
    ]
    for arguments, message in cases:
        assert message in one_line(edit, *arguments, *where), message
    assert not (tmp_path / "out.png").exists()
    line = one_line(edit, "--method=p2p", *picture, f"--workdir={tmp_path}", where[1])
    assert "holds no run" in line
