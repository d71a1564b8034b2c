from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder
from jaxinterp.training import grpo
from jaxinterp.training.grpo import Experience, Rule

SIZES: dict[str, Any] = {
    "vocabulary": 11,
    "embedding": 8,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "projection": 4,
    "neurons": 16,
}
RULE = Rule(clip=0.2, kl=0.3, temperature=0.8)
RATE = optax.sgd(1.0)


@pytest.fixture(scope="module")
def decoders():
    architecture = Architecture(family="llama", context=64, ropes=(Rope(theta=100.0, rotary=4),), **SIZES)
    return [Decoder(architecture, nnx.Rngs(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def experience():
    draw = np.random.default_rng(0)
    lengths = np.array([3, 5, 1, 4])
    written = np.arange(5) < lengths[:, None]
    prompt = np.arange(4) >= np.array([[0], [2], [1], [3]])
    return Experience(
        tokens=draw.integers(0, 11, size=(4, 9)),
        mask=np.concatenate([prompt, written], axis=1),
        lengths=lengths,
        old=np.where(written, -2.4 + 0.4 * draw.normal(size=(4, 5)), 0.0).astype(np.float32),
        advantages=np.array([1.0, -1.0, 0.5, -0.5], np.float32),
    )


def test_advantages_are_standardised_within_a_group():
    rewards = np.array([[1.0, 0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 0.0]])
    found = grpo.advantages(rewards)
    for row, each in zip(found, rewards, strict=True):
        if len({*each}) == 1:
            assert not row.any()
        else:
            np.testing.assert_allclose(row, (each - np.mean(each)) / (np.std(each) + 1e-6), atol=1e-9)
            assert abs(row.sum()) < 1e-6


@jax.jit
def _logits(weights, tokens, mask):
    architecture = Architecture(family="llama", context=64, ropes=(Rope(theta=100.0, rotary=4),), **SIZES)
    return nnx.merge(nnx.graphdef(Decoder(architecture, nnx.Rngs(0))), weights)(tokens, mask)


def _scores(decoder, experience):
    """Log-probability of each response token, a list for each row."""
    logits = np.asarray(_logits(nnx.state(decoder), experience.tokens, experience.mask), float) / RULE.temperature
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [
        np.array([logits[row, 3 + place, experience.tokens[row, 4 + place]] for place in range(length)])
        for row, length in enumerate(experience.lengths)
    ]


def test_a_loss_is_what_a_few_lines_of_numpy_say(decoders, experience):
    policy, start = decoders
    total, divergence, clipped, count = 0.0, 0.0, 0, 0
    before, now = _scores(start, experience), _scores(policy, experience)
    for row, (new, reference, advantage) in enumerate(zip(now, before, experience.advantages, strict=True)):
        ratio = np.exp(new - experience.old[row, : len(new)])
        gain = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
        k3 = np.exp(reference - new) - (reference - new) - 1
        total += np.sum(-gain + 0.3 * k3)
        divergence += k3.sum()
        clipped += np.sum(np.clip(ratio, 0.8, 1.2) * advantage < ratio * advantage)
        count += len(new)
    assert 0 < clipped < count
    found = _update(policy, start, experience, rows=4)[1]
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["kl"] == pytest.approx(divergence / count, rel=1e-5)
    assert found["clipped"] == pytest.approx(clipped / count)


def _update(policy, start, experience, rows):
    graph, weights = nnx.split(policy)
    weights = jax.tree.map(jnp.copy, weights)
    new, _, found = grpo.update(
        graph, weights, RATE.init(weights), nnx.state(start), experience, optimiser=RATE, rule=RULE, rows=rows
    )
    return new, {name: float(value) for name, value in found.items()}


def test_passes_over_parts_add_up_to_one_over_all(decoders, experience):
    whole, found = _update(*decoders, experience, rows=4)
    parts, again = _update(*decoders, experience, rows=2)
    for name in found:
        assert found[name] == pytest.approx(again[name], rel=1e-5)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_on_its_own_responses_a_step_is_the_policy_gradient(decoders, experience):
    policy, _ = decoders
    graph, weights = nnx.split(policy)
    old = np.zeros((4, 5), np.float32)
    for row, scores in enumerate(_scores(policy, experience)):
        old[row, : len(scores)] = scores
    own = Experience(experience.tokens, experience.mask, experience.lengths, old, experience.advantages)

    def surrogate(now):
        tokens, mask = jnp.asarray(experience.tokens), jnp.asarray(experience.mask)
        scores = grpo.log_probabilities(nnx.merge(graph, now), tokens, mask, 5, RULE.temperature)
        return -jnp.sum(jnp.where(mask[:, 4:], scores, 0) * experience.advantages[:, None]) / experience.lengths.sum()

    expected = jax.tree.map(lambda array, slope: array - slope, weights, jax.jit(jax.grad(surrogate))(weights))
    found, means = _update(policy, policy, own, rows=4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert means["kl"] == pytest.approx(0, abs=1e-6) and means["clipped"] == 0
