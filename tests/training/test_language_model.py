import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.training import language_model
from jaxinterp.training.language_model import Course

SIZES = {"vocabulary": 17, "embedding": 16, "layers": 2, "heads": 2, "kv_heads": 2, "projection": 8, "neurons": 32}
COURSE = Course(steps=150, rows=8, learning_rate=1e-2, warm_up=5, log_every=50)


@pytest.fixture(scope="module")
def decoder():
    rope = Rope(theta=10000.0, rotary=8)
    return Decoder(Architecture(family="llama", context=32, ropes=(rope,) * 2, **SIZES), nnx.Rngs(0))


@pytest.fixture(scope="module")
def rows():
    """Each token is the one before it plus three, modulo seventeen."""
    start = np.random.default_rng(0).integers(0, 17, size=(40, 1))
    return ((start + 3 * np.arange(13)) % 17).astype(np.int32)


def test_a_rule_is_learned_and_the_log_says_how(decoder, rows):
    before = {name: np.asarray(array) for name, array in to_weights(decoder).items()}
    trained, log = language_model.train(decoder, rows[:32], COURSE, held_out=rows[32:])
    assert log["step"].to_list() == [50, 100, 150] and log["tokens"].to_list() == [50 * 96, 100 * 96, 150 * 96]
    assert log["loss"][0] > 1 and log["held_out"][-1] < 0.2
    assert log["held_out"][-1] == pytest.approx(language_model.mean_loss(trained, rows[32:]), abs=1e-5)
    assert (log["tokens_per_second"] > 0).all() and log["learning_rate"].is_sorted(descending=True)
    for name, array in to_weights(decoder).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_run_is_repeated_exactly(decoder, rows):
    short = dataclasses.replace(COURSE, steps=4, warm_up=1, log_every=4)
    first, again = (to_weights(language_model.train(decoder, rows, short)[0]) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_a_step_is_adamw_with_clipping_written_out(decoder, rows):
    course = Course(steps=1, rows=8, learning_rate=1e-2, warm_up=0, clip=0.1, weight_decay=0.2, log_every=1)
    trained, _ = language_model.train(decoder, rows[:8], course)
    graph, weights = nnx.split(decoder)

    def loss(now):
        logits = nnx.merge(graph, now)(jnp.asarray(rows[:8, :-1]))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:8, 1:, None], axis=-1))

    gradient = jax.grad(loss)(weights)
    length = optax.tree.norm(gradient)
    after = nnx.state(trained)
    for path, old in jax.tree_util.tree_leaves_with_path(weights):
        name = jax.tree_util.keystr(path)
        (new,) = (
            leaf for where, leaf in jax.tree_util.tree_leaves_with_path(after) if jax.tree_util.keystr(where) == name
        )
        (slope,) = (
            leaf for where, leaf in jax.tree_util.tree_leaves_with_path(gradient) if jax.tree_util.keystr(where) == name
        )
        clipped = slope * jnp.minimum(1, 0.1 / length)
        decay = 0.2 * old if "W_" in name else 0
        np.testing.assert_allclose(new, old - 1e-2 * (clipped / (jnp.abs(clipped) + 1e-8) + decay), atol=2e-5)


def test_a_loss_that_is_no_number_stops_with_a_sentence(decoder, rows):
    graph, weights = nnx.split(decoder)
    broken = nnx.merge(graph, jax.tree.map(lambda array: array * jnp.nan, weights))
    with pytest.raises(ValueError, match="Lower learning_rate"):
        language_model.train(broken, rows, dataclasses.replace(COURSE, steps=2, warm_up=1))
    with pytest.raises(ValueError, match="shorten it"):
        language_model.train(decoder, rows, dataclasses.replace(COURSE, warm_up=150))
