"""The search for timesteps: the command on the tiny world, the same answer however it runs, and users' mistakes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_sdd import FROZEN, Noise, make_model

from sdd_jax import search
from sdd_jax.jobs.sdd import hqs
from sdd_jax.jobs.sdd.hqs import (
    Search,
    TimestepConfig,
    job_search,
    rank_correlation,
    read_search,
    run_search,
    write_search,
)
from sdd_jax.jobs.sdd.hqs_plot import plot_search
from sdd_jax.objectives.hqs import HQSOptions

KEYS = ["prompt", "model", "options", "t", "H", "N", "hqs", "stderr", "selected", "rule"]
TOY = HQSOptions(first=100, last=900, stride=200, images=6, guidance=3.0)
TESTS = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def found():
    return run_search(make_model(), FROZEN, Noise(10), "{caption} y", TOY, "top:2", batch=4)


def test_the_command_writes_scores_and_a_picture(tiny_world, tmp_path, capsys):
    out = tmp_path / "new" / "hqs"
    arguments = [
        f"--model={tiny_world}", "--prompt=a {species} with white {coat}", "--images=2", "--first=200", "--last=800",
        "--stride=300", "--guidance=5", "--rule=top:1", f"--out={out}",
    ]  # fmt: skip
    assert search.main(arguments) == 0
    content = json.loads((out / "hqs.json").read_text())
    assert list(content) == KEYS and content["t"] == [200, 500, 800] and content["rule"] == "top:1"
    assert content["selected"] == [content["t"][int(np.argmax(content["hqs"]))]]
    assert content["prompt"] == "a {species} with white {coat}" and content["options"]["guidance"] == 5
    assert all(-1 <= score <= 1 for score in content["hqs"]) and max(content["H"]) <= np.log(64 * 64 * 3)
    with Image.open(out / "hqs.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
    assert sorted(path.name for path in out.iterdir()) == ["hqs.json", "hqs.png"], "nothing half-written stays"
    assert "0 s left" in capsys.readouterr().out
    assert read_search(out / "hqs.json").selected == tuple(content["selected"])


def test_every_flag_reaches_the_scores(tiny_world, tmp_path, monkeypatch):
    """Each off its default; a rule that finds nothing keeps what was searched."""
    scores = (0.1, 0.2)
    found = Search(prompt="p", model="", options=dataclasses.asdict(TOY), t=(300, 700), H=scores, N=scores, hqs=scores, stderr=scores, selected=(300, 700), rule="all")  # fmt: skip  # noqa: E501
    given = []
    monkeypatch.setattr(search, "run_search", lambda *asked: given.append(asked[4:]) or (found, np.ones((2, 8, 8))))
    flags = [
        "--form=sds", "--space=latent", "--absolute", "--weighted", "--standardize", "--temperature=2", "--draws=3",
        "--seed=4", "--images=6", "--first=300", "--last=700", "--stride=400", "--guidance=5", "--batch=2",
    ]  # fmt: skip
    command = [f"--model={tiny_world}", "--prompt=a cat", f"--out={tmp_path}", *flags, "--rule=threshold:0.5"]
    assert search.main(command) == 2
    options = HQSOptions(
        jacobian=False, pixels=False, absolute=True, weighted=True, standardize=True, temperature=2.0, draws=3, seed=4,
        images=6, first=300, last=700, stride=400, guidance=5.0,
    )  # fmt: skip
    assert given == [(options, "all", 2)]
    assert read_search(tmp_path / "hqs.json").selected == (300, 700) and (tmp_path / "hqs.png").is_file()


def test_the_command_reads_every_source(tiny_world, tmp_path, array_cache, monkeypatch, capsys):
    """The records that the search is handed, of a folder and of shards; what is wrong is one line."""
    given = []
    monkeypatch.setattr(search, "run_search", lambda *options: given.append(options) or pytest.fail("enough"))
    shards, folder = tmp_path / "shards", tmp_path / "folder"
    shards.mkdir(), folder.mkdir()
    with tarfile.open(shards / "0.tar", "w") as tar:
        for i in range(3):
            Image.new("RGB", (20, 12), (40 * i, 0, 0)).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"cat {i}")
            for suffix in ("png", "txt"):
                tar.add(folder / f"{i}.{suffix}", f"{i}.{suffix}")
    command = [f"--model={tiny_world}", "--prompt={caption}, angry", "--images=2", f"--out={tmp_path / 'out'}"]
    for flags in ([f"--data={folder}"], ["--source=tar", f"--data={shards}", "--size=8"]):
        with pytest.raises(pytest.fail.Exception):
            search.main([*command, *flags])
    for (_, _, source, *_), size in zip(given, (64, 8), strict=True):
        assert [source[i]["caption"] for i in range(3)] == ["cat 0", "cat 1", "cat 2"]
        assert source[2]["image"].shape == (size, size, 3) and np.all(source[2]["image"][..., 0] == 80)
    assert search.main([*command, "--source=coco", f"--data={folder}", "--split=val2017"]) == 2
    assert "captions_val2017.json: no such annotations" in capsys.readouterr().err


def test_batches_do_not_change_the_answer(found):
    result, maps = found
    again, _ = run_search(make_model(), FROZEN, Noise(10), "{caption} y", TOY, "top:2", batch=6)
    for name in ("H", "N", "hqs", "stderr"):
        np.testing.assert_allclose(getattr(result, name), getattr(again, name), rtol=1e-4, atol=1e-6)
    assert maps.shape == (5, 8, 8) and result.selected == again.selected and len(result.selected) == 2


def test_seeds_take_other_images_and_memory_holds_one_batch(monkeypatch):
    seen, held = [], []

    class Watched(Noise):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    place = jax.device_put
    monkeypatch.setattr(hqs.jax, "device_put", lambda x, *to: (held.append(np.shape(x)), place(x, *to))[1])
    for seed in (0, 1):
        run_search(make_model(), FROZEN, Watched(12), "y", dataclasses.replace(TOY, seed=seed), "all", batch=3)
    assert seen == list(range(12)), "in order, each once"
    assert [shape for shape in held if shape[1:] == (8, 8, 3)] == [(3, 8, 8, 3)] * 4


def test_processes_search_together_and_read_the_cache_of_the_first(found, tmp_path):
    """Two processes of two devices give what one gives; the batch of 6 images is padded to 8."""
    script = f"""
