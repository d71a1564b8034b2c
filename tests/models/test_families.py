"""Every family against transformers, the tree against the NNX decoder, and what a loader must refuse."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from penzai import pz
from safetensors.numpy import load_file, save_file

import jaxinterp as ji
from jaxinterp.models import decoder, families, toy
from jaxinterp.models.nnx import Decoder, to_weights
from tests.models import reference

CONFIGS = dict(reference.tiny_configs())
FIRST = {name.split("-")[0]: name for name in reversed(CONFIGS)}
"""The first configuration of each family."""

SEQ, PADDING = 16, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A model as transformers has it and as we load it.

    The rows of `tokens` are a text, the first tokens of another behind `PADDING` slots of padding, and that other text
    whole; so one compiled program of ours does for single and for padded texts.
    """

    name: str
    theirs: transformers.PreTrainedModel
    folder: Path
    ours: ji.LanguageModel
    tokens: np.ndarray
    mask: np.ndarray

    @functools.cached_property
    def expected(self) -> np.ndarray:
        return reference.logits(self.theirs, self.tokens[[0, 2]])

    @functools.cached_property
    def penzai(self) -> np.ndarray:
        return ji.logits(self.ours, self.tokens, self.mask)

    @functools.cached_property
    def nnx(self) -> np.ndarray:
        stacked = Decoder.from_weights(self.ours.architecture, self.ours.weights())
        return np.asarray(nnx.jit(Decoder.__call__)(stacked, jnp.asarray(self.tokens), jnp.asarray(self.mask)))


def make_case(name: str, folder: Path) -> Case:
    config = CONFIGS[name]
    theirs = reference.build(config, seed=1)
    reference.save(theirs, folder)
    first, second = np.random.default_rng(2).integers(0, config.vocab_size, (2, SEQ))
    late = np.concatenate([np.full(PADDING, 3), second[:-PADDING]])
    mask = np.ones((3, SEQ), bool)
    mask[1, :PADDING] = False
    return Case(name, theirs, folder, ji.load(folder), np.stack([first, late, second]), mask)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("model") / "folder")


@pytest.fixture(scope="module", params=FIRST)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(FIRST[request.param], tmp_path_factory.mktemp("family") / "folder")


