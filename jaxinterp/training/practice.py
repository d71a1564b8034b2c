"""What a model practises, and CountDown as such a task; and how well a model does it."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
import polars as pl

from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks import countdown_traces
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_grammar import STYLES
from jaxinterp.tasks.countdown_problems import ProblemSettings, draw_problem
from jaxinterp.tasks.countdown_traces import Reading
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training.sampling import pad_left, sample

Measures = dict[str, float | None]
_PAD_TO = 16


class Task(Protocol):
    """Something with prompts and with a judge."""

    @property
    def pad(self) -> int:
        """Id that fills rows."""
        ...

    def ask(self, step: int, count: int) -> tuple[list[Any], list[list[int]]]:
        """What is asked in a step, and the token ids of each prompt: a function of `step` and `count` alone."""
        ...

    def judge(
        self, asked: Sequence[Any], responses: Sequence[Sequence[int]], ended: Sequence[bool]
    ) -> tuple[np.ndarray, Measures]:
        """Reward of each response, and averages for the log; `asked` has one entry for each response."""
        ...


@dataclasses.dataclass(frozen=True)
class CountdownTask:
    """CountDown: a response is worth 1 if its answer is right, 0.1 if it has another answer, and nothing otherwise.

    Attributes:
        tokenizer: That of the model.
        settings: Which problems are drawn, where `problems` holds none.
        problems: Problems to choose from, such as those of a data set.
        seed: Of the drawing.
    """

    tokenizer: Tokenizer
    settings: ProblemSettings = dataclasses.field(default_factory=ProblemSettings)
    problems: Sequence[Problem] = ()
    seed: int = 0

    @property
    def pad(self) -> int:
        """Id that fills rows."""
        return _pad(self.tokenizer)

    def ask(self, step: int, count: int) -> tuple[list[Problem], list[list[int]]]:
        """Problems of the training split and their prompts.

        Args:
            step: Number of the step; another step has other problems.
            count: How many.

        Returns:
            The problems, and the token ids of each prompt.
        """
        draw = random.Random(f"practice {self.seed} {step}")  # noqa: S311
        if self.problems:
            asked = draw.choices(self.problems, k=count)
        else:
            asked = [draw_problem(draw, self.settings) for _ in range(count)]
        return asked, [self.tokenizer.encode(problem.prompt) for problem in asked]

    def judge(
        self, asked: Sequence[Problem], responses: Sequence[Sequence[int]], ended: Sequence[bool]
    ) -> tuple[np.ndarray, Measures]:
        """Rewards, and what the responses say about the model.

        Args:
            asked: The problem of each response.
            responses: Token ids, the end token included where there is one.
            ended: Whether a response ended by itself.

        Returns:
            Rewards, float `[response]`, and the averages of `jaxinterp.tasks.countdown_traces.measures` with the share
            of each style under `style <name>`.
        """
        readings = read_responses(self.tokenizer, asked, responses, ended)
        styles = Counter(reading.style for reading in readings)
        shares = {f"style {style}": styles[style] / len(readings) for style in STYLES}
        rewards = np.array([reading.reward for reading in readings])
        return rewards, countdown_traces.measures(readings) | shares


def read_responses(
    tokenizer: Tokenizer, asked: Sequence[Problem], responses: Sequence[Sequence[int]], ended: Sequence[bool]
) -> list[Reading]:
    """Reads CountDown responses from their tokens.

    Args:
        tokenizer: That of the model.
        asked: The problem of each response.
        responses: Token ids.
        ended: Whether a response ended by itself.

    Returns:
        What there is to know of each.
    """
    return [
        countdown_traces.read(problem, tokenizer.decode(response), ended=bool(whole))
        for problem, response, whole in zip(asked, responses, ended, strict=True)
    ]


def row_width(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens in a row that holds the longest prompt, a multiple of 16, so that few programs are compiled."""
    return -(-max(map(len, prompts)) // _PAD_TO) * _PAD_TO


def examine(
    decoder: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    tokens: int = 512,
    rows: int = 128,
    key: jax.Array | None = None,
) -> tuple[pl.DataFrame, Measures]:
    """Lets a model solve CountDown problems, once each.

    Args:
        decoder: The model.
        tokenizer: Its tokenizer.
        problems: What is asked.
        temperature: 0 for the most probable tokens.
        tokens: Most tokens of prompt and response together.
        rows: Problems in one batch.
        key: A typed key, needed unless greedy.

    Returns:
        A table with `numbers`, `target`, `response`, `reward`, `style`, `attempts`, `tokens` and `is_truncated` of each
        problem, and the averages of `jaxinterp.tasks.countdown_traces.measures`.

    Raises:
        ValueError: There are no problems, drawing lacks a key, or the prompts leave no room for a response.
    """
    if not problems:
        raise ValueError("there are no problems to examine a model with")
    if temperature and key is None:
        raise ValueError("drawing needs a key, such as jax.random.key(0)")
    key = jax.random.key(0) if key is None else key
    prompts = [tokenizer.encode(problem.prompt) for problem in problems]
    width = row_width(prompts)
    if tokens <= width:
        raise ValueError(f"prompts of up to {width} tokens leave no room for a response within {tokens}; allow more")
    readings: list[Reading] = []
    texts: list[list[int]] = []
    for first in range(0, len(problems), rows):
        part = prompts[first : first + rows]
        filled = part + [part[0]] * (rows - len(part))
        drawn = sample(
            decoder,
            *pad_left(filled, width, _pad(tokenizer)),
            tokens - width,
            key=jax.random.fold_in(key, first),
            temperature=temperature,
            pad=_pad(tokenizer),
        )
        responses = drawn.responses()[: len(part)]
        texts += responses
        readings += read_responses(
            tokenizer, problems[first : first + rows], responses, drawn.ended[: len(part)].tolist()
        )
    table = pl.DataFrame(
        {
            "numbers": [list(problem.numbers) for problem in problems],
            "target": [problem.target for problem in problems],
            "response": [tokenizer.decode(text) for text in texts],
            "reward": [reading.reward for reading in readings],
            "style": [reading.style for reading in readings],
            "attempts": [len(reading.attempts) for reading in readings],
            "tokens": [len(text) for text in texts],
            "is_truncated": [reading.is_truncated for reading in readings],
        },
        schema_overrides={"style": pl.String},
    )
    return table, countdown_traces.measures(readings)


def _pad(tokenizer: Tokenizer) -> int:
    return 0 if tokenizer.pad is None else tokenizer.pad
