"""Worked traces in front of a problem: what they are, and that nothing of them is taken for the problem's own."""

import pytest

from jaxinterp.tasks import countdown, worked_examples

PROBLEM = countdown.Problem((31, 12, 71), 28)
RESPONSE = " 31 + 12 - 71 = 43 - 71 = -28 (not 28)\n- 71 - 31 - 12 = 40 - 12 = 28 (this works)"


def test_examples_are_distinct_sound_traces_of_the_training_split():
    examples = worked_examples.draw(9, seed=3)
    traces = [countdown.parse(example) for example in examples]
    assert len({trace.problem for trace in traces}) == 9
    assert {trace.problem.split for trace in traces} == {"train"}
    assert [len(trace.attempts) for trace in traces] == [2, 3, 1, 4, 2, 3, 1, 4, 2]
    for example, trace in zip(examples, traces, strict=True):
        assert [attempt.valid for attempt in trace.attempts] == [False] * (len(trace.attempts) - 1) + [True]
        assert all(attempt.is_sound for attempt in trace.attempts)
        assert all((attempt.result == trace.problem.target) is attempt.valid for attempt in trace.attempts)
        assert len({attempt.expression for attempt in trace.attempts}) == len(trace.attempts)
        assert countdown.score(example, trace.problem) == 1.0


def test_examples_depend_on_the_seed_alone():
    assert worked_examples.draw(3, seed=1) == worked_examples.draw(3, seed=1)
    assert not set(worked_examples.draw(3, seed=1)) & set(worked_examples.draw(3, seed=2))
    assert worked_examples.draw(0, seed=1) == ()


def test_without_examples_the_prompt_is_the_problems_own():
    assert worked_examples.prompt(PROBLEM) == PROBLEM.prompt


@pytest.mark.parametrize("count", [1, 4])
def test_the_last_problem_is_the_one_that_counts(count):
    examples = worked_examples.draw(count, seed=0)
    prompt = worked_examples.prompt(PROBLEM, examples)
    trace = countdown.parse(prompt + RESPONSE)
    assert trace.problem == PROBLEM
    assert trace.text[trace.start :].startswith(PROBLEM.prompt)
    assert [attempt.expression for attempt in trace.attempts] == ["31 + 12 - 71", "71 - 31 - 12"]
    assert [attempt.valid for attempt in trace.attempts] == [False, True]
    assert all(attempt.is_sound for attempt in trace.attempts)
    assert [trace.text[slice(*span)] for span in trace.mentions] == ["28"] * 3
    assert min(span[0] for span in trace.mentions) > trace.start
    assert trace.start < trace.preamble_end < trace.attempts[0].open
    alone = countdown.parse(trace.text[trace.start :])
    assert [attempt.open + trace.start for attempt in alone.attempts] == [attempt.open for attempt in trace.attempts]


def test_an_example_with_the_same_target_gives_no_mention():
    same = countdown.write(countdown.Problem((40, 12), 28), ["40 - 12"])
    trace = countdown.parse(worked_examples.prompt(PROBLEM, [same]) + RESPONSE)
    assert len(trace.mentions) == 3 and min(span[0] for span in trace.mentions) > len(same)


def test_the_answer_of_an_example_is_not_the_problems():
    prompt = worked_examples.prompt(PROBLEM, worked_examples.draw(2, seed=0))
    assert countdown.parse(prompt + RESPONSE).answer is None
    assert countdown.score(prompt + RESPONSE, PROBLEM) == 0.0
    own = prompt + RESPONSE + "\n</think>\n<answer> 71 - 31 - 12 </answer>"
    assert countdown.parse(own).answer == "71 - 31 - 12"
    assert countdown.score(own, PROBLEM) == 1.0
