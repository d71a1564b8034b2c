"""CountDown: reach a target with three or four numbers, and close every attempt with a verdict.

A trace starts with the prompt and lists attempts, one a line, until one of them works::

    Using the numbers [31, 12, 71], create an equation that equals 28.
    <think>
    We need 28. Let's try different combinations:
    - 31 + 12 - 71 = 43 - 71 = -28 (not 28)
    - 71 - 31 - 12 = 40 - 12 = 28 (this works)
    So the equation that equals 28 is 71 - 31 - 12.
    </think>
    <answer> 71 - 31 - 12 </answer>

Other traces may stand in front of it, as examples of the form (`jaxinterp.tasks.worked_examples`): the last prompt in
a text is the one that counts. This module draws and splits problems, and writes, parses and scores traces;
`jaxinterp.tasks.verification` finds the tokens at which a trace is verified. None of them sees a model.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import json
import operator
import re
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

Split = Literal["test", "validation", "train"]
Span = tuple[int, int]

POSITIVE = ("this works", "success", "correct", "yes", "exactly", "found")
NEGATIVE = ("incorrect", "wrong", "no", "fail", "different")
_PREAMBLE_END = "Let's try different"
_PROBLEM = re.compile(r"Using the numbers \[(\d+(?:, \d+)*)\], create an equation that equals (\d+)\.\n")
_ATTEMPT = re.compile(r"\n- (?P<chain>[^(\n]+) = (?P<result>-?\d+)(?P<open> \()(?P<verdict>[^)\n]+)\)")
_MENTION = re.compile(r"that equals (\d+)\.\n|We need (\d+)\.|\(not (\d+)\)")
_CHAIN = re.compile(r"\d+(?: [-+*/] \d+)*")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SYMBOLS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclasses.dataclass(frozen=True)
class Problem:
    r"""Numbers, each to be used once, and the target that they have to reach.

    >>> problem = Problem((31, 12, 71), 28)
    >>> problem.prompt
    'Using the numbers [31, 12, 71], create an equation that equals 28.\n<think>'
    >>> problem.split
    'train'
    """

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The text that a model continues."""
        numbers = ", ".join(map(str, self.numbers))
        return f"Using the numbers [{numbers}], create an equation that equals {self.target}.\n<think>"

    @property
    def split(self) -> Split:
        """CRC-32 of the sorted numbers and the target, modulo 32: 0 is test, 1 validation, the rest train."""
        key = ",".join(map(str, sorted(self.numbers))) + f"={self.target}"
        residue = zlib.crc32(key.encode()) % 32
        return "test" if residue == 0 else "validation" if residue == 1 else "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One line of a trace.

    Attributes:
        expression: What is tried, such as `"31 + 12 - 71"`.
        steps: The chain of running results as printed, the last one being the result.
        result: The printed result.
        valid: Whether the printed verdict accepts it.
        result_span: Characters of the result, sign included.
        open: Character at which `" ("` starts.
    """

    expression: str
    steps: tuple[str, ...]
    result: int
    valid: bool
    result_span: Span
    open: int

    @property
    def is_sound(self) -> bool:
        """Whether every printed step follows from the expression."""
        return self.steps == chain(self.expression)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """A parsed trace.

    Attributes:
        text: Prompt and response, and what stands in front of them.
        start: Character at which the prompt starts.
        problem: What was asked.
        mentions: Characters of each printed target: in the prompt, in the preamble, and in `(not T)`.
        preamble_end: Character at which the search starts.
        attempts: Lines with a verdict, in order.
        answer: Content of the last answer tag, or `None`.
    """

    text: str
    start: int
    problem: Problem
    mentions: tuple[Span, ...]
    preamble_end: int
    attempts: tuple[Attempt, ...]
    answer: str | None


def evaluate(expression: str) -> Fraction | None:
    """Exact value of an expression of integers, `+ - * /` and parentheses.

    Args:
        expression: Untrusted text.

    Returns:
        Its value under the usual precedence, or `None` where it has none.

    >>> evaluate("6 * 18 - 82")
    Fraction(26, 1)
    >>> evaluate("1 / 0") is None
    True
    """
    if len(expression) > 200:
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    raise ValueError(f"{ast.dump(node)} is not arithmetic")


def chain(expression: str) -> tuple[str, ...]:
    """Running results of an expression worked off from left to right.

    Args:
        expression: Numbers and operators separated by spaces.

    Returns:
        What is left after each operation; the last one is the result. Empty where a division is not exact, and for
        what is no such expression.

    >>> chain("31 + 12 - 71")
    ('43 - 71', '-28')
    """
    if not _CHAIN.fullmatch(expression):
        return ()
    value, *rest = expression.split(" ")
    running, steps = int(value), []
    while rest:
        symbol, number, *rest = rest
        if symbol == "/" and (int(number) == 0 or running % int(number)):
            return ()
        running = _SYMBOLS[symbol](running, int(number))
        steps.append(" ".join([str(running), *rest]))
    return tuple(steps)


def write(problem: Problem, expressions: Sequence[str]) -> str:
    """A trace that tries the expressions in order, in the style of the module's example.

    Args:
        problem: What is asked.
        expressions: Attempts; the last one is given as the answer.

    Returns:
        Prompt and response.
    """
    lines = [problem.prompt, preamble(problem)]
    for expression in expressions:
        steps = chain(expression)
        verdict = "this works" if steps[-1] == str(problem.target) else f"not {problem.target}"
        lines.append(f"- {' = '.join([expression, *steps])} ({verdict})")
    works = chain(expressions[-1])[-1] == str(problem.target)
    close = f"So the equation that equals {problem.target} is" if works else "The closest is"
    lines += [f"{close} {expressions[-1]}.", "</think>", f"<answer> {expressions[-1]} </answer>"]
    return "\n".join(lines)


def preamble(problem: Problem) -> str:
    """The first line of a response, in front of the attempts."""
    return f"We need {problem.target}. {_PREAMBLE_END} combinations:"


def parse(text: str) -> Trace:
    """Read a trace.

    Args:
        text: Prompt and response; the response may be cut anywhere. Of several prompts the last one counts, and what
            stands in front of it is not read.

    Returns:
        The parsed trace. Lines that are not attempts in the grammar are skipped.

    Raises:
        ValueError: If the text has no CountDown prompt.
    """
    asked = _last_prompt(text)
    if asked is None:
        raise ValueError(f"{text[:60]!r} has no CountDown prompt ('Using the numbers [a, b, c], ...')")
    start = asked.start()
    problem = Problem(tuple(int(number) for number in asked[1].split(", ")), int(asked[2]))
    mentions = [match.span(match.lastindex or 0) for match in _MENTION.finditer(text, start)]
    attempts = []
    for line in _ATTEMPT.finditer(text, start):
        verdict = line["verdict"]
        valid = verdict in POSITIVE
        if not valid and verdict not in NEGATIVE and not re.fullmatch(r"not -?\d+", verdict):
            continue
        expression, *steps = line["chain"].split(" = ")
        attempt = Attempt(
            expression=expression,
            steps=(*steps, line["result"]),
            result=int(line["result"]),
            valid=valid,
            result_span=line.span("result"),
            open=line.start("open"),
        )
        attempts.append(attempt)
    answers = _ANSWER.findall(text, start)
    preamble_end = text.find(_PREAMBLE_END, start)
    return Trace(
        text=text,
        start=start,
        problem=problem,
        mentions=tuple(span for span in mentions if int(text[slice(*span)]) == problem.target),
        preamble_end=len(text) if preamble_end < 0 else preamble_end,
        attempts=tuple(attempts),
        answer=answers[-1].strip() if answers else None,
    )


def _last_prompt(text: str) -> re.Match[str] | None:
    *_, last = (None, *_PROBLEM.finditer(text))
    return last


def score(text: str, problem: Problem) -> float:
    """Reward of a response: 1 for a correct answer, 0.1 for a wrong one, 0 for none.

    Args:
        text: Prompt and response, or the response alone; the last answer tag counts, behind the last prompt.
        problem: What was asked.

    Returns:
        1.0, 0.1 or 0.0. Correct means that each number is used exactly once and the value is the target.
    """
    asked = _last_prompt(text)
    answers = _ANSWER.findall(text, asked.start() if asked else 0)
    if not answers:
        return 0.0
    used = sorted(int(number) for number in re.findall(r"\d+", answers[-1]))
    is_correct = used == sorted(problem.numbers) and evaluate(answers[-1]) == problem.target
    return 1.0 if is_correct else 0.1


def eval_problems() -> list[Problem]:
    """The 1,024 test problems that ship with the library."""
    source = importlib.resources.files("jaxinterp").joinpath("data/countdown/eval.jsonl")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    return [Problem(tuple(row["nums"]), row["target"]) for row in rows]


def draw_problems(split: Split, n: int, seed: int) -> list[Problem]:
    """Draw distinct solvable problems of one split.

    Three or four numbers (equally often) from 1 to 99 and a target from 10 to 100. Seven in eight are the value of
    a random chain of + and -; the rest of a chain that starts with one exact * or /.

    Args:
        split: Part of the hash split that every problem has to lie in.
        n: How many.
        seed: Of the random numbers.

    Returns:
        `n` problems, no two with the same numbers and target.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple, Problem] = {}
    while len(found) < n:
        numbers = rng.integers(1, 100, size=int(rng.integers(3, 5)))
        symbols = rng.choice(["+", "-"], size=len(numbers) - 1)
        if rng.random() < 0.125:
            symbols[0] = rng.choice(["*", "/"])
        expression = " ".join([str(numbers[0]), *(f"{s} {x}" for s, x in zip(symbols, numbers[1:], strict=True))])
        steps = chain(expression)
        if not steps or not 10 <= int(steps[-1]) <= 100:
            continue
        problem = Problem(tuple(int(number) for number in rng.permutation(numbers)), int(steps[-1]))
        if problem.split == split:
            found.setdefault((tuple(sorted(problem.numbers)), problem.target), problem)
    return list(found.values())
