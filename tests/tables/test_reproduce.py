"""A table of toy rows, trained, stopped, resumed and written; and what the command says to mistakes."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import toy_table
from PIL import Image

from sdd_jax import reproduce, tables
from sdd_jax.tables import cache as cache_module
from sdd_jax.tables import measure, report, run
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.children import Children, Failed, Stopped, locked
from sdd_jax.tables.run import Measure, Train, tasks
from sdd_jax.tables.types import Training

TESTS = Path(__file__).parents[1]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The toy table, known to the command as `toy`, its config in a file of its own."""
    path = tmp_path / "toy.py"
    path.write_text(toy_table.CONFIG)
    made = toy_table.make_table(path)
    monkeypatch.setattr(toy_table, "TABLE", made, raising=False)
    monkeypatch.setitem(tables.TABLES, "toy", "toy_table:TABLE")
    return made


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def pretend(monkeypatch):
    """Children that pretend: a training writes what a finished one leaves, an evaluation runs in this process.

    Returns the list of what ran, as (verb, workdir or row).
    """
    ran = []

    def pretended(children, command, log):
        children.check()
        flags = dict(argument.split("=", 1) for argument in command if argument.startswith("--"))
        if tuple(command[: len(run.TRAIN)]) == run.TRAIN:
            workdir = Path(flags["--workdir"])
            noise = float(flags.get("--config.objective.noise", 0.1))
            ran.append(("train", workdir))
            time.sleep(0.01)
            (workdir / "checkpoints" / "12").mkdir(parents=True)
            (workdir / "checkpoints" / "12" / "MANIFEST.json").touch()
            fit = noise + 0.01 * int(flags["--config.seed"])
            (workdir / "metrics.jsonl").write_text(json.dumps({"step": 12, "fit": fit}) + "\n")
            taught = flags.get("--config.teacher.workdir", "")
            (workdir / "config.json").write_text(json.dumps({"config": {"teacher": {"workdir": taught}}}))
        else:
            ran.append(("measure", flags["--row"]))
            try:
                assert measure.main(command[len(run.MEASURE) :]) == 0
            except ValueError as error:
                raise Failed(str(error), log) from error

    monkeypatch.setattr(Children, "run", pretended)
    return ran


def results(directory):
    content = json.loads((directory / "toy.json").read_text())
    return {row["row"]: row for row in content["rows"]}, {c["claim"]: c for c in content["claims"]}


