"""Where weights come from: a directory, the Hugging Face hub, or the package; and how their files are read.

A model component (`unet/`, `vae/`, `text_encoder/`, a ControlNet) is a directory of a `config.json` and weights in the
first of these forms that it has, `NAME` being `diffusion_pytorch_model` or `model`:

| form | files |
| --- | --- |
| safetensors | `NAME.safetensors` |
| sharded safetensors | `NAME.safetensors.index.json` and the shards it lists |
| half precision, where nothing else is there | `NAME.fp16.safetensors`, `NAME.safetensors.index.fp16.json` |
| Flax msgpack | `diffusion_flax_model.msgpack`, `flax_model.msgpack` |

Pickles (`.bin`, `.pt`, `.ckpt`) are never opened. Every error is one line that names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from flax import serialization
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sdd_jax.config import first_line
from sdd_jax.models.convert import flax_to_torch, rename_legacy, torch_to_flax

PORTRAITS = Path(__file__).parents[1] / "assets" / "portraits"
STEMS = ("diffusion_pytorch_model", "model")
MSGPACKS = ("diffusion_flax_model.msgpack", "flax_model.msgpack")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SMALL_FILES = (".json", ".txt", ".model")
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OTHERS = ("scheduler", "tokenizer", "tokenizer_2")

_log = logging.getLogger("sdd_jax")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CANDIDATES = (
    *(f"{stem}{ending}" for ending in (".safetensors", ".safetensors.index.json") for stem in STEMS),
    *(f"{stem}{ending}" for ending in (".fp16.safetensors", ".safetensors.index.fp16.json") for stem in STEMS),
    *MSGPACKS,
)


def resolve(name: str | Path, revision: str | None = None) -> tuple[Path, str]:
    """Returns the local directory of a model and a string that identifies it.

    Args:
      name: "portraits" (the embedded teacher), a directory, or a hub id `owner/name`, which is downloaded to the hub's
        cache (only the files that loading reads) or found there.
      revision: a hub branch, tag or commit.

    Raises:
      FileNotFoundError: no such directory; or no such model or revision on the hub, no access to it, or no network and
        nothing in the cache (`HF_HUB_OFFLINE=1` asks for the cache alone).
      ValueError: a revision of something that has none.
    """
    directory = PORTRAITS if name == "portraits" else Path(name)
    if directory.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a directory and has no revision {revision!r}; leave the revision out")
        return directory, str(name)
    if name == "portraits":
        raise FileNotFoundError(
            f"{directory} is missing: this installation lacks the embedded teacher; reinstall sdd_jax"
        )
    if not HUB_ID.fullmatch(str(name)):
        raise FileNotFoundError(f"{name} is neither a directory, nor a hub id like 'owner/name', nor 'portraits'")
    return _from_hub(str(name), revision)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; FileNotFoundError or ValueError of one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a model in diffusers format")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download or export it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def weight_files(directory: Path) -> list[Path]:
    """Returns the weight files of a component, the shards of an index included, in a fixed order.

    Raises:
      FileNotFoundError: no weights, or a shard that the index lists is missing.
      ValueError: only pickles, or a damaged index.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is missing: the model has no such component")
    chosen = directory / choose_weights([path.name for path in directory.iterdir()], str(directory))
    if ".index." not in chosen.name:
        return [chosen]
    shards = sorted(set(_shards(chosen).values()))
    for shard in shards:
        if PurePosixPath(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{chosen} lists {shard!r}, which is not a safetensors file beside it")
        if not (directory / shard).is_file():
            raise FileNotFoundError(f"{directory / shard} is missing: {chosen.name} lists it; download it again")
    return [directory / shard for shard in shards]


def choose_weights(names: Sequence[str], source: str) -> str:
    """Returns which of a component's file names to read (an index stands for its shards); raises as `weight_files`."""
    for candidate in _CANDIDATES:
        if candidate in names:
            return candidate
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"{source}/{pickles[0]} is a pickle, which may run code and is never opened; if you trust it, load it with "
            f"PyTorch diffusers or transformers and write it back as safetensors with save_pretrained"
        )
    raise FileNotFoundError(f"{source} has no weights: expected one of {', '.join(_CANDIDATES[:4])} or a Flax msgpack")


