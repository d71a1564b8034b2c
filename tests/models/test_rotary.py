"""Rotary positions against transformers and against their own algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.models.architecture import Rope
from jaxinterp.models.masks import causal_mask, positions_in_text
from jaxinterp.models.rotary import frequencies, rotate

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("head_dim", [8, 64, 256])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("scaling", [None, "linear", "llama3"])
def test_frequencies_are_those_of_transformers(head_dim: int, theta: float, scaling: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": scaling or "default", "rope_theta": theta}
    rope = Rope(theta=theta, rotary=head_dim)
    if scaling == "linear":
        parameters["factor"] = 8.0
        rope = Rope(theta=theta, rotary=head_dim, scaling="linear", factor=8.0)
    elif scaling == "llama3":
        parameters |= LLAMA3
        rope = Rope(theta=theta, rotary=head_dim, scaling="llama3", factor=8.0, original_context=64)
    config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=parameters)
    compute = ROPE_INIT_FUNCTIONS[scaling] if scaling else LlamaRotaryEmbedding.compute_default_rope_parameters
    expected, factor = compute(config)
    ours = frequencies(rope)
    assert factor == 1.0
    assert ours.dtype == np.float32 and ours.shape == (head_dim // 2,)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=5e-7, atol=0)  # a few roundings


def test_llama3_keeps_fast_and_slows_slow_frequencies() -> None:
    plain = frequencies(Rope(theta=1e4, rotary=32))
    scaled = frequencies(Rope(theta=1e4, rotary=32, scaling="llama3", factor=8.0, original_context=64))
    ratio = plain / scaled
    assert ratio[0] == 1.0 and ratio[-1] == 8.0
    assert np.all(np.diff(ratio) >= 0)
    assert np.any((ratio > 1.0) & (ratio < 8.0))


@pytest.mark.parametrize("rotary", [4, 8])
def test_rotation_is_that_of_transformers(rotary: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    x = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)  # batch, head, seq, projection
    positions = np.array([[0, 0, 1, 2, 3], [4, 5, 6, 7, 1000]])
    turns = frequencies(Rope(theta=1e4, rotary=rotary))
    angles = torch.tensor(positions)[..., None].float() * torch.tensor(turns)
    angles = torch.cat([angles, angles], -1)
    expected, _ = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), angles.cos(), angles.sin())
    ours = rotate(jnp.asarray(x), jnp.asarray(positions)[:, None, :], turns)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)
    assert np.array_equal(ours[..., rotary:], x[..., rotary:])


def test_scores_depend_on_distance_only_and_norms_are_kept() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 16))
    turns = frequencies(Rope(theta=1e4, rotary=16))
    positions = jnp.arange(20)
    queries = rotate(jnp.broadcast_to(q, (20, 16)), positions, turns)
    keys = rotate(jnp.broadcast_to(k, (20, 16)), positions, turns)
    scores = queries @ keys.T
    np.testing.assert_allclose(scores[5:, 5:], scores[:-5, :-5], atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    np.testing.assert_array_equal(queries[0], q)


def test_bfloat16_stays_bfloat16_with_float32_angles() -> None:
    x = jnp.ones((4, 8), jnp.bfloat16)
    positions = jnp.array([1000, 1001, 1002, 1003])  # bfloat16 could not tell these apart
    turned = rotate(x, positions, frequencies(Rope(theta=1e4, rotary=8)))
    assert turned.dtype == jnp.bfloat16
    assert len(np.unique(np.asarray(turned[:, 0], np.float32))) == 4


def test_window_counts_the_query_itself() -> None:
    slots = jnp.arange(6)
    mask = causal_mask(slots, slots, jnp.ones((1, 6), bool), 3)[0]
    assert [int(row.sum()) for row in mask] == [1, 2, 3, 3, 3, 3]
    assert mask[5, 3] and not mask[5, 2] and not mask[2, 3]
    full = causal_mask(slots, slots, jnp.ones((1, 6), bool))[0]
    assert np.array_equal(full, np.tril(np.ones((6, 6), bool)))
    traced = jax.jit(causal_mask)(slots, slots, jnp.ones((1, 6), bool), jnp.int32(3))[0]
    assert np.array_equal(traced, mask)


def test_padding_is_never_seen() -> None:
    valid = jnp.array([[False, True, True], [True, True, True]])
    mask = causal_mask(jnp.arange(3), jnp.arange(3), valid)
    assert not mask[0, :, 0].any() and mask[1, :, 0].all()
    assert not mask[0, 0].any()
    late = causal_mask(jnp.array([2]), jnp.arange(3), valid)
    assert np.array_equal(late, mask[:, 2:])


def test_positions_skip_padding() -> None:
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
    assert positions_in_text(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
