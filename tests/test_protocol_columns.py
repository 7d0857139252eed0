"""Each protocol's columns are those that docs/metrics.md promises, measured on pictures that something else made.

CLIP, DINOv2 and LPIPS read files of the published layouts, the first two reduced; InceptionV3 and ImageReward, whose
files have one size, are stood in for behind the same measures.
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from sdd_jax import evaluate
from sdd_jax.evals.clip_score import CLIPScorer
from sdd_jax.evals.frechet import load_stats
from sdd_jax.evals.protocols import measures
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.images import write_png
from sdd_jax.jobs.protocols import run as protocols
from sdd_jax.models.convert import flax_to_torch
from sdd_jax.models.lpips import LPIPS
from sdd_jax.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("compile_quickly")
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
SIDE = 64
CAPTIONS = ("a photo of a cat", "two dogs in the snow")
EDITED = ("a photo of a lion", "two bears in the snow")
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def promised(protocol):
    """The names in the last cell of the protocol's row."""
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith(f"| {protocol} |")]
    (columns,) = (row[3] for row in rows if "`" in row[3])
    return set(re.findall(r"`(\w+)`", columns))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The flags of every measure's weights."""
    root = tmp_path_factory.mktemp("weights")
    (root / "clip").mkdir()
    tokenizer = train_tokenizer([*CAPTIONS, *EDITED], 540, root / "clip", model_max_length=16)
    text = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        vision_config={**WIDTHS, "image_size": 32, "patch_size": 16}, text_config={**WIDTHS, **text}, projection_dim=8
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(root / "clip")
    dinov2 = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(dinov2).save_pretrained(root / "dinov2")
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(LPIPS("alex").init, jax.random.key(0), image, image)["params"]
    drawn = jax.tree.map(lambda leaf: rng.normal(scale=0.05, size=leaf.shape).astype(np.float32), shapes)
    state = flax_to_torch(drawn)
    linear = {f"lin{i}.model.1.weight": np.abs(state.pop(f"lin{i}.weight")) for i in range(5)}
    backbone = {name.replace("layers.", ""): value for name, value in state.items()}
    for name, tensors in (("backbone", backbone), ("linear", linear)):
        save_file(tensors, root / f"{name}.safetensors")
    return {
        "clip": [f"--clip={root / 'clip'}"],
        "dinov2": [f"--dinov2={root / 'dinov2'}"],
        "lpips": [f"--lpips=alex,{root / 'backbone.safetensors'},{root / 'linear.safetensors'}"],
        "fid": ["--inception=stand-in"],
        "image_reward": ["--image-reward=stand-in", "--vocabulary=stand-in"],
    }


@pytest.fixture(scope="module", autouse=True)
def networks():
    """Stand-ins for the two, and every other network read and compiled once for all protocols."""
    scorers = functools.cache(CLIPScorer.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "lpips_measure", functools.cache(measures.lpips_measure))
        patch.setattr(protocols, "dinov2_measure", functools.cache(measures.dinov2_measure))
        patch.setattr(CLIPScorer, "load", lambda directory, batch: scorers(directory, batch=batch))
        patch.setattr(
            protocols, "inception_network", lambda path, batch: ShardedApply(lambda _, x: mean(x), {}, batch=batch)
        )
        patch.setattr(measures, "load_image_reward", lambda path: {})
        patch.setattr(measures, "prompt_tokenizer", lambda path: tokenize)
        patch.setattr(measures, "image_reward", lambda config, params, x, ids, mask: mean(x)[:, 0] + ids[:, 0])
        yield


def mean(x):
    return x.mean((1, 2))


def tokenize(texts):
    return np.array([[len(text)] for text in texts]), np.ones((len(texts), 1), np.int32)


def draw(path, seed):
    write_png(path, np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """The directory of a benchmark for each protocol, of two samples, and `results/` made of it by something else."""
    root = tmp_path_factory.mktemp("benchmarks")
    mapping = {}
    for i in range(2):
        name = f"00000{i}"
        draw(root / "annotation_images" / f"{name}.png", i)
        draw(root / "results" / f"{name}.png", 7 + i)
        mapping[name] = {"image_path": f"{name}.png", "original_prompt": CAPTIONS[i], "editing_prompt": EDITED[i],
                         "blended_word": "", "mask": [512 * 100, 512 * 200]}  # fmt: skip
    (root / "mapping_file.json").write_text(json.dumps(mapping))
    rows = [f"00000{i}.png,{caption}\n" for i, caption in enumerate(CAPTIONS)]
    (root / "captions.csv").write_text("file_name,caption\n" + "".join(rows))
    return root


@pytest.mark.parametrize(
    ("protocol", "benchmark", "measured"),
    [
        ("generation", ["--csv={}/captions.csv", "--reference={}/annotation_images"], ("fid", "clip", "image_reward")),
        ("inversion", ["--csv={}/captions.csv", "--data={}/annotation_images"], ("clip", "dinov2", "lpips")),
        ("editing", ["--data={}"], ("clip", "dinov2", "lpips", "image_reward")),
        ("restoration", ["--data={}/annotation_images", "--reference={}/annotation_images"], ("fid", "lpips")),
    ],
)
def test_columns(protocol, benchmark, measured, weights, benchmarks, tmp_path):
    flags = [flag for name in measured for flag in weights[name]]
    arguments = [f"--protocol={protocol}", f"--results={benchmarks / 'results'}", f"--out={tmp_path}", "--batch=2"]
    assert evaluate.main([*arguments, *(text.format(benchmarks) for text in benchmark), *flags]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert set(found) == promised(protocol) and all(np.isfinite(value) for value in found.values())
    (scores,) = tmp_path.glob("scores-*.jsonl")
    samples = [json.loads(line) for line in scores.read_text().splitlines()[1:]]
    assert all(set(row) == {"id", *promised(protocol)} - {"fid"} for row in samples) and len(samples) == 2
    assert (tmp_path / "reference.npz").is_file() == ("fid" in measured)


def test_a_references_statistics_are_kept(benchmarks, weights, tmp_path):
    """FID against OUT/reference.npz is FID against the folder that it was made from."""
    common = ["--protocol=generation", f"--csv={benchmarks / 'captions.csv'}", f"--results={benchmarks / 'results'}"]
    found = []
    for out, reference in (("folder", benchmarks / "annotation_images"), ("kept", tmp_path / "folder/reference.npz")):
        arguments = [f"--reference={reference}", *weights["fid"], f"--out={tmp_path / out}", "--batch=2"]
        assert evaluate.main([*common, *arguments]) == 0
        found.append(json.loads((tmp_path / out / "metrics.json").read_text())["metrics"]["fid"])
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0] > 0
    assert load_stats(tmp_path / "folder" / "reference.npz").mu.shape == (3,)
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert "reference.npz" not in names and not list((tmp_path / "folder").glob("*partial*"))
