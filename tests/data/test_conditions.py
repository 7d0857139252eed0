"""Conditions of portraits and of files: what they hold, where they come from, and that rows repeat."""

import numpy as np
import pytest
from PIL import Image

from sdd_jax.command import is_ours
from sdd_jax.data import conditions, portraits
from sdd_jax.data.conditions import composite, masked_image, random_mask, read_depth
from sdd_jax.data.decode import read_image
from sdd_jax.data.records import PortraitSource, to_float
from sdd_jax.data.sources import ImageData, Partners, open_source
from sdd_jax.images import to_uint8


def tokenize(texts):
    return np.stack([np.frombuffer(text.encode().ljust(120)[:120], np.uint8) for text in texts])


def words(row):
    return bytes(row["input_ids"]).decode().strip()


@pytest.fixture(scope="module")
def record():
    return PortraitSource("heldout", 3, cached=False)[2]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_depth_is_the_renderers_wherever_it_comes_from(record, array_cache):
    rendered = portraits.render(portraits.portrait(record["index"])).depth
    found = conditions.portrait_depth()(record, rng()).condition
    assert found.shape == (64, 64, 3) and found.dtype == np.float32
    np.testing.assert_allclose((found[..., 1] + 1) / 2, rendered, atol=1 / 255)
    maps = conditions.rendered_depth("heldout", 3)
    np.testing.assert_array_equal(conditions.portrait_depth(maps)(record, rng()).condition, found)


def test_edges_are_those_of_the_picture(record):
    found = conditions.canny()(record, rng()).condition
    np.testing.assert_array_equal(found[..., 0] > 0, portraits.edges(record["image"]) > 0)
    assert set(np.unique(found)) == {-1.0, 1.0} and found.shape == (64, 64, 3)
    assert (conditions.canny((200.0, 400.0))(record, rng()).condition > 0).sum() < (found > 0).sum()


def test_masks_hide_a_fair_share_and_vary():
    masks = [random_mask((48, 64), rng(seed)) for seed in range(200)]
    shares = np.array([mask.mean() for mask in masks])
    assert masks[0].shape == (48, 64) and masks[0].dtype == bool
    assert shares.min() >= 0.1 and shares.max() <= 0.6 and shares.std() > 0.1
    assert 10 < sum(share == 0.5 for share in shares) < 60, "halves too"
    np.testing.assert_array_equal(masks[5], random_mask((48, 64), rng(5)))


def test_one_mask_of_a_portrait_in_four_is_one_of_its_parts(record):
    """Which the renderer knows: every part that it has comes, and nothing beside or within it."""
    masks = portraits.render(portraits.portrait(record["index"])).masks
    parts = {name: mask > 0 for name, mask in masks.items() if 0 < (mask > 0).mean() <= 0.6}
    assert {"hair", "eyes", "mouth"} <= set(parts)
    made = [conditions.portrait_inpainting(record, rng(seed)).condition for seed in range(80)]
    drawn = [[name for name, part in parts.items() if np.array_equal(part, one[..., 3] > 0)] for one in made]
    assert {name for names in drawn for name in names} == set(parts)
    assert 0.1 < np.mean([bool(names) for names in drawn]) < 0.4
    np.testing.assert_array_equal(made[7], conditions.portrait_inpainting(record, rng(7)).condition)
    of_files = [conditions.inpainting(record, rng(seed)).condition[..., 3] > 0 for seed in range(20)]
    assert min(mask.mean() for mask in of_files) >= 0.1, "images on disk have no parts"


def test_an_inpainting_condition_hides_and_gives_back_exactly(record):
    mask = random_mask((64, 64), rng())
    made = masked_image(record["image"], mask)
    assert made.shape == (64, 64, 4) and made.dtype == np.float32
    np.testing.assert_array_equal(made[..., 3] > 0, mask)
    assert not made[mask][:, :3].any()
    np.testing.assert_array_equal(to_uint8(made[..., :3])[~mask], record["image"][~mask])
    painted = np.full((1, 64, 64, 3), 0.3, np.float32)
    found = to_uint8(composite(painted, made[None]))[0]
    np.testing.assert_array_equal(found[~mask], record["image"][~mask])
    assert (found[mask] == to_uint8(np.float32(0.3))).all()


def test_an_edit_ends_in_the_portrait_and_says_so(record):
    portrait = portraits.portrait(record["index"])
    seen = set()
    for seed in range(60):
        edit = conditions.draw_edit(record["index"], rng(seed))
        assert edit.old != edit.new == getattr(portrait.attributes, edit.attribute)
        assert getattr(edit.source.attributes, edit.attribute) == edit.old
        assert portraits.counterfactual(edit.source, edit.attribute, edit.new) == portrait
        seen.add(edit.attribute)
        if edit.attribute == "species":
            assert edit.old in edit.instruction and edit.new in edit.instruction
    assert seen == set(portraits.VOCABULARY)
    made = conditions.portrait_edit(record, rng(4))
    edit = conditions.draw_edit(record["index"], rng(4))
    assert made.prompt == edit.instruction
    np.testing.assert_array_equal(made.condition, to_float(portraits.image(edit.source)))


