import re
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.tasks import countdown, paired_questions, verification
from jaxinterp.tasks.tokenizer import Tokenizer

PROBLEM = countdown.Problem((31, 12, 71), 28)


class Words:
    """A tokenizer of words that keep the space and the bracket before them."""

    def __init__(self, pattern):
        self.pattern, self.known = pattern, []

    def encode(self, text, add_special_tokens=True):
        pieces = re.findall(self.pattern, text, re.DOTALL)
        self.known += [piece for piece in pieces if piece not in self.known]
        return [self.known.index(piece) for piece in pieces]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.known[token] for token in ids)


def test_chains_are_sorted_by_what_they_give():
    works, fails = paired_questions.chains(PROBLEM)
    assert {countdown.evaluate(chain) for chain in works} == {28}
    assert all(countdown.evaluate(chain) != 28 and 10 <= countdown.evaluate(chain) <= 99 for chain in fails)
    for chain in [*works, *fails]:
        assert sorted(map(int, re.findall(r"\d+", chain))) == [12, 31, 71]
    assert paired_questions.chains(countdown.Problem((2, 3), 97)) == ([], [])


def test_a_worked_trace_is_in_the_grammar_and_right():
    rng = np.random.default_rng(0)
    for rejected in (0, 1, 2):
        text = paired_questions.example(PROBLEM, rejected, rng)
        assert text is not None and text.endswith(" (this works)")
        found = countdown.parse(text)
        assert [attempt.valid for attempt in found.attempts] == [False] * rejected + [True]
        assert all(attempt.is_sound for attempt in found.attempts)
    assert paired_questions.example(countdown.Problem((2, 3), 97), 0, rng) is None
    assert paired_questions.example(PROBLEM, 100, rng) is None


@pytest.mark.parametrize("valid", [True, False])
def test_a_question_and_its_twin_call_for_opposite_verdicts(valid):
    rng = np.random.default_rng(0)
    for _ in range(10):
        pair = paired_questions.question(PROBLEM, valid, rng)
        assert pair is not None and pair.valid == valid
        for text, right in ((pair.text, valid), (pair.twin, not valid)):
            assert text.endswith(" (") and text.count("\n- ") == 1
            asked = countdown.parse(text).problem
            result = int(re.findall(r"-?\d+", text)[-1])
            assert (result == asked.target) == right
            assert f"We need {asked.target}." in text
        assert len(pair.text) == len(pair.twin)


def test_a_question_with_no_target_has_no_twin():
    pair = paired_questions.question(PROBLEM, True, np.random.default_rng(0))
    assert pair is not None
    hidden = paired_questions.hide_target(pair.text)
    assert hidden == paired_questions.hide_target(pair.twin)
    assert hidden.count("?") == 2 and "that equals ?.\n" in hidden
    assert paired_questions.question(countdown.Problem((2, 3), 97), True, np.random.default_rng(0)) is None


@pytest.mark.parametrize("pattern", [r" \(|this|not|\d| [a-z]+|.", r" \(this| \(not|\d| [a-z]+|.", r" \(|[a-z]+ ?|."])
def test_the_verdict_is_found_however_the_text_is_cut(pattern):
    tokenizer = Words(pattern)
    ids, accepting, rejecting = paired_questions.cut_at_verdict(tokenizer, "40 - 12 = 28 (")
    assert tokenizer.decode(ids) in ("40 - 12 = 28 (", "40 - 12 = 28")
    assert tokenizer.decode([*ids, accepting]).endswith("28 (this") or "this" in tokenizer.decode([accepting])
    assert "not" in tokenizer.decode([rejecting])


def test_a_tokenizer_of_letters_is_refused():
    with pytest.raises(ValueError, match="begins the verdicts with 't' and 'n'"):
        paired_questions.cut_at_verdict(Words("."), "40 - 12 = 28 (")


def test_the_countdown_tokenizer_has_the_words():
    folder = Path(verification.__file__).parents[1] / "data" / "checkpoints" / "countdown-6m-grpo"
    tokenizer = Tokenizer.from_folder(folder)
    pair = paired_questions.question(PROBLEM, True, np.random.default_rng(0))
    assert pair is not None
    ids, accepting, rejecting = paired_questions.cut_at_verdict(tokenizer, pair.text)
    assert ids == tokenizer.encode(pair.text)
    known = verification.verdict_tokens(tokenizer)
    assert (accepting, rejecting) == (known[0][0], known[1][0])
