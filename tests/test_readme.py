"""The README names every config, and of each the variants that it has."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"(?:configs/)?(\w+\.py)")


def variants(name):
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / "configs" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(module.VARIANTS)


def test_configs_and_their_variants():
    """`embedded`, a default, is said once below the table."""
    listed = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("| `configs/"):
            names, _, said = re.split(r" \| ", line.strip("| "))
            listed |= {name: set(re.findall(r"`(\w+)`", said)) for name in NAME.findall(names)}
    assert listed == {path.name: variants(path.name) - {"embedded"} for path in (ROOT / "configs").glob("*.py")}
