"""How a CountDown problem is searched: which expressions a trace tries, and in which order.

First come sums and differences: every choice of signs is a candidate, and what is tried next is drawn, at odds that
fall with the distance between a candidate's value and the target. So a search is neither blind nor perfect, and a
model that learns from it learns to estimate sums. Then come a few expressions with one exact * or / in front, in any
order. The search stops at the first expression that reaches the target, or at a cap.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from jaxinterp.tasks.countdown import Problem

_LARGEST_LEAD = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How well a style searches.

    Attributes:
        scale: Distance from the target at which a candidate's odds of being next have fallen to 1/e.
        cap: Most attempts for up to three numbers.
        cap_of_four: Most attempts for four numbers or more.
        is_tidy: Whether numbers keep the order of the problem, but for a positive one that has to stand first.
    """

    scale: float
    cap: int
    cap_of_four: int
    is_tidy: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to try.

    Attributes:
        lead: The product or quotient that stands first; empty where there is none.
        terms: Numbers that are added, or taken away where negative.
        value: What it comes to.
    """

    lead: str
    terms: tuple[int, ...]
    value: int
