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
from sdd_jax.jobs.editing.options import options_of, takes
from sdd_jax.jobs.editing.pictures import read_image
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
    want = read_image(pictures / "a.png", (32, 64))
    np.testing.assert_allclose(first, (want + 1) * 127.5, atol=0.51)
    assert "masactrl: 10 evaluations an image" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No options."""


@dataclasses.dataclass(frozen=True)
class Told:
    """evaluations: of a request; frames: of the way."""

    evaluations: int = 1
    frames: int = 0


@takes(Nothing)
def copy(request, options):
    """A method that changes nothing."""
    return EditResult(request.image, 1.0)


@takes(Told)
def invert(request, options):
    """A method that changes everything, as often as it is told."""
    return EditResult(-request.image, options.evaluations / len(request.image))


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


@takes(Told)
def remember(request, options):
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


def test_options_belong_to_methods():
    options = {"p2p.cross": 0.2, "steps": 4}
    assert options_of("p2p", ("p2p", "ddib"), options) == {"cross": 0.2, "steps": 4}
    assert options_of("ddib", ("p2p", "ddib"), options) == {"steps": 4}
    with pytest.raises(ValueError, match="--option p2p.cross: 'p2p' is not among the methods ddib"):
        options_of("ddib", ("ddib",), options)


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


SEEN = []


@takes(Told)
def note(request, options):
    """A method that turns pictures into their negatives, in two frames."""
    SEEN.append((request.image.shape, request.target, request.seed, dict(request.options)))
    return EditResult(-request.image, 1.0, np.stack([request.image, -request.image]))


@pytest.fixture
def noting(tiny_model, tmp_path, monkeypatch):
    """(run(*arguments) -> exit status, a directory of three pictures, two of them in another below)."""
    monkeypatch.setattr(editing, "METHODS", {"note": "test_edit_command:note"})
    monkeypatch.setattr(edit, "METHODS", editing.METHODS)
    monkeypatch.setattr(edit, "WITH_FRAMES", ("note",))
    monkeypatch.setattr(edit, "open_model", lambda flags: (tiny_model[0], {}))
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "more/b.jpg", "more/c.png")):
        Image.new("RGB", (16, 16), (80 * i,) * 3).save(folder / name)
    SEEN.clear()
    return lambda *arguments: edit.main(["--method=note", "--size=16", *map(str, arguments)]), folder


def test_a_directory_is_edited_in_batches_of_one_shape(noting, tmp_path):
    """Three pictures, two at once: the last batch is padded, and each answer has its picture's name."""
    run, folder = noting
    targets = ["--target", "x", "y", "z", "--batch=2", "--seed=5"]
    assert run("--image", folder, *targets, f"--out={tmp_path / 'out'}") == 0
    shape = (2, 16, 16, 3)
    assert SEEN == [(shape, ("x", "y"), 5, {}), (shape, ("z", "x"), 7, {})], "no frames where none are asked for"
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    for i, name in enumerate(("a.png", "more/b.png", "more/c.png")):
        with Image.open(found.pop(name)) as image:
            assert image.size == (16, 16) and abs(image.getpixel((8, 8))[0] - (255 - 80 * i)) <= 2
    assert not found

    more = ["--beside", f"--frames={tmp_path / 'way.png'}", "--option=frames=2"]
    pictures = [folder / "a.png", folder / "more"]
    assert run("--image", *pictures, *targets, f"--out={tmp_path / 'grid.png'}", *more) == 0
    assert SEEN[2][3] == {"frames": 2}
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "way.png") as way:
        assert grid.size == (6 * 18 - 2, 16) and way.size == (2 * 18 - 2, 3 * 18 - 2)
        assert [grid.getpixel((18 * k + 8, 8))[0] // 10 for k in (0, 1)] == [0, 25], "the source, then its edit"


@pytest.mark.parametrize(
    ("images", "out", "message"),
    [
        (("pictures", "pictures"), "out", "2 pictures would be answered in"),
        (("pictures",), "pictures", "a.png is a picture that is read; write elsewhere"),
        (("pictures/a.png",), "pictures/a.png", "a.png is a picture that is read; write elsewhere"),
        (("pictures",), "out.jpg", "out.jpg: name a .png, for all answers in a grid, or a directory"),
        (("pictures",), "pictures/a.png/x.png", "is a file, name a directory to write to"),
        (("empty",), "out", "empty: no pictures in it (.png, .jpg"),
        (("damaged.png",), "out", "damaged.png is not a readable image"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_first(noting, tmp_path, capsys, monkeypatch, images, out, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.png").write_text("x")
    monkeypatch.setattr(edit, "open_model", lambda flags: pytest.fail("a model was loaded"))
    assert noting[0]("--image", *(tmp_path / name for name in images), "--target=x", f"--out={tmp_path / out}") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


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
        (["--method=p2p", *picture, "--frames=x.gif"], "--frames: p2p has no way to show, as sds, dds"),
        (["--method=dds", *picture, "--frames=x.gif", "--option=frames=0"], "--option frames=0 leaves out"),
        (["--method=p2p", *picture, "--batch=0"], "--batch=0: edit at least one picture at once"),
        (["--method=icd", *picture], "icd edits with a run of stage 2: name it as --workdir"),
        (["--method=manipulate", *picture], "manipulate edits with a run of sdd or clip_guidance"),
        (["--method=ddib", *picture, "--option", "strength=1"], "--option.strength is not a field of Inversion"),
        (["--method=ddib", *picture, "--benchmark=portraits"], "--benchmark has its own images and prompts"),
        (["--method=ddib", "--benchmark=portraits", "--edits=hat"], "'hat' is no edit of a portrait"),
        (["--method=ddib", "--benchmark=portraits", "--samples=0"], "--samples=0: ask for at least one"),
    ]
    for arguments, message in cases:
        assert message in one_line(edit, *arguments, *where), message
    assert not (tmp_path / "out.png").exists()
    line = one_line(
        edit, "--method=p2p,npi", "--benchmark=portraits", "--option=npi.rounds=0", "--model=/no/model", where[1]
    )
    assert "rounds=0" in line, "options of all methods are read before a model is"
    line = one_line(edit, "--method=p2p", *picture, f"--workdir={tmp_path}", where[1])
    assert "holds no run" in line
