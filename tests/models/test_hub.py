"""The hub: only needed files are asked for, the cache serves without a network, and every refusal says what to do."""

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from sdd_jax.command import is_ours
from sdd_jax.models import hub

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = [
    "README.md", "model_index.json", "v1-5-pruned.ckpt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "scheduler/scheduler_config.json", "safety_checker/config.json", "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
]  # fmt: skip


def refused(name, message, revision=None):
    with pytest.raises(FileNotFoundError, match=message) as error:
        hub.resolve(name, revision)
    assert "\n" not in str(error.value) and is_ours(error.value)


class TransportError(Exception):
    """As the libraries raise them that the hub's has used for transport: neither OSError nor ValueError."""


def answer(monkeypatch, listing, snapshot=None):
    """Replaces the hub: `listing` and `snapshot` are what it gives or raises; returns the snapshots asked for."""
    asked = []

    def list_repo_files(self, name, revision=None):
        if isinstance(listing, Exception):
            raise listing
        return listing

    def snapshot_download(name, **options):
        asked.append((name, options))
        if isinstance(snapshot, Exception):
            raise snapshot
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def http(kind):
    """An error of the hub without the response that its constructor asks for."""
    error = kind.__new__(kind)
    error.args = ("401 Client Error.\n\nMany lines of advice.",)
    return error


def test_only_what_is_read_is_downloaded(monkeypatch, tmp_path):
    directory = tmp_path / SHA
    directory.mkdir()
    (directory / "model_index.json").touch()
    asked = answer(monkeypatch, FILES, directory)
    assert hub.resolve("owner/name", "fp16") == (directory, f"owner/name@{SHA}")
    ((name, options),) = asked
    assert name == "owner/name" and options["revision"] == "fp16"
    assert set(options["allow_patterns"]) == set(FILES) - {
        "README.md", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/config.json", "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "owner/name cannot be had: it asks for access: accept its terms at https://hugging"),
        (errors.RepositoryNotFoundError, "owner/name cannot be had: the hub has no such model, or a private one"),
        (errors.RevisionNotFoundError, "cannot be had: the hub has the model, but not this revision"),
    ],
)
def test_the_hubs_refusals(monkeypatch, kind, message):
    assert not answer(monkeypatch, http(kind))
    refused("owner/name", message)


def test_without_a_network_the_cache_is_asked(monkeypatch, tmp_path):
    asked = answer(monkeypatch, ConnectionError("no route"), errors.LocalEntryNotFoundError("nothing cached"))
    refused("owner/name", "owner/name, revision v1, cannot be had: it is not in the hub's cache.*hf download", "v1")
    assert asked == [("owner/name", {"revision": "v1", "local_files_only": True})]
    asked = answer(monkeypatch, http(errors.HfHubHTTPError), tmp_path)
    refused("owner/name", "in the hub's cache in part only")
    assert asked[0][1]["local_files_only"], "a server's error is no reason to give up what is cached"
    answer(monkeypatch, FILES, OSError("disk full\nand more"))
    refused("owner/name", "owner/name cannot be had: disk full$")
    answer(monkeypatch, FILES, TransportError("no route\nto it"))
    refused("owner/name", "owner/name cannot be had: no route$")
    answer(monkeypatch, TransportError("no route"), TransportError(""))
    refused("owner/name", "owner/name cannot be had: TransportError$")


@pytest.mark.parametrize("name", ["o/-n..x", "a--b/c", "o/n.git"])
def test_what_is_no_id_is_not_looked_for(monkeypatch, name):
    monkeypatch.setattr(hub._log, "warning", lambda *values: pytest.fail("looked in the cache"))
    refused(name, f"^{name} cannot be had: .*'{name}'")


def test_offline_a_cached_model_loads_by_branch_and_by_default(monkeypatch, tmp_path, tiny_world):
    """The hub library's own cache, offline as all tests are."""
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_world, repository / "snapshots" / SHA)
    for branch in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "v1", SHA):
        directory, source = hub.resolve("owner/tiny", revision)
        assert source == f"owner/tiny@{SHA}" and (directory / "unet" / "config.json").is_file()
    refused("owner/tiny", "owner/tiny, revision v2, cannot be had: it is not in the hub's cache", "v2")
    refused("owner/other", "owner/other cannot be had: it is not in the hub's cache")
    shutil.rmtree(repository / "snapshots" / SHA)
    (repository / "snapshots" / SHA).mkdir()
    refused("owner/tiny", "in the hub's cache in part only")
