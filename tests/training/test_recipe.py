import dataclasses
import json

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.cli import training as verb
from jaxinterp.config import as_dict, load_config
from jaxinterp.models.nnx import Decoder
from jaxinterp.training import corpora, evaluation, recipe
from jaxinterp.training.recipe import Course, Recipe

TINY = Recipe(
    name="tiny",
    texts=60,
    held_out_texts=10,
    embedding=16,
    layers=2,
    heads=2,
    neurons=32,
    context=48,
    tied=False,
    course=Course(steps=12, rows=8, warm_up=2, log_every=6),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "model"
    recipe.train(TINY, place)
    return place


def test_a_trained_folder_is_a_model_that_predicts_as_its_log_says(folder):
    model = ji.load(folder)
    assert model.require_tokenizer().encode("the dog") == corpora.small_language_tokenizer().encode("the dog")
    decoder = Decoder.from_weights(model.architecture, model.weights())
    rows = corpora.small_language_rows(
        model.require_tokenizer(), TINY.held_out_texts, TINY.corpus_seed + 1, TINY.context
    )
    log, origin = artefacts.read_table(folder / "training_log.parquet")
    assert evaluation.mean_loss(decoder, rows) == pytest.approx(log["held_out"][-1], abs=2e-3)
    assert log["loss"][-1] < log["loss"][0] and origin["config"]["name"] == "tiny"
    tree = ji.logits(model, rows[:2, :-1])
    np.testing.assert_allclose(tree, decoder(rows[:2, :-1]), atol=1e-4)


def test_a_folder_holds_what_made_it(folder):
    again = load_config(Recipe, json.loads((folder / "recipe.json").read_text()))
    assert again == TINY
    card = " ".join((folder / "README.md").read_text().split())
    assert "license: apache-2.0" in card and "12 steps" in card and "untied" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float16" and not config["tie_word_embeddings"]


def test_other_seeds_are_other_models():
    config = recipe.configuration(TINY, corpora.small_language_tokenizer())
    first, other = (recipe.initial_decoder(dataclasses.replace(TINY, seed=seed), config)[0] for seed in (0, 1))
    assert not np.allclose(first.table["W_E"][...], other.table["W_E"][...])


def test_bad_settings_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="multiple of 6"):
        recipe.train(dataclasses.replace(TINY, heads=3), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        recipe.train(TINY, tmp_path / "full")
    assert (tmp_path / "full" / "note.txt").exists()


def test_the_verb_reads_a_recipe_and_writes_the_folder(tmp_path):
    short = as_dict(dataclasses.replace(TINY, course=dataclasses.replace(TINY.course, steps=3)))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(short), encoding="utf-8")
    verb.train(str(file), output=tmp_path / "model")
    assert json.loads((tmp_path / "model" / "recipe.json").read_text()) == short
    with pytest.raises(ValueError, match=r"unknown key 'width'.*embedding"):
        verb.train('{"width": 3}', output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