def test_rows_carry_what_training_reads_and_repeat(record):
    moments = rng().normal(size=(3, 4, 4, 2)).astype(np.float16)
    caption = conditions.portrait_caption("full")
    plain = conditions.conditioned_rows(tokenize, conditions.canny(), caption)(record, rng())
    assert set(plain) == {"condition", "input_ids", "image"}
    assert words(plain) == portraits.caption(portraits.portrait(record["index"]).attributes)[:120]
    encoded = conditions.conditioned_rows(tokenize, conditions.no_condition, caption, moments)(record, rng())
    assert set(encoded) == {"input_ids", "moments"} and encoded["moments"].dtype == np.float32
    np.testing.assert_array_equal(encoded["moments"], moments[2].astype(np.float32))
    told = conditions.conditioned_rows(tokenize, conditions.portrait_edit, caption)
    one, two = told(record, rng(1)), told(record, rng(1))
    assert words(one) == conditions.draw_edit(record["index"], rng(1)).instruction
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float", "rgb"])
def test_depth_maps_of_any_depth_fill_their_own_range(tmp_path, kind):
    ramp = np.linspace(0, 1, 40)[None].repeat(20, 0)
    made = {
        "uint8": lambda: Image.fromarray((50 + 100 * ramp).astype(np.uint8)),
        "uint16": lambda: Image.fromarray((1000 + 60000 * ramp).astype(np.uint16)),
        "float": lambda: Image.fromarray((3.5 * ramp).astype(np.float32)),
        "rgb": lambda: Image.fromarray((200 * ramp[..., None].repeat(3, -1)).astype(np.uint8)),
    }[kind]()
    path = tmp_path / f"d.{'tif' if kind == 'float' else 'png'}"
    made.save(path)
    found = read_depth(path, 20)
    assert found.shape == (20, 20) and found.min() == -1 and found.max() == 1
    np.testing.assert_allclose(found[7], np.linspace(-1, 1, 20), atol=0.03)
    Image.new("L", (8, 8), 9).save(tmp_path / "flat.png")
    assert not read_depth(tmp_path / "flat.png", 8).any()


def test_a_stretched_depth_map_keeps_its_margins(tmp_path):
    Image.fromarray(np.repeat(np.array([[255, 0, 0, 0]], np.uint8), 8, 1).repeat(16, 0)).save(tmp_path / "d.png")
    assert not read_depth(tmp_path / "d.png", 16).any(), "the middle is flat"
    found = read_depth(tmp_path / "d.png", 16, stretched=True)
    assert found.shape == (16, 16) and found[:, 0].min() == 1 and found[:, 8:].max() == -1


@pytest.fixture
def pairs(tmp_path):
    """Eight pictures in folders and their depth maps; number 3's is there twice."""
    images, depths = tmp_path / "images", tmp_path / "depths"
    for i in range(8):
        for folder in (images / f"{i}", depths / f"{i}"):
            folder.mkdir(parents=True)
        Image.new("RGB", (16, 16), (10, 20, 30)).save(images / f"{i}" / "x.jpg")
        plane = np.arange(256, dtype=np.uint8).reshape(16, 16)
        Image.fromarray(plane if i % 2 else plane[::-1]).save(depths / f"{i}" / ("x.tif" if i == 5 else "x.png"))
    Image.new("L", (16, 16)).save(depths / "3" / "x.webp")
    return images, depths


def opened(pairs, read=read_depth, **changes):
    images, depths = pairs
    return open_source(ImageData(path=str(images), size=16, **changes), Partners(str(depths), read))


def test_pairs_of_files_are_found_by_name(pairs):
    source = opened(pairs)
    for i in (3, 4, 5):
        made = conditions.file_depth(source[i], rng())
        assert made.condition.shape == (16, 16, 3) and made.prompt is None
        assert made.condition[0, 0, 0] < -0.99 if i % 2 else made.condition[0, 0, 0] > 0.8
    (pairs[1] / "5" / "x.tif").rename(pairs[1] / "5" / "x.jpeg")
    with pytest.raises(ValueError, match="x.jpeg is not a readable image"):
        opened(pairs, read_image)
    Image.new("RGB", (20, 16), (255, 0, 0)).save(pairs[1] / "5" / "x.jpeg")
    edit = conditions.file_edit(opened(pairs, read_image)[5], rng()).condition
    assert edit.shape == (16, 16, 3) and edit[..., 0].min() > 0.9


def test_a_missing_partner_is_an_error_when_opened(pairs):
    for i in (2, 6):
        (pairs[1] / f"{i}" / "x.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2/x.png: no such file \(nor .jpg.* condition of .*, one of 2") as no:
        opened(pairs)
    assert is_ours(no.value) and "\n" not in str(no.value)
    with pytest.raises(FileNotFoundError, match="none is not a directory: set config.condition.path to the conditions"):
        opened((pairs[0], pairs[1] / "none"))


def test_a_damaged_partner_is_a_damaged_record(pairs):
    (pairs[1] / "3" / "x.png").write_text("nothing")
    source = opened(pairs, max_bad_share=0.2)
    assert source[3]["position"] == 4 and len(source.bad) == 1 and "depths/3/x.png is not a readable" in source.bad[0]
    np.testing.assert_array_equal(source[3]["partner"], source[4]["partner"])
    (pairs[1] / "6" / "x.png").unlink()
    with pytest.raises(ValueError, match="2 of 8 records cannot be read, .*6/x.png"):
        source[6]


def test_a_depth_map_is_read_by_no_other_decoder_and_not_beyond_the_limit(tmp_path, monkeypatch):
    """PostScript, which Pillow would hand to Ghostscript, stays bytes; a bomb is refused by its header."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(ValueError, match="x.png is not a readable image"):
        read_depth(tmp_path / "x.png", 8)
    Image.new("L", (20, 20)).save(tmp_path / "large.tif")
    monkeypatch.setattr("sdd_jax.data.decode.MAX_PIXELS", 399)
    with pytest.raises(ValueError, match="large.tif: 20x20 pixels are more than 399"):
        read_depth(tmp_path / "large.tif", 8)
