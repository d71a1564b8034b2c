from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinterp.tasks import countdown

numbers = st.lists(st.integers(1, 99), min_size=3, max_size=4).map(tuple)


PROBLEM = countdown.Problem((31, 12, 71), 28)
TEXT = countdown.write(PROBLEM, ["31 + 12 - 71", "31 - 12 + 71", "71 - 31 - 12"])


def test_the_shipped_problems_are_all_in_the_test_split():
    problems = countdown.eval_problems()
    assert len(problems) == 1024
    assert len({(tuple(sorted(problem.numbers)), problem.target) for problem in problems}) == 1024
    assert {problem.split for problem in problems} == {"test"}
    assert all(10 <= problem.target <= 100 and len(problem.numbers) in (3, 4) for problem in problems)


@pytest.mark.parametrize("split", ["validation", "train", "test"])
def test_drawn_problems_are_solvable_distinct_and_in_their_split(split):
    problems = countdown.draw_problems(split, 40, seed=5)
    assert len(problems) == len({(tuple(sorted(problem.numbers)), problem.target) for problem in problems}) == 40
    assert {problem.split for problem in problems} == {split}
    assert {len(problem.numbers) for problem in problems} == {3, 4}
    assert problems == countdown.draw_problems(split, 40, seed=5)
    assert problems != countdown.draw_problems(split, 40, seed=6)


@given(numbers, st.integers(10, 100))
def test_the_split_does_not_depend_on_the_order_of_the_numbers(values, target):
    assert countdown.Problem(values, target).split == countdown.Problem(values[::-1], target).split


@given(numbers, st.data())
def test_a_chain_ends_with_the_value(values, data):
    symbols = data.draw(st.lists(st.sampled_from("+-"), min_size=len(values) - 1, max_size=len(values) - 1))
    expression = str(values[0]) + "".join(f" {s} {x}" for s, x in zip(symbols, values[1:], strict=True))
    assert countdown.evaluate(expression) == Fraction(countdown.chain(expression)[-1])


def test_evaluate_and_chain_know_their_limits():
    assert countdown.evaluate("(1 + 2) * 3 / 2") == Fraction(9, 2)
    for nonsense in ["1 / 0", "", "2 ** 3", "__import__('os')", "1.5 + 2", "1 +", "x", "-" * 300]:
        assert countdown.evaluate(nonsense) is None
    assert countdown.chain("62 / 2 + 18") == ("31 + 18", "49")
    assert countdown.chain("7 / 2 + 1") == countdown.chain("7 / 0 + 1") == ()
    for nonsense in ["", "7 +", "7 + x", "7 plus 2", "7  + 2", "7 % 2", "(7 + 2) * 3"]:
        assert countdown.chain(nonsense) == ()


def test_parse_reads_what_write_wrote():
    trace = countdown.parse(TEXT)
    assert trace.problem == PROBLEM
    assert [attempt.valid for attempt in trace.attempts] == [False, False, True]
    assert [attempt.result for attempt in trace.attempts] == [-28, 90, 28]
    assert all(attempt.is_sound for attempt in trace.attempts)
    assert [trace.text[slice(*span)] for span in trace.mentions] == ["28"] * 4
    assert trace.answer == "71 - 31 - 12"
    assert all(trace.text[attempt.open :].startswith(" (") for attempt in trace.attempts)


@pytest.mark.parametrize(("good", "bad"), [*zip(countdown.POSITIVE, ("not 30", *countdown.NEGATIVE), strict=True)])
def test_parse_knows_every_style(good, bad):
    text = countdown.Problem((8, 14, 2), 30).prompt + "\nWe need 30. Let's try different combinations:"
    text += f"\n- 14 + 8 + 2 = 22 + 2 = 25 ({bad})\n- 14 * 2 + 8 = 28 + 8 = 36 ({good})\n- 1 + 1 = 2 (perhaps)\n- 8 - "
    first, second = countdown.parse(text).attempts
    assert (first.valid, second.valid) == (False, True)
    assert (first.is_sound, second.is_sound) == (False, True)
    assert countdown.parse(text).answer is None


def test_parse_refuses_other_texts():
    with pytest.raises(ValueError, match="CountDown prompt"):
        countdown.parse("The capital of France is")


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("71 - 31 - 12", 1.0),
        ("71 - (31 + 12)", 1.0),
        ("31 + 12 - 71", 0.1),
        ("28", 0.1),
        ("71 - 31 - 12 + 71 - 71", 0.1),
        ("71 - - 31", 0.1),
    ],
)
def test_score(answer, reward):
    assert countdown.score(f"<answer> 1 </answer>\n<answer> {answer} </answer>", PROBLEM) == reward


def test_no_answer_scores_nothing():
    assert countdown.score("71 - 31 - 12 = 28", PROBLEM) == 0.0
