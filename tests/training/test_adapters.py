"""Training low-rank edits: a planted change is found again, and only the edits' numbers move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxinterp as ji
from jaxinterp.interventions.lora import lora, lora_numbers, merge_lora
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy
from jaxinterp.training.adapters import differentiable_logits, next_token_loss, train_lora
from jaxinterp.training.checkpoints import Checkpoints

BASE = toy("qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2, vocab_size=37)
NAME = "blocks.1.W_in"
RANDOM = np.random.default_rng(0)
BATCHES = [RANDOM.integers(0, 37, (8, 10)) for _ in range(8)]
FRESH = RANDOM.integers(0, 37, (8, 10))


class Cycle:
    """The same few batches over and over."""

    def __getitem__(self, step):
        return BATCHES[step % len(BATCHES)]


@pytest.fixture(scope="module")
def planted():
    """The base with one weight moved by a product of rank 2."""
    change = np.random.default_rng(1).normal(size=(24, 2)) @ np.random.default_rng(2).normal(size=(2, 16)) / 4
    weights = BASE.weights()
    return change, with_weights(BASE, weights | {NAME: weights[NAME] + jnp.asarray(change, jnp.float32)})


def towards(teacher):
    def loss(model, tokens):
        return jnp.mean((differentiable_logits(model, tokens) - differentiable_logits(teacher, tokens)) ** 2)

    return loss


def distance(model, teacher):
    return float(np.abs(ji.logits(model, FRESH) - ji.logits(teacher, FRESH)).mean())


def test_a_planted_change_of_rank_2_is_found_with_rank_2_and_not_with_rank_1(planted):
    change, teacher = planted
    rule = optax.adam(optax.cosine_decay_schedule(3e-2, 400))
    apart = distance(BASE, teacher)
    left = {}
    for rank in (1, 2):
        student = lora(BASE, ["W_in"], [1], rank=rank, key=jax.random.key(0))
        trained, log = train_lora(student, towards(teacher), Cycle(), rule, 400, log_every=100)
        left[rank] = distance(trained, teacher) / apart
        assert log["step"].to_list() == [100, 200, 300, 400] and log["loss"][-1] < log["loss"][0]
    assert left[2] < 0.01 < 0.1 < left[1]
    found = np.asarray(merge_lora(trained).weights()[NAME] - BASE.weights()[NAME])
    np.testing.assert_allclose(found, change, atol=0.05 * np.abs(change).max())


def test_only_the_numbers_of_the_edits_move():
    student = ji.ablate(lora(BASE, rank=2, key=jax.random.key(0)), ji.head(0, 1))
    before = {name: np.asarray(weight) for name, weight in BASE.weights().items()}
    trained, log = train_lora(student, next_token_loss, Cycle(), optax.adam(1e-2), 20, log_every=10)
    assert log["loss"][-1] < log["loss"][0] and (log["gradient_norm"] > 0).all()
    assert all(np.array_equal(weight, before[name]) for name, weight in trained.weights().items())
    assert not any(np.any(own["B"]) for own in lora_numbers(student).values())
    assert all(np.any(own["B"]) for own in lora_numbers(trained).values())
    assert jax.tree.structure(trained.body) == jax.tree.structure(student.body)


def test_the_loss_counts_what_it_is_told_to_count():
    tokens = BATCHES[0]
    log_probabilities = jax.nn.log_softmax(ji.logits(BASE, tokens)[:, :-1], axis=-1)
    each = -np.take_along_axis(np.asarray(log_probabilities), tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(next_token_loss(BASE, tokens), each.mean(), rtol=1e-5)
    counted = np.zeros(tokens.shape, bool)
    counted[:, 6:] = True
    np.testing.assert_allclose(next_token_loss(BASE, tokens, counted), each[:, 5:].mean(), rtol=1e-5)


def test_padding_on_the_left_changes_no_logit():
    tokens = np.array([[7, 7, 3, 1, 4]])
    mask = np.array([[False, False, True, True, True]])
    padded = differentiable_logits(BASE, tokens, mask)[:, 2:]
    np.testing.assert_allclose(padded, differentiable_logits(BASE, tokens[:, 2:]), atol=1e-5)


def test_a_run_that_was_ended_goes_on_to_the_same_bits(tmp_path):
    student = lora(BASE, rank=2, key=jax.random.key(0))
    settings = {"loss": next_token_loss, "batches": Cycle(), "rule": optax.adam(1e-2), "log_every": 4}
    whole, _ = train_lora(student, steps=8, **settings)
    with Checkpoints(tmp_path / "states") as checkpoints:
        train_lora(student, steps=4, checkpoints=checkpoints, **settings)
    with Checkpoints(tmp_path / "states") as checkpoints:
        resumed, log = train_lora(student, steps=8, checkpoints=checkpoints, **settings)
        with pytest.raises(ValueError, match="the checkpoint is of step 8, but 4 steps are asked for"):
            train_lora(student, steps=4, checkpoints=checkpoints, **settings)
        again, nothing = train_lora(student, steps=8, checkpoints=checkpoints, **settings)
    assert log["step"].to_list() == [8] and nothing.is_empty()
    for other in (resumed, again):
        jax.tree.map(np.testing.assert_array_equal, lora_numbers(other), lora_numbers(whole))


def test_a_run_that_fails_keeps_its_last_good_checkpoint(tmp_path):
    class Spoilt(Cycle):
        def __getitem__(self, step):
            return (BATCHES[0], np.float32(1.0 if step < 3 else np.nan))

    def loss(model, batch):
        return next_token_loss(model, batch[0]) * batch[1]

    student = lora(BASE, rank=2, key=jax.random.key(0))
    with Checkpoints(tmp_path / "states") as checkpoints:
        with pytest.raises(ValueError, match="between steps 2 and 4; the checkpoint of step 2 is kept"):
            train_lora(student, loss, Spoilt(), optax.adam(1e-2), 6, log_every=2, checkpoints=checkpoints)
        checkpoints.wait()
        assert checkpoints.steps == (2,)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: train_lora(BASE, next_token_loss, Cycle(), optax.adam(1e-2), 1), "has no low-rank edit"),
        (lambda: train_lora(BASE, next_token_loss, Cycle(), optax.adam(1e-2), 0), "steps is 0"),
        (
            lambda: train_lora(
                lora(BASE, rank=2, key=jax.random.key(0)),
                lambda model, tokens: next_token_loss(model, tokens) * jnp.nan,
                Cycle(),
                optax.adam(1e-2),
                2,
                log_every=1,
            ),
            "no longer a number between steps 0 and 1; the model passed is unchanged. Lower",
        ),
    ],
)
def test_a_wrong_run_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
