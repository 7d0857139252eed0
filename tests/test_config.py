"""Configs: variants, overrides that keep their type, dataclass schemas, and one line for every mistake."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from sdd_jax.config import defaults_of, flatten, load_config, to_plain, validate

_FILE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    config = ConfigDict({"steps": 10, "rate": 0.5, "name": "a", "flag": False, "size": (2, 3), "ema": None,
                         "optimizer": {"b1": 0.9}})
    for variant in filter(None, arg.split(",")):
        if variant != "debug":
            raise ValueError(f"unknown variant {variant!r}; variants: debug")
        config.steps = 2
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "job.py"
    file.write_text(_FILE)
    return str(file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    width: int
    depth: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    tower: Tower
    weight: float = 1.0
    kind: str | None = None
    scales: tuple[int, ...] = (1,)
    distances: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")


def test_variants_and_defaults_merge(path):
    config = load_config(f"{path}:debug", defaults={"seed": 7, "steps": 99, "optimizer": {"b1": 0.0, "b2": 0.5}})
    assert (config.steps, config.seed) == (2, 7)
    assert config.optimizer.to_dict() == {"b1": 0.9, "b2": 0.5}
    assert config.is_locked and load_config(path).steps == 10


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("steps=1e3", "steps", 1000),
        ("rate=2", "rate", 2.0),
        ("name=3", "name", "3"),
        ("flag=true", "flag", True),
        ("size=(4, 5)", "size", (4, 5)),
        ("ema=0.95", "ema", 0.95),
        ("rate=none", "rate", None),
        ("name=none", "name", "none"),
    ],
)
def test_overrides_take_the_type_of_the_key(path, override, key, value):
    config = load_config(path, [override, "optimizer.b1=0.5"])
    assert config[key] == value and type(config[key]) is type(value)
    assert config.optimizer.b1 == 0.5


def test_optional_keys_are_added_where_they_are_asked_for(path):
    optional = {"optimizer": {"b2": 0.5, "nesterov": False}, "data": {"crop": "center"}}
    config = load_config(path, ["optimizer.nesterov=true"], optional=optional)
    assert config.optimizer.to_dict() == {"b1": 0.9, "nesterov": True}
    with pytest.raises(ValueError, match="optimizer.b2=x: expected float"):
        load_config(path, ["optimizer.b2=x"], optional=optional)
    for override, message in (
        ("data.crop=random", "config has no key 'data'"), ("optimizer.b3=1", "config.optimizer has no key 'b3'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_config(path, [override], optional=optional)


@pytest.mark.parametrize(
    ("spec", "override", "error", "message"),
    [
        ("", "stepz=3", ValueError, "--config.stepz: config has no key 'stepz' in .*; keys: ema, flag, name, "),
        ("", "optimizer.b3=3", ValueError, "config.optimizer has no key 'b3' in .*; keys: b1"),
        ("", "steps.x=3", ValueError, "config.steps has no key 'x'"),
        ("", "steps=2.5", ValueError, "--config.steps=2.5: expected int"),
        ("", "flag=1", ValueError, "--config.flag=1: expected bool"),
        ("", "optimizer=3", ValueError, "--config.optimizer: is a section, set its keys one by one: b1"),
        ("", "steps", ValueError, "--config.steps: give a value"),
        (":debug,fast", "steps=1", ValueError, "unknown variant 'fast'; variants: debug"),
        ("x", "steps=1", FileNotFoundError, "no such config file"),
    ],
)
def test_mistakes_are_one_line(path, spec, override, error, message):
    with pytest.raises(error, match=message) as caught:
        load_config(path + spec, [override])
    assert "\n" not in str(caught.value)


def test_validate_fills_nested_sections():
    config = ConfigDict({"tower": {"width": 8}, "weight": 2, "scales": [1, 2], "distances": [1.0, 2.0]})
    expected = Method(tower=Tower(width=8), weight=2.0, scales=(1, 2), distances=(1.0, 2.0))
    assert validate(config, Method) == expected


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"foo": 1, "tower": {"width": 8}}, "config.objective.foo is not a field of Method; fields: tower, weight"),
        ({"tower": {"w": 8}}, "config.objective.tower.w is not a field of Tower; fields: width, depth"),
        ({"weight": 1.0}, "config.objective.tower is missing: Method needs it"),
        ({"tower": {"width": 8}, "kind": 3}, "config.objective.kind = 3: expected str or None"),
        ({"tower": {"width": "8"}}, "config.objective.tower.width = '8': expected int"),
        ({"tower": {"width": 8}, "weight": -1.0}, "config.objective: weight=-1.0 must not be negative"),
    ],
)
def test_validate_names_the_key(section, message):
    with pytest.raises(ValueError, match=message):
        validate(ConfigDict(section), Method, "config.objective")


def test_plain_and_flat():
    config = ConfigDict({"a": {"b": (1, 2)}, "c": None})
    assert to_plain(config) == {"a": {"b": [1, 2]}, "c": None}
    assert flatten(to_plain(config)) == {"a.b": [1, 2], "c": None}
    assert defaults_of(Tower) == {"depth": 2}
