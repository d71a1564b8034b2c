"""The NNX decoder: its own properties; its agreement with transformers and the tree is in test_families."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.models.nnx_decoding import read_next, read_prompt, separate_layers

SIZES: dict[str, Any] = {
    "vocabulary": 37,
    "embedding": 16,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "projection": 6,
    "neurons": 24,
    "context": 32,
    "attention_scale": 6**-0.5,
}
LOCAL, GLOBAL = Rope(theta=100.0, rotary=6), Rope(theta=1e4, rotary=6, scaling="linear", factor=4.0)
GEMMA = Architecture(
    family="gemma3",
    norm_offset=1.0,
    activation="gelu_tanh",
    post_norms=True,
    qk_norm=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    tied=False,
    embedding_scale=4.0,
    attention_softcap=2.0,
    logit_softcap=3.0,
    ropes=(LOCAL, GLOBAL, LOCAL),
    windows=(4, None, 4),
    **SIZES,
)
NEOX = Architecture(
    family="gpt_neox",
    norm="layer",
    activation="gelu",
    gated=False,
    parallel=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    ropes=(Rope(theta=1e4, rotary=2),) * 3,
    **SIZES,
)
GPT2 = dataclasses.replace(NEOX, family="gpt2", parallel=False, activation="gelu_tanh", ropes=())
ARCHITECTURES = pytest.mark.parametrize("architecture", [GEMMA, NEOX, GPT2], ids=lambda a: a.family)


def random_weights(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(sizes.values()) for name, sizes in architecture.weights().items()}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def random_tokens(batch: int = 2, seq: int = 10, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, SIZES["vocabulary"], (batch, seq)))


@nnx.jit
def forward(decoder: Decoder, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return decoder(tokens, mask)


@ARCHITECTURES
def test_weights_come_back_bit_for_bit(architecture: Architecture) -> None:
    weights = random_weights(architecture)
    back = to_weights(Decoder.from_weights(architecture, weights))
    assert list(back) == list(architecture.weights())
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@ARCHITECTURES
def test_every_weight_has_the_dtype(architecture: Architecture, dtype: str) -> None:
    given = Decoder.from_weights(architecture, random_weights(architecture), dtype)
    drawn = nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(0), dtype))
    for decoder in (given, drawn):
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(nnx.state(decoder)))
    assert jax.eval_shape(Decoder.hidden, given, random_tokens()).dtype == dtype
    assert jax.eval_shape(Decoder.__call__, given, random_tokens()).dtype == jnp.float32


def test_bfloat16_is_close_to_float32_on_the_same_weights() -> None:
    rounded = Decoder.from_weights(GEMMA, random_weights(GEMMA), "bfloat16")
    exact = Decoder.from_weights(GEMMA, to_weights(rounded))
    tokens = random_tokens()
    difference = forward(rounded, tokens) - forward(exact, tokens)
    assert 0 < np.abs(difference).max() < 0.15
    assert np.abs(difference).mean() < 0.03


def test_faulty_weights_are_reported_all_at_once() -> None:
    weights = random_weights(NEOX)
    del weights["blocks.1.b_Q"]
    weights["W_U"] = weights["W_E"]
    weights["blocks.2.W_O"] = weights["blocks.2.W_O"].swapaxes(0, 1)
    with pytest.raises(ValueError, match=r"blocks\.1\.b_Q is missing.*W_U is not a weight.*blocks\.2\.W_O has shape"):
        Decoder.from_weights(NEOX, weights)


@ARCHITECTURES
def test_left_padded_batch_equals_single_texts(architecture: Architecture) -> None:
    decoder = Decoder.from_weights(architecture, random_weights(architecture))
    texts = [random_tokens(1, length, seed=length)[0] for length in (9, 5, 1)]
    tokens = jnp.stack([jnp.pad(text, (9 - len(text), 0), constant_values=7) for text in texts])
    mask = jnp.stack([jnp.arange(9) >= 9 - len(text) for text in texts])
    together = forward(decoder, tokens, mask)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(row[9 - len(text) :], forward(decoder, text[None])[0], atol=1e-5)
    assert np.isfinite(together).all()
    assert np.abs(together - forward(decoder, tokens))[1, 4:].max() > 1e-2, "the mask changes nothing"


@ARCHITECTURES
def test_no_position_sees_a_later_one(architecture: Architecture) -> None:
    decoder = Decoder.from_weights(architecture, random_weights(architecture))
    tokens = random_tokens()
    changed = tokens.at[:, 6].add(1)
    difference = np.abs(forward(decoder, tokens) - forward(decoder, changed)).max((0, 2))
    assert np.all(difference[:6] == 0) and difference[6] > 1e-3


def test_windows_bound_what_is_seen() -> None:
    local = dataclasses.replace(GEMMA, windows=(3, 3, 3))
    decoder = Decoder.from_weights(local, random_weights(local))
    tokens = random_tokens(1, 12)
    difference = np.abs(forward(decoder, tokens) - forward(decoder, tokens.at[:, 2].add(1))).max((0, 2))
    assert difference[2 + 3 * 2] > 0, "three windows of 3 reach six tokens back"
    assert np.all(difference[2 + 3 * 2 + 1 :] == 0)


SWITCHES = [
    (GEMMA, {"norm_eps": 1e-2}),
    (GEMMA, {"norm_offset": 0.0}),
    (GEMMA, {"activation": "relu"}),
    (GEMMA, {"activation": "silu"}),
    (GEMMA, {"embedding_scale": 1.0}),
    (GEMMA, {"attention_scale": 1.0}),
    (GEMMA, {"attention_softcap": None}),
    (GEMMA, {"logit_softcap": None}),
    (GEMMA, {"ropes": (LOCAL, LOCAL, LOCAL)}),
    (GEMMA, {"windows": (4, None, None)}),
    (GEMMA, {"windows": ()}),
    (GEMMA, {"qk_norm": False}),
    (GEMMA, {"post_norms": False}),
    (GEMMA, {"qkv_bias": False}),
    (GEMMA, {"output_bias": False}),
    (GEMMA, {"mlp_bias": False}),
    (GEMMA, {"tied": True}),
    (NEOX, {"parallel": False}),
    (NEOX, {"ropes": (Rope(theta=1e4, rotary=6),) * 3}),
    (NEOX, {"activation": "gelu_tanh"}),
]


NAMES = [
    f"{number}-{architecture.family}-{next(iter(change))}" for number, (architecture, change) in enumerate(SWITCHES)
]


@pytest.mark.parametrize(("architecture", "change"), SWITCHES, ids=NAMES)
def test_every_switch_changes_the_logits(architecture: Architecture, change: dict[str, Any]) -> None:
    weights = random_weights(architecture)
    changed = dataclasses.replace(architecture, **change)
    kept = {name: weights[name] for name in changed.weights()}
    tokens = random_tokens()
    with jax.disable_jit():  # operations compiled one by one are shared by all the cases
        before = Decoder.from_weights(architecture, weights)(tokens)
        after = Decoder.from_weights(changed, kept)(tokens)
    assert np.abs(before - after).max() > 1e-5


@ARCHITECTURES
def test_jit_equals_eager(architecture: Architecture) -> None:
    decoder = Decoder.from_weights(architecture, random_weights(architecture))
    tokens = random_tokens()
    with jax.disable_jit():
        eager = decoder(tokens)
    np.testing.assert_allclose(forward(decoder, tokens), eager, atol=1e-5)


def test_recomputing_blocks_changes_no_gradient() -> None:
    weights = random_weights(GEMMA)
    plain, frugal = (Decoder.from_weights(GEMMA, weights, remat=remat) for remat in (False, True))
    tokens = random_tokens()

    @nnx.jit
    def gradient(decoder: Decoder) -> nnx.State:
        return nnx.grad(lambda d: jnp.mean(jax.nn.log_softmax(d(tokens))[..., 0]))(decoder)

    for ours, theirs in zip(jax.tree.leaves(gradient(plain)), jax.tree.leaves(gradient(frugal)), strict=True):
        assert np.abs(ours).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_program_does_not_grow_with_depth() -> None:
    def lines(layers: int) -> int:
        architecture = dataclasses.replace(GEMMA, layers=layers, ropes=(LOCAL,) * layers, windows=(4,) * layers)
        decoder = nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(0)))
        return len(str(jax.make_jaxpr(lambda d, t: d(t))(decoder, random_tokens())).splitlines())

    assert abs(lines(12) - lines(2)) <= 2


def test_training_lowers_the_loss() -> None:
    decoder = Decoder(GEMMA, nnx.Rngs(0))
    tokens = random_tokens(4, 12)
    mask = jnp.arange(12) >= jnp.array([0, 3, 5, 0])[:, None]
    optimizer = nnx.Optimizer(decoder, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(decoder: Decoder, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(decoder: Decoder) -> jax.Array:
            errors = optax.softmax_cross_entropy_with_integer_labels(decoder(tokens, mask)[:, :-1], tokens[:, 1:])
            return jnp.mean(errors, where=mask[:, :-1])

        value, gradients = nnx.value_and_grad(loss)(decoder)
        optimizer.update(decoder, gradients)
        return value

    losses = [float(step(decoder, optimizer)) for _ in range(40)]
    chance = np.log(SIZES["vocabulary"])
    assert abs(losses[0] - chance) < 0.2, "random weights should predict nearly uniformly"
    assert losses[-1] < 0.6 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(decoder)))


def test_too_long_a_text_and_unknown_tokens_do_not_pass_unseen() -> None:
    decoder = Decoder.from_weights(GPT2, random_weights(GPT2))
    with pytest.raises(ValueError, match="40 tokens exceed the 32 learned positions"):
        decoder(random_tokens(1, 40))
    assert np.isnan(decoder(jnp.array([[1, SIZES["vocabulary"]]]))[0, 1]).all()


@ARCHITECTURES
def test_texts_side_by_side_in_a_row_get_the_logits_they_get_alone(architecture):
    decoder = Decoder(architecture, nnx.Rngs(0))
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 37, (1, length)) for length in (5, 3, 7)]
    documents = np.concatenate([np.full(text.shape, number) for number, text in enumerate(texts, 1)], axis=1)
    row, documents = (np.pad(array, ((0, 0), (0, 2))) for array in (np.concatenate(texts, axis=1), documents))
    together = decoder(jnp.asarray(row), documents=jnp.asarray(documents))
    for number, text in enumerate(texts, 1):
        np.testing.assert_allclose(together[:, documents[0] == number], decoder(jnp.asarray(text)), atol=1e-5)
    assert np.isfinite(together).all()


@ARCHITECTURES
def test_one_token_at_a_time_gives_the_logits_of_one_pass(architecture):
    decoder = Decoder(architecture, nnx.Rngs(1))
    tokens = np.random.default_rng(0).integers(1, 37, size=(3, 14))
    mask = np.arange(14) >= np.array([[0], [3], [5]])
    whole = decoder(tokens, mask)
    layers = separate_layers(decoder)
    following = jax.jit(lambda memory, token: read_next(decoder, layers, memory, token))
    logits, memory = read_prompt(decoder, jnp.asarray(tokens[:, :6]), jnp.asarray(mask[:, :6]), slots=15)
    np.testing.assert_allclose(logits, whole[:, 5], atol=1e-5)
    for place in range(6, 14):
        logits, memory = following(memory, tokens[:, place])
        np.testing.assert_allclose(logits, whole[:, place], atol=1e-5)
    assert memory.filled == 14 and memory.mask.sum(axis=1).tolist() == [14, 11, 9]


def test_a_memory_does_not_outgrow_learned_positions():
    decoder = Decoder(GPT2, nnx.Rngs(0))
    with pytest.raises(ValueError, match="exceed the 32 learned positions"):
        read_prompt(decoder, jnp.ones((1, 4), int), jnp.ones((1, 4), bool), slots=33)


def test_a_long_text_has_the_logits_of_its_parts():
    decoder = Decoder(GEMMA, nnx.Rngs(0))
    texts = jnp.asarray(np.random.default_rng(0).integers(0, 37, (2, 150)))
    whole = decoder(texts, jnp.arange(150) >= jnp.array([[30], [0]]))
    np.testing.assert_allclose(whole[0, 30:], decoder(texts[:1, 30:])[0], atol=1e-5)
    np.testing.assert_allclose(whole[1, :101], decoder(texts[1:, :101])[0], atol=1e-5)
