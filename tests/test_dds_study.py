"""What DDS's tables measure: figure 8 against its closed form, curves of methods, drift, the frame of every editor."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.evals.instruments import Readings
from sdd_jax.jobs.dds import gradients, report, study
from sdd_jax.jobs.dds.gradients import GAUSSIAN_STD, gaussian_weights
from sdd_jax.jobs.dds.pairs import distinct_pairs
from sdd_jax.objectives.conditional import ConditionalDiffusion

pytestmark = pytest.mark.usefixtures("compile_quickly")
EDITS = ["hair=white", "expression=angry"]
SD = Schedule.scaled_linear()


@pytest.fixture(scope="module")
def figure():
    return gradients.gaussian(None, 0, {"times": (50, 450, 900), "draws": 60})


@pytest.mark.parametrize("t", [50, 450, 900])
def test_figure_8_on_gaussian_data_is_its_closed_form(figure, t):
    """Sizes and cosines, of which neither is trivial: other means add to the size, other images turn the gradient."""
    for name in ("aligned", "permuted"):
        assert figure[f"{name}@{t}"] == pytest.approx(figure[f"{name}_exact@{t}"], rel=0.03)
    for name in ("cosine", "shuffled"):
        assert figure[f"{name}@{t}"] == pytest.approx(figure[f"{name}_exact@{t}"], abs=0.01)
    assert figure["aligned"] == pytest.approx(sum(figure[f"aligned@{t}"] for t in (50, 450, 900)) / 3)
    assert figure[f"permuted@{t}"] > figure[f"aligned@{t}"] == pytest.approx(gaussian_weights(SD, t)[0], rel=0.03)
    assert 0.99 > figure[f"cosine@{t}"] > figure[f"shuffled@{t}"] + 0.1


def test_the_closed_form_by_hand():
    acp = np.asarray(SD.alphas_cumprod, np.float64)[450]
    variance = acp * GAUSSIAN_STD**2 + 1 - acp
    kappa, slope = acp * GAUSSIAN_STD**2 / variance, np.sqrt(acp * (1 - acp)) / variance
    assert gaussian_weights(SD, 450) == pytest.approx((kappa, slope), rel=1e-5)
    d = np.stack([np.full((2, 2, 1), value, np.float32) for value in (0.3, -0.3)])
    found = gradients.closed_form(SD, 450, d, d, d)
    size = np.hypot(kappa, 0.3 * slope)
    want = {"aligned": kappa, "permuted": size, "cosine": 1, "shuffled": (kappa**2 - (0.3 * slope) ** 2) / size**2}
    assert found == pytest.approx(want, rel=1e-5)


def test_figure_8_on_a_teacher_has_both_plots(tiny_world):
    found = gradients.teacher(None, 0, {"world": str(tiny_world), "count": 1, "times": (300,), "draws": 2})
    assert set(found) == {
        f"{name}{at}" for name in ("aligned", "permuted", "cosine", "shuffled") for at in ("", "@300")
    }
    assert all(np.isfinite(value) for value in found.values()) and found["aligned@300"] > 0
    with pytest.raises(ValueError, match="options.draw is not a field of GradientOptions"):
        gradients.teacher(None, 0, {"draw": 2})


@pytest.fixture
def told(monkeypatch):
    """Methods without a network: pictures moved to their answers by a share, and measures that tell the share."""
    asked = []

    def teacher(options):
        return "model", {"vae": None}

    def edits(method, model, frozen, pairs, target, seed, settings):
        asked.append((method, target == pairs.target, seed, settings))
        return pairs.image + settings["strength"] * (pairs.counterfactual - pairs.image)

    def measure(options, model, frozen):
        def shares(images, pairs):
            share = np.sum((images - pairs.image) * (pairs.counterfactual - pairs.image))
            return {"success": share / np.sum((pairs.counterfactual - pairs.image) ** 2), "psnr_outside": np.nan}

        return shares

    monkeypatch.setattr(study.PairOptions, "teacher", teacher)
    monkeypatch.setattr(study.PairOptions, "measure", measure)
    monkeypatch.setattr(study, "run_edits", edits)
    return asked


def test_a_curve_has_a_point_for_every_strength(told):
    options = {"method": "sdedit", "vary": "strength", "strengths": [0.25, 0.5], "edits": EDITS, "count": 1}
    found = study.editing_curve(None, 3, {**options, "settings": {"steps": 7}, "shown": 0.5})
    assert found == pytest.approx({"success@0.25": 0.25, "success@0.5": 0.5, "success": 0.5}), "nan is left out"
    assert told == [("sdedit", True, 3, {"steps": 7, "strength": share}) for share in (0.25, 0.5)]
    with pytest.raises(ValueError, match=r"shown=0.7 is no point of the curve: 0.25, 0.5"):
        study.editing_curve(None, 0, {**options, "shown": 0.7})
    with pytest.raises(ValueError, match="options: vary='strength' and strengths=.*: give both or neither"):
        study.editing_curve(None, 0, {**options, "strengths": []})
    with pytest.raises(ValueError, match="options.strength is not a field of CurveOptions"):
        study.editing_curve(None, 0, {**options, "strength": 0.5})


def test_the_frame_of_every_editor(told, monkeypatch):
    monkeypatch.setattr(study, "autoencoded", lambda model, vae, images, batch: images)
    options = {"tasks": ["lion"], "only": "cat", "count": 2}
    assert study.untouched(None, 0, options) == {"success": 0.0}
    assert study.answers(None, 0, options) == pytest.approx({"success": 1.0})


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_instructions_are_followed_at_a_guidance(told, monkeypatch, guidance):
    asked = []

    def sample_all(sampler, params, frozen, rows, steps, seed, batch, guidance):
        asked.append((len(rows["image"]), steps, guidance))
        return rows["image"]

    objective = object.__new__(ConditionalDiffusion)
    object.__setattr__(objective, "model", SimpleNamespace(tokenize=list))
    monkeypatch.setattr(study, "open_run", lambda workdir: (SimpleNamespace(objective=objective, frozen={}), {}, 1))
    monkeypatch.setattr(study, "make_sampler", lambda objective: None)
    monkeypatch.setattr(study, "sample_all", sample_all)
    monkeypatch.setattr(study, "measure_seconds", lambda run, repeats: run() is None or 1.0)
    guided = {} if guidance is None else {"guidance": guidance}
    found = study.instructed(Path("run"), 0, {"tasks": ["lion"], "only": "cat", "count": 2, **guided})
    assert asked == [(2, 50, guidance), (1, 50, guidance)] and set(found) == {"success", "seconds"}


def test_scores_stay_or_drift_on_equal_prompts(tiny_world, monkeypatch):
    """DDS exactly, to the bit; three portraits, two iterations of a random teacher."""
    monkeypatch.setattr(study, "distinct_pairs", lambda edits, count: distinct_pairs(edits[:1], count))
    common = {"world": str(tiny_world), "count": 3}
    settings = {"iterations": 2, "guidance": 3.0, "frames": 2}
    dds = study.drift(None, 0, {**common, "method": "dds", "settings": settings})
    assert dds == {"change@1": 0.0, "change@2": 0.0, "change": 0.0}
    sds = study.drift(None, 0, {**common, "method": "sds", "settings": settings})
    assert sds["change@2"] == sds["change"] > 1e-4


def test_one_picture_an_edit_has_no_diversity(monkeypatch):
    """What two edits' pictures differ in is no diversity of either."""
    pairs = study.PairOptions(edits=tuple(EDITS), count=3).pairs()
    monkeypatch.setattr(report, "edit_metrics", lambda *_: {})
    monkeypatch.setattr(report, "caption_embedder", lambda *_: lambda texts: np.ones((len(texts), 1)))

    def read(images):
        return Readings(np.zeros(len(images)), np.ones((len(images), 1)), images.mean((1, 2)))

    measure = report.make_measure(SimpleNamespace(clip=(None, None), read=read), None, {"text": None})
    exact = pairs.counterfactual
    assert measure(exact, pairs)["diversity"] == 1
    assert measure(exact[[0, 0, 0, 3, 3, 3]], pairs)["diversity"] == pytest.approx(0, abs=1e-9)
    assert measure(0.5 * exact, pairs)["diversity"] == pytest.approx(0.25)
    single = study.PairOptions(edits=tuple(EDITS), count=1).pairs()
    assert np.isnan(measure(single.counterfactual, single)["diversity"])


def test_options_of_pairs():
    pairs = study.PairOptions(edits=tuple(EDITS), count=2).pairs()
    assert pairs.edits == ("hair=white",) * 2 + ("expression=angry",) * 2 and len(set(pairs.index.tolist())) == 4
    cats = study.PairOptions(tasks=("lion", "dog"), only="cat", count=2).pairs()
    assert cats.edits == ("species=lion",) * 2 + ("species=dog",) * 2
    assert cats.index[:2].tolist() == cats.index[2:].tolist(), "every task has the same cats"
    assert dataclasses.asdict(study.PairOptions())["world"] == "portraits"
