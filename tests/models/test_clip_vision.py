"""CLIP's vision tower and the whole CLIP against transformers, reduced, through the published file layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import save_file

from sdd_jax.models.clip_vision import CLIPVision, VisionConfig, clip_configs, embed_image, embed_text, load_clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
)
TEXT = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=60,
    eos_token_id=59,
    max_position_embeddings=8,
)
IDS = np.array([[58, 5, 7, 59, 59, 59], [58, 3, 59, 59, 59, 59]], np.int32)
PIXELS = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(transformers' CLIPModel, the directory it was saved to)."""
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20)
    model, folder = randomised(transformers.CLIPModel(config)), tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, folder


def test_embeddings_match_transformers(saved, record_property):
    model, folder = saved
    clip = load_clip(folder)
    with torch.no_grad():
        pixels = torch.tensor(PIXELS.transpose(0, 3, 1, 2))
        out = model(input_ids=torch.tensor(IDS, dtype=torch.long), pixel_values=pixels)
        states = model.vision_model(pixel_values=pixels)
    ours = jax.jit(CLIPVision(clip.vision).apply)({"params": clip.params["vision"]}, PIXELS)
    assert relative_error(ours.last, states.last_hidden_state) < TOLERANCE
    assert relative_error(ours.pooled, states.pooler_output) < TOLERANCE

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    image = unit(embed_image(clip.vision, clip.params["vision"], jnp.asarray(PIXELS)))
    text = unit(embed_text(clip.text, clip.params["text"], jnp.asarray(IDS)))
    errors = relative_error(image, out.image_embeds), relative_error(text, out.text_embeds)
    record_property("relative error", max(errors))
    print(f"clip: relative error image {errors[0]:.2g}, text {errors[1]:.2g}")
    assert max(errors) < TOLERANCE


def test_a_published_checkpoint_reads_alike(saved, tmp_path):
    """The hub's files: a torch checkpoint with integer `position_ids` buffers and half-precision tensors."""
    model, folder = saved
    state = {name: value.half() for name, value in model.state_dict().items()}
    for tower in ("vision", "text"):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    want = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), load_clip(folder).params)
    jax.tree.map(np.testing.assert_array_equal, load_clip(tmp_path).params, want)


def test_published_sizes():
    """The parameters of ViT-B/32 and L/14: 151.3 and 427.6 million, the temperature aside."""
    large = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    for fields, width, count in (({}, 512, 87_849_216), (large, 768, 303_966_208)):
        config, _ = clip_configs({"model_type": "clip", "projection_dim": width, "vision_config": fields})
        image = jnp.zeros((1, 224, 224, 3))
        shapes = jax.eval_shape(CLIPVision(config).init, jax.random.key(0), image)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("fields,named", [({"hidden_act": "swish"}, "hidden_act"), ({"num_channels": 1}, "channels")])
def test_unsupported_fields_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        VisionConfig.from_json(fields)


def test_errors_name_the_file(saved, tmp_path):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_clip(tmp_path)
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors.*missing"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(ValueError, match="siglip"):
        load_clip(tmp_path)
