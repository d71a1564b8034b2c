import jax
import pytest

import jaxinterp as ji
from jaxinterp.config import load_config
from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks.countdown_problems import draw_problems
from jaxinterp.training import recipe
from jaxinterp.training.practice import examine


@pytest.mark.slow
def test_a_small_model_learns_to_tell_true_from_false(tmp_path):
    """The shipped smoke recipe, from random weights: minutes on one core."""
    smoke = load_config(recipe.Recipe, recipe.read("countdown-smoke"))
    log = recipe.train(smoke, tmp_path / "model")
    assert log["verdict"][0] < 0.7 and log["verdict"][-1] > 0.95 and log["digits"][-1] > 0.9
    assert log["loss"][-1] < log["loss"][0] / 5
    assert not (tmp_path / "model-checkpoints").exists()
    model = ji.load(tmp_path / "model")
    problems = draw_problems("test", 20, 0, smoke.documents.problems)
    learned = Decoder.from_weights(model.architecture, model.weights())
    for temperature in (0.0, 1.0):
        _, measured = examine(
            learned,
            model.require_tokenizer(),
            problems,
            temperature=temperature,
            tokens=smoke.context,
            key=jax.random.key(0),
        )
        assert min(measured["accepted_true"], measured["rejected_true"]) > 0.95
        assert measured["template"] > 0.9
