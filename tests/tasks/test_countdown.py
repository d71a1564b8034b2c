import importlib.resources
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinterp.tasks import countdown

numbers = st.lists(st.integers(1, 99), min_size=3, max_size=4).map(tuple)


class Characters:
    """A tokenizer with one token per character, except for the verdict's opening."""

    bos, eos, pad = None, 1, 0

    def _pieces(self, text):
        return list(re.finditer(r" \(|.", text, re.DOTALL))

    def encode(self, text, add_special_tokens=True):
        return [2 if piece[0] == " (" else 3 + ord(piece[0]) for piece in self._pieces(text)]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(" (" if token == 2 else chr(token - 3) for token in ids if token > 1)

    def offsets(self, text):
        return [piece.span() for piece in self._pieces(text)]

    def id(self, text):
        (token,) = self.encode(text)
        return token


@pytest.fixture(params=["characters", "checkpoint"])
def tokenizer(request):
    if request.param == "characters":
        return Characters()
    from jaxinterp.tasks.tokenizer import Tokenizer

    folder = importlib.resources.files("jaxinterp").joinpath("data/checkpoints/countdown-6m-grpo")
    return Tokenizer.from_folder(folder)


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


def test_verdicts_point_at_the_right_tokens(tokenizer):
    plain = tokenizer.encode(TEXT)
    ids = [tokenizer.pad] * 3 + plain + [tokenizer.eos, tokenizer.pad]
    found = countdown.verdicts(tokenizer, ids)
    assert [verdict.valid for verdict in found] == [False, False, True]
    for count, (verdict, result) in enumerate(zip(found, ["28", "90", "28"], strict=True)):
        assert tokenizer.decode([ids[verdict.open]]) == " ("
        assert verdict.result == verdict.open - 1
        assert "".join(tokenizer.decode([ids[index]]) for index in verdict.result_digits) == result
        assert verdict.stated == 2 and len(verdict.mentions) == 2 + count
        for mention in verdict.mentions:
            assert "".join(tokenizer.decode([ids[index]]) for index in mention) == "28"
            assert max(mention) < verdict.open
        assert [tokenizer.decode([ids[index]]) for index in verdict.stated_last_digits] == ["8", "8"]


def test_the_result_of_a_valid_attempt_is_not_a_mention(tokenizer):
    ids = tokenizer.encode(TEXT)
    last = countdown.verdicts(tokenizer, ids)[-1]
    assert not set(last.result_digits) & {index for mention in last.mentions for index in mention}


def test_verdicts_refuse_tokens_that_decoding_does_not_give_back():
    class Forgetful(Characters):
        def decode(self, ids, skip_special_tokens=True):
            return super().decode(ids).replace("works", "worked")

    with pytest.raises(ValueError, match="do not survive"):
        countdown.verdicts(Forgetful(), Characters().encode(TEXT))


def test_minimal_pairs_differ_in_the_target_alone(tokenizer):
    rng = np.random.default_rng(0)
    trace = countdown.parse(TEXT)
    negative, missed, reached = (countdown.minimal_pair(trace, attempt, rng) for attempt in trace.attempts)
    assert negative is None  # no target is -28
    assert missed is not None and not missed.valid and missed.target == 90
    assert missed.twin.count("90") == missed.text.count("28") - missed.text.count("-28") + missed.text.count("90")
    assert reached is not None and reached.valid and reached.target != 28
    for pair in (missed, reached):
        assert len(tokenizer.encode(pair.text)) == len(tokenizer.encode(pair.twin))
        assert pair.text.endswith(" (") and pair.twin.endswith(" (")
        twin = countdown.parse(pair.twin + "this works)")
        assert twin.problem.target == pair.target
        assert (twin.attempts[-1].result == pair.target) is not pair.valid
        assert all(attempt.result != pair.target for attempt in twin.attempts[:-1])


def test_lookalike_targets_of_every_kind_are_drawn():
    rng = np.random.default_rng(1)
    trace = countdown.parse(TEXT)
    pairs = [countdown.minimal_pair(trace, trace.attempts[-1], rng) for _ in range(80)]
    assert {pair.kind for pair in pairs if pair} == {"tens", "ones", "swapped", "other"}
    assert all(pair.kind == countdown.lookalike(28, pair.target) for pair in pairs if pair)
    assert all(pair.target != 90 for pair in pairs if pair)  # an earlier result would contradict its own "(not 90)"


def test_a_target_of_three_digits_has_no_twin():
    trace = countdown.parse(countdown.write(countdown.Problem((50, 40, 10), 100), ["50 + 40 + 10"]))
    assert countdown.minimal_pair(trace, trace.attempts[0], np.random.default_rng(0)) is None
