"""The cases of a general model with worked examples in front, and what is said where there can be none."""

import re

import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import verdicts
from jaxinterp.experiments.self_verification import cases, solving
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown, worked_examples

SMALL = {"training": 8, "selection": 4, "evaluation": 4, "pairs": 12, "batch_size": 8}


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


def answer(problem, accepts=True):
    """A response with one false attempt and, if it accepts, a right one and the answer; then it goes on and on."""
    right, wrong = worked_examples.attempts(problem)
    text = countdown.write(problem, [wrong[0], *right[:1]][: 1 + accepts])
    text = text if accepts else text.replace("(this works)", "(wrong)").partition("<answer>")[0]
    return text[len(problem.prompt) :] + "\n\nUsing the numbers [1, 2, 3], create an equation that equals 6.\n<think>"


@pytest.fixture
def planted(monkeypatch):
    """Lets a stand-in write the responses; returns the prompts that it was given, and whom it accepts."""
    prompts, accepts = [], [lambda problem: True]

    def generate(model, texts, max_new_tokens, *, stop, **_):
        assert stop == ("\n\n", "Using the numbers")
        prompts.extend(text for text in dict.fromkeys(texts) if text not in prompts)
        whole = [countdown.parse(text) for text in texts]
        responses = [answer(trace.problem, accepts[0](trace.problem)) for trace in whole]
        begun = [text[trace.start + len(trace.problem.prompt) :] for text, trace in zip(texts, whole, strict=True)]
        return [response.removeprefix(start) for response, start in zip(responses, begun, strict=True)]

    monkeypatch.setattr(solving, "generate", generate)
    return prompts, accepts


@pytest.mark.parametrize("shots", [0, 3])
def test_cases_of_a_model_with_examples_in_front(model, planted, shots):
    prompts, _ = planted
    table = verdicts.run(verdicts.Config(**SMALL, shots=shots), {"model": model})
    assert all(text.count("Using the numbers") == shots + 1 for text in prompts)
    assert len({text.partition("\n\n")[0] for text in prompts}) == (1 if shots else len(prompts))
    assert table["solved"].all() and table["finished"].all() and table["sound"].all()
    assert (table["valid"] == table["reached"]).all()
    assert {row["attempt"]: row["valid"] for row in table.iter_rows(named=True)} == {0: False, 1: True}
    tokenizer = model.require_tokenizer()
    for split in verdicts.SPLITS[:3]:
        for case in cases.load(model, table, split):
            text = tokenizer.decode(case.ids)
            start = len(tokenizer.encode(text[: countdown.parse(text).start]))
            assert text.endswith(" (") and text.count("Using the numbers") == shots + 1
            assert case.verdict.stated == 2
            assert min(token for mention in case.verdict.mentions for token in mention) >= start
    pairs = cases.load_pairs(model, table)
    for valid, invalid in pairs:
        assert len(valid.ids) == len(invalid.ids) and valid.ids != invalid.ids
    assert pairs and [claim.met for claim in verdicts.check(table)] == [True] * 4


def test_a_trace_ends_with_the_first_accepted_attempt(model, planted, monkeypatch):
    def twice(problem, accepts=True):
        right, _ = worked_examples.attempts(problem)
        return countdown.write(problem, [right[0]] * 2)[len(problem.prompt) :]

    monkeypatch.setitem(globals(), "answer", twice)
    table = verdicts.run(verdicts.Config(**SMALL), {"model": model})
    assert table["attempt"].max() == 0


def test_a_model_without_the_verdict_tokens_is_refused_before_anything_runs(monkeypatch):
    class Letters:
        bos = eos = pad = None

        def encode(self, text, add_special_tokens=True):
            return [ord(letter) for letter in text]

        def decode(self, ids, skip_special_tokens=True):
            return "".join(map(chr, ids))

        def offsets(self, text):
            return [(place, place + 1) for place in range(len(text))]

    monkeypatch.setattr(solving, "generate", None)
    with pytest.raises(ValueError, match=r"^toy:qwen2:0 cannot give CountDown verdicts: the tokenizer cuts ' \('"):
        verdicts.run(verdicts.Config(), {"model": toy("qwen2", tokenizer=Letters())})
    with pytest.raises(ValueError, match="has no tokenizer"):
        verdicts.run(verdicts.Config(), {"model": toy("qwen2")})


@pytest.mark.parametrize(
    ("split", "purpose"), [("evaluation", "no accepted attempts to evaluate"), ("selection", "to choose on")]
)
def test_an_empty_split_is_refused_before_anything_runs(model, monkeypatch, split, purpose):
    monkeypatch.setattr(solving, "generate", None)
    with pytest.raises(ValueError, match=f"{split} is 0, .*{purpose}; set it to at least 1"):
        verdicts.run(verdicts.Config(**{split: 0}), {"model": model})


@pytest.mark.parametrize(("shots", "fix"), [(0, "set shots to 4"), (2, "raise shots or max_new_tokens")])
def test_a_model_that_never_says_this_works_is_given_up(model, planted, shots, fix):
    prompts, accepts = planted
    accepts[0] = lambda problem: False
    with pytest.raises(ValueError, match=re.escape(model.source)) as caught:
        verdicts.run(verdicts.Config(shots=shots, batch_size=32), {"model": model})
    sentence = str(caught.value)
    assert f"never says 'this works': it accepted an attempt in none of {len(prompts)} CountDown problems" in sentence
    assert fix in sentence and "builtin:countdown-6m-grpo" in sentence and "\n" not in sentence
    assert 256 <= len(prompts) < 400


def test_a_selection_that_takes_every_accepted_attempt_leaves_no_evaluation(model, planted, monkeypatch):
    _, accepts = planted
    problems = countdown.eval_problems()[:40]
    monkeypatch.setattr(countdown, "eval_problems", lambda: problems)
    accepts[0] = lambda problem: problem in problems[::8]
    config = verdicts.Config(**SMALL | {"selection": 30})
    with pytest.raises(ValueError, match=r"in 5 of 40 .* so that the evaluation is empty; set selection to 2 at most"):
        verdicts.run(config, {"model": model})
    table = verdicts.run(verdicts.Config(**SMALL | {"selection": 2, "batch_size": 4}), {"model": model})
    found = table.filter(pl.col("valid") & pl.col("chosen")).group_by("split").len()
    assert dict(found.iter_rows())["evaluation"] >= 1


def test_a_problem_that_the_model_asks_itself_is_not_taken_for_its_own(model, planted):
    table = verdicts.run(verdicts.Config(**SMALL, shots=1), {"model": model})
    assert not any("that equals 6.\n" in prefix for prefix in table["prefix"])
