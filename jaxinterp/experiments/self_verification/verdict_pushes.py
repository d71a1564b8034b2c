"""Steering the verdict of an attempt: layers and scales chosen on some cases, effects measured on others."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import jaxinterp as ji
from jaxinterp.experiments.self_verification import attempt_ends, cases, pushes
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.experiments.self_verification.pushes import Aim, Push
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

if TYPE_CHECKING:
    from jaxinterp.experiments.verdict_steering import Config

PLACES = ("verdict", "result")
_FEW = 5
"""Random directions in the paper's variant, at every length."""

_LOG = logging.getLogger(__name__)

Key = tuple[str, str]
"""Place and vector."""


def steer(
    config: Config,
    model: LanguageModel,
    table: pl.DataFrame,
    directions: Mapping[Key, np.ndarray],
    norms: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Pushes rejected cases to acceptance, and accepted ones to rejection.

    Args:
        config: Settings.
        model: A CountDown model.
        table: As from the `verdicts` experiment.
        directions: (Place, vector) -> unit vectors [layer, polarity, embedding]; polarity 1 accepts.
        norms: Place -> mean norm of the stream behind each block.

    Yields:
        Rows of the experiment's table.
    """
    accepting, rejecting = verification.verdict_tokens(model.require_tokenizer(), model.source)
    known = (*accepting, *rejecting)
    every = pushes.spans(model.architecture.layers)
    spans = {"verdict": every, "result": every[-1:]}
    random = pushes.random_units(config.random, model.architecture.embedding, config.seed)
    for aim in (
        Aim("accept", False, accepting[0], tuple(accepting), known),
        Aim("reject", True, rejecting[0], tuple(rejecting), known),
    ):
        grids = {
            (place, vector): pushes.grid(
                vector, units[:, int(not aim.valid)], norms[place], spans[place], config.scales
            )
            for (place, vector), units in directions.items()
        }
        selected = cases.load(model, table, "selection", valid=aim.valid, most=config.selection)
        _LOG.info("choosing layers and scales on %d cases, to make the model %s", len(selected), aim.name)
        tokens = _try(model, selected, grids)
        picks = {key: _pick(aim, grid, tokens[key], config.most_malformed) for key, grid in grids.items()}
        labels = {"part": "verdict", "stage": "selection"}
        for key, grid in grids.items():
            yield from aim.rows(grid, tokens[key], picks[key], picks[key][:1], place=key[0], **labels)
        tried = {key: _at_the_same(grid, picks[key]) for key, grid in grids.items()}
        best = (pick[0] for (place, _), pick in picks.items() if place == "verdict")
        same = {(push.layers, push.scale) for push in best}
        tried["verdict", "random"] = [
            push
            for layers, scale in sorted(same)
            for push in pushes.random_grid(random, norms["verdict"], [layers], [scale])
        ]
        evaluated = cases.load(model, table, "evaluation", valid=aim.valid, most=config.evaluation)
        _LOG.info("the same on %d held-out cases", len(evaluated))
        tokens = _try(model, evaluated, tried)
        labels = {"part": "verdict", "stage": "evaluation"}
        for key, some in tried.items():
            pick = picks.get(key, ())
            yield from aim.rows(some, tokens[key], pick, pick[:1], place=key[0], **labels)
        at_once = [push for (place, _), grid in grids.items() if place == "result" for push in grid]
        at_once += pushes.random_grid(random[:_FEW], norms["result"], spans["result"], config.scales)
        yield from _steer_at_once(model, evaluated[: config.ends], aim, at_once)
        yield from _sample(model, evaluated[: config.samples], aim, picks["verdict", "probe"][0], config.new_tokens)


def _try(model: LanguageModel, texts: Sequence[Case], grids: Mapping[Key, Sequence[Push]]) -> dict[Key, np.ndarray]:
    """Next tokens [push, case] under every push, each at its place, in one sweep."""
    at = {"verdict": ji.last(), "result": ji.at(-2)}
    cells = [push.cell(at[place]) for (place, _), grid in grids.items() for push in grid]
    _, tokens = pushes.next_tokens(model, texts, cells)
    ends = np.cumsum([len(grid) for grid in grids.values()])
    return dict(zip(grids, np.split(tokens, ends[:-1]), strict=True))


def _pick(aim: Aim, grid: Sequence[Push], tokens: np.ndarray, most_malformed: float) -> tuple[Push, ...]:
    """The best push at one layer, and the best at several at once; the better of the two stands first."""
    best: list[int] = []
    for single in (True, False):
        some = [index for index, push in enumerate(grid) if (len(push.layers) == 1) == single]
        if some:
            best.append(some[aim.choose([grid[index] for index in some], tokens[some], most_malformed)])
    first = best[aim.choose([grid[index] for index in best], tokens[best], most_malformed)]
    return tuple(grid[index] for index in sorted(best, key=lambda index: index != first))


def _at_the_same(grid: Sequence[Push], picks: Sequence[Push]) -> list[Push]:
    """The pushes at the layers of some, at every scale."""
    return [push for push in grid if push.layers in {pick.layers for pick in picks}]


def _steer_at_once(
    model: LanguageModel, texts: Sequence[Case], aim: Aim, some: Sequence[Push]
) -> Iterator[dict[str, Any]]:
    """The paper's variant: steered at the last digit of the result, does the model still open a verdict?"""
    opening = texts[0].ids[texts[0].verdict.open]
    cut = [dataclasses.replace(case, ids=case.ids[:-1]) for case in texts]
    clean, tokens = pushes.next_tokens(model, cut, [push.cell(ji.last()) for push in some])
    labels = {"part": "verdict", "stage": "evaluation", "aim": aim.name, "place": "result, at once"}
    for push, own in zip([pushes.nothing(), *some], [clean, *tokens], strict=True):
        row = push.labels() | labels
        yield row | {"measure": "opens a verdict"} | cases.proportion(own == opening)
        yield row | {"measure": "same meaning"} | cases.proportion(np.isin(own, aim.words))


def _sample(
    model: LanguageModel, texts: Sequence[Case], aim: Aim, push: Push, new_tokens: int
) -> Iterator[dict[str, Any]]:
    """What the model writes after a few verdicts, unsteered and steered at the verdict alone."""
    neutral = dataclasses.replace(push, parts=np.zeros_like(push.parts))
    written = attempt_ends.write(model, texts, [one.cell(ji.at(-1)) for one in (neutral, push)], new_tokens)
    labels = {"part": "verdict", "stage": "written", "aim": aim.name, "place": "verdict"}
    for number, case in enumerate(texts):
        for one, tokens in zip((pushes.nothing(), push), written, strict=True):
            yield one.labels() | labels | {"text": attempt_ends.show(model, case, tokens[number])}