def read_weights(directory: Path) -> tuple[dict[str, Any], str]:
    """Reads a component's weights under today's names.

    Returns:
      The parameter tree (NumPy leaves in the file's dtypes) and the path of the file, for messages.

    Raises:
      FileNotFoundError, ValueError: as `weight_files`, and for truncated or damaged files.
    """
    state_dict: dict[str, np.ndarray] = {}
    files = weight_files(directory)
    for path in files:
        state_dict.update(_read_msgpack(path) if path.suffix == ".msgpack" else _read_safetensors(path))
    source = str(files[0]) if len(files) == 1 else f"{directory} ({len(files)} shards)"
    return torch_to_flax(rename_legacy(state_dict)), source


def content_hash(files: Iterable[Path], root: Path) -> str:
    """Returns the sha256 over the names (relative to `root`) and bytes of files; the order given does not matter."""

    def digest(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    named = sorted((path.relative_to(root).as_posix(), path) for path in files)
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(digest, [path for _, path in named])
        lines = [f"{one}  {name}\n" for one, (name, _) in zip(digests, named, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tree_hash(params: Mapping[str, Any]) -> str:
    """A hash of a parameter tree's paths and values, for fingerprints and cache keys."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); download or export it again") from None


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """Reads a Flax msgpack as a state dict. Flax's CLIP nests `layers/0` where others say `layers_0`: both arrive."""
    try:
        params = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises several unrelated types on damaged input
        raise ValueError(f"{path} is damaged or truncated ({first_line(error)}); download or export it again") from None
    if not isinstance(params, dict):
        raise ValueError(f"{path} holds no parameter tree; download or export it again")
    return flax_to_torch(params.get("params", params))


def _shards(index: Path) -> Mapping[str, str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} has no weight_map; download it again")
    return shards


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    """Downloads what loading reads of a hub repository, or finds it in the hub's cache; returns as `resolve`."""
    from huggingface_hub import snapshot_download

    of = name if revision is None else f"{name}, revision {revision},"
    with _refusals(name, of):
        files = _listing(name, revision)
    wanted = {"local_files_only": True} if files is None else {"allow_patterns": needed_files(files, name)}
    with _refusals(name, of):
        directory = Path(snapshot_download(name, revision=revision, **wanted))
    if not any((directory / file).is_file() for file in ("model_index.json", "config.json")):
        raise FileNotFoundError(f"{of} is in the hub's cache in part only ({directory}): download it again")
    return directory, f"{name}@{directory.name}"


@contextlib.contextmanager
def _refusals(name: str, of: str) -> Iterator[None]:
    """What the hub, its library and their transports raise, of whatever type, as one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        reason = (
            f"it asks for access: accept its terms at https://huggingface.co/{name} and log in with `hf auth login`"
        )
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such model, or a private one: check the name, or log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = "the hub has the model, but not this revision: leave it out, or give a branch, tag or commit"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = (
            "it is not in the hub's cache and the hub cannot be reached (no network, or HF_HUB_OFFLINE): download "
            f"it first, `hf download {name}`, or give a directory"
        )
    except Exception as error:
        reason = first_line(error)
    else:
        return
    raise FileNotFoundError(f"{of} cannot be had: {reason}")


def _listing(name: str, revision: str | None) -> list[str] | None:
    """The files of a repository; None where the hub gives no answer, and what is in its cache has to do."""
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().list_repo_files(name, revision=revision)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise
    except Exception as error:  # offline, no network, a server's error: several libraries' types
        _log.warning("the hub gives no answer about %s (%s): looking in its cache", name, type(error).__name__)
        return None


def needed_files(files: Sequence[str], name: str) -> list[str]:
    """Returns which files of a repository are read: configs, tokenizers, one form of each component's weights."""
    needed = [
        file
        for file in files
        if file.endswith(SMALL_FILES)
        and not file.endswith(".index.json")
        and str(PurePosixPath(file).parent) in (".", *NETWORKS, *OTHERS)
    ]
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(str(PurePosixPath(file).parent), []).append(PurePosixPath(file).name)
    for folder in NETWORKS:
        if folder in folders:
            chosen = choose_weights(folders[folder], f"{name}/{folder}")
            variant = ".fp16" if "fp16" in chosen else ""
            stem = chosen.split(".")[0]
            shards = [
                f"{folder}/{n}" for n in folders[folder] if re.fullmatch(rf"{stem}{variant}-\d+-of-\d+\.safetensors", n)
            ]
            needed += [f"{folder}/{chosen}", *(shards if ".index." in chosen else [])]
    return needed
