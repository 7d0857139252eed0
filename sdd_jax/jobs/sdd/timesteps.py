"""The timesteps that a file selects: what `python -m sdd_jax.search` writes (`hqs.json`), read by training and editing.

Only {"selected": [t, ...]} is read, so any file with such a list will do.
"""

from __future__ import annotations

import json
from pathlib import Path


def read_timesteps(path: str | Path, T: int = 1000) -> tuple[int, ...]:
    """The selected timesteps of a file, ascending and each once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no list `selected`, an empty one, or timesteps outside 1..T-1.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"timesteps={path}: no such file; make one with python -m sdd_jax.search")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): make it again with python -m sdd_jax.search") from None
    found = content.get("selected") if isinstance(content, dict) else None
    if not isinstance(found, list) or not found or not all(type(t) is int for t in found):
        raise ValueError(f'{path} has no list of timesteps: it should hold {{"selected": [t, ...]}}')
    if min(found) < 1 or max(found) >= T:
        raise ValueError(f"{path} selects timesteps {min(found)}..{max(found)}; the model has 1..{T - 1}")
    return tuple(sorted(set(found)))
