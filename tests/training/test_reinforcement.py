import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxinterp.models.architecture import Architecture, Rope
from jaxinterp.models.nnx import Decoder
from jaxinterp.training.checkpoints import Checkpoints
from jaxinterp.training.reinforcement import Practice, reinforce

SIZES: dict[str, Any] = {
    "vocabulary": 9,
    "embedding": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "projection": 8,
    "neurons": 32,
}
PRACTICE = Practice(steps=30, prompts=8, samples=8, tokens=22, learning_rate=2e-2, rows=32, updates=2, save_every=2)


@dataclasses.dataclass(frozen=True)
class Echo:
    """A response is worth the share of its tokens that are the prompt's only token."""

    pad: int = 0

    def ask(self, step, count):
        asked = np.random.default_rng(step).integers(2, 9, size=count).tolist()
        return asked, [[token] for token in asked]

    def judge(self, asked, responses, ended):
        rewards = np.array([np.mean(np.array(row) == token) for token, row in zip(asked, responses, strict=True)])
        return rewards, {"reward": float(rewards.mean())}


@pytest.fixture(scope="module")
def decoder():
    architecture = Architecture(family="llama", context=64, ropes=(Rope(theta=100.0, rotary=8),), eos=(1,), **SIZES)
    return Decoder(architecture, nnx.Rngs(0))


def test_a_planted_task_is_learned_and_the_log_says_how(decoder):
    before = jax.tree.map(np.asarray, nnx.state(decoder))
    _, log = reinforce(decoder, Echo(), PRACTICE)
    assert log["step"].to_list() == list(range(1, 31))
    assert log["reward"][:3].mean() < 0.2 and log["reward"][-3:].mean() > 0.8
    assert log["kl"][0] < 0.05 and log["kl"][-1] > 0.5
    assert log["dead_groups"][0] < 0.2 and log["length"].is_between(1, 6).all() and log["seconds"].is_sorted()
    assert {"clipped", "loss", "gradient_norm", "sampling", "judging", "updating", "tokens_per_second"} <= {
        *log.columns
    }
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(decoder)), strict=True):
        np.testing.assert_array_equal(one, other)


def _kept(decoder, task, practice, folder):
    with Checkpoints(folder) as checkpoints:
        return reinforce(decoder, task, practice, checkpoints)


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_ended(decoder, tmp_path):
    class EndedError(Exception):
        pass

    class EndsAtThree(Echo):
        def ask(self, step, count):
            if step == 3:
                raise EndedError
            return super().ask(step, count)

    short = dataclasses.replace(PRACTICE, steps=5)
    whole, log = reinforce(decoder, Echo(), short)
    with pytest.raises(EndedError):
        _kept(decoder, EndsAtThree(), short, tmp_path)
    resumed, again = _kept(decoder, Echo(), short, tmp_path)
    for one, other in zip(jax.tree.leaves(nnx.state(whole)), jax.tree.leaves(nnx.state(resumed)), strict=True):
        np.testing.assert_array_equal(one, other)
    same = ["step", "reward", "length", "loss", "kl", "gradient_norm"]
    assert log[same].equals(again[same]) and again["seconds"].is_sorted()
    finished, _ = _kept(decoder, EndsAtThree(), short, tmp_path)
    for one, other in zip(jax.tree.leaves(nnx.state(finished)), jax.tree.leaves(nnx.state(resumed)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_no_number_keeps_the_last_good_state(decoder, tmp_path):
    class Worthless(Echo):
        def ask(self, step, count):
            object.__setattr__(self, "worth", np.nan if step == 3 else 1.0)
            return super().ask(step, count)

        def judge(self, asked, responses, ended):
            rewards, measures = super().judge(asked, responses, ended)
            return rewards * self.worth, measures

    with pytest.raises(ValueError, match=r"step 4; the checkpoint of step 2 in .* is kept.*Lower learning_rate"):
        _kept(decoder, Worthless(), dataclasses.replace(PRACTICE, steps=6), tmp_path)
    _, log = _kept(decoder, Echo(), dataclasses.replace(PRACTICE, steps=3), tmp_path)
    assert log["step"].to_list() == [1, 2, 3]


def test_bad_settings_are_sentences(decoder, tmp_path):
    for change, match in (
        ({"samples": 1}, "nothing to compare"),
        ({"updates": 3}, "do not divide 8 prompts"),
        ({"rows": 24}, "do not divide the 32 responses"),
        ({"temperature": 0.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(PRACTICE, **change)
    with pytest.raises(ValueError, match="no room for a response"):
        reinforce(decoder, Echo(), dataclasses.replace(PRACTICE, tokens=16))
    with pytest.raises(ValueError, match="save_every is 0"):
        _kept(decoder, Echo(), dataclasses.replace(PRACTICE, save_every=0), tmp_path)
