"""Edits, inversion and generation against instruments that read a picture's mean colours."""

import math

import numpy as np
import pytest

from sdd_jax.evals.editing import CEILING, COLUMNS, edit_metrics
from sdd_jax.evals.generation import generation_metrics
from sdd_jax.evals.instruments import Readings
from sdd_jax.evals.inversion import inversion_metrics, normal_nll, picture_metrics

SIZE = 16


class Colours:
    """Three attributes, the signs of a picture's channels; its embedding is their means."""

    def read(self, images, batch=0):
        means = images.mean((1, 2))
        return Readings((means > 0).astype(np.int32), means, means)


def pictures(*means):
    return np.broadcast_to(np.asarray(means, np.float32)[:, None, None], (len(means), SIZE, SIZE, 3)).copy()


ORIGINALS = pictures((0.5, -0.5, -0.5), (0.5, 0.5, -0.5))
ANSWERS = pictures((0.5, 0.5, -0.5), (-0.5, 0.5, -0.5))
LABELS = np.array([[1, 0, 0], [1, 1, 0]])
MASKS = np.zeros((2, SIZE, SIZE, 1), np.float32)
MASKS[:, :8] = 1


def measured(outputs, masks=MASKS):
    asked = dict(attribute_index=np.array([1, 0]), target_value=np.array([1, 0]), labels=LABELS, masks=masks)
    return edit_metrics(Colours(), outputs, ANSWERS, ORIGINALS, **asked)


def test_the_right_answer():
    metrics = measured(ANSWERS)
    assert tuple(metrics) == COLUMNS
    assert metrics["success"] == metrics["preservation"] == 1 and metrics["psnr"] == CEILING
    assert metrics["clip_distance"] == pytest.approx(0, abs=1e-6)


def test_returning_the_original():
    metrics = measured(ORIGINALS)
    assert (metrics["success"], metrics["preservation"], metrics["psnr_outside"]) == (0, 1, CEILING)
    assert metrics["psnr"] == pytest.approx(10 * math.log10(4 / (1 / 3)), rel=1e-5)
    cosines = [0.25 / 0.75, 0.25 / 0.75]
    assert metrics["clip_distance"] == pytest.approx(1 - np.mean(cosines), rel=1e-5)


def test_an_edit_that_breaks_another_attribute_and_the_rest_of_the_picture():
    outputs = ANSWERS.copy()
    outputs[0, ..., 2] = 0.5
    metrics = measured(outputs)
    assert (metrics["success"], metrics["preservation"]) == (1, 0.75)
    by_hand = [10 * math.log10(4 / ((1 + 1) / 3)), 10 * math.log10(4 / (1 / 3))]
    assert metrics["psnr_outside"] == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_pictures_that_change_everywhere_have_no_outside():
    masks = MASKS.copy()
    masks[0] = 1
    assert measured(ANSWERS, masks)["psnr_outside"] == pytest.approx(10 * math.log10(4 / (1 / 3)), rel=1e-5)
    assert math.isnan(measured(ANSWERS, np.ones_like(masks))["psnr_outside"])


def test_inversion():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 64, 64, 4)).astype(np.float32)
    latents = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    metrics = inversion_metrics(Colours(), ORIGINALS + np.float32(0.1), ORIGINALS, latents + 0.2, latents, noise)
    assert metrics["latent_mse"] == pytest.approx(0.04, rel=1e-4)
    pictures_alone = picture_metrics(Colours(), ORIGINALS + np.float32(0.1), ORIGINALS)
    assert pictures_alone.items() < metrics.items() and metrics.keys() - pictures_alone == {"latent_mse", "nll"}
    assert metrics["mse"] == pytest.approx(0.01, rel=1e-4)
    assert metrics["psnr"] == pytest.approx(10 * math.log10(400), rel=1e-4)
    assert 0 < metrics["clip_distance"] < 0.1 and metrics["ssim"] < 1
    assert metrics["nll"] == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi), abs=0.02)
    assert normal_nll(2 * noise) - metrics["nll"] == pytest.approx(1.5, abs=0.05)


def test_generation():
    captions = np.asarray([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    metrics = generation_metrics(Colours(), ORIGINALS, LABELS, captions, ORIGINALS)
    assert metrics["attributes"] == 1 and metrics["clip_score"] == pytest.approx(1, abs=1e-6)
    assert metrics["frechet"] == pytest.approx(0, abs=1e-4)
    other = generation_metrics(Colours(), ANSWERS, LABELS, captions, ORIGINALS)
    assert other["attributes"] == pytest.approx(4 / 6) and other["frechet"] > 1
