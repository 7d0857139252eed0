"""Every test runs on the CPU with strict rank promotion: `[b]` against `[b, 1, 1, 1]` is an error, not a broadcast."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """The directory of a tiny embedded world with random weights; copy it before changing a file."""
    import tiny

    return tiny.make_world(tmp_path_factory.mktemp("tiny") / "world")


@pytest.fixture(scope="session")
def tiny_model(tiny_world):
    """(bundle, params) of the tiny world's Stable Diffusion."""
    import sdd_jax

    return sdd_jax.load(tiny_world)


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory):
    """The directory of a tiny SDXL's config files, without weights and tokenizers."""
    import tiny

    return tiny.make_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def array_cache(tmp_path_factory, monkeypatch):
    """The directory of cached renders and latents, one for the whole session and never the user's."""
    path = tmp_path_factory.getbasetemp() / "array_cache"
    monkeypatch.setenv("SDD_JAX_CACHE", str(path))
    return path


@pytest.fixture(scope="module")
def compile_quickly():
    """For programs that run once: compiling them well takes longer than running them badly."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def one_line(capsys):
    """Runs a command that must fail for its user: exit status 2 and one line, which is returned."""

    def call(command, *arguments):
        capsys.readouterr()
        assert command.main([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return call
