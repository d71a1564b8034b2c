import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinterp.tasks import continuations, countdown, countdown_corpus
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.countdown_grammar import STYLES, write_response
from jaxinterp.tasks.countdown_traces import measures, read, style_entropy

PROBLEM = Problem((31, 12, 71), 28)
TRIED = ["31 + 12 - 71", "31 - 12 + 71", "71 - 31 - 12"]


@pytest.mark.parametrize("style", STYLES)
def test_a_response_of_each_style_is_read(style):
    reading = read(PROBLEM, write_response(PROBLEM, TRIED, style))
    assert (reading.style, reading.reward, reading.is_correct) == (style, 1.0, True)
    assert (reading.is_grammatical, reading.is_template, reading.is_truncated) == (True, style != "prose", False)
    assert [attempt.expression for attempt in reading.attempts] == TRIED
    assert [attempt.result for attempt in reading.attempts] == [-28, 90, 28]
    assert [attempt.accepted for attempt in reading.attempts] == [False, False, True]
    assert all(attempt.is_sound and attempt.uses_all for attempt in reading.attempts)
    unsolved = read(PROBLEM, write_response(PROBLEM, TRIED[:2], style))
    assert (unsolved.reward, unsolved.is_grammatical, unsolved.is_truncated) == (0.1, True, False)


@given(st.integers(0, 2**40))
def test_styles_agree_with_those_of_continuations(index):
    prompt, response = countdown_corpus.document(index, 3, CorpusSettings(verification=0.0))
    trace = countdown.parse(prompt + response)
    assert read(trace.problem, response).style == continuations.style(trace)
    cut = response[: index % len(response)]
    partial = read(trace.problem, cut)
    assert partial.is_truncated
    assert not partial.is_grammatical
    assert (partial.style or "none") == continuations.style(countdown.parse(prompt + cut)) or "Maybe" in cut


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("- 31 + 12 - 71 = 43 - 71 = 28 (this works)", {"accepted": True, "is_reached": True, "is_solved": False}),
        ("- 31 + 12 - 71 = 43 - 71 = 28 (this works)", {"is_sound": False, "uses_all": True}),
        ("- 31 + 12 - 71 = 43 - 71 = -28 (this works)", {"accepted": True, "is_reached": False, "is_sound": True}),
        ("- 71 - 31 - 12 = 40 - 12 = 28 (not 28)", {"accepted": False, "is_reached": True, "is_solved": True}),
        ("- 71 - 31 - 12 = 40 - 12 = 28 (not 82)", {"accepted": False, "style": "this works"}),
        ("- 71 - 31 = 40 (wrong)", {"uses_all": False, "is_sound": True, "style": "correct"}),
        ("- 71 - 31 - 12 = 41 - 12 = 28 (yes)", {"is_sound": False, "is_solved": True}),
        ("- 12 - 31 * 71 = -19 * 71 = -1349 (no)", {"is_sound": False, "is_solved": False}),
        ("- 7 / 2 + 1 = 4 (no)", {"is_sound": False, "is_solved": False}),
        ("- we try = 28 (found)", {"is_sound": False, "is_solved": False, "is_reached": True}),
        ("Maybe 71 - 31 - 12 gives 28, which misses 28", {"accepted": False, "is_reached": True, "style": "prose"}),
        ("Maybe 71 - 31 - 12 gives 82, which hits 28", {"accepted": True, "is_reached": False, "is_sound": False}),
    ],
)
def test_what_is_wrong_with_an_attempt_is_seen(line, expected):
    (attempt,) = read(PROBLEM, f"\n{line}\n").attempts
    assert {name: getattr(attempt, name) for name in expected} == expected


