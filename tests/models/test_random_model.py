"""Folders of random weights: whole, readable by both libraries, of the stated shape, dtype and spread."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import jaxinterp as ji
from jaxinterp.models import families
from jaxinterp.models.language_model import logits
from jaxinterp.models.random_model import SHAPES, write_random_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("random") / "model"
    write_random_model(place, "tiny", "bfloat16", seed=3)
    return place


def test_both_libraries_read_the_same_model(folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, 512, (2, 12))
    with torch.no_grad():
        wanted = peer(torch.from_numpy(tokens)).logits.numpy()
    ours = logits(ji.load(folder), tokens)
    assert np.abs(ours - wanted).max() < 1e-4
    assert 0.5 < ours.std() < 2, "logits of a random model spread by about one"


def test_weights_are_what_is_stated(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config == SHAPES["tiny"] | {"dtype": "bfloat16"}
    placed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(placed.values())) == len(placed) == 3 + 9 * 4
    stored = {}
    for key, file in placed.items():
        with safe_open(folder / file, framework="numpy") as tensors:
            assert tensors.get_slice(key).get_dtype() == "BF16"
            stored[key] = tensors.get_tensor(key).astype(np.float32)
    down = stored["model.layers.2.mlp.down_proj.weight"]
    assert down.shape == (64, 160) and down.std() == pytest.approx(160**-0.5, rel=0.05)
    assert (stored["model.layers.0.input_layernorm.weight"] == 1).all()
    first, second = (stored[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05, "tensors are drawn apart"


def test_a_seed_says_what_is_drawn(folder, tmp_path):
    for name, seed in (("same", 3), ("other", 4)):
        write_random_model(tmp_path / name, "tiny", "bfloat16", seed=seed)
    files = [next(place.glob("model-00001*")).read_bytes() for place in (folder, tmp_path / "same", tmp_path / "other")]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(("shape", "count"), [("1b", 1_235_814_400), ("8b", 8_030_261_248)])
def test_the_large_shapes_have_the_parameters_of_their_models(shape, count):
    _, architecture = families.read_architecture(SHAPES[shape], shape)
    assert sum(int(np.prod(list(sizes.values()))) for sizes in architecture.weights().values()) == count


def test_nothing_is_written_where_something_is_asked_for_that_is_not_there(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no shape '2b'; the shapes are tiny, 1b, 8b"):
        write_random_model(tmp_path / "model", "2b")
    with pytest.raises(ValueError, match="there is no dtype 'int8'"):
        write_random_model(tmp_path / "model", dtype="int8")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is not empty"):
        write_random_model(folder)
