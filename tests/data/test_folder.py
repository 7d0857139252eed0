"""A folder of images as records, and one line for everything that can be wrong with it."""

import numpy as np
import pytest
from PIL import Image

from sdd_jax.command import is_ours
from sdd_jax.data import decode
from sdd_jax.data.decode import read_image
from sdd_jax.data.pipeline import make_stream
from sdd_jax.data.sources import ImageData, open_source


def opened(root, **changes):
    return open_source(ImageData(path=str(root), size=8, **changes))


def write(path, size=(12, 8), mode="RGB", color=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if color is None:
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)
    else:
        Image.new(mode, size, color).save(path)
    return path


def test_records_are_sorted_square_and_captioned(tmp_path):
    write(tmp_path / "b.png", color=(0, 0, 255))
    write(tmp_path / "a.JPG", color=(255, 0, 0))
    write(tmp_path / "deep" / "c.webp", color=(0, 255, 0))
    (tmp_path / "b.txt").write_text(" a blue picture é\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not an image")
    images = opened(tmp_path)
    assert len(images) == 3
    assert [record["name"] for record in map(images.__getitem__, range(3))] == [
        str(tmp_path / name) for name in ("a.JPG", "b.png", "deep/c.webp")
    ]
    assert [images[i]["caption"] for i in range(3)] == ["", "a blue picture é", ""]
    assert [images[i]["position"] for i in range(3)] == [0, 1, 2]
    for i, channel in enumerate((0, 2, 1)):
        pixels = images[i]["image"]
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        assert pixels[..., channel].min() > 240 and np.delete(pixels, channel, -1).max() < 15


def test_the_middle_is_kept(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert read_image(tmp_path / name, 8).min() == 255
    assert read_image(tmp_path / "wide.png", 4).shape == (4, 4, 3)
    assert read_image(tmp_path / "wide.png", 9).shape == (9, 9, 3), "a small image is scaled up"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = write(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), mode=mode)
    assert read_image(path, 8).shape == (8, 8, 3)


def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path):
    grey = np.array([[0, 257, 32768], [256 * 200, 65278, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    for upright in (False, True):
        found = np.asarray(decode.read_picture(tmp_path / "x.png", upright=upright))
        np.testing.assert_array_equal(found, np.repeat([[[0], [1], [128]], [[199], [254], [255]]], 3, axis=2))


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png", 16)
    assert upright[0].min() == 255 and upright[-1].max() == 0


def test_a_large_jpeg_is_decoded_smaller_to_the_same_picture(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95)
    for size, side in ((60, 120), (64, 240), (121, 480)):
        found = decode.read_picture(tmp_path / "x.jpg", at_least=2 * size)
        assert found.height == side, "no smaller than twice what is asked for"
        whole = np.asarray(decode.shorter_side(decode.read_picture(tmp_path / "x.jpg"), size), float)
        scaled = np.asarray(decode.read_scaled(tmp_path / "x.jpg", size), float)
        assert np.abs(scaled - whole).mean() < 1 and np.abs(scaled - whole).max() < 12


def broken(path):
    write(path, (64, 64))
    path.write_bytes(path.read_bytes()[:200])


def flipped(path):
    write(path, (64, 64))
    data = bytearray(path.read_bytes())
    data[40:60] = bytes(20)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken, "is not a readable image"),
        (flipped, "is not a readable image"),
        (lambda path: path.write_bytes(b""), "is not a readable image"),
        (lambda path: path.write_text("<html>"), "is not a readable image"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is not a readable image"),
        (lambda path: path.mkdir(), "no such image"),
        (lambda path: None, "no such image"),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path, make, message):
    make(tmp_path / "x.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_image(tmp_path / "x.png", 8)
    assert "\n" not in str(error.value) and "x.png" in str(error.value) and is_ours(error.value)


def test_every_truncation_is_one_line(tmp_path):
    for suffix in (".png", ".jpg", ".webp"):
        whole = write(tmp_path / f"x{suffix}", (32, 32)).read_bytes()
        path = tmp_path / f"cut{suffix}"
        for length in range(0, len(whole) * 9 // 10, max(1, len(whole) // 40)):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is not a readable image"):
                read_image(path, 8)


def test_whatever_bytes_are_spoilt_the_error_is_ours(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".webp"):
        whole = write(tmp_path / f"x{suffix}", (32, 32)).read_bytes()
        path = tmp_path / f"spoilt{suffix}"
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                data[place] = rng.integers(0, 256)
            path.write_bytes(bytes(data))
            try:
                assert read_image(path, 8).shape == (8, 8, 3)
            except ValueError as error:
                assert "is not a readable image" in str(error) or "pixels are more" in str(error)


@pytest.mark.parametrize("limit", [decode.MAX_PIXELS, None])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    write(tmp_path / "x.png", (400, 400), color=(1, 2, 3))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    if limit is None:
        monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
        message = "400x400 pixels are more than 10000"
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own refusal
        message = "x.png is not a readable image"
    with pytest.raises(ValueError, match=message) as error:
        read_image(tmp_path / "x.png", 8)
    assert "\n" not in str(error.value)


def test_folders_without_images_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory: set config.data.path"):
        opened(tmp_path / "nowhere")
    (tmp_path / "x.txt").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images .*: set config.data.path"):
        opened(tmp_path)


def test_a_caption_in_another_encoding_is_one_line(tmp_path):
    write(tmp_path / "x.png")
    (tmp_path / "x.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="x.txt is not UTF-8 text") as error:
        opened(tmp_path)[0]
    assert "\n" not in str(error.value) and is_ours(error.value)


def test_a_broken_image_in_a_stream_is_still_our_error(tmp_path):
    write(tmp_path / "x.png")
    source = opened(tmp_path)
    broken(tmp_path / "x.png")
    stream = make_stream(source, lambda record, rng: {"image": record["image"]}, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="x.png is not a readable image") as error:
        next(stream)
    assert is_ours(error.value), "else the user sees a traceback"
