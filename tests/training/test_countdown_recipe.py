import dataclasses
import importlib.resources
import json

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.config import load_config
from jaxinterp.tasks import countdown_corpus
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training import corpora, countdown_rows, model_folder, recipe
from jaxinterp.training.language_model import Course
from jaxinterp.training.recipe import Recipe

TINY = Recipe(
    name="tiny",
    corpus="countdown",
    documents=CorpusSettings(problems=ProblemSettings(operands=(2,))),
    texts=300,
    held_out_texts=40,
    embedding=16,
    layers=2,
    heads=2,
    kv_heads=1,
    neurons=32,
    context=256,
    tied=False,
    course=Course(steps=8, rows=4, warm_up=2, log_every=2, save_every=4),
)


@pytest.fixture(scope="module")
def given():
    return importlib.resources.files("jaxinterp").joinpath("data/checkpoints/countdown-6m-sft")


def test_the_shipped_recipe_makes_the_shipped_model(given):
    shipped = load_config(Recipe, recipe.read("countdown-6m"))
    config = recipe.configuration(shipped, corpora.tokenizer("countdown"))
    wanted = json.loads(given.joinpath("config.json").read_text())
    assert {name: wanted[name] for name in config} == config
    assert recipe.initial_decoder(shipped, config)[1] == ji.load("builtin:countdown-6m-sft").architecture


def test_rows_read_as_the_documents_they_are_made_of(given):
    settings = CorpusSettings()
    rows = countdown_rows.rows(settings, 30, 3, 512)
    reader = Tokenizer.from_folder(str(given))
    texts = []
    for tokens, owners in zip(rows.tokens, rows.documents, strict=True):
        texts += [reader.decode(tokens[owners == number].tolist()) for number in range(1, owners.max() + 1)]
    written = list(countdown_corpus.documents(30, 3, settings))
    assert sorted(texts) == sorted(prompt + response for prompt, response in written)
    assert rows.counted.sum() == sum(len(reader.encode(response)) + 1 for _, response in written)
    assert all((rows.tokens == 1).sum(axis=1) == rows.documents.max(axis=1))


def test_processes_write_the_rows_that_one_process_writes(monkeypatch):
    settings = CorpusSettings(problems=ProblemSettings(operands=(2,)))
    monkeypatch.setattr(countdown_rows, "_CHUNK", 20)
    alone = countdown_rows.rows(settings, 50, 3, 256)
    monkeypatch.setattr(countdown_rows, "_FEW", 0)
    together = countdown_rows.rows(settings, 50, 3, 256)
    for field in dataclasses.fields(alone):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(together, field.name))


def test_accuracies_know_right_from_wrong():
    reader = corpora.tokenizer("countdown")
    rows = countdown_rows.rows(CorpusSettings(verification=0.3), 100, 3, 512)
    right = rows.tokens[:, 1:].astype(int)
    assert countdown_rows.accuracies(rows, right, reader) == {"verdict": 1.0, "digits": 1.0, "yes_no": 1.0}
    always = np.full_like(right, reader.id("success"))
    assert countdown_rows.accuracies(rows, always, reader) == {"verdict": 0.5, "digits": 0.0, "yes_no": 0.0}


def test_a_run_that_was_stopped_goes_on_to_the_folder_of_one_that_was_not(tmp_path, monkeypatch):
    through = recipe.train(TINY, tmp_path / "through")
    monkeypatch.setattr(model_folder, "save", _fail)
    with pytest.raises(OSError, match="planted"):
        recipe.train(dataclasses.replace(TINY, course=dataclasses.replace(TINY.course, stop=4)), tmp_path / "model")
    assert not (tmp_path / "model").exists() and (tmp_path / "model-checkpoints" / "4").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"another recipe, with other neurons; remove that folder"):
        recipe.train(dataclasses.replace(TINY, neurons=48), tmp_path / "model")
    log = recipe.train(TINY, tmp_path / "model")
    assert not (tmp_path / "model-checkpoints").exists()
    assert log["loss"].to_list() == through["loss"].to_list()
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("through", "model"))
    assert one == other
    card = " ".join((tmp_path / "model" / "README.md").read_text().split())
    assert "At step 4 the run went on with other settings: stop from 4 to None." in card
    assert "went on" not in (tmp_path / "through" / "README.md").read_text()
    table, origin = artefacts.read_table(tmp_path / "model" / "training_log.parquet")
    assert {"verdict", "digits", "yes_no", "utilisation"} < set(table.columns) and origin["config"]["name"] == "tiny"
    model = ji.load(tmp_path / "model")
    assert model.require_tokenizer().encode("- 3 + 4 = 7 (yes)") == corpora.tokenizer("countdown").encode(
        "- 3 + 4 = 7 (yes)"
    )
    assert model.architecture.qkv_bias and model.architecture.kv_heads == 1


def _fail(*_):
    raise OSError("planted")


def test_bad_settings_are_sentences(tmp_path):
    for changed, sentence in (
        ({"kv_heads": 3}, "3 key-value heads do not divide 2 heads"),
        ({"context": 40}, "raise the context"),
        ({"devices": recipe.Mesh(data=64)}, "64 devices are asked for"),
        ({"course": dataclasses.replace(TINY.course, rows=4000)}, "cannot be drawn from"),
        ({"course": dataclasses.replace(TINY.course, save_every=3)}, "no multiple of log_every"),
    ):
        with pytest.raises(ValueError, match=sentence):
            recipe.train(dataclasses.replace(TINY, **changed), tmp_path / "model")
        assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match=r"countdown-7m is neither.*countdown-6m"):
        recipe.read("countdown-7m")
