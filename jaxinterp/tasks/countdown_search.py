"""How a CountDown problem is searched: which expressions a trace tries, and in which order.

Sums and differences come first: every choice of signs is a candidate, and what is tried next is drawn, at odds that
fall with the distance between a candidate's value and the target. So a search is neither blind nor perfect, and a
model that learns from it learns to estimate sums. After some of them a few expressions with one exact * or / in front
are tried, drawn in the same way, then sums again. The search stops at the first expression that reaches the target, or
at a cap.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

from jaxinterp.tasks.countdown import Problem

_LARGEST_LEAD = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How well a problem is searched.

    Attributes:
        scale: Distance from the target at which a candidate's odds of being next have fallen to 1/e.
        cap: Most attempts.
        sums: Fewest and most sums before the first expression with * or /.
        leads: Fewest and most expressions with * or /.
        is_tidy: Whether numbers keep the order of the problem, but for a positive one that has to stand first.
    """

    scale: float
    cap: int
    sums: tuple[int, int]
    leads: tuple[int, int]
    is_tidy: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to try.

    Attributes:
        value: What it comes to.
        terms: Numbers that are added, or taken away where negative.
        lead: The product or quotient that stands in front of them; empty where there is none.
    """

    value: int
    terms: tuple[int, ...]
    lead: str = ""

    def expression(self, draw: random.Random | None = None) -> str:
        """Writes it down.

        Args:
            draw: If given, the terms are put into a random order.

        Returns:
            An expression that starts with a number.

        >>> Candidate(26, (-12, 31, 7)).expression()
        '31 - 12 + 7'
        """
        terms = list(self.terms)
        if draw:
            draw.shuffle(terms)
        parts = [self.lead]
        if not self.lead:
            first = next(place for place, term in enumerate(terms) if term > 0)
            parts = [str(terms.pop(first))]
        return "".join([*parts, *(f" + {term}" if term > 0 else f" - {-term}" for term in terms)])


def sums(numbers: Sequence[int]) -> list[Candidate]:
    """Every choice of signs but for all negative.

    Args:
        numbers: Of a problem.

    Returns:
        2^n - 1 candidates.

    >>> [candidate.value for candidate in sums((5, 4))]
    [9, 1, -1]
    """
    found = []
    for signs in _signs(len(numbers))[:-1]:
        terms = tuple([sign * number for sign, number in zip(signs, numbers, strict=True)])
        found.append(Candidate(sum(terms), terms))
    return found


@functools.cache
def _signs(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(itertools.product((1, -1), repeat=count))


def leads(numbers: Sequence[int]) -> Iterator[Candidate]:
    """Products and exact quotients of two numbers, with every choice of signs of the others behind them.

    Args:
        numbers: Of a problem.

    Yields:
        Candidates; none with a product beyond 400, and none that multiplies with 1 or divides by it.

    >>> [candidate.expression() for candidate in leads((2, 6, 1)) if candidate.lead == "6 / 2"]
    ['6 / 2 + 1', '6 / 2 - 1']
    """
    for first, second in itertools.permutations(range(len(numbers)), 2):
        one, other = numbers[first], numbers[second]
        if min(one, other) == 1:
            continue
        rest = [number for place, number in enumerate(numbers) if place not in (first, second)]
        made = [(one * other, f"{one} * {other}")] if first < second else []
        made += [] if one % other else [(one // other, f"{one} / {other}")]
        for value, lead in made:
            if value <= _LARGEST_LEAD:
                for signs in _signs(len(rest)):
                    terms = tuple([sign * number for sign, number in zip(signs, rest, strict=True)])
                    yield Candidate(value + sum(terms), terms, lead)


def search(problem: Problem, draw: random.Random, effort: Effort) -> list[str]:
    """Searches a problem.

    Args:
        problem: What is asked.
        draw: Random numbers.
        effort: How well.

    Returns:
        Different expressions in the order in which they are tried; the last one may be a solution, no other is.
    """
    first, second = _by_closeness(sums(problem.numbers), problem, draw, effort), list[Candidate]()
    before = draw.randint(*effort.sums)
    if all(candidate.value != problem.target for candidate in first[:before]) and effort.leads[1]:
        second = _by_closeness(leads(problem.numbers), problem, draw, effort)[: draw.randint(*effort.leads)]
    tried: dict[str, None] = {}
    for candidate in (*first[:before], *second, *first[before:]):
        tried.setdefault(candidate.expression(None if effort.is_tidy else draw))
        if candidate.value == problem.target or len(tried) == effort.cap:
            break
    return list(tried)


def _by_closeness(
    candidates: Iterable[Candidate], problem: Problem, draw: random.Random, effort: Effort
) -> list[Candidate]:
    """Candidates in the order in which a race ends whose runners' speeds fall with their distance from the target."""

    def arrival(candidate: Candidate) -> float:
        return draw.expovariate(1.0) * math.exp(min(abs(candidate.value - problem.target) / effort.scale, 600.0))

    return sorted(candidates, key=arrival)


def solution(problem: Problem, draw: random.Random) -> str:
    """A right expression; of + and - alone where there is one.

    Args:
        problem: One that `jaxinterp.tasks.countdown_problems.draw_problem` gives.
        draw: Random numbers.

    Returns:
        One of the right expressions.

    Raises:
        ValueError: The problem has no solution of this form.
    """
    for candidates in (sums(problem.numbers), leads(problem.numbers)):
        right = [candidate for candidate in candidates if candidate.value == problem.target]
        if right:
            return draw.choice(right).expression(draw)
    raise ValueError(f"{problem} has no solution with at most one * or /, in front")


def miss(problem: Problem, draw: random.Random) -> str:
    """A wrong expression of + and -, or one in eight times with * or / in front, rather close than far.

    Args:
        problem: What is asked.
        draw: Random numbers.

    Returns:
        An expression whose value is not the target.

    >>> "*" in " ".join(miss(Problem((7, 5), 35), random.Random(seed)) for seed in range(30))
    False
    """
    with_lead = leads(problem.numbers) if draw.random() < 0.125 else ()
    kinds = (
        [candidate for candidate in kind if candidate.value != problem.target]
        for kind in (with_lead, sums(problem.numbers))
    )
    wrong = next(filter(None, kinds))
    odds = [math.exp(-min(abs(candidate.value - problem.target) / 50.0, 600.0)) for candidate in wrong]
    return draw.choices(wrong, odds)[0].expression(draw)
