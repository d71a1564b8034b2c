"""Adapters on disk: round trips, what PEFT makes of them, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import jaxinterp as ji
from jaxinterp.interventions.expression import apply_edit
from jaxinterp.interventions.lora import lora_numbers
from jaxinterp.interventions.lora_files import load_lora, save_lora
from jaxinterp.models.toy import toy
from tests.interventions.moved_weights import moved
from tests.models import reference

FUSED = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value"}
SMALL = toy("llama", num_hidden_layers=2)
CONFIGS = dict(reference.tiny_configs())
TOKENS = np.array([[3, 1, 4, 1, 5, 9]])


def shallow(name):
    """One of the reference models, with one block."""
    keys = {key: value for key, value in CONFIGS[name].to_dict().items() if key != "layer_types"}
    return reference.build(type(CONFIGS[name]).from_dict(keys | {"num_hidden_layers": 1}), seed=1)


def stored(folder):
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("targets", "layers"), [((), None), (("W_K", "W_O", "W_out"), [1])])
def test_what_is_saved_is_loaded_again(tmp_path, targets, layers):
    edited = moved(SMALL, *targets, layers=layers)
    save_lora(edited, tmp_path / "adapter")
    again = load_lora(SMALL, tmp_path / "adapter")
    assert jax.tree.structure(again.body) == jax.tree.structure(edited.body)
    jax.tree.map(np.testing.assert_array_equal, lora_numbers(again), lora_numbers(edited))
    np.testing.assert_array_equal(ji.logits(again, TOKENS), ji.logits(edited, TOKENS))
    text = apply_edit(SMALL, f"load_lora({str(tmp_path / 'adapter')!r})")
    np.testing.assert_array_equal(ji.logits(text, TOKENS), ji.logits(edited, TOKENS))


def test_the_files_have_the_names_and_shapes_of_peft(tmp_path):
    save_lora(moved(SMALL, "W_K", "W_O"), tmp_path)
    config, tensors = stored(tmp_path)
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 2, 3.0, "none")
    assert config["target_modules"] == ["self_attn.k_proj", "self_attn.o_proj"] and not config["fan_in_fan_out"]
    assert config["base_model_name_or_path"] == SMALL.source
    block = "base_model.model.model.layers.1.self_attn."
    assert tensors[f"{block}k_proj.lora_A.weight"].shape == (2, 32)
    assert tensors[f"{block}k_proj.lora_B.weight"].shape == (16, 2)
    assert len(tensors) == 8
    save_lora(moved(SMALL, "W_K", layers=[1]), tmp_path)
    config, tensors = stored(tmp_path)
    assert config["target_modules"] == ["model.layers.1.self_attn.k_proj"] and len(tensors) == 2


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("targets", [(), ("W_Q", "W_V", "W_in")])
def test_queries_keys_and_values_stored_as_one_are_joined_and_split(tmp_path, family, targets):
    model = toy(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    edited = moved(model, *targets)
    save_lora(edited, tmp_path / "once")
    config, tensors = stored(tmp_path / "once")
    ranks = {name: array.shape[0] for name, array in tensors.items() if name.endswith(f"{FUSED[family]}.lora_A.weight")}
    assert set(ranks.values()) == {4 if targets else 6} and len(ranks) == 1
    assert config["fan_in_fan_out"] is (family == "gpt2")
    again = load_lora(model, tmp_path / "once")
    expected = ji.logits(edited, TOKENS)
    assert np.abs(expected - ji.logits(model, TOKENS)).max() > 0.1
    np.testing.assert_allclose(ji.logits(again, TOKENS), expected, atol=1e-5)
    save_lora(again, tmp_path / "twice")
    for name, array in stored(tmp_path / "twice")[1].items():
        np.testing.assert_allclose(array, tensors[name], atol=1e-6)


def test_weights_of_other_ranks_and_factors_are_told_apart(tmp_path):
    edited = moved(moved(SMALL, "W_Q", "W_in"), "W_V", rank=3, alpha=12.0)
    save_lora(edited, tmp_path)
    config, _ = stored(tmp_path)
    module = "model.layers.0.self_attn.v_proj"
    assert (config["r"], config["rank_pattern"][module], config["alpha_pattern"][module]) == (2, 3, 12.0)
    np.testing.assert_array_equal(ji.logits(load_lora(SMALL, tmp_path), TOKENS), ji.logits(edited, TOKENS))


def test_transformers_with_the_products_added_by_hand(tmp_path):
    theirs = shallow("gpt2-tied")
    ours = ji.load(reference.save(theirs, tmp_path / "model"))
    edited = moved(ours)
    save_lora(edited, tmp_path / "adapter")
    config, tensors = stored(tmp_path / "adapter")
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = config["lora_alpha"] / config["r"] * tensors[name.replace("lora_A", "lora_B")] @ down
            with torch.no_grad():
                theirs.get_submodule(module).weight += torch.from_numpy(change.T.copy())
    tokens = np.random.default_rng(0).integers(0, 90, (2, 8))
    np.testing.assert_allclose(ji.logits(edited, tokens), reference.logits(theirs, tokens), atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llama-mha-biases", "qwen2-gqa-tied", "gpt2-tied", "gpt_neox-quarter-rotary-parallel"]
)
def test_peft_reads_what_we_save_and_we_what_it_saves(tmp_path, name):
    peft = pytest.importorskip("peft")
    theirs = shallow(name)
    ours = ji.load(reference.save(theirs, tmp_path / "model"))
    tokens = np.random.default_rng(0).integers(0, 90, (2, 8))
    edited = moved(ours)
    save_lora(edited, tmp_path / "ours")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    expected = reference.logits(adapted, tokens)
    assert np.abs(expected - ji.logits(ours, tokens)).max() > 0.1
    np.testing.assert_allclose(ji.logits(edited, tokens), expected, atol=1e-4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "theirs")
    again = load_lora(ours, tmp_path / "theirs", any_base=True)
    np.testing.assert_allclose(ji.logits(again, tokens), reference.logits(adapted, tokens), atol=1e-4)


def spoil(folder, config=None, tensors=None):
    old, arrays = stored(folder)
    (folder / "adapter_config.json").write_text(json.dumps(old | (config or {})))
    save_file(arrays if tensors is None else tensors(arrays), folder / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        (
            {"config": {"base_model_name_or_path": "org/other"}},
            "is an adapter of org/other, but this model is toy",
        ),
        ({"config": {"peft_type": "LOHA"}}, "peft_type must be LORA"),
        ({"config": {"use_dora": True}}, "use_dora = True is not supported; merge the adapter with PEFT"),
        ({"config": {"bias": "all"}}, "bias = 'all' is not supported"),
        ({"config": {"init_lora_weights": "pissa"}}, "init_lora_weights = 'pissa' is not supported"),
        ({"config": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"config": {"r": "8"}}, "ranks must be whole numbers"),
        ({"config": {"lora_alpha": None}}, "alphas must be numbers"),
        ({"config": {"rank_pattern": {"(a+)+": 3}}}, "the pattern .* is not supported"),
        ({"config": {"rank_pattern": [1]}}, "must map modules to numbers"),
        ({"config": {"r": 4}}, r"q_proj has shape \[2, 32\] instead of \[4, 32\]"),
        ({"tensors": lambda old: old | {KEY: old[KEY] * np.nan}}, "NaN"),
        ({"tensors": lambda old: {key: old[key] for key in old if key != KEY}}, "lora_A of .*q_proj is missing"),
        ({"tensors": lambda old: old | {"lm_head.weight": old[KEY]}}, "lm_head.weight is no factor"),
        (
            {"tensors": lambda old: old | {KEY.replace("layers.0", "layers.9"): old[KEY]}},
            "the model has no block matrix model.layers.9.self_attn.q_proj",
        ),
    ],
)
def test_a_wrong_adapter_is_one_sentence(tmp_path, spoilt, sentence):
    save_lora(moved(SMALL, "W_Q"), tmp_path)
    spoil(tmp_path, **spoilt)
    with pytest.raises(ValueError, match=sentence):
        load_lora(SMALL, tmp_path)


def test_an_adapter_of_another_model_is_refused_even_under_its_name(tmp_path):
    save_lora(moved(SMALL, "W_Q"), tmp_path)
    wide = toy("llama", num_hidden_layers=2, hidden_size=40)
    with pytest.raises(ValueError, match=r"does not fit toy:llama:0: lora_A of .* has shape \[2, 32\] instead of"):
        load_lora(wide, tmp_path, any_base=True)
    other = toy("llama", num_hidden_layers=2, seed=1)
    with pytest.raises(ValueError, match="is an adapter of toy:llama:0, but this model is toy:llama:1; load that one"):
        load_lora(other, tmp_path)
    assert lora_numbers(load_lora(other, tmp_path, any_base=True))


def test_a_revision_of_the_hub_is_kept_apart_from_the_name(tmp_path):
    hub = dataclasses.replace(moved(SMALL, "W_Q"), source="hf:org/name@abc")
    save_lora(hub, tmp_path)
    config, _ = stored(tmp_path)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "abc")
    assert lora_numbers(load_lora(dataclasses.replace(SMALL, source="hf:org/name@def"), tmp_path))


def test_what_cannot_be_saved_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"blocks.0.W_Q has several low-rank edits"):
        save_lora(moved(moved(SMALL, "W_Q"), "W_Q"), tmp_path / "new")
    with pytest.raises(ValueError, match="has no low-rank edit"):
        save_lora(SMALL, tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no adapter"):
        save_lora(moved(SMALL, "W_Q"), tmp_path)
    with pytest.raises(ValueError, match="there is no such file"):
        load_lora(SMALL, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors; pickled adapters are not read"):
        load_lora(SMALL, tmp_path)
