import gc
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinterp.training.checkpoints import Checkpoints

# Where a read or a write fails, orbax leaves the coroutines and threads of the other arrays unfinished.
pytestmark = pytest.mark.filterwarnings(
    "default::pytest.PytestUnraisableExceptionWarning", "default::pytest.PytestUnhandledThreadExceptionWarning"
)


@pytest.fixture(autouse=True)
def leftovers():
    """Has what orbax left unfinished reported here and not in a later test."""
    yield
    gc.collect()


def state_of(number: int):
    weights = {"W_E": jnp.arange(40000.0).reshape(200, 200) + number, "blocks": {"W_Q": jnp.full((3, 4), number)}}
    return {"weights": weights, "optimiser": optax.adamw(1e-3).init(weights), "key": jax.random.key(number)}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, state_of(step))
    return tmp_path / "run"


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("background", [True, False])
def test_the_newest_two_are_kept_and_read_back_bit_for_bit(tmp_path, background):
    with Checkpoints(tmp_path, background=background) as checkpoints:
        assert checkpoints.restore(state_of(0)) is None
        for step in (5, 10, 15):
            checkpoints.save(step, state_of(step))
        checkpoints.wait()
        assert checkpoints.steps == (10, 15)
    with Checkpoints(tmp_path) as checkpoints:
        step, found = checkpoints.restore(jax.eval_shape(lambda: state_of(0)))
        assert step == 15
        assert_same(found, state_of(15))


def test_one_that_is_still_being_written_is_waited_for(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"array": jnp.full(1 << 22, step)})
        step, found = checkpoints.restore({"array": jnp.zeros(1 << 22, int)})
        assert step == 2 and found["array"][-1] == 2
        assert checkpoints.steps == (1, 2)


def test_a_state_that_is_overwritten_while_it_is_saved_is_saved_as_it_was(tmp_path):
    grow = jax.jit(lambda array: array + 1, donate_argnums=0)
    array = jnp.zeros((400, 400))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in range(3):
            checkpoints.save(step, {"array": array})
            array = grow(array)
        checkpoints.wait()
        for step in (2, 1, 0):
            found = checkpoints.restore({"array": array})
            assert found[0] == step and (found[1]["array"] == step).all()
            checkpoints._manager.delete(step)


def test_a_truncated_checkpoint_is_passed_over_and_removed(folder):
    file = largest_file(folder / "15")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with Checkpoints(folder) as checkpoints:
        step, found = checkpoints.restore(state_of(0))
        assert step == 10 and checkpoints.steps == (10,)
        assert_same(found, state_of(10))
        checkpoints.save(15, state_of(15))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state_of(0))[0] == 15


def test_nothing_that_can_be_read_is_a_sentence_and_removes_nothing(folder):
    for step in ("10", "15"):
        largest_file(folder / step).write_bytes(b"")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint can be read.*remove the folder"):
            checkpoints.restore(state_of(0))
        assert checkpoints.steps == (10, 15)


def test_a_checkpoint_of_another_state_is_a_sentence_and_kept(folder):
    other = state_of(0)
    other["weights"]["W_E"] = jnp.zeros((100, 200))
    other["weights"]["new"] = jnp.zeros(2)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            ValueError, match=r"new is not in it.*W_E is float32\[200, 200\] there and .*\[100, 200\] here"
        ):
            checkpoints.restore(other)
        assert checkpoints.steps == (10, 15)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_a_sentence_and_the_last_checkpoints_stay(folder, background):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(folder, background=background)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        expected = r"could not be written.*on disk: 10, 15.*Make room.*goes on from the last"
        with pytest.raises(ValueError, match=expected), checkpoints:
            checkpoints.save(20, {"large": jax.random.normal(jax.random.key(0), (1_000_000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(folder) as again:
        step, found = again.restore(state_of(0))
        assert step == 15
        assert_same(found, state_of(15))
        again.save(20, state_of(20))
    with Checkpoints(folder) as again:
        assert again.steps == (15, 20)
