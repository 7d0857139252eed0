"""Every config file and variant: the engine reads it, a job is made of it, and mistakes are one line."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_style import GENERATOR, make_style

import sdd_jax
from sdd_jax import jobs
from sdd_jax.config import defaults_of, flatten, load_config, to_plain
from sdd_jax.main import main
from sdd_jax.train import EngineConfig, engine_config

FOLDER = Path(__file__).parents[1] / "configs"


def variants(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ["", *module.VARIANTS]


SPECS = [f"{path}:{name}".rstrip(":") for path in sorted(FOLDER.glob("*.py")) for name in variants(path)]


def load(spec, *overrides):
    return load_config(spec, overrides, defaults_of(EngineConfig))


@pytest.fixture(scope="module")
def tiny_style(tmp_path_factory):
    """A directory with the style/ of a tiny world."""
    return make_style(tmp_path_factory.mktemp("style"))


@pytest.fixture
def local(tiny_world, tiny_style, tmp_path):
    """Overrides that bring any config onto this machine: the tiny world, a folder that need not exist yet, codes."""

    def overrides(config):
        names = [f"model={tiny_world}", f"world={tiny_world}", "adapter.embedding_channels=(4, 4, 8)"]
        if "path" in config.get("data", {}) and config.data.source in ("folder", "codes"):
            names.append(f"data.path={tmp_path}")
            if config.get("condition", {}).get("task") in ("depth", "edit"):
                names.append(f"condition.path={tmp_path}")
        if config.task == "sdd" and not config.timesteps.given:
            names += ["timesteps.given=(500,)", "timesteps.rule="]
        if config.task == "clip_guidance":
            names.append(f"clip.path={tiny_world}")
        if config.get("manipulator", {}).get("kind") == "stylegan":
            names += [f"manipulator.generator={tiny_style}", "identity.kind=none", "objective.identity_weight=0.0"]
        if config.get("data", {}).get("source") == "codes":
            codes = np.zeros((1, GENERATOR.num_ws, GENERATOR.style_dim), np.float32)
            save_file({"codes": codes}, tmp_path / "codes.safetensors")
            names.append(f"data.path={tmp_path / 'codes.safetensors'}")
        if config.task == "icd":
            names.append(f"teacher.model=shapes:{tiny_world}+w")
            if not config.objective.reverse_weight:  # its other model would come from a partner's run
                names.append("objective.forward_preservation=0.0")
        if "embedding_channels" not in config.get("adapter", {}):
            names = [name for name in names if not name.startswith("adapter.")]
        return [name for name in names if name.split("=")[0].split(".")[0] in config]

    return overrides


@pytest.fixture
def quick(monkeypatch):
    """Reads a model's weights once for all configs of its kind, and renders one preview."""
    for job in ("ccd.job", "ccd.baselines", "sdd.job"):
        monkeypatch.setattr(f"sdd_jax.jobs.{job}.load", LOAD)
    monkeypatch.setattr("sdd_jax.jobs.ccd.conditional.PREVIEW", 1)


LOAD = functools.lru_cache(maxsize=4)(sdd_jax.load)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: Path(spec).name)
@pytest.mark.usefixtures("quick")
def test_the_engine_and_the_builder_accept_it(spec, local):
    config = load(spec)
    engine = engine_config(config)
    assert engine.steps > 0 and engine.batch_size % engine.accumulate == 0
    if config.task == "cm":
        with pytest.raises(ValueError, match="config.teacher.workdir is empty: CM distils a fine-tuned run"):
            jobs.build(load(spec, *local(config)))
        return
    job = jobs.build(load(spec, *local(config)))
    assert job.batch_size == config.batch_size and job.name and "  " not in job.name
    assert len(job.objective.phases) == 1 and job.export is not None


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_docstring_says_how_to_run_every_variant(path):
    text = path.read_text().split('"""')[1]
    assert f"python -m sdd_jax.main --config=configs/{path.name}" in text
    assert all(name in text for name in variants(path))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_unknown_variant_is_one_line(path):
    with pytest.raises(ValueError, match=f"{path.name} has no variant 'nonsense'; use ") as error:
        load(f"{path}:nonsense")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["", "sd15", "sd21,debug"])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("depth", {"condition.path"}),
        ("edit", {"condition.path"}),
        ("inpaint", set()),
        ("canny", {"condition.thresholds"}),
        ("t2i", {"adapter.kind", "adapter.embedding_channels", "objective.guidance"}),
    ],
)
def test_other_conditions_are_trained_as_super_resolution_is(name, own, variant):
    longer = variant if name == "t2i" else f"tasks,{variant}".rstrip(",")
    specs = (
        f"{FOLDER}/ccd_{which}:{found}".rstrip(":") for which, found in (("sr.py", longer), (f"{name}.py", variant))
    )
    base, config = (flatten(to_plain(load(spec))) for spec in specs)
    differing = {key for key in base.keys() | config.keys() if base.get(key) != config.get(key)}
    # without a condition there is no embedding to regress; Stable Diffusion's variants regress none
    assert differing - {"objective.hint_weight"} == {"condition.task", "data.degradation", *own}
    assert config["objective.hint_weight"] == (0.0 if name == "t2i" else base["objective.hint_weight"])


