"""Where a CountDown trace is verified: the tokens that matter, and pairs of traces that differ in nothing else.

At every `" ("` of a trace there are two ways to go on, acceptance and rejection, at a place that can be parsed: this
is what makes verification in such a model easy to study. Positions are found from the text through the tokenizer,
which may be a closed one or a general one that splits digits. Traces that stand in front as examples are not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from jaxinterp.tasks import countdown
from jaxinterp.tasks.countdown import Attempt, Span, Trace

Lookalike = Literal["tens", "ones", "swapped", "other"]

OPEN = " ("
LOOKALIKES: tuple[Lookalike, ...] = ("tens", "ones", "swapped", "other")
_SAMPLE = countdown.write(countdown.Problem((31, 12, 71), 28), ["31 + 12 - 71", "71 - 31 - 12"])
_NEEDED = (
    "use a model whose tokenizer has tokens for ' (', for each digit, and for the beginnings of 'this works' and 'not' "
    "behind it, such as hf:Qwen/Qwen2.5-3B or builtin:countdown-6m-grpo"
)


class Encoder(Protocol):
    """The part of a tokenizer that this module needs."""

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text."""
        ...

    @property
    def pad(self) -> int | None:
        """Id of the padding token."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of some ids."""
        ...

    def offsets(self, text: str) -> list[Span]:
        """Characters of each token."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The tokens of one attempt that matter, as indices into the ids that were given.

    Attributes:
        valid: Whether the text goes on with acceptance (t_valid) rather than rejection (t_invalid).
        open: The `" ("` token (t_open).
        result: The last digit of the result, just before it (t_ans).
        result_digits: Every digit of the result, without a sign.
        mentions: For each earlier mention of the target, the tokens of its digits, first digit first.
        stated: How many of `mentions` stand in the prompt and the preamble, before the search starts.
    """

    valid: bool
    open: int
    result: int
    result_digits: tuple[int, ...]
    mentions: tuple[tuple[int, ...], ...]
    stated: int

    @property
    def stated_last_digits(self) -> tuple[int, ...]:
        """Last digit of each mention in prompt and preamble: where the paper measures attention."""
        return tuple(digits[-1] for digits in self.mentions[: self.stated])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """Two prefixes that differ in the target alone, one valid and one not; both end with `" ("`.

    Attributes:
        text: The trace up to and including `" ("`.
        twin: The same with every mention of the target replaced.
        target: The new target.
        valid: Whether the attempt in `text` reaches its target; in `twin` it is the other way round.
        kind: How the two targets differ: one digit, swapped digits, or neither.
    """

    text: str
    twin: str
    target: int
    valid: bool
    kind: Lookalike


def verdicts(tokenizer: Encoder, ids: Sequence[int]) -> list[Verdict]:
    """Find the verdicts of a trace and the tokens that they depend on.

    Args:
        tokenizer: That of the model which wrote the trace.
        ids: Tokens of one trace; padding on either side and end-of-text tokens are skipped.

    Returns:
        One `Verdict` per attempt, in order; positions are indices into `ids`.

    Raises:
        ValueError: If decoding and encoding do not give the tokens back, so that positions would be guesses, or if
            `" ("` or a digit is not a token of its own.
    """
    ids = [int(token) for token in ids]
    silent = {tokenizer.pad, tokenizer.eos} - {None}
    first = next((index for index, token in enumerate(ids) if token not in silent), len(ids))
    last = next((index for index in range(first, len(ids)) if ids[index] in silent), len(ids))
    text = tokenizer.decode(ids[first:last])
    if tokenizer.encode(text) != ids[first:last]:
        raise ValueError(f"the tokens of {text[:60]!r}... do not survive decoding; pass the ids of encode(text)")
    trace, offsets, opening = countdown.parse(text), tokenizer.offsets(text), _opening(tokenizer)
    covering = [(first + index, start, end) for index, (start, end) in enumerate(offsets) if end > start]
    starting = {start: index for index, start, _ in covering}
    ending = {end: index for index, _, end in covering}

    def digits(span: Span) -> tuple[int, ...]:
        places = [place for place in range(*span) if text[place].isdigit()]
        if missing := [place for place in places if place + 1 not in ending]:
            joined = f"the digit {text[missing[0]]!r} of {text[slice(*span)]!r}"
            raise ValueError(f"the tokenizer joins {joined} with what follows")
        return tuple(ending[place + 1] for place in places)

    found = []
    for attempt in trace.attempts:
        opened = starting.get(attempt.open)
        if opened is None or ids[opened] != opening:
            raise ValueError(f"the tokenizer has no {OPEN!r} at character {attempt.open} of {text[:60]!r}...")
        mentions = [span for span in trace.mentions if span[1] <= attempt.open]
        verdict = Verdict(
            valid=attempt.valid,
            open=opened,
            result=opened - 1,
            result_digits=digits(attempt.result_span),
            mentions=tuple(digits(span) for span in mentions),
            stated=sum(span[1] <= trace.preamble_end for span in mentions),
        )
        found.append(verdict)
    return found


