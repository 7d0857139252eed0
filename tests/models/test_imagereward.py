"""ImageReward against transformers' BLIP modules, reduced, through the published file's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.imagereward import (
    PUBLISHED,
    REWARD_MEAN,
    REWARD_STD,
    ImageReward,
    RewardConfig,
    image_reward,
    load_image_reward,
    prompt_tokenizer,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch import nn  # noqa: E402

TOLERANCE = 1e-4
REDUCED = RewardConfig(
    image_size=32, patch_size=8, vision_width=24, vision_layers=2, vision_heads=4, vocab_size=50, positions=16,
    text_width=16, text_inner=40, text_layers=2, text_heads=2,
)  # fmt: skip
IDS = np.array([[2, 7, 8, 9, 3, 0, 0], [2, 11, 3, 0, 0, 0, 0]], np.int32)

# transformers' name of a vision tensor -> the published file's
VISION_NAMES = [
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"^post_layernorm\.", "norm."),
]


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(pixels, ids, mask -> rewards of PyTorch modules, the file of their weights under the published names)."""
    cfg = REDUCED
    vision = transformers.BlipVisionConfig(
        hidden_size=cfg.vision_width, intermediate_size=4 * cfg.vision_width, num_hidden_layers=cfg.vision_layers,
        num_attention_heads=cfg.vision_heads, image_size=cfg.image_size, patch_size=cfg.patch_size, layer_norm_eps=1e-6,
    )  # fmt: skip
    text = transformers.BlipTextConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.text_width, intermediate_size=cfg.text_inner,
        encoder_hidden_size=cfg.vision_width, num_hidden_layers=cfg.text_layers, num_attention_heads=cfg.text_heads,
        max_position_embeddings=cfg.positions, layer_norm_eps=1e-12, is_decoder=True,
    )  # fmt: skip
    see = randomised(transformers.BlipVisionModel(vision), 0)
    read = randomised(transformers.models.blip.modeling_blip_text.BlipTextModel(text, add_pooling_layer=False), 1)
    head = nn.Sequential(
        nn.Linear(cfg.text_width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1))
    state = {"blip.vision_proj.weight": torch.zeros(2, 2), "blip.text_proj.bias": torch.zeros(2)}
    for name, value in see.state_dict().items():
        for pattern, replacement in VISION_NAMES:
            name = re.sub(pattern, replacement, name)
        state[f"blip.visual_encoder.{name}"] = value
    state |= {f"blip.text_encoder.{name}": value for name, value in read.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(cfg.positions)[None]
    state |= {f"mlp.layers.{name}": value for name, value in head.state_dict().items()}
    path = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(state, path)

    def score(pixels, ids, mask):
        with torch.no_grad():
            image = see(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state
            states = read(
                input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long),
                encoder_hidden_states=image, encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
                is_decoder=False,
            ).last_hidden_state  # fmt: skip
            return (head(states[:, 0])[:, 0].numpy() - REWARD_MEAN) / REWARD_STD

    return score, path


def test_rewards_match_pytorch(reference, record_property):
    score, path = reference
    params = load_image_reward(path, REDUCED)
    pixels = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    mask = IDS != 0
    want = score(pixels, IDS, mask)
    got = np.asarray(image_reward(REDUCED, params, jnp.asarray(pixels), jnp.asarray(IDS), jnp.asarray(mask)))
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    record_property("relative error", error)
    print(f"imagereward: relative error {error:.2g}")
    assert got.shape == (2,) and error < TOLERANCE
    assert abs(want[0] - want[1]) > 100 * TOLERANCE
    unmasked = score(pixels, IDS, np.ones_like(mask))
    assert np.abs(unmasked - want).max() > 100 * TOLERANCE


def test_published_size():
    """ViT-L/16 at 224 px, BERT base with cross-attention of width 1024 and the head: about 446 million parameters."""
    image, ids = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(ImageReward(PUBLISHED).init, jax.random.key(0), image, ids, jnp.ones((1, 1), bool))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes["params"].items()}
    width, inner = 1024, 4096
    block = 4 * width * (width + 1) + width * inner * 2 + inner + width + 4 * width
    assert sizes["visual_encoder"] == 24 * block + width * (16 * 16 * 3 + 1) + 197 * width + width + 2 * width
    cross = 2 * 768 * (768 + 1) + 2 * 768 * (1024 + 1) + 2 * 768
    layer = 4 * 768 * (768 + 1) + 2 * 768 + cross + 768 * 3072 * 2 + 3072 + 768 + 2 * 768
    assert sizes["text_encoder"] == 12 * layer + (30524 + 512 + 2) * 768


def test_prompts_are_berts_word_pieces(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "lion", "smil", "##ing", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    ids, mask = prompt_tokenizer(tmp_path / "vocab.txt")(["A smiling lion, zebra", "a " * 60])
    reference = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    want = reference(["A smiling lion, zebra", "a " * 60], padding="max_length", truncation=True, max_length=35)
    np.testing.assert_array_equal(ids, want["input_ids"])
    np.testing.assert_array_equal(mask, np.array(want["attention_mask"], bool))
    with pytest.raises(FileNotFoundError, match="bert-base-uncased"):
        prompt_tokenizer(tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("[PAD]\n[UNK]\n[CLS]")
    with pytest.raises(ValueError, match=r"has no \[SEP\]"):
        prompt_tokenizer(tmp_path / "short.txt")


def test_wrong_inputs_are_named(reference):
    params = load_image_reward(reference[1], REDUCED)
    with pytest.raises(ValueError, match="32x32 RGB"):
        image_reward(REDUCED, params, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))
    with pytest.raises(ValueError, match="16 positions"):
        image_reward(REDUCED, params, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 17), jnp.int32), jnp.ones((1, 17), bool))
