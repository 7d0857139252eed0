"""Flags that are wrong: every command answers with one line on stderr and exit status 2, before any work."""

import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sdd_jax"


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("main", ["--config=x.py"], "the following arguments are required: --workdir"),
        ("main", ["--config=x.py", "--workdir=y", "--heart"], "unrecognized arguments: --heart"),
        ("evaluate", ["--workdir=x", "--samples=many"], "argument --samples: invalid int value: 'many'"),
        ("evaluate", ["--workdir=x", "--model=y"], "argument --model: not allowed with argument --workdir"),
        (
            "evaluate",
            ["--protocol=nonsense", "--model=x", "--out=y"],
            "argument --protocol: invalid choice: 'nonsense'",
        ),
        ("sample", ["--workdir=x", "--steps=2.5"], "argument --steps: invalid int value: '2.5'"),
        ("edit", ["--dtype=float8"], "argument --dtype: invalid choice: 'float8'"),
        ("search", ["--images=all"], "argument --images: invalid int value: 'all'"),
        ("export", [], "the following arguments are required"),
        ("precompute", ["--config=x.py", "--batch=big"], "argument --batch: invalid int value: 'big'"),
        ("aot", [], "the following arguments are required"),
        ("bench", ["--forward=portraits", "--nonsense"], "unrecognized arguments: --nonsense"),
        ("bench_data", ["--seconds=long"], "argument --seconds: invalid float value: 'long'"),
        ("reproduce", ["--nonsense"], "--nonsense"),
        ("tables.measure", ["x:y"], "the following arguments are required: --seed, --out"),
        ("data.throughput", ["--size=big"], "argument --size: invalid int value: 'big'"),
        ("data.tfds_portraits", [], "the following arguments are required: --out"),
    ],
)
def test_a_wrong_flag_is_one_line(module, arguments, message, capsys):
    assert importlib.import_module(f"sdd_jax.{module}").main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and f"(see python -m sdd_jax.{module} --help)" in captured.err


def test_help_still_ends_well(capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module("sdd_jax.export").main(["--help"])
    assert end.value.code == 0 and "usage: python -m sdd_jax.export" in capsys.readouterr().out


def test_every_command_has_this_parser():
    plain = [path.name for path in PACKAGE.rglob("*.py") if "argparse.ArgumentParser(" in path.read_text()]
    assert plain == [], "argparse's own parser prints its usage first"