import sys
from pathlib import Path
from sdd_jax.training.distributed import join_processes
join_processes()
sys.path.insert(0, {str(TESTS)!r})
import jax
from test_search import FROZEN, Noise, TOY, hqs, job_search, make_model, write_search
assert (jax.process_count(), jax.device_count()) == (2, 4)
for name in ("searched", "kept"):
    search = job_search(make_model(), FROZEN, Noise(10), "{{caption}} y", TOY, {{}})
    write_search(Path({str(tmp_path)!r}) / f"{{name}}{{jax.process_index()}}.json", search)
    hqs.run_search = None
"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    running = []
    for index in (0, 1):
        env = {
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index), "SDD_JAX_CACHE": str(tmp_path / f"cache{index}"),
        }  # fmt: skip
        running.append(subprocess.Popen([sys.executable, "-c", script], env=env, cwd=TESTS.parent))
    assert [process.wait(timeout=500) for process in running] == [0, 0]
    one, *others = (read_search(tmp_path / f"{name}{index}.json") for name in ("searched", "kept") for index in (0, 1))
    assert others == [one] * 3
    np.testing.assert_allclose(one.hqs, found[0].hqs, atol=1e-4)
    assert len(list((tmp_path / "cache0").iterdir())) == 1 and not list((tmp_path / "cache1").iterdir())


