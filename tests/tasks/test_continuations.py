"""The three rules on planted continuations, one for every branch, and the styles of traces."""

import pytest

from jaxinterp.tasks import continuations, countdown

NEXT = "\n- 31 + 12 - 71 = 43 - 71 = -28"
END = "\nSo the equation that equals 28 is 71 - 31 - 12.\n</think>\n<answer> 71 - 31 - 12 </answer>"

PLANTED = [
    # text, rule A, rule B, rule C
    (" (this works)" + END, "failure", "failure", "failure"),
    (" (this works)", "failure", "failure", "failure"),
    (" (not 28)" + NEXT + " (this works)", "success", "failure", "failure"),
    (" (not 28)", "success", "success", "success"),
    (" (not 28)" + NEXT + " (not 28)" + NEXT, "success", "success", "success"),
    (" (not 62 - 11 + 5)", "success", "success", "success"),
    (" (not 71 * 2 / (3 + 4))", "success", "success", "success"),
    (" (", "unknown", "success", "success"),
    (NEXT, "unknown", "success", "success"),
    ("", "unknown", "success", "unknown"),
    ("...", "unknown", "success", "unknown"),
    (" (not 28)" + END, "success", "partial", "partial"),
    (" (not 28)\nSo the answer is 3.", "success", "success", "partial"),
    (" (not 28)</think>", "success", "success", "partial"),
    (END, "unknown", "partial", "partial"),
    (" (not correct)", "success", "success", "success"),
    (" (not correct, but the closest)", "success", "success", "success"),
    (" (correct)", "failure", "success", "unknown"),
    (" (correct) but not 28", "failure", "success", "partial"),
    (" (not 28 - this is actually 28)", "success", "success", "success"),
    (
        " (not 28)\nThe closest is 71 - 31 - 12.\n</think>\n<answer> 71 - 31 - 12 </answer>",
        "success",
        "partial",
        "partial",
    ),
    (" (not 28)\nThe closest is", "success", "success", "success"),
    (" (incorrect)" + NEXT, "failure", "success", "unknown"),
    (" (NOT 28)", "success", "success", "success"),
    (" (Not Correct)", "success", "success", "success"),
    (" (no)", "failure", "success", "unknown"),
]


@pytest.mark.parametrize(("text", "by_word", "by_substring", "by_grammar"), PLANTED)
def test_planted_continuations(text, by_word, by_substring, by_grammar):
    assert continuations.score_first_word(text) == by_word
    assert continuations.score_substrings(text) == by_substring
    assert continuations.score_grammar(text) == by_grammar


def test_every_outcome_of_every_rule_is_planted():
    assert {row[1] for row in PLANTED} == {"success", "failure", "unknown"}
    assert {row[2] for row in PLANTED} == {"success", "partial", "failure"}
    assert {row[3] for row in PLANTED} == set(continuations.OUTCOMES)


def test_this_and_equals_are_found_as_words():
    assert continuations.accepts_or_concludes(" (this works)")
    assert continuations.accepts_or_concludes(END)
    assert not continuations.accepts_or_concludes(" (not 28)" + NEXT)


@pytest.mark.parametrize(
    ("accepts", "rejects"),
    list(zip(countdown.POSITIVE, ("not 28", *countdown.NEGATIVE), strict=True)),
)
def test_each_style_is_known_by_either_of_its_words(accepts, rejects):
    start = countdown.Problem((31, 12, 71), 28).prompt + "\nWe need 28. Let's try different combinations:"
    both = f"{start}{NEXT} ({rejects})\n- 71 - 31 - 12 = 40 - 12 = 28 ({accepts})"
    for text in (both, f"{start}{NEXT} ({rejects})", f"{start}{NEXT} ({accepts})"):
        assert continuations.style(countdown.parse(text)) == accepts


def test_prose_mixtures_and_silence_have_no_style_of_a_verdict():
    start = countdown.Problem((31, 12, 71), 28).prompt + "\nWe need 28. Let's try different combinations:"
    prose = countdown.parse(start + "\nMaybe 71 - 31 - 12 gives 28, which hits 28")
    mixed = countdown.parse(start + NEXT + " (wrong)" + NEXT + " (not 28)")
    assert [continuations.style(trace) for trace in (prose, mixed, countdown.parse(start))] == ["prose", "none", "none"]


def test_entropy_counts_in_nats():
    assert continuations.entropy([]) == continuations.entropy(["a", "a"]) == 0.0
    assert continuations.entropy(["a", "b", "b", "b"]) == pytest.approx(0.5623351446)
