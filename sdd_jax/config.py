"""Configs: `FILE.py:variant` plus `--config.key=value` overrides -> a locked `ConfigDict` -> validated dataclasses.

A config file defines `get_config(arg: str = "") -> ConfigDict` and imports only ml_collections and this
module's `variants_of` and `config_beside`. Three rules make a typo fail before any device work, each with one line that
says where it stands and what would have been valid:

1. an override may only name a key that the config has, or an optional one of the command, and keeps the key's type;
2. a section is read by instantiating a frozen keyword-only dataclass, whose fields are the schema (`validate`);
3. a file or a variant that does not exist is named together with the file it was looked for in.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

T = TypeVar("T")


def load_config(
    spec: str,
    overrides: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    optional: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConfigDict:
    """Returns the locked config that `spec` and the command line describe.

    Args:
        spec: `path/to/file.py` or `path/to/file.py:variant,variant`; the part after the colon goes to `get_config`.
        overrides: `dotted.key=value` strings, applied in order.
        defaults: values for the top-level keys that the file leaves out (nested mappings merge).
        optional: by section, keys that an override may add, with a value of the type that they take.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: unknown variant, unknown key, or a value of another type than the key's.
    """
    path, _, variant = spec.partition(":")
    loaded = _call_get_config(path, variant)
    config = ConfigDict(dict(defaults or {}), convert_dict=True)
    with config.ignore_type():
        config.update(loaded)
    for override in overrides:
        _override(config, override, path, optional or {})
    return config.lock()


def _call_get_config(path: str, variant: str) -> ConfigDict:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config={path}: no such config file (looked in {Path.cwd()})")
    module_spec = importlib.util.spec_from_file_location(f"sdd_jax_config_{Path(path).stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"--config={path}: not a Python file; name a config as configs/NAME.py[:variant]")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path}: the file defines no get_config()")
    try:
        return module.get_config(variant) if variant else module.get_config()
    except (ValueError, KeyError) as error:
        raise ValueError(f"--config={path}:{variant}: {one_line(error)}") from error


def variants_of(arg: str, known: Sequence[str], file: str) -> list[str]:
    """For config files: the variants that `arg` names, separated by commas.

    Args:
        known: the variants that the file has.
        file: its `__file__`.

    Raises:
        ValueError: one that it does not have.
    """
    names = [name for name in arg.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        place = Path(file)
        raise ValueError(f"{place.parent.name}/{place.name} has no variant {unknown[0]!r}; use {', '.join(known)}")
    return names


def config_beside(file: str, name: str, variants: Sequence[str] = ()) -> ConfigDict:
    """For config files: the configuration of `name`, a file beside `file`, to be changed in what is special."""
    return _call_get_config(str(Path(file).with_name(name)), ",".join(variants))


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key=value` and `--config.key value` from the other arguments, as `key=value` strings."""
    overrides: list[str] = []
    rest: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        argument = argument.removeprefix("--config.")
        if "=" not in argument and pending and not pending[0].startswith("--"):
            argument = f"{argument}={pending.pop(0)}"
        overrides.append(argument)
    return overrides, rest


def _override(config: ConfigDict, override: str, path: str, optional: Mapping[str, Mapping[str, Any]]) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--config.{key}: give a value, as --config.{key}=VALUE")
    section, _, added = key.rpartition(".")
    if added in optional.get(section, {}) and isinstance(config.get(section), ConfigDict):
        config[section][added] = config[section].get(added, optional[section][added])
    node, *rest = [config, *key.split(".")]
    walked = "config"
    while rest:
        name = rest.pop(0)
        if not isinstance(node, ConfigDict) or name not in node:
            known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none, it is a value"
            raise ValueError(f"--config.{key}: {walked} has no key {name!r} in {path}; keys: {known}")
        if rest:
            node, walked = node[name], f"{walked}.{name}"
    if isinstance(node[name], ConfigDict):
        raise ValueError(f"--config.{key}: is a section, set its keys one by one: {', '.join(sorted(node[name]))}")
    with node.ignore_type():
        node[name] = _parse(text, node[name], f"--config.{key}")


def _parse(text: str, current: Any, where: str) -> Any:
    """Parses a command-line value as the type the key holds; a key that holds None takes any literal.

    `none` unsets a key, but is a word like any other where the key holds text.
    """
    if isinstance(current, str):
        return text
    if text.lower() == "none":
        return None
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if current is None:
        return value
    if isinstance(current, bool):
        valid = isinstance(value, bool)
    elif isinstance(current, int):
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
        value = int(value) if valid else value
    elif isinstance(current, float):
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if valid else value
    else:
        valid = isinstance(value, (list, tuple))
        value = type(current)(value) if valid else value
    if not valid:
        raise ValueError(f"{where}={text}: expected {type(current).__name__}, as in the config's {current!r}")
    return value


def validate(config: Mapping[str, Any], schema: type[T], where: str = "config") -> T:
    """Instantiates the dataclass `schema` from a config section; nested sections fill dataclass-typed fields.

    Raises:
        ValueError: an unknown key, a missing one, a value of the wrong simple type, or what `__post_init__` objects to.
    """
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(schema)
    values: dict[str, Any] = {}
    for key in config:
        if key not in fields:
            raise ValueError(f"{where}.{key} is not a field of {schema.__name__}; fields: {', '.join(fields)}")
        values[key] = _field_value(config[key], hints[key], f"{where}.{key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing: {schema.__name__} needs it")
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(error)}") from error


def _field_value(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) not in (tuple, list, dict) else ()
    kinds = [kind for kind in options or (hint,) if isinstance(kind, type)]
    if isinstance(value, (ConfigDict, dict)):
        schema = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        return value if schema is None else validate(value, schema, where)
    if isinstance(value, list) and (typing.get_origin(hint) or hint) is tuple:
        return tuple(value)
    simple = {bool, int, float, str, type(None)}
    if kinds and len(kinds) == len(options or (hint,)) and simple.issuperset(kinds):
        if type(value) is int and float in kinds and int not in kinds:
            return float(value)
        if type(value) not in kinds:
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{where} = {value!r}: expected {expected}")
    return value


def defaults_of(schema: type) -> dict[str, Any]:
    """Returns the default values of a dataclass schema as a nested dict; fields without a default are left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
    return {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for key, value in values.items()
    }


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config as what JSON can hold (tuples become lists), as it is written to `config.json`."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.loads(json.dumps(plain))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{dotted.key: value}` of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def one_line(error: BaseException) -> str:
    """Returns an exception's message on one line (a KeyError's without its quotes)."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(message.split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, for libraries that go on with advice of their own."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
