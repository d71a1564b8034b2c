"""Traces that a CountDown model writes itself, and batches of their verdicts: shared by the experiments on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxinterp.activations.generate import generate
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown, verification

Place = Literal["verdict", "result"]
"""The token that opens the verdict, and the last digit of the result just before it."""

_WIDTHS = (80, 192, 320, 512)
_SMALLEST_BATCH = 8
_ENDINGS = ("\nSo ", "\nThe ", "</think>")


@dataclasses.dataclass(frozen=True)
class Written:
    """A trace with at least one verdict, cut after the opening of the last one.

    Attributes:
        ids: Tokens.
        verdicts: Its verdicts; positions are indices into `ids`.
        trace: The same, parsed.
    """

    ids: tuple[int, ...]
    verdicts: tuple[verification.Verdict, ...]
    trace: countdown.Trace


@dataclasses.dataclass(frozen=True)
class Batch:
    """Left-padded traces and the verdicts asked for in them.

    Attributes:
        ids: Tokens, [batch, seq].
        mask: Which slots hold tokens, [batch, seq].
        rows: Row of each verdict, [n].
        verdicts: The verdicts, `n` of them; their positions do not count padding.
        order: Index of each verdict in the whole choice, [n].
    """

    ids: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    verdicts: tuple[verification.Verdict, ...]
    order: np.ndarray

    @property
    def pads(self) -> np.ndarray:
        """Padding slots in front of each verdict's row, [n]."""
        return (~self.mask).sum(axis=1)[self.rows]

    def slots(self, place: Place) -> np.ndarray:
        """Slot of each verdict's token, [n], padding counted."""
        tokens = [verdict.open if place == "verdict" else verdict.result for verdict in self.verdicts]
        return np.array(tokens, int) + self.pads

    def tokens_at(self, place: Place) -> np.ndarray:
        """Which tokens of a row are such a place, boolean [batch, seq] by index without padding."""
        chosen = np.zeros(self.mask.shape, bool)
        chosen[self.rows, self.slots(place) - self.pads] = True
        return chosen


def write_traces(
    model: LanguageModel, problems: Sequence[countdown.Problem], *, max_new_tokens: int, batch_size: int
) -> list[Written]:
    """Lets a model solve problems greedily, and finds the verdicts.

    Args:
        model: A CountDown model.
        problems: What to solve.
        max_new_tokens: Cap on each response; attempts beyond it are lost.
        batch_size: Problems at a time.

    Returns:
        One entry per trace that has a verdict, in the order of `problems`.
    """
    written = []
    for start in range(0, len(problems), batch_size):
        prompts = [problem.prompt for problem in problems[start : start + batch_size]]
        responses = generate(model, prompts, max_new_tokens=max_new_tokens, stop=_ENDINGS)
        found = (cut_trace(model, prompt + response) for prompt, response in zip(prompts, responses, strict=True))
        written += [trace for trace in found if trace is not None]
    return written


def cut_trace(model: LanguageModel, text: str) -> Written | None:
    """Finds the verdicts of a trace and cuts it after the opening of the last one.

    Args:
        model: Its tokenizer is used.
        text: Prompt and response.

    Returns:
        The trace, or `None` if it has no verdict.
    """
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(text)
    found = verification.verdicts(tokenizer, ids)
    return Written(tuple(ids[: found[-1].open + 1]), tuple(found), countdown.parse(text)) if found else None


def pair_members(model: LanguageModel, pair: verification.MinimalPair) -> list[Written]:
    """Both members of a minimal pair, each with the one verdict that would be right.

    Args:
        model: Its tokenizer is used.
        pair: Two texts that end with `" ("`.

    Returns:
        The original and its twin.
    """
    members = []
    for text, valid in ((pair.text, pair.valid), (pair.twin, not pair.valid)):
        member = cut_trace(model, text + ("this works)" if valid else f"not {countdown.parse(text).problem.target})"))
        assert member is not None, "a minimal pair ends with an attempt"
        members.append(Written(member.ids, member.verdicts[-1:], member.trace))
    return members


def choose_verdicts(
    traces: Sequence[Written], rng: np.random.Generator, *, rejected_per_trace: int
) -> list[tuple[int, int]]:
    """Picks the accepted attempt of each trace and some of its rejected ones.

    Args:
        traces: Where to pick.
        rng: Picks among the rejected attempts.
        rejected_per_trace: At most this many rejected attempts per trace.

    Returns:
        (index of the trace, index of the verdict in it) pairs.
    """
    chosen = []
    for index, written in enumerate(traces):
        valid = [place for place, verdict in enumerate(written.verdicts) if verdict.valid]
        invalid = [place for place, verdict in enumerate(written.verdicts) if not verdict.valid]
        kept = sorted(rng.permutation(np.array(invalid, int))[:rejected_per_trace])
        chosen += [(index, int(place)) for place in [*valid[:1], *kept]]
    return chosen


def batch_verdicts(traces: Sequence[Written], chosen: Sequence[tuple[int, int]], batch_size: int) -> list[Batch]:
    """Groups traces of similar length in batches of few different shapes, since each shape compiles once.

    Args:
        traces: All of them; those without a chosen verdict are left out.
        chosen: (index of the trace, index of the verdict in it) pairs.
        batch_size: Most rows per batch. Smaller batches have half as many, a quarter and so on; spare rows repeat the
            first one and hold no verdict.

    Returns:
        Batches, the shortest traces first.
    """
    asked: dict[int, list[int]] = {}
    for order, (index, _) in enumerate(chosen):
        asked.setdefault(index, []).append(order)
    by_width: dict[int, list[int]] = {}
    for index in asked:
        length = len(traces[index].ids)
        by_width.setdefault(next((width for width in _WIDTHS if width >= length), length), []).append(index)
    batches = []
    for width, indices in sorted(by_width.items()):
        while indices:
            rows = batch_size
            while rows > max(len(indices), _SMALLEST_BATCH):
                rows //= 2
            group, indices = indices[:rows], indices[rows:]
            sequences = [traces[index].ids for index in group]
            sequences += sequences[:1] * (rows - len(group))
            order = [order for index in group for order in asked[index]]
            batch = Batch(
                ids=np.array([[0] * (width - len(ids)) + list(ids) for ids in sequences], np.int32),
                mask=np.array([[False] * (width - len(ids)) + [True] * len(ids) for ids in sequences]),
                rows=np.array([row for row, index in enumerate(group) for _ in asked[index]]),
                verdicts=tuple(traces[index].verdicts[place] for index, place in (chosen[one] for one in order)),
                order=np.array(order),
            )
            batches.append(batch)
    return batches