@pytest.fixture
def copy(family: Case, tmp_path: Path) -> Path:
    """A copy of the family's folder, to be spoilt."""
    for file in family.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_logits_are_those_of_transformers(case: Case) -> None:
    assert np.abs(case.expected).max() > 1, "the reference is too flat to tell models apart"
    for ours in (case.penzai, case.nnx):
        np.testing.assert_allclose(ours[[0, 2]], case.expected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(ours[1, PADDING:], case.expected[1, :-PADDING], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(ours[[0, 2]].argmax(-1), case.expected.argmax(-1))


def test_both_views_agree(case: Case) -> None:
    np.testing.assert_allclose(case.nnx[case.mask], case.penzai[case.mask], atol=1e-5, rtol=0)


def test_left_padded_texts_get_the_logits_they_get_alone(case: Case) -> None:
    np.testing.assert_allclose(case.penzai[1, PADDING:], case.penzai[2, :-PADDING], atol=1e-5, rtol=0)
    assert np.isfinite(case.penzai).all()


def test_transformers_reads_what_we_save(case: Case, tmp_path: Path) -> None:
    ji.save(case.ours, tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert again.dtype == torch.float32
    np.testing.assert_array_equal(reference.logits(again.eval(), case.tokens[[0, 2]]), case.expected)
    weights, back = case.ours.weights(), ji.load(tmp_path / "saved").weights()
    assert set(weights) == set(back) == set(case.ours.architecture.weights())
    assert all(np.array_equal(weights[name], back[name]) for name in weights)


def test_both_views_hold_the_same_bits(family: Case) -> None:
    weights = family.ours.weights()
    stacked = to_weights(Decoder.from_weights(family.ours.architecture, weights))
    assert all(np.array_equal(stacked[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_leaf_has_the_dtype(family: Case, dtype: str) -> None:
    model = ji.load(family.folder, dtype=dtype)
    assert {leaf.dtype.name for leaf in leaves(model.body).values()} == {dtype}
    inputs = decoder.side_inputs(jnp.asarray(family.tokens), jnp.asarray(family.mask))
    output = jax.eval_shape(lambda body: body(inputs["tokens"], **inputs), model.body)
    assert output.dtype in ("float32", dtype)
    exact = family.ours.weights()
    assert all(np.array_equal(weight, exact[name].astype(dtype)) for name, weight in model.weights().items())


def test_jit_equals_eager(family: Case) -> None:
    inputs = decoder.side_inputs(jnp.asarray(family.tokens), jnp.asarray(family.mask))
    eager = family.ours.body(inputs["tokens"], **inputs).unwrap("batch", "seq", "vocabulary")
    np.testing.assert_allclose(eager[family.mask], family.penzai[family.mask], atol=1e-5, rtol=0)


def test_what_is_read_is_what_transformers_computes(family: Case) -> None:
    names = ("embed", "resid_pre", "attn_out", "mlp_out", "resid_post", "pattern", "ln_final")
    logits, cache = ji.run(family.ours, family.tokens, family.mask, sites=[ji.Site(name) for name in names])
    assert logits is not None
    np.testing.assert_allclose(logits[family.mask], family.penzai[family.mask], atol=1e-5)

    before, attended, mixed, after = (cache.stack(s) for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    assert before.shape == (reference.LAYERS, *family.tokens.shape, reference.EMBEDDING)
    np.testing.assert_allclose(after, before + attended + mixed, atol=1e-5)
    np.testing.assert_array_equal(before[1:], after[:-1])
    assert min(np.abs(attended).mean(), np.abs(mixed).mean()) > 1e-2
    if not family.ours.architecture.learned_positions:
        np.testing.assert_array_equal(before[0], cache["embed"])

    with torch.no_grad():
        texts = torch.as_tensor(family.tokens[[0, 2]])
        theirs = family.theirs(texts, output_hidden_states=True, output_attentions=True)
    states = np.stack(theirs.hidden_states)
    np.testing.assert_allclose(before[:, [0, 2]], states[:-1], atol=1e-4)
    np.testing.assert_allclose(cache["ln_final"][[0, 2]], states[-1], atol=1e-4)
    np.testing.assert_allclose(cache.stack("pattern")[:, [0, 2]], np.stack(theirs.attentions), atol=1e-5)


def test_padding_on_the_right_is_not_seen_either(family: Case) -> None:
    tokens, mask = family.tokens.copy(), family.mask.copy()
    tokens[1], mask[1] = np.roll(tokens[1], -PADDING), np.roll(mask[1], -PADDING)
    late = ji.logits(family.ours, tokens, mask)
    np.testing.assert_allclose(late[1, :-PADDING], family.penzai[1, PADDING:], atol=1e-5)


def test_ids_outside_the_vocabulary_are_refused(family: Case) -> None:
    for wrong in (-1, CONFIGS[family.name].vocab_size):
        with pytest.raises(ValueError, match=str(wrong)):
            ji.logits(family.ours, [[1, wrong]])


def test_unknown_config_keys_are_refused(family: Case, copy: Path) -> None:
    reference.edit_config(copy, attention_twist=0.5, second_surprise=True)
    with pytest.raises(ValueError, match=r"config\.json|attention_twist") as refusal:
        ji.load(copy)
    assert "attention_twist" in str(refusal.value) and "second_surprise" in str(refusal.value)


def test_unknown_architectures_are_refused(family: Case, copy: Path) -> None:
    reference.edit_config(copy, model_type="perceiver")
    with pytest.raises(ValueError, match="perceiver"):
        ji.load(copy)


def test_unfitting_tensors_are_reported_all_at_once(family: Case, copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    names = sorted(name for name in tensors if tensors[name].ndim == 2 and ".1." in name)
    missing, halved, renamed = names[0], names[-1], names[1]
    del tensors[missing]
    tensors[halved] = np.ascontiguousarray(tensors[halved][: len(tensors[halved]) // 2])
    tensors[renamed.replace("weight", "wait")] = tensors.pop(renamed)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing") as refusal:
        ji.load(copy)
    for name in (missing, halved, renamed, renamed.replace("weight", "wait")):
        assert name in str(refusal.value)


def test_weights_that_are_no_numbers_are_refused(family: Case, copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name].flat[0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        ji.load(copy)


def test_loaded_weights_are_copies(family: Case, copy: Path) -> None:
    model = ji.load(copy)
    before = {name: np.array(weight) for name, weight in model.weights().items()}
    (copy / "model.safetensors").write_bytes(b"\0" * (copy / "model.safetensors").stat().st_size)
    assert all(np.array_equal(weight, before[name]) for name, weight in model.weights().items())


def test_tied_models_hold_one_table(case: Case) -> None:
    tables = [name for name in case.ours.architecture.weights() if name in ("W_E", "W_U")]
    labels = [weight.label for weight in pz.select(case.ours.body).at_instances_of(pz.ParameterValue).get_sequence()]
    assert sorted(label for label in labels if label in ("W_E", "W_U")) == tables
    assert (len(tables) == 1) == CONFIGS[case.name].tie_word_embeddings


def described(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says about the forward pass; which tokens start and end texts does not count."""
    architecture = families.read_architecture(config, "config.json")[1]
    return dataclasses.asdict(dataclasses.replace(architecture, bos=None, eos=(), context=1))


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """A config with every key that transformers would add."""
    return transformers.AutoConfig.for_model(**json.loads(json.dumps(config))).to_dict()


@pytest.mark.parametrize("kind", toy.CONFIGS)
def test_toys_are_what_transformers_would_make_of_their_configs(kind: str) -> None:
    config = {"model_type": kind} | toy.CONFIGS[kind]
    assert described(config) == described(filled(config))


@pytest.mark.parametrize("name", [*FIRST.values(), "llama-mistral-window"])
def test_missing_config_keys_mean_what_they_mean_to_transformers(name: str) -> None:
    complete = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    compared, misread = [], {}
    for key in complete.keys() - {"model_type"}:
        config = {k: v for k, v in complete.items() if k != key}
        try:
            expected = described(filled(config))
        except Exception:  # noqa: BLE001, S112 - what transformers cannot read, we need not read either
            continue
        try:
            ours = described(config)
        except ValueError as refusal:
            assert key in str(refusal)  # noqa: PT017 - to refuse is right too
            continue
        compared.append(key)
        different = {name: (ours[name], value) for name, value in expected.items() if ours[name] != value}
        if different:
            misread[key] = different
    assert len(compared) > 10
    assert not misread, "missing key: {field: (ours, transformers')}"


OLD_KEYS = {
    "llama-llama3-rope": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-linear-rope": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "qwen2-mha-untied-theta": {"rope_theta": 1e6},
    "gemma3-mixed-ropes": {"rope_theta": 1e6, "rope_local_base_freq": 100.0},
    "gemma3-linear-global-rope": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gpt_neox-half-rotary-serial": {"rotary_pct": 0.5, "rotary_emb_base": 10000},
}
"""How checkpoints written before transformers 5 say the same."""


@pytest.mark.parametrize("name", OLD_KEYS)
def test_configs_of_older_checkpoints_are_read_the_same(name: str) -> None:
    new = json.loads(json.dumps(CONFIGS[name].to_dict()))
    old = {key: value for key, value in new.items() if key != "rope_parameters"} | OLD_KEYS[name]
    assert families.read_architecture(old, "old")[1] == families.read_architecture(new, "new")[1]


def test_older_tensor_names_are_read(tmp_path: Path) -> None:
    for name, rename in (
        ("gpt2-tied", lambda key: key.removeprefix("transformer.")),
        ("gpt_neox-quarter-rotary-parallel", lambda key: key.replace("lm_head", "embed_out")),
    ):
        folder = tmp_path / name
        reference.save(reference.build(CONFIGS[name], seed=1), folder)
        weights = ji.load(folder).weights()
        tensors = {rename(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
        if name.startswith("gpt2"):
            tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))  # an attention mask, not a weight
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        again = ji.load(folder).weights()
        assert all(np.array_equal(again[key], weight) for key, weight in weights.items())
