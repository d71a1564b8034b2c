import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.training import evaluation, language_model
from jaxinterp.training.checkpoints import Checkpoints
from jaxinterp.training.language_model import Course
from jaxinterp.training.packing import pack_documents

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
    assert log["held_out"][-1] == pytest.approx(evaluation.mean_loss(trained, rows[32:]), abs=1e-5)
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

    gradient = jax.jit(jax.grad(loss))(weights)
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


def test_a_stray_run_keeps_its_last_checkpoint_and_says_how_to_go_on(decoder, rows, tmp_path):
    course = dataclasses.replace(COURSE, stop=20, log_every=2, save_every=4)
    with Checkpoints(tmp_path) as checkpoints:
        language_model.train(decoder, rows, dataclasses.replace(course, stop=8), checkpoints=checkpoints)
        with pytest.raises(ValueError, match=r"between steps 8 and 10; the checkpoint of step 8 in .* goes on from it"):
            language_model.train(
                decoder, rows, dataclasses.replace(course, learning_rate=float("inf")), checkpoints=checkpoints
            )
        assert checkpoints.steps == (4, 8)
        _, log = language_model.train(decoder, rows, course, checkpoints=checkpoints)
    assert log["step"].to_list() == list(range(2, 21, 2)) and log["loss"].is_finite().all()


def test_checkpoints_of_another_run_are_a_sentence(decoder, rows, tmp_path):
    course = dataclasses.replace(COURSE, stop=4, log_every=2, save_every=2)
    with Checkpoints(tmp_path) as checkpoints:
        language_model.train(decoder, rows, course, checkpoints=checkpoints)
        with pytest.raises(ValueError, match="another seed"):
            language_model.train(decoder, rows, dataclasses.replace(course, seed=1), checkpoints=checkpoints)
        with pytest.raises(ValueError, match="no multiple of log_every"):
            language_model.train(decoder, rows, dataclasses.replace(course, save_every=3), checkpoints=checkpoints)
        wider = Decoder(dataclasses.replace(decoder.architecture, neurons=48), nnx.Rngs(0))
        with pytest.raises(ValueError, match=r"W_in.* is float32\[2, 32, 16\] there and float32\[2, 48, 16\] here"):
            language_model.train(wider, rows, course, checkpoints=checkpoints)


def test_only_responses_are_learned_and_documents_do_not_see_each_other(decoder):
    documents = [([1, 2, 3, number], [number, 5, 6]) for number in range(7, 15)]
    course = Course(steps=120, rows=2, learning_rate=1e-2, warm_up=5, log_every=40)
    rows = pack_documents(documents * 4, 27)
    trained, log = language_model.train(decoder, rows, course, held_out=rows)
    assert log["held_out"][-1] < 0.1 and log["tokens"][-1] == 120 * 2 * 27
    alone = pack_documents(documents[:1], 6)
    assert evaluation.predictions(trained, alone)[0, 3:].tolist() == [7, 5, 6]
    prompts = np.array([[1, 2, 3, 8]], np.int32)
    assert evaluation.mean_loss(trained, prompts) > 1


def test_bfloat16_computes_with_float32_weights(decoder, rows):
    course = dataclasses.replace(COURSE, compute="bfloat16")
    trained, log = language_model.train(decoder, rows[:32], course, held_out=rows[32:])
    assert all(array.dtype == jnp.float32 for array in to_weights(trained).values())
    assert log["held_out"][-1] < 0.3
    _, exact = language_model.train(decoder, rows[:32], dataclasses.replace(COURSE, stop=50))
    assert log["loss"][0] == pytest.approx(exact["loss"][0], rel=0.02) and log["loss"][0] != exact["loss"][0]


def test_the_log_says_how_busy_the_device_was(decoder, rows):
    _, log = language_model.train(decoder, rows, dataclasses.replace(COURSE, stop=4, log_every=2))
    needed = 6 * (2 * (4 * 16 * 16 + 3 * 16 * 32) + 16 * 17) + 12 * 2 * 16 * 13 / 2
    for row in log.iter_rows(named=True):
        assert row["flops_per_second"] == pytest.approx(needed * row["tokens_per_second"])
        assert 0 < row["utilisation"] < 1
