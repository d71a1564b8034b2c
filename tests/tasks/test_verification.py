import re
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.tasks import countdown, verification
from jaxinterp.tasks.tokenizer import Tokenizer


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
    return Tokenizer.from_folder(Path(verification.__file__).parents[1] / "data" / "checkpoints" / "countdown-6m-grpo")


PROBLEM = countdown.Problem((31, 12, 71), 28)
TEXT = countdown.write(PROBLEM, ["31 + 12 - 71", "31 - 12 + 71", "71 - 31 - 12"])


def test_verdicts_point_at_the_right_tokens(tokenizer):
    plain = tokenizer.encode(TEXT)
    ids = [tokenizer.pad] * 3 + plain + [tokenizer.eos, tokenizer.pad]
    found = verification.verdicts(tokenizer, ids)
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
    last = verification.verdicts(tokenizer, ids)[-1]
    assert not set(last.result_digits) & {index for mention in last.mentions for index in mention}


def test_verdicts_refuse_tokens_that_decoding_does_not_give_back():
    class Forgetful(Characters):
        def decode(self, ids, skip_special_tokens=True):
            return super().decode(ids).replace("works", "worked")

    with pytest.raises(ValueError, match="do not survive"):
        verification.verdicts(Forgetful(), Characters().encode(TEXT))


def test_minimal_pairs_differ_in_the_target_alone(tokenizer):
    rng = np.random.default_rng(0)
    trace = countdown.parse(TEXT)
    negative, missed, reached = (verification.minimal_pair(trace, attempt, rng) for attempt in trace.attempts)
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
    pairs = [verification.minimal_pair(trace, trace.attempts[-1], rng) for _ in range(80)]
    assert {pair.kind for pair in pairs if pair} == {"tens", "ones", "swapped", "other"}
    assert all(pair.kind == verification.lookalike(28, pair.target) for pair in pairs if pair)
    assert all(pair.target != 90 for pair in pairs if pair)  # an earlier result would contradict its own "(not 90)"


def test_a_target_of_three_digits_has_no_twin():
    trace = countdown.parse(countdown.write(countdown.Problem((50, 40, 10), 100), ["50 + 40 + 10"]))
    assert verification.minimal_pair(trace, trace.attempts[0], np.random.default_rng(0)) is None
