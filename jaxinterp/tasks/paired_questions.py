"""Questions for models that were not trained on CountDown: is an attempt right?

Every question is an unfinished trace that ends with `" ("`, so that the next word is the verdict, and has a twin that
differs in the target alone and calls for the other verdict. Worked traces may stand in front of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxinterp.tasks import countdown, verification
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.verification import MinimalPair

ACCEPTING, REJECTING = "this", "not"
HIDDEN = "?"


class Encoder(Protocol):
    """The part of a tokenizer that this module needs."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of some ids."""
        ...


def chains(problem: Problem) -> tuple[list[str], list[str]]:
    """All chains of + and - that use each number once.

    Args:
        problem: What is asked.

    Returns:
        Those that reach the target, and those that miss it with a result of two digits.

    >>> works, fails = chains(Problem((31, 12, 71), 28))
    >>> works, fails[:2]
    (['71 - 31 - 12', '71 - 12 - 31'], ['31 - 12 + 71', '31 + 71 - 12'])
    """
    works, fails = [], []
    for numbers in dict.fromkeys(itertools.permutations(problem.numbers)):
        for symbols in itertools.product("+-", repeat=len(numbers) - 1):
            rest = (f"{symbol} {number}" for symbol, number in zip(symbols, numbers[1:], strict=True))
            expression = " ".join([str(numbers[0]), *rest])
            result = int(countdown.chain(expression)[-1])
            if result == problem.target:
                works.append(expression)
            elif 10 <= result <= 99:
                fails.append(expression)
    return works, fails


def example(problem: Problem, rejected: int, rng: np.random.Generator) -> str | None:
    """A worked trace, up to the attempt that works; the answer that follows says nothing new about verdicts.

    Args:
        problem: What is asked.
        rejected: Attempts in front of the one that works.
        rng: Draws the attempts.

    Returns:
        Prompt and response up to "(this works)", or `None` where + and - do not reach the target, or too little misses
        it.
    """
    works, fails = chains(problem)
    if not works or len(fails) < rejected:
        return None
    tries = [fails[index] for index in rng.permutation(len(fails))[:rejected]]
    text = countdown.write(problem, [*tries, works[int(rng.integers(len(works)))]])
    return text.partition(f"{ACCEPTING} works)")[0] + f"{ACCEPTING} works)"


def question(problem: Problem, valid: bool, rng: np.random.Generator) -> MinimalPair | None:
    """An unfinished trace whose first attempt waits for its verdict, and its twin.

    Args:
        problem: What is asked.
        valid: Whether the attempt reaches the problem's own target; in the twin it is the other way round.
        rng: Draws the attempt and the twin's target.

    Returns:
        The pair, or `None` where there is none for this problem.
    """
    some = chains(problem)[0 if valid else 1]
    if not some:
        return None
    trace = countdown.parse(countdown.write(problem, [some[int(rng.integers(len(some)))]]))
    return verification.minimal_pair(trace, trace.attempts[0], rng)


def hide_target(text: str) -> str:
    r"""A question with a mark in place of its target.

    >>> hide_target("Using the numbers [31, 12], create an equation that equals 43.\n<think>\nWe need 43. Let's try")
    "Using the numbers [31, 12], create an equation that equals ?.\n<think>\nWe need ?. Let's try"
    """
    parts, first = [], 0
    for start, end in countdown.parse(text).mentions:
        parts += [text[first:start], HIDDEN]
        first = end
    return "".join([*parts, text[first:]])


def cut_at_verdict(tokenizer: Encoder, text: str) -> tuple[list[int], int, int]:
    """The tokens in front of a verdict, and the tokens with which either verdict begins.

    Tokenizers cut texts differently, and some join `" ("` with the word behind it; so the text is encoded with either
    verdict, and cut where the two part.

    Args:
        tokenizer: That of any model.
        text: A text that ends with `" ("`.

    Returns:
        Ids of what both have in common, the accepting token and the rejecting one.

    Raises:
        ValueError: The tokens at which they part are not the whole words.
    """
    both = [tokenizer.encode(text + words) for words in (f"{ACCEPTING} works)", f"{REJECTING} 10)")]
    same = next((index for index, (one, other) in enumerate(zip(*both, strict=False)) if one != other), -1)
    found = [tokenizer.decode([ids[same]]).strip(" (") for ids in both]
    if same < 0 or found != [ACCEPTING, REJECTING]:
        raise ValueError(
            f"behind {text[-20:]!r} this tokenizer begins the verdicts with {found[0]!r} and {found[1]!r}, not with "
            f"one token for {ACCEPTING!r} and one for {REJECTING!r}; use a model whose vocabulary has both words"
        )
    return both[0][:same], both[0][same], both[1][same]
