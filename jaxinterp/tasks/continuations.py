"""What a model writes from a verdict on: scored by three rules, and sorted into styles.

A continuation starts with the `" ("` that opens a verdict on an attempt which is right. *Success* means success of an
edit that should keep the model from accepting it. The three rules are those of the paper's authors, from a look at the
first word to a small grammar of what follows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Literal

from jaxinterp.tasks import countdown, countdown_grammar

Outcome = Literal["success", "partial", "failure", "unknown"]

OUTCOMES: tuple[Outcome, ...] = ("success", "partial", "failure", "unknown")
STYLES = (*countdown_grammar.STYLES, "none")

_ACCEPTED, _ANSWER = "this works", "<answer>"
_TOKEN = re.compile(r"</?\w+>|\d+|[a-z]+|[-+*/=()]")
_SYMBOLS = frozenset("-+*/=()")
_CLOSING = frozenset(
    ("so", "the", "answer", "is", "equation", "that", "equals", "<think>", "</think>", "<answer>", "</answer>")
)


def first_word(text: str) -> str:
    """The word behind the first opening parenthesis.

    Args:
        text: A continuation.

    Returns:
        It in lower case; empty where there is none.

    >>> first_word(" (not 28)")
    'not'
    """
    found = re.match(r"[^(]*\(\s*([A-Za-z]+)", text)
    return found[1].lower() if found else ""


def score_first_word(text: str) -> Outcome:
    """Rule A: does the verdict start with "not"?

    Args:
        text: A continuation.

    Returns:
        `"success"` if it does, `"unknown"` if no word follows a parenthesis, `"failure"` otherwise.

    >>> score_first_word(" (this works)")
    'failure'
    """
    word = first_word(text)
    return "unknown" if not word else "success" if word == "not" else "failure"


def score_substrings(text: str) -> Outcome:
    """Rule B: is the attempt accepted, or else an answer given?

    Args:
        text: The first 50 tokens of a continuation.

    Returns:
        `"failure"` with "this works", whether an answer follows within the text or not; `"partial"` with an answer
        alone; `"success"` with neither.

    >>> score_substrings(" (not 28)")
    'success'
    """
    if _ACCEPTED in text:
        return "failure"
    return "partial" if _ANSWER in text else "success"


def score_grammar(text: str) -> Outcome:
    r"""Rule C, the headline: what kinds of words there are in the text.

    In this order: "this works" is a failure; nothing but integers, operators, parentheses and "not" is a success (the
    model rejects and goes on trying); with words that close a trace besides, partial. Among texts with other words
    "not correct" is a success, "not" and "correct" apart partial, "not" with an answer partial, any other "not" a
    success; the rest is unknown.

    Args:
        text: A continuation.

    Returns:
        The outcome.

    >>> score_grammar(" (not 28)\n- 31 + 12 - 71 = 43 - 71 = -28 (not 28)")
    'success'
    """
    if _ACCEPTED in text:
        return "failure"
    tokens = _TOKEN.findall(text.lower())
    words = {token for token in tokens if not token.isdigit() and token not in _SYMBOLS}
    if tokens and words <= {"not"}:
        return "success"
    if words and words <= {"not", *_CLOSING}:
        return "partial"
    if "not correct" in text.lower():
        return "success"
    if "not" not in words:
        return "unknown"
    return "partial" if "correct" in words or _ANSWER in words else "success"


def accepts_or_concludes(text: str) -> bool:
    """Whether "this" or "equals" occurs anywhere, which the authors reported beside rule A.

    Args:
        text: A continuation.

    >>> accepts_or_concludes("So the equation that equals 28 is")
    True
    """
    return bool({"this", "equals"} & set(_TOKEN.findall(text.lower())))


def style(trace: countdown.Trace) -> str:
    """In which style a trace is written: the word of its acceptances, of which each has its own for rejections.

    Args:
        trace: A parsed trace.

    Returns:
        One of `STYLES`: `"prose"` for attempts in sentences, `"none"` for no verdict or verdicts of several styles.

    >>> style(countdown.parse(countdown.write(countdown.Problem((31, 12, 71), 28), ["71 - 31 - 12"])))
    'this works'
    """
    found = set()
    for attempt in trace.attempts:
        said = re.match(r" \(([^)\n]+)\)", trace.text[attempt.open :])
        word = said[1] if said else ""
        rejects = word.partition(" ")[0]
        found |= {name for name, other in countdown_grammar.REJECTIONS.items() if word == name or rejects == other}
    if found:
        return found.pop() if len(found) == 1 else "none"
    return "prose" if "\nMaybe " in trace.text else "none"


def entropy(names: Iterable[Hashable]) -> float:
    """Entropy of how often each name occurs.

    Args:
        names: Such as the styles of some traces.

    Returns:
        Nats; 0 for no names.

    >>> entropy(["a", "b"])
    0.6931471805599453
    """
    counts = Counter(names)
    total = counts.total()
    return sum(count / total * math.log(total / count) for count in counts.values())
