import jax
import pytest

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.config import load_config
from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks.countdown_problems import draw_problems
from jaxinterp.training import grpo_recipe, recipe
from jaxinterp.training.practice import examine


@pytest.mark.slow
def test_a_small_model_learns_to_tell_true_from_false(tmp_path):
    """The shipped smoke recipe, from random weights: five minutes on one core."""
    smoke = load_config(recipe.Recipe, recipe.read("countdown-smoke"))
    log = recipe.train(smoke, tmp_path / "model")
    assert log["verdict"][0] < 0.7 and log["verdict"][-1] > 0.95 and log["digits"][-1] > 0.9
    assert log["loss"][-1] < log["loss"][0] / 5
    assert not (tmp_path / "model-checkpoints").exists()
    model = ji.load(tmp_path / "model")
    problems = draw_problems("test", 48, 0, smoke.documents.problems)
    learned = Decoder.from_weights(model.architecture, model.weights())
    for temperature, draws in ((0.0, 1), (1.0, 4)):
        measured = [
            examine(
                learned,
                model.require_tokenizer(),
                problems,
                temperature=temperature,
                tokens=smoke.context,
                key=jax.random.key(draw),
            )[1]
            for draw in range(draws)
        ]
        for name in ("accepted_true", "rejected_true"):
            assert sum(found[name] for found in measured) / draws > 0.95
        assert min(found["correct"] for found in measured) > 0.85


@pytest.mark.slow
def test_practice_raises_the_reward_of_a_model_that_learned_too_little(tmp_path):
    """The shipped smoke recipes, the first of them ended early: two minutes on one core."""
    begun = recipe.read("countdown-smoke")
    begun["course"] |= {"stop": 300, "save_every": 0}
    recipe.train(load_config(recipe.Recipe, begun), tmp_path / "start")
    practised = load_config(
        grpo_recipe.GrpoRecipe, recipe.read("countdown-smoke-grpo") | {"start": str(tmp_path / "start")}
    )
    log = grpo_recipe.train(practised, tmp_path / "model")
    assert log["reward"][-10:].mean() > log["reward"][:10].mean() + 0.1
    assert log["kl"][0] < 0.01 < log["kl"][-1]
    examination, _ = artefacts.read_table(tmp_path / "model" / "examination.parquet")
    start, model = (examination.filter(model=name)["reward"].mean() for name in ("start", practised.name))
    assert model > start
