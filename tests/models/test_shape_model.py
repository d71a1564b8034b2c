"""Trees without numbers: those of real architectures, and the same as real trees in all that is not a number."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope

import jaxinterp as ji
from jaxinterp.models import shape_model
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.models.toy import CONFIGS, toy
from jaxinterp.sites.taps import edited_taps, find_taps


def written(folder, family):
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": family, **CONFIGS[family]}))
    return path


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [
        ("qwen2.5-3b", 3_085_938_688, 3.09e9),
        ("r1-distill-qwen-14b", 14_770_033_664, 14.8e9),
        ("llama-3-8b", 8_030_261_248, 8.03e9),
        ("llama-3-70b", 70_553_706_496, 70.6e9),
    ],
)
def test_the_shipped_architectures_have_the_published_parameters(name, parameters, published):
    model = load_shapes(f"shape:{name}", "bfloat16")
    weights = model.weights()
    assert sum(math.prod(weight.shape) for weight in weights.values()) == parameters
    assert parameters == pytest.approx(published, rel=0.005)
    assert {weight.dtype for weight in weights.values()} == {jnp.dtype(jnp.bfloat16)}
    assert all(isinstance(weight, jax.ShapeDtypeStruct) for weight in weights.values())
    assert name in shape_model.names() and model.tokenizer is None and model.source == f"shape:{name}"


def test_the_papers_model_is_what_the_paper_says():
    architecture = load_shapes("shape:qwen2.5-3b").architecture
    assert (architecture.layers, architecture.heads, architecture.kv_heads) == (36, 16, 2)
    assert (architecture.projection, architecture.neurons, architecture.tied) == (128, 11008, True)
    other = load_shapes("shape:r1-distill-qwen-14b").architecture
    assert (other.layers, other.heads, other.kv_heads, other.tied) == (48, 40, 8, False)
    for read in (architecture, other):
        assert read.qkv_bias and {rope.theta for rope in read.ropes} == {1e6}
        assert set(read.windows) == {None}, "attention is full"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_tree_of_shapes_is_the_real_tree_without_numbers(family, tmp_path):
    real, shapes = toy(family), load_shapes(written(tmp_path, family))
    assert shapes.architecture == real.architecture
    assert list(find_taps(shapes.body)) == list(find_taps(real.body))
    assert jax.tree_util.tree_structure(shapes.body) == jax.tree_util.tree_structure(real.body)
    for shape, array in zip(*map(jax.tree_util.tree_leaves, (shapes.body, real.body)), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


def edits(model):
    """Edits of every kind, as functions of the model."""
    width = model.architecture.embedding
    texts = [[3, 1, 4, 1], [2, 7, 1]]
    _, cache = ji.run(model, texts, sites=[ji.resid_post(), ji.z(), ji.pattern()], logits=None)
    vector = np.ones(width, np.float32)
    return {
        "zero heads": lambda lm: ji.ablate(lm, ji.head(0, 1, 3)),
        "zero units": lambda lm: ji.ablate(lm, ji.unit(1, 0, 5), at=ji.last()),
        "mean": lambda lm: ji.ablate(lm, ji.z(1), method="mean", cache=cache),
        "resample": lambda lm: ji.ablate(lm, ji.z(1), method="resample", cache=cache, key=jax.random.key(0)),
        "steer": lambda lm: ji.steer(lm, ji.resid_post(0), vector, 2.0),
        "patch": lambda lm: ji.patch(lm, ji.resid_post(0), cache),
        "patch pattern": lambda lm: ji.patch(lm, ji.pattern(1), cache),
        "project": lambda lm: ji.project(lm, ji.resid_post(0), vector),
        "two": lambda lm: ji.steer(ji.ablate(lm, ji.head(2, 0)), ji.resid_pre(2), vector, at=ji.last()),
    }


def test_edits_attach_to_a_tree_of_shapes_as_to_a_real_one(tmp_path):
    real, shapes = toy("qwen2"), load_shapes(written(tmp_path, "qwen2"))
    for name, edit in edits(real).items():
        before = jax.tree_util.tree_leaves(shapes.body)
        ours, theirs = edit(shapes), edit(real)
        assert list(edited_taps(ours.body)) == list(edited_taps(theirs.body)), name
        for tap, other in zip(edited_taps(ours.body).values(), edited_taps(theirs.body).values(), strict=True):
            assert [type(layer) for layer in tap.edits] == [type(layer) for layer in other.edits]
            for leaf, same in zip(*map(jax.tree_util.tree_leaves, (tap.edits, other.edits)), strict=True):
                np.testing.assert_array_equal(leaf, same)
        assert all(leaf is same for leaf, same in zip(before, jax.tree_util.tree_leaves(shapes.body), strict=True))


@pytest.mark.parametrize(
    "edit",
    [
        lambda lm: ji.ablate(lm, ji.head(1, 4)),
        lambda lm: ji.ablate(lm, ji.head(7, 0)),
        lambda lm: ji.ablate(lm, ji.unit(1, 48)),
        lambda lm: ji.steer(lm, ji.resid_post(0), np.ones(31)),
        lambda lm: ji.resid_post(3).addresses(lm.body),
    ],
    ids=["no such head", "no such layer", "no such unit", "wrong width", "no such tap"],
)
def test_a_tree_of_shapes_refuses_what_a_real_one_refuses_with_the_same_sentence(edit, tmp_path):
    sentences = []
    for model in (toy("qwen2"), load_shapes(written(tmp_path, "qwen2"))):
        with pytest.raises(ValueError, match=r"there is no|has no|must be") as caught:
            edit(model)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


def test_a_head_that_a_large_model_lacks_gets_the_usual_sentence():
    with pytest.raises(ValueError, match=r"z of layer 47 has head 0\.\.39; there is no 40"):
        ji.ablate(load_shapes("shape:r1-distill-qwen-14b"), ji.head(47, 40))


def test_a_tree_of_shapes_can_be_looked_at(tmp_path):
    text = treescope.render_to_text(load_shapes(written(tmp_path, "qwen2")))
    assert "W_gate" in text and "Tap(" in text


def test_weights_can_be_filled_in(tmp_path):
    real, shapes = toy("llama"), load_shapes(written(tmp_path, "llama"))
    filled = with_weights(shapes, real.weights())
    logits, _ = ji.run(filled, [[1, 2, 3]])
    np.testing.assert_array_equal(logits, ji.run(real, [[1, 2, 3]])[0])


def test_what_is_no_config_is_refused_with_the_fix(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no architecture 'qwen-9b': there are llama-3-70b, .*qwen2\.5-3b, r1-distill-qwen"
    ):
        load_shapes("shape:qwen-9b")
    with pytest.raises(ValueError, match=r"there is no file .*nowhere: give a config\.json, a folder with one, or"):
        load_shapes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"there is no file .*config\.json"):
        load_shapes(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_shapes(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        load_shapes(tmp_path)
    path.write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type 'mamba' is not supported"):
        load_shapes(path)
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        load_shapes("shape:qwen2.5-3b", "int8")