def verdict_tokens(tokenizer: Encoder, name: str = "") -> tuple[list[int], list[int]]:
    """Tokens with which a verdict can start after `" ("`; and whether a tokenizer serves for CountDown at all.

    Args:
        tokenizer: That of a CountDown model, or of a general one.
        name: The model's, for the error sentence; by default the tokenizer's description.

    Returns:
        First tokens of the accepting words ("this works" first), and of the rejecting ones ("not T" first). Words
        of either kind that start with a token which also starts one of the other kind are left out.

    Raises:
        ValueError: The tokenizer joins what has to be read apart: `" ("`, the word behind it, or digits.
    """
    who = f"{name or repr(tokenizer)} cannot give CountDown verdicts"
    try:
        found = verdicts(tokenizer, tokenizer.encode(_SAMPLE))
        accepting, rejecting = (
            list(dict.fromkeys(_token_behind_opening(tokenizer, word) for word in words))
            for words in (countdown.POSITIVE, ("not 28", *countdown.NEGATIVE))
        )
    except ValueError as error:
        raise ValueError(f"{who}: {error}; {_NEEDED}") from error
    if [verdict.valid for verdict in found] != [False, True] or accepting[0] == rejecting[0]:
        raise ValueError(f"{who}: 'this works' and 'not' start with the same token behind {OPEN!r}; {_NEEDED}")
    return (
        [accepting[0], *(token for token in accepting[1:] if token not in rejecting)],
        [rejecting[0], *(token for token in rejecting[1:] if token not in accepting)],
    )


def _opening(tokenizer: Encoder) -> int:
    ids = tokenizer.encode(OPEN, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer cuts {OPEN!r} into {[tokenizer.decode([token]) for token in ids]}")
    return ids[0]


def _token_behind_opening(tokenizer: Encoder, word: str) -> int:
    opening = _opening(tokenizer)
    ids = tokenizer.encode(f"28{OPEN}{word})", add_special_tokens=False)
    if opening not in ids[:-1]:
        raise ValueError(f"the tokenizer joins {OPEN!r} with the beginning of {word!r}")
    return ids[ids.index(opening) + 1]


def lookalike(target: int, other: int) -> Lookalike:
    """How two targets of two digits differ.

    >>> lookalike(28, 82), lookalike(28, 38), lookalike(28, 27), lookalike(28, 31)
    ('swapped', 'tens', 'ones', 'other')
    """
    if str(target) == str(other)[::-1]:
        return "swapped"
    same = [a == b for a, b in zip(str(target), str(other), strict=True)]
    return "tens" if same[1:] == [True] else "ones" if same[:1] == [True] else "other"


def minimal_pair(trace: Trace, attempt: Attempt, rng: np.random.Generator) -> MinimalPair | None:
    """Replace the target so that an attempt's verdict flips, and nothing else changes.

    An accepted attempt gets a target that its result misses: of the four kinds of `lookalike` one is drawn, then a
    target of that kind. A rejected attempt gets its own result as the target. Earlier attempts stay rejected, and
    both texts have the same number of digits, hence of tokens.

    Args:
        trace: Where the attempt stands.
        attempt: One of `trace.attempts`.
        rng: Draws the new target; unused for a rejected attempt.

    Returns:
        The pair, or `None` where no target from 10 to 99 fits.
    """
    target = trace.problem.target
    earlier = {other.result for other in trace.attempts if other.open < attempt.open}
    reached = attempt.result == target
    options = [number for number in range(10, 100) if number not in earlier and number != target]
    if not reached:
        options = [number for number in options if number == attempt.result]
    options = [number for number in options if len(str(number)) == len(str(target))]
    if not options:
        return None
    kinds: dict[Lookalike, list[int]] = {
        kind: [number for number in options if lookalike(target, number) == kind] for kind in LOOKALIKES
    }
    possible: list[Lookalike] = [kind for kind in LOOKALIKES if kinds[kind]]
    kind = possible[int(rng.integers(len(possible)))]
    chosen = int(rng.choice(kinds[kind]))
    end = attempt.open + len(OPEN)
    twin = list(trace.text[:end])
    for start, stop in trace.mentions:
        if stop <= attempt.open:
            twin[start:stop] = str(chosen)
    return MinimalPair(text=trace.text[:end], twin="".join(twin), target=chosen, valid=reached, kind=kind)