def test_a_search_survives_its_file(found, tmp_path):
    write_search(tmp_path / "a" / "hqs.json", found[0])
    back = read_search(tmp_path / "a" / "hqs.json")
    assert dataclasses.asdict(back) == dataclasses.asdict(found[0])
    every = back.with_rule("all")
    assert every.selected == back.t and every.hqs == back.hqs
    np.testing.assert_allclose(back.weights("uniform"), 0.5)
    scores = np.asarray([back.hqs[back.t.index(t)] for t in back.selected]) + 1
    np.testing.assert_allclose(back.weights("hqs"), scores / scores.sum(), rtol=1e-6)


def test_every_timestep_has_its_thumbnail(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda axes, shown, **_: drawn.append(shown[0, 0]))
    t = tuple(range(100, 901, 50))
    search = Search(prompt="", model="", options={"images": 1}, t=t, H=t, N=t, hqs=t, stderr=t, selected=t, rule="all")
    plot_search(tmp_path / "hqs.png", search, np.arange(17.0)[:, None, None] * np.ones((1, 4, 4)))
    assert drawn == list(range(17)) and (tmp_path / "hqs.png").is_file()


def test_a_job_searches_once(array_cache, monkeypatch):
    source, options = Noise(10), dataclasses.replace(TOY, seed=1, images=4)
    first = job_search(make_model(), FROZEN, source, "a job's", options, {"split": "train"})
    monkeypatch.setattr(hqs, "run_search", lambda *_: pytest.fail("searched again"))
    assert job_search(make_model(), FROZEN, source, "a job's", options, {"split": "train"}) == first
    with pytest.raises(pytest.fail.Exception):
        job_search(make_model(), FROZEN, source, "a job's", options, {"split": "heldout"})
    for made_otherwise in (
        lambda patch: patch.setattr(hqs, "REVISION", hqs.REVISION + 1),
        lambda patch: patch.setitem(FROZEN, "teacher", {"unet": {"a": jnp.bfloat16(0.3)}}),
    ):
        with monkeypatch.context() as context:
            made_otherwise(context)
            with pytest.raises(pytest.fail.Exception):
                job_search(make_model(), FROZEN, source, "a job's", options, {"split": "train"})


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 40, 30])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([4.0, 3, 3, 1])) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a", "given": (1,)}, "path and given are both set"),
        ({"given": (1,), "rule": "all"}, "given timesteps have no scores"),
        ({"given": (-1,)}, "timesteps are integers from 0 on"),
        ({"rule": "best"}, "selects no timesteps"),
        ({"weights": "best"}, "use uniform, hqs"),
    ],
)
def test_impossible_timesteps(changes, message):
    with pytest.raises(ValueError, match=message):
        TimestepConfig(**changes)


def test_a_file_that_is_no_search(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with python -m sdd_jax.search"):
        read_search(tmp_path / "none.json")
    whole = Search(prompt="", model="", options={}, t=(1,), H=(1.0,), N=(1.0,), hqs=(0.0,), stderr=(0.0,), selected=(1,), rule="all")  # fmt: skip  # noqa: E501
    for text in ("{", "[1]", "{}", json.dumps({**dataclasses.asdict(whole), "selected": [2]})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="is not an hqs.json") as error:
            read_search(tmp_path / "bad.json")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=a {colour} cat"], "has a field {colour}; use {species}"),
        (["--prompt=x", "--rule=best"], "selects no timesteps"),
        (["--prompt=x", "--rule=top:18"], "cannot select 18 of 17 timesteps: give 1..17"),
        (["--prompt=x", "--data=nowhere"], "nowhere"),
        (["--prompt=x", "--images=1"], "images=1 must be at least 2"),
        (["--prompt=x", "--batch=0"], "--batch=0"),
        (["--prompt=x", "--temperature=0"], "temperature=0.0 must be positive"),
    ],
)
def test_a_mistake_is_one_line_before_weights_are_read(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "load", lambda *_: pytest.fail("weights were read"))
    assert search.main(["--model=portraits", f"--out={tmp_path / 'out'}", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_too_few_images():
    with pytest.raises(ValueError, match="images=6: the data has 3"):
        run_search(make_model(), FROZEN, Noise(3), "y", TOY)