def test_debug_shrinks_what_it_is_combined_with():
    full, small = load(f"{FOLDER}/ccd_sr.py:adapter,long"), load(f"{FOLDER}/ccd_sr.py:adapter,long,debug")
    assert small.steps == 4 < full.steps and small.data.count < full.data.count
    assert small.objective == full.objective and not small.objective.train_unet


@pytest.mark.parametrize(
    ("variant", "arguments", "message"),
    [
        (":nonsense", [], "configs/ccd_sr.py has no variant 'nonsense'; use embedded, tasks, long, adapter"),
        ("", ["--config.objective.nonsense=1"], "config.objective has no key 'nonsense'"),
        ("", ["--config.nonsense=1"], "config has no key 'nonsense'"),
        ("", ["--config.steps=2.5"], "--config.steps=2.5: expected int"),
        ("", ["--config.optimizer.name=adamx"], "'adamx' is not an optimizer"),
        ("", ["--config.ema=1.5"], "ema=1.5 must be in"),
    ],
)
def test_a_mistake_ends_before_anything_is_built(tmp_path, capsys, monkeypatch, variant, arguments, message):
    monkeypatch.setattr(jobs, "build", lambda config: pytest.fail("a job was built"))
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("devices were touched"))
    monkeypatch.chdir(FOLDER.parent)
    assert main([f"--config=configs/ccd_sr.py{variant}", f"--workdir={tmp_path / 'run'}", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ema=none"], "config.ema=None: the target network"),
        (["data.count=0"], "config.data: count=0 pictures"),
        (["data.split=test"], "config.data: portraits have no split 'test'"),
        (["data.source=folder"], "config.data: source='folder' needs a path"),
        (["data.source=disk"], "config.data: source='disk' is not known; use portraits, latents, folder"),
        (["data.degradation=mild"], "config.data: unknown degradation 'mild'"),
        (["condition.task=pose"], "config.condition: task='pose' is not a condition; use superres, depth"),
        (["condition.task=none"], "config.data.degradation='portraits' has no effect on none"),
        (["condition.task=none", "data.degradation="], "config.adapter.kind='controlnet' with config.condition.task="),
        (["init=noise"], "config.init='noise' is not known; use teacher, random"),
        (["init=random", "objective.train_unet=false"], "config.objective: init='random' with train_unet=False"),
        (["objective.predictor=euler"], "config.objective: predictor='euler' is not known; use prev, ddim"),
        (["objective.x_space=lpips"], "config.objective: x_space='lpips' needs weights: set config.lpips.backbone"),
        (["adapter.kind=lora"], "config.adapter: kind='lora' is not an adapter"),
        (["task=nonsense"], "config.task='nonsense' is not a task; use classifier"),
        (["task=unet"], "config.adapter is not a key of the task 'unet'"),
    ],
)
def test_a_bad_value_is_named_before_weights_are_read(monkeypatch, overrides, message):
    monkeypatch.setattr("sdd_jax.jobs.ccd.job.load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError) as error:
        jobs.build(load(f"{FOLDER}/ccd_sr.py", *overrides))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_embedding_that_does_not_fit_the_teacher(tiny_world):
    config = load(f"{FOLDER}/ccd_sr.py:debug", f"model={tiny_world}", "adapter.embedding_channels=(4, 8)")
    with pytest.raises(ValueError, match=r"embedding_channels=\(4, 8\) scales by 2") as error:
        jobs.build(config)
    assert "\n" not in str(error.value)
