import dataclasses
import json

import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.config import load_config
from jaxinterp.models import decoder as tree
from jaxinterp.models.language_model import LanguageModel, save
from jaxinterp.models.nnx import to_weights
from jaxinterp.tasks import countdown, countdown_tokenizer
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.training import grpo_recipe
from jaxinterp.training import recipe as recipes
from jaxinterp.training.grpo_recipe import GrpoRecipe
from jaxinterp.training.recipe import Recipe
from jaxinterp.training.reinforcement import Practice

TINY = GrpoRecipe(
    name="tiny",
    problems=ProblemSettings(operands=(2,), largest=30, largest_target=60),
    practice=Practice(steps=2, prompts=2, samples=2, tokens=48, rows=4, save_every=1),
    examined=2,
    dtype="float32",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a random model and the tokenizer of CountDown."""
    made = Recipe(name="random", corpus="countdown", embedding=16, layers=1, heads=2, neurons=16)
    reader = countdown_tokenizer.tokenizer()
    config = recipes.configuration(made, reader)
    decoder, architecture = recipes.initial_decoder(made, config)
    body = tree.build(architecture, to_weights(decoder))
    folder = tmp_path_factory.mktemp("random") / "model"
    save(LanguageModel(body, architecture, json.dumps(config), reader, made.name), folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(start, tmp_path_factory):
    place = tmp_path_factory.mktemp("practised") / "model"
    grpo_recipe.train(dataclasses.replace(TINY, start=start), place)
    return place


def test_a_folder_is_a_model_with_what_made_it(folder, start):
    model, before = ji.load(folder), ji.load(start)
    assert model.architecture == before.architecture
    assert model.require_tokenizer().encode("12 - 3") == before.require_tokenizer().encode("12 - 3")
    assert load_config(GrpoRecipe, json.loads((folder / "recipe.json").read_text())) == dataclasses.replace(
        TINY, start=start
    )
    log, origin = artefacts.read_table(folder / "training_log.parquet")
    assert log["step"].to_list() == [1, 2] and origin["config"]["start"] == start
    logged = {"reward", "correct", "style_entropy", "truncated", "accepted_true", "rejected_true", "attempts"}
    assert logged | {"kl", "length", "dead_groups", "seconds"} <= {*log.columns}
    examination, _ = artefacts.read_table(folder / "examination.parquet")
    assert examination["model"].to_list() == ["start", "start", "tiny", "tiny"]
    card = " ".join((folder / "README.md").read_text().split())
    assert "license: apache-2.0" in card and "after 2 steps" in card and start in card
    assert not folder.with_name("model-checkpoints").exists()


def test_checkpoints_of_another_start_are_refused(start, tmp_path, monkeypatch):
    def ended(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as within:
        within.setattr(grpo_recipe, "_examination", ended)
        with pytest.raises(KeyboardInterrupt):
            grpo_recipe.train(dataclasses.replace(TINY, start=start), tmp_path / "model")
    other = dataclasses.replace(TINY, problem_seed=1, start="builtin:countdown-6m-grpo")
    with pytest.raises(ValueError, match="with other start, problem_seed; remove that folder"):
        grpo_recipe.train(other, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_problems_come_from_a_file_of_which_only_the_training_split_is_practised(tmp_path):
    problems = [countdown.Problem((5, number), 5 + number) for number in range(1, 90)]
    rows = {"nums": [list(problem.numbers) for problem in problems], "target": [each.target for each in problems]}
    pl.DataFrame(rows).write_parquet(tmp_path / "problems.parquet")
    recipe = dataclasses.replace(TINY, problems_file=str(tmp_path / "problems.parquet"))
    found = grpo_recipe.practised_problems(recipe)
    assert found == [problem for problem in problems if problem.split == "train"] and len(found) < len(problems)
    held_back = next(problem for problem in problems if problem.split != "train")
    (tmp_path / "few.jsonl").write_text(json.dumps({"nums": held_back.numbers, "target": held_back.target}))
    with pytest.raises(ValueError, match=r"few\.jsonl: none of its problems is of the training split"):
        grpo_recipe.practised_problems(dataclasses.replace(TINY, problems_file=str(tmp_path / "few.jsonl")))


def test_the_test_split_is_examined():
    assert grpo_recipe.examined_problems(GrpoRecipe(examined=20)) == countdown.eval_problems()[:20]
    assert {problem.split for problem in grpo_recipe.examined_problems(dataclasses.replace(TINY, examined=5))} == {
        "test"
    }


@pytest.mark.parametrize("name", ["countdown-smoke-grpo", "countdown-6m-grpo"])
def test_shipped_recipes_are_settings(name):
    recipe = load_config(GrpoRecipe, recipes.read(name))
    assert recipe.name == name and recipe.stage == "grpo"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        grpo_recipe.train(TINY, tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"