@pytest.mark.parametrize(
    "line", ["- 71 - 31 = 40 (perhaps)", "- 71 - 31 = 40 (not)", "- 71 - 31 (no)", "- 71 = 7x (no)", "Maybe 28", "- "]
)
def test_other_lines_are_no_attempts(line):
    reading = read(PROBLEM, write_response(PROBLEM, TRIED, "yes").replace("- 31 - 12 + 71", f"{line}\n- 31 - 12 + 71"))
    assert len(reading.attempts) == 3
    assert not reading.is_grammatical
    assert read(PROBLEM, f"\n{line}").attempts == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("We need 28", "We need 82"),
        ("equals 28 is", "equals 29 is"),
        ("<answer> 71 - 31", "<answer> 31 - 71"),
        ("- 31 + 12 - 71 = 43 - 71 = -28 (no)", "- 31 + 12 - 71 = 43 - 71 = -28 (wrong)"),
        ("\n</think>", ""),
        (" </answer>", "</answer>"),
        (" </answer>", " </answer>\n"),
        ("\n- 31 - 12", "\nMaybe 31 gives 31, which misses 28\n- 31 - 12"),
        ("combinations:", "combinations:\n"),
    ],
)
def test_what_is_not_in_the_form_is_no_template(old, new):
    text = write_response(PROBLEM, TRIED, "yes")
    assert old in text
    assert read(PROBLEM, text).is_template
    assert not read(PROBLEM, text.replace(old, new)).is_grammatical


def test_the_end_is_judged_by_the_sampler_where_it_knows():
    text = write_response(PROBLEM, TRIED, "yes")
    assert not read(PROBLEM, text).is_truncated
    assert read(PROBLEM, text, ended=False).is_truncated
    assert not read(PROBLEM, "we give up", ended=True).is_truncated
    assert read(PROBLEM, PROBLEM.prompt + text) == read(PROBLEM, text)


@given(st.text(), st.text("0123456789+-*/=() \n", max_size=400))
def test_any_text_can_be_read(text, numbers):
    for response in (text, numbers, f"\n- {numbers} = 7 (no)\n", f"\n- {text} = 7 (yes)\n"):
        reading = read(PROBLEM, response)
        assert reading.reward in (0.0, 0.1, 1.0)
        measures([reading])


@given(st.lists(st.integers(0, 30), min_size=2, max_size=4), st.data())
def test_the_value_of_an_attempt_is_that_of_its_expression(numbers, data):
    symbols = data.draw(st.lists(st.sampled_from("+-*/"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    expression = str(numbers[0]) + "".join(f" {s} {x}" for s, x in zip(symbols, numbers[1:], strict=True))
    value = countdown.evaluate(expression)
    target = data.draw(st.sampled_from([7, 12, int(value) if value is not None else 3]))
    (attempt,) = read(Problem(tuple(numbers), target), f"\n- {expression} = {target} (no)").attempts
    assert attempt.is_solved == (value == target)
    assert attempt.uses_all


def test_endless_numbers_do_no_harm():
    endless = "9" * 6000
    for line in (f"- {endless} + 1 = 10 (no)", f"- 9 + 1 = {endless} (no)", f"Maybe {endless} gives 1, which hits 28"):
        read(PROBLEM, f"\n{line}\n")


def test_measures_average_over_responses_and_verdicts():
    right = read(PROBLEM, write_response(PROBLEM, TRIED, "yes"))
    lying = read(PROBLEM, "\n- 31 + 12 - 71 = 43 - 71 = -28 (this works)\n- 71 - 31 - 12 = 40 - 12 = 28 (not 28)")
    found = measures([right, lying, lying])
    assert found["reward"] == found["correct"] == found["template"] == pytest.approx(1 / 3)
    assert found["truncated"] == pytest.approx(2 / 3)
    assert found["attempts"] == pytest.approx(7 / 3)
    assert found["accepted_true"] == found["accepted_solved"] == pytest.approx(1 / 3)
    assert found["rejected_true"] == found["rejected_unsolved"] == pytest.approx(2 / 4)
    assert found["sound"] == found["uses_all"] == 1.0
    assert found["style_entropy"] == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    nothing = measures([])
    assert nothing["reward"] is None
    assert nothing["accepted_true"] is None


def test_style_entropy():
    assert style_entropy([]) == 0.0
    assert style_entropy(["yes"] * 5) == 0.0
    assert style_entropy([None, "yes"]) == pytest.approx(math.log(2))


def test_a_reading_is_a_value():
    reading = read(PROBLEM, write_response(PROBLEM, TRIED, "found"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.reward = 2.0  # pyright: ignore[reportAttributeAccessIssue]
