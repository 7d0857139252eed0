"""Each metric's preprocessing against its reference, on images of awkward sizes."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sdd_jax.evals.preprocess import (
    CLIP,
    DINOV2,
    IMAGE_REWARD,
    as_picture,
    image_paths,
    inception_input,
    prepared,
    read_picture,
    unit_range,
)

SIZES = [(341, 512), (300, 224), (97, 150), (255, 255)]
TOLERANCE = 1e-3


def picture(width, height):
    """Smooth colour with noise on it: what antialiasing, rounding and offsets all act on."""
    rng = np.random.default_rng(width)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], -1) * 90 + 128
    return np.clip(waves + rng.normal(0, 25, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "dinov2", "image_reward"])
def test_transformers_processors(name, size):
    """ImageReward's is CLIP's but for the crop's offset, on which both agree where the surplus is even, as here."""
    if name in ("clip", "image_reward"):
        ours, processor = {"clip": CLIP, "image_reward": IMAGE_REWARD}[name], pillow_class("CLIPImageProcessor")()
    else:
        crop = dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3)
        statistics = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
        ours, processor = DINOV2, pillow_class("BitImageProcessor")(**crop, **statistics)
    image = Image.fromarray(picture(*size))
    want = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
    got = ours(image)
    assert got.dtype == np.float32 and got.shape == (224, 224, 3)
    assert np.abs(got - want).max() < TOLERANCE


def pillow_class(name):
    """The processor that resizes with Pillow, under the names of transformers 4 and 5."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


@pytest.mark.parametrize("size", SIZES)
def test_inception_input_is_torchs_interpolate(size):
    image = picture(*size)
    x = torch.tensor(image.transpose(2, 0, 1)[None] / 255, dtype=torch.float32)
    want = 2 * torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    assert np.abs(inception_input(image) - want[0].numpy().transpose(1, 2, 0)).max() < TOLERANCE


def test_image_reward_crops_as_torchvision():
    """Half the surplus, rounded to even: 347 and 345 wide after resizing are 61.5 -> 62 and 60.5 -> 60."""
    for width, left in ((347, 62), (345, 60)):
        ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (224, width, 3))
        first = IMAGE_REWARD(ramp)[0, 0] * np.array(IMAGE_REWARD.std) + np.array(IMAGE_REWARD.mean)
        np.testing.assert_allclose(first * 255, left, atol=1e-3)
    assert round(float((CLIP(ramp)[0, 0, 0] * CLIP.std[0] + CLIP.mean[0]) * 255)) == 60


def test_kinds_of_image_agree():
    pixels = picture(40, 30)
    want = unit_range(pixels)
    assert want.min() >= -1 and want.max() <= 1
    np.testing.assert_allclose(unit_range(want), want, atol=1e-6)
    np.testing.assert_array_equal(unit_range(Image.fromarray(pixels)), want)
    with pytest.raises(ValueError, match="int64"):
        as_picture(pixels.astype(np.int64))
    with pytest.raises(ValueError, match="30, 40, 1"):
        as_picture(pixels[..., :1])


def test_files_are_read_in_order_and_bad_ones_are_named(tmp_path, monkeypatch):
    for i in range(9):
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    levels = [int(x[0, 0, 0]) for x in prepared(image_paths(tmp_path), np.asarray, workers=2)]
    assert levels == list(range(9))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ValueError, match="bad.png is not a readable image"):
        read_picture(tmp_path / "bad.png")
    monkeypatch.setattr("sdd_jax.data.decode.MAX_PIXELS", 19)
    with pytest.raises(ValueError, match="5x4 pixels are more than 19"):
        read_picture(tmp_path / "0.png")
    with pytest.raises(FileNotFoundError, match="no such image"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="holds no images"):
        image_paths(tmp_path / "nowhere")


def test_a_network_of_another_size_scales_the_resize():
    assert DINOV2.to_size(112)(picture(90, 70)).shape == (112, 112, 3)
    assert DINOV2.to_size(112).resize == 128 and CLIP.to_size(336).resize == 336
