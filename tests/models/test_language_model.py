"""Models as values: saving, restoring, and files that are not models."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models.toy import toy

TOKENS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_saved_model_loads_with_the_same_bits(tmp_path, family):
    model = toy(family)
    ji.save(model, tmp_path / "model")
    again = ji.load(tmp_path / "model")
    for name, weight in model.weights().items():
        np.testing.assert_array_equal(again.weights()[name], weight, err_msg=name)
    np.testing.assert_array_equal(ji.logits(again, TOKENS), ji.logits(model, TOKENS))


def test_saving_leaves_edits_out_and_keeps_the_tokenizer(tmp_path):
    model = ji.load("builtin:countdown-6m-sft")
    ji.save(ji.ablate(model, ji.head(4, 5)), tmp_path / "model")
    again = ji.load(tmp_path / "model")
    assert again.tokenizer == model.tokenizer
    np.testing.assert_array_equal(ji.logits(again, TOKENS), ji.logits(model, TOKENS))


def test_saving_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no model"):
        ji.save(toy(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_orbax_restores_weights_into_an_edited_tree(tmp_path):
    model, other = toy(seed=0), toy(seed=1)
    ji.save_tree(model, tmp_path / "tree")
    edited = ji.ablate(other, ji.head(0, 1))
    restored = ji.restore_tree(edited, tmp_path / "tree")
    expected = ji.logits(ji.ablate(model, ji.head(0, 1)), TOKENS)
    np.testing.assert_array_equal(ji.logits(restored, TOKENS), expected)


def test_a_model_is_a_frozen_tree_that_crosses_jit():
    model = toy()
    doubled = jax.jit(lambda lm: jax.tree_util.tree_map(lambda leaf: leaf * 2, lm))(model)
    np.testing.assert_array_equal(doubled.weights()["W_E"], 2 * model.weights()["W_E"])
    with pytest.raises(AttributeError):
        model.source = "elsewhere"


def test_a_notebook_shows_the_tree_and_its_edits():
    model = toy()
    plain, edited = (each._repr_mimebundle_() for each in (model, ji.steer(model, ji.resid_post(1), np.ones(32))))
    assert plain["text/plain"] == "LanguageModel(toy:llama:0)"
    assert "treescope" in plain["text/html"]
    assert len(edited["text/html"]) > len(plain["text/html"])


@pytest.fixture
def folder(tmp_path):
    ji.save(toy(), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"router_jitter": 0.1}, "unknown config key router_jitter"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supported"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "3 key-value heads do not divide 4"),
        ({"num_hidden_layers": 4}, r"missing model\.layers\.3"),
        ({"num_hidden_layers": 2}, r"unexpected model\.layers\.2"),
        ({"intermediate_size": 40}, r"mlp\.gate_proj\.weight has shape \(48, 32\) instead of \(40, 32\)"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(folder, keys, sentence):
    change_config(folder, **keys)
    with pytest.raises(ValueError, match=sentence):
        ji.load(folder)


def test_all_problems_of_the_tensors_are_told_at_once(folder):
    change_config(folder, num_hidden_layers=4, intermediate_size=40)
    with pytest.raises(ValueError, match=r"missing .*; .*gate_proj.*; .*up_proj"):
        ji.load(folder)


def test_an_unknown_dtype_and_a_missing_folder_are_refused(folder):
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        ji.load(folder, dtype="int8")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="model"):
        ji.load(folder)
