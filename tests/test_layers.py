"""The layers hold: imports go downward only, layer 3 has no siblings, configs import ml_collections and the loader."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "types": 0,
    "config": 0,
    "command": 0,
    "images": 0,
    "diffusion": 1,
    "models": 2,
    "data": 2,
    "objectives": 3,
    "sampling": 3,
    "evals": 3,
    "training": 4,
    "tables": 6,
    "reproduce": 7,
}
COMMANDS = 5
SIBLINGS = {"objectives", "sampling", "evals"}


def imported_modules(source, package=""):
    """Returns the absolute dotted names a file imports, at any depth; `from a import b` gives `a.b`."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def layer(part):
    return LAYERS.get(part, COMMANDS)


def violations(module, source):
    """Returns what a module, given as its dotted name inside sdd_jax, imports against the rules."""
    unit, _, rest = module.partition(".")
    package = ".".join(["sdd_jax", *module.split(".")[:-1]])
    bad = []
    for name in imported_modules(source, package):
        root, *parts = name.split(".")
        if root != "sdd_jax" or not parts:
            continue
        other = parts[0]
        if other == unit:
            if unit == "objectives" and len(parts) > 1 and parts[1] != rest.split(".")[0] and is_method(parts[1]):
                bad.append(name)
        elif layer(other) > layer(unit) or {unit, other} <= SIBLINGS:
            bad.append(name)
    return bad


def is_method(objective):
    """A module of `objectives` with a class that has a `loss` is a method; others are helpers that methods share."""
    path = ROOT / "sdd_jax" / "objectives" / f"{objective}.py"
    classes = (
        [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)] if path.exists() else []
    )
    return any(isinstance(item, ast.FunctionDef) and item.name == "loss" for node in classes for item in node.body)


def modules():
    for path in sorted((ROOT / "sdd_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "sdd_jax").with_suffix("").parts)
        if path != ROOT / "sdd_jax" / "__init__.py":
            yield name.removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_downward(module, path):
    assert violations(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("diffusion.schedule", "from sdd_jax.models import unet", ["sdd_jax.models.unet"]),
        ("training.step", "def f():\n    import sdd_jax.train", ["sdd_jax.train"]),
        ("sampling.editing", "from sdd_jax.objectives.dds import DDS", ["sdd_jax.objectives.dds.DDS"]),
        ("objectives.x", "from ..evals import fid", ["sdd_jax.evals.fid"]),
        ("objectives.x", "from sdd_jax.objectives.diffusion import D", ["sdd_jax.objectives.diffusion.D"]),
        ("objectives.x", "from .diffusion import D", ["sdd_jax.objectives.diffusion.D"]),
        ("types", "import sdd_jax.config", []),
        ("training.step", "import jax\nfrom sdd_jax.diffusion import schedule\nfrom sdd_jax.types import Params", []),
        ("main", "from sdd_jax.train import run", []),
        ("jobs.x", "from sdd_jax.tables.types import Row", ["sdd_jax.tables.types.Row"]),
    ],
)
def test_the_rules_find_what_breaks_them(module, source, bad):
    assert violations(module, source) == bad


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: path.name)
def test_configs_import_only_ml_collections_and_the_loader(path):
    names = [name for name in imported_modules(path.read_text()) if not name.startswith("sdd_jax.config.")]
    assert {name.split(".")[0] for name in names} <= {"ml_collections", "__future__"}