def command(*arguments, tmp_path):
    return reproduce.main(["toy", f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'results'}", *arguments])


def test_a_table_from_nothing_to_claims(table, pretend, tmp_path, capsys):
    """Everything is made once, the failing row is named, and the second call has nothing to do."""
    assert command(tmp_path=tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: 1 rows of toy failed: Broken: this row cannot be measured")
    assert "3 trainings and 9 evaluations to do" in printed.out
    assert [verb for verb, _ in pretend].count("train") == 3, "the shared training runs once"
    order = [what for verb, what in pretend if verb == "measure"]
    assert order == [
        *["Taught"] * 2, "Taught, worse", "Student", *["Nothing"] * 2, "Broken", *["Taught"] * 2,
    ]  # fmt: skip

    rows, claims = results(tmp_path / "results")
    assert list(rows) == ["Taught", "Taught, worse", "Student", "Nothing", "Broken", "External"]
    taught = rows["Taught"]
    assert set(taught) == {"row", "config", "seeds", "metrics", "status", "device"}
    assert taught["seeds"] == {"training": [0, 1], "sampling": [0, 1]} and taught["status"] == "measured"
    assert taught["metrics"]["mean"]["fit"] == pytest.approx(0.1 + 0.005 + 0.0005)
    assert taught["metrics"]["spread"]["fit"] == pytest.approx(0.01 / 2**0.5)
    first = taught["metrics"]["per_seed"][0]
    assert (first["training_seed"], first["sampling_seed"], first["fit"]) == (0, 0, pytest.approx(0.1))
    assert "train_minutes" in first and taught["device"].startswith("cpu, ")
    assert rows["Nothing"]["seeds"] == {"training": [], "sampling": [0, 1]}
    assert rows["Student"]["config"].startswith(f"{tmp_path}/toy.py --config.objective.noise=0.2 --config.teacher")
    for name in ("Broken", "External"):
        assert (rows[name]["status"], rows[name]["metrics"], rows[name]["device"]) == ("not run", {}, "")

    assert [claims[c]["holds"] for c in ("training helps", "nothing is as good", "better than the others")] == [
        True, False, None,
    ]  # fmt: skip
    assert claims["better than the others"]["evidence"] == "not run: External"
    page = (tmp_path / "results" / "toy.md").read_text()
    for text in (
        "| Taught | 0.1055 ± 0.0071 |", "| training helps | holds |", "| nothing is as good | does not hold |",
        "| better than the others | not decided | not run: External |", "not run: its weights are not here",
        "not run: this row cannot be measured", "![steps](toy-steps.png)", "trains nothing",
    ):  # fmt: skip
        assert text in page, page
    with Image.open(tmp_path / "results" / "toy-steps.png") as image:
        assert image.width > 600
    assert not (tmp_path / "results" / "toy-none.png").exists()

    count = len(pretend)
    assert command("--rows=taught*,student,nothing", tmp_path=tmp_path) == 0
    assert len(pretend) == count, "nothing is made twice"


def test_a_rows_minutes_are_those_of_all_its_stages(table, cache, pretend, tmp_path):
    command("--rows=student", tmp_path=tmp_path)
    student = next(row for row in table.rows if row.name == "Student")
    (teacher, itself) = student.training.stages
    cache.add_seconds(teacher, 0, 120.0)
    cache.add_seconds(itself, 0, 60.0)
    (found,) = (result for result in report.gather(table, cache, {}) if result.row is student)
    assert found.stats["train_minutes"].mean == pytest.approx(3.0, abs=0.02)


def test_what_is_left_to_do(table, pretend, cache, tmp_path):
    """Some rows alone; what they depend on comes first; a deleted training is not repeated for cached figures."""
    student = table.select(["student"])
    assert [(t.training is student[0].training, t.seed) for t in tasks(student, cache) if isinstance(t, Train)] == [
        (False, 0), (True, 0),
    ]  # fmt: skip
    run.run_table(table, student, cache, tmp_path / "out")
    rows, claims = results(tmp_path / "out")
    assert [name for name, row in rows.items() if row["status"] == "measured"] == ["Student"]
    assert claims["training helps"] == {
        "claim": "training helps", "holds": None, "evidence": "not run: Taught; Taught, worse",
    }  # fmt: skip
    assert tasks(student, cache) == []
    todo = tasks(table.select(["taught-worse"]), cache)
    assert [type(task) for task in todo] == [Measure], "the student's teacher is trained already"
    for file in (cache.root / "trainings").rglob("*.json"):
        file.unlink()
    assert tasks(student, cache) == []


def test_results_measured_elsewhere_stay_until_they_are_stale(table, pretend, cache, tmp_path):
    out, nothing = tmp_path / "out", table.select(["nothing"])
    run.run_table(table, nothing, cache, out)
    kept, _ = results(out)
    elsewhere = Cache(tmp_path / "other")
    run.run_table(table, [], elsewhere, out)
    assert results(out)[0]["Nothing"] == kept["Nothing"]
    assert len(tasks(nothing, elsewhere)) == 2, "they are measured here, too"
    have = report.measured_before(table, elsewhere, out)
    assert have == {("Nothing", (None, 0)), ("Nothing", (None, 1))}
    assert tasks(nothing, elsewhere, have) == [] and "2 of 2 measured" in run.plan(table, nothing, elsewhere, have)
    content = json.loads((out / "toy.json").read_text())
    content["rows"][3]["config"] += "0"
    (out / "toy.json").write_text(json.dumps(content))
    assert len(tasks(nothing, elsewhere, report.measured_before(table, elsewhere, out))) == 2, "of something else"
    run.run_table(table, [], elsewhere, out)
    assert results(out)[0]["Nothing"]["status"] == "not run"


def test_keys_follow_what_is_computed(table, cache, tmp_path):
    """A log interval changes no key; the noise, the seed, the needs and the revision do."""
    (taught, *_), student = table.rows, table.rows[2]

    def key(changes=(), seed=0, **fields):
        values = {"config": taught.training.config, "overrides": changes, **fields}
        return Cache(tmp_path / "cache").key(type(taught.training)(**values), seed)

    same = {key(), key(("log_every=3",)), key(("workers=1",)), key(("objective.noise=0.1",))}
    assert same == {cache.key(taught.training, 0)}
    others = [key(seed=1), key(("objective.noise=0.3",)), key(("steps=13",)), key(revision=2)]
    others += [key(needs={"teacher.workdir": taught.training}), cache.key(student.training, 0)]
    assert len({*same, *others}) == 7
    path = Path(taught.training.config)
    path.write_text(path.read_text().replace('"noise": 0.1', '"noise": 0.4'))
    assert key() not in same
    assert cache.key(taught.training, 0) in same, "a run keeps the configs that it began with"
    task = Train(training=taught.training, seed=0, row=taught)
    with pytest.raises(Failed, match="changed while the table was running"):
        run._train(task, cache, Children())


def test_the_style_generator_is_in_the_keys_of_its_mappers_alone(table, tmp_path, monkeypatch):
    """Shipping it, or another one, leaves everything else measured."""
    world = tmp_path / "world"
    world.mkdir()
    (world / "config.json").write_text("{}")
    monkeypatch.setattr(cache_module, "PORTRAITS", world)
    config = Path(table.rows[0].training.config)
    text = config.read_text().replace("return config", 'config.model = "portraits"\n    return config')
    config.write_text(text)
    mapper = config.with_name("mapper.py")
    mapper.write_text(
        text.replace("return config", 'config.manipulator = {"generator": "portraits"}\n    return config')
    )

    def keys():
        cache_module._directory_hash.cache_clear()
        cache = Cache(tmp_path / "cache")
        row = dataclasses.replace(table.rows[0], training=Training(config=str(config)))
        return cache.evaluation_key(row, 0, 0), cache.key(Training(config=str(mapper)), 0)

    before = keys()
    (world / "style").mkdir()
    (world / "style" / "generator.safetensors").write_text("weights")
    with_style = keys()
    (world / "style" / "generator.safetensors").write_text("others")
    with_another = keys()
    assert before[0] == with_style[0] == with_another[0]
    assert len({before[1], with_style[1], with_another[1]}) == 3
    (world / "config.json").write_text('{"changed": true}')
    assert keys()[0] != before[0]


def test_a_stop_saves_and_the_same_call_goes_on(table, cache, tmp_path, monkeypatch):
    """Real processes: SIGTERM inside a row's training; the next call resumes it, measures it and ends."""
    monkeypatch.setattr(run, "TRAIN", (sys.executable, str(TESTS / "toy_table.py")))
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{TESTS.parent}")
    rows = table.select(["taught-worse"])
    training, seed = rows[0].training, 0

    def stop():
        deadline = time.monotonic() + 400
        while not cache.step(training, seed) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=stop)
    killer.start()
    with pytest.raises(Stopped):
        run.run_table(table, rows, cache, tmp_path / "out")
    killer.join()
    stopped = cache.step(training, seed)
    assert 0 < stopped < 12 and cache.seconds(training, seed) > 0
    assert results(tmp_path / "out")[0]["Taught, worse"]["status"] == "not run"

    run.run_table(table, rows, cache, tmp_path / "out")
    log = (cache.workdir(training, seed) / "train.log").read_text()
    assert f"resuming from step {stopped}" in log and cache.is_trained(training, seed)
    row = results(tmp_path / "out")[0]["Taught, worse"]
    assert row["status"] == "measured" and 100 < row["metrics"]["mean"]["fit"] < 130


def test_one_runner_at_a_time(table, pretend, cache, tmp_path, capsys):
    with locked(cache.root / "toy.lock", "x"):
        assert command("--rows=nothing", tmp_path=tmp_path) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: toy is being run by another process") and err.count("\n") == 1
    assert command("--rows=nothing", tmp_path=tmp_path) == 0


def test_a_training_that_another_table_is_at_is_waited_for(table, pretend, cache, tmp_path):
    rows = table.select(["taught-worse"])
    workdir = cache.workdir(rows[0].training, 0)
    held = threading.Event()

    def other():
        with locked(workdir.with_name(f"{workdir.name}.lock"), "x"):
            held.set()
            time.sleep(0.3)
            Children().run([*run.TRAIN, *cache.arguments(rows[0].training, 0)], tmp_path / "log")

    runner = threading.Thread(target=other)
    runner.start()
    held.wait()
    run.run_table(table, rows, cache, tmp_path / "out")
    runner.join()
    assert [verb for verb, _ in pretend] == ["train", "measure"]
    assert results(tmp_path / "out")[0]["Taught, worse"]["status"] == "measured"


def test_the_plan_is_printed_first_and_alone(table, pretend, tmp_path, capsys):
    assert command("--rows=student,external", "--dry-run", tmp_path=tmp_path) == 0
    out = capsys.readouterr().out
    assert "student: first" in out and "trains seed 0" in out and "0 of 1 measured" in out
    assert "external: not run, its weights are not here" in out and not pretend
    assert not (tmp_path / "results").exists() and not (tmp_path / "cache").exists()


def test_only_what_the_results_lack(table, pretend, tmp_path, capsys):
    """The command with --missing and an empty cache, beside results that hold one of two rows."""
    assert command("--rows=nothing", tmp_path=tmp_path) == 0
    shutil.rmtree(tmp_path / "cache")
    assert command("--rows=nothing,student", "--missing", "--dry-run", tmp_path=tmp_path) == 0
    out = capsys.readouterr().out
    assert "nothing: 2 of 2 measured" in out and "0 of 1 measured" in out


def test_a_child_that_fails_gives_its_last_line(tmp_path):
    log = tmp_path / "log"
    with Children() as children, pytest.raises(Failed, match=r"^no such thing \(exit status 3\)$") as error:
        children.run([sys.executable, "-c", "import sys; print(1); sys.exit(print('error: no such thing') or 3)"], log)
    assert error.value.log == log and log.read_text().startswith("1\n")


def test_mistakes_are_one_line(table, tmp_path, capsys):
    for arguments, message in (
        ([], "name a table: "),
        (["ccd-table9"], "'ccd-table9' is not a table; use "),
        (["toy", "--rows=tought"], "--rows=tought: toy has no such row; rows: taught, taught-worse, student"),
    ):
        assert reproduce.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {message}") and err.count("\n") == 1
    Path(table.rows[0].training.config).unlink()
    assert command("--dry-run", tmp_path=tmp_path) == 2
    assert "no such config file" in capsys.readouterr().err


def test_a_measurement_that_is_no_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy_table, "measure", lambda *_: {"fit": float("nan")})
    assert measure.main(["toy_table:measure", "--seed=0", f"--out={tmp_path / 'x.json'}"]) == 2
    assert "toy_table:measure measured fit as not finite" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
