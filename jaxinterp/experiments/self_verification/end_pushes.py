"""Steering what comes behind an attempt: the answer, or another attempt; layer by layer."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import jaxinterp as ji
from jaxinterp.experiments.self_verification import attempt_ends, cases, pushes
from jaxinterp.experiments.self_verification.attempt_ends import Streams
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.experiments.self_verification.pushes import Aim, Push
from jaxinterp.models.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxinterp.experiments.verdict_steering import Config

_LOG = logging.getLogger(__name__)

VECTOR = "stop minus go on"
_PART = {"part": "end", "place": "end"}


@dataclasses.dataclass(frozen=True)
class Held:
    """What the chosen pushes were evaluated on.

    Attributes:
        aim: What they are for.
        picks: The chosen push at each layer.
        best: Those of the two neighbouring layers that did best on selection.
        texts: Held-out ends at which the model, left alone, does the opposite.
    """

    aim: Aim
    picks: list[Push]
    best: list[Push]
    texts: list[Case]


def steer(config: Config, model: LanguageModel, table: pl.DataFrame, streams: Streams) -> Iterator[dict[str, Any]]:
    """Adds the difference between ends where the model stops and ends where it tries again, and subtracts it.

    Args:
        config: Settings.
        model: A CountDown model.
        table: As from the `verdicts` experiment.
        streams: Of completed training cases.

    Yields:
        Rows of the experiment's table.

    Raises:
        ValueError: The model always does the same.
    """
    finish, again = attempt_ends.ways_on(model.require_tokenizer())
    stops, goes_on = streams.tokens == finish, streams.tokens == again
    if not stops.any() or not goes_on.any():
        raise ValueError(
            f"behind {len(stops)} attempts {model.source} stopped {stops.sum()} times and tried again {goes_on.sum()} "
            "times; the vector between the two needs both: pass a CountDown model, or more training cases"
        )
    direction, norms = streams.difference("end", stops, goes_on), streams.norms("end")
    for layer, length in enumerate(np.linalg.norm(direction, axis=-1) / norms):
        row = _PART | {"stage": "vectors", "vector": VECTOR, "layer": layer, "layers": f"L{layer}", "control": False}
        yield row | {"measure": "length", "value": float(length), "n": int(stops.sum() + goes_on.sum())}
    direction = pushes.units(direction)
    random = pushes.random_units(config.random, model.architecture.embedding, config.seed)
    held = []
    for aim, sign in (
        (Aim("finish", False, finish, (finish,), (finish, again)), 1),
        (Aim("go on", True, again, (again,), (finish, again)), -1),
    ):
        single = [(layer,) for layer in range(model.architecture.layers)]
        grid = pushes.grid(VECTOR, sign * direction, norms, single, config.scales)
        _LOG.info("choosing scales at the ends of attempts, to make the model %s", aim.name)
        _, tokens = _try(model, table, "selection", aim, config.selection, grid)
        chosen = [_pick(aim, grid, tokens, layers, config.most_malformed) for layers in single]
        picks = [grid[index] for index in chosen]
        best = [picks[layer] for layer in best_neighbours(aim.measures(tokens[chosen])["reached"].mean(axis=1))]
        yield from aim.rows(grid, tokens, picks, best, stage="selection", **_PART)
        others = [some for push in picks for some in pushes.random_grid(random, norms, [push.layers], [push.scale])]
        texts, tokens = _try(model, table, "evaluation", aim, config.ends, [*picks, *others])
        yield from aim.rows([*picks, *others], tokens, picks, best, stage="evaluation", **_PART)
        held.append(Held(aim, picks, best, texts[: config.written]))
    _LOG.info("writing text behind %d ends, steered at each layer", sum(len(some.texts) for some in held))
    yield from _write(model, held, random[0], norms, config.new_tokens)


def _try(
    model: LanguageModel, table: pl.DataFrame, split: str, aim: Aim, most: int, some: Sequence[Push]
) -> tuple[list[Case], np.ndarray]:
    """Ends at which the model does not do by itself what is aimed at, and next tokens [push, case] under every push."""
    found = cases.load(model, table, split, valid=aim.valid, most=most)
    texts = [attempt_ends.complete(model, case) for case in found]
    clean, tokens = pushes.next_tokens(model, texts, [push.cell(ji.last()) for push in some])
    here = np.isin(clean, aim.known) & (clean != aim.token)
    if not here.any():
        raise ValueError(
            f"at none of {len(texts)} ends of the {split} split does {model.source} do anything else than {aim.name}, "
            "so that nothing can be changed; pass a CountDown model, or more cases"
        )
    return [text for text, kept in zip(texts, here, strict=True) if kept], tokens[:, here]


def _pick(aim: Aim, grid: Sequence[Push], tokens: np.ndarray, layers: tuple[int, ...], most_malformed: float) -> int:
    """Index of the best push at one layer."""
    some = [index for index, push in enumerate(grid) if push.layers == layers]
    return some[aim.choose([grid[index] for index in some], tokens[some], most_malformed)]


def best_neighbours(shares: np.ndarray) -> list[int]:
    """The two neighbouring layers of the middle half whose weaker one is strongest.

    >>> best_neighbours(np.array([0.9, 0.9, 0.1, 0.5, 0.4, 0.6, 0.9, 0.9]))
    [3, 4]
    """
    skipped = len(shares) // 4
    middle = range(skipped, len(shares) - skipped - 1)
    best = max(middle, key=lambda layer: min(shares[layer], shares[layer + 1]), default=None)
    return [] if best is None else [best, best + 1]


def _write(
    model: LanguageModel, held: Sequence[Held], random: np.ndarray, norms: np.ndarray, new_tokens: int
) -> Iterator[dict[str, Any]]:
    """Text behind held-out ends: unsteered, pushed at the end alone, and pushed at every token from there on."""
    texts = [text for some in held for text in some.texts]
    chance = [
        [push for pick in some.picks for push in pushes.random_grid(random[None], norms, [pick.layers], [pick.scale])]
        for some in held
    ]
    own = [some.picks for some in held]
    neutral = [[dataclasses.replace(push, parts=np.zeros_like(push.parts)) for push in some] for some in own]
    layers = range(len(norms))
    always = [("from the end on", some, layer) for some in (own, chance) for layer in layers]
    conditions = [("from the end on", neutral, 0), *always, *(("end", own, layer) for layer in layers)]
    at = {"from the end on": ji.last(), "end": ji.at(-1)}
    edits = [_edit(held, [some[layer] for some in by_aim], layer, at[place]) for place, by_aim, layer in conditions]
    written = attempt_ends.write(model, texts, edits, new_tokens)
    first = 0
    for number, some in enumerate(held):
        rows = slice(first, first + len(some.texts))
        first = rows.stop
        unsteered = written[0][rows]
        for (place, by_aim, layer), found in zip(conditions, written, strict=True):
            push = pushes.nothing() if by_aim is neutral else by_aim[number][layer]
            labels = push.labels() | {"part": "end", "stage": "written", "aim": some.aim.name, "place": place}
            labels["best"] = by_aim is own and some.picks[layer].among(some.best)
            yield from _measure(model, some.aim, labels, found[rows], unsteered)
            if by_aim is neutral or some.picks[layer].among(some.best[:1]) or (by_aim is own and layer == layers[-1]):
                yield labels | {"text": attempt_ends.show(model, some.texts[0], found[rows][0])}


def _edit(held: Sequence[Held], some: Sequence[Push], layer: int, at: Any) -> ji.Cell:
    """One edit for the texts of all aims: in each row the push of its aim."""
    parts = [np.repeat(push.parts, len(own.texts), axis=0) for own, push in zip(held, some, strict=True)]
    vectors = np.concatenate(parts)
    return ji.Cell({}, functools.partial(ji.steer, site=ji.resid_post(layer), vector=vectors, at=at))


def _measure(
    model: LanguageModel, aim: Aim, labels: Mapping[str, Any], written: Sequence[np.ndarray], unsteered: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    tokenizer = model.require_tokenizer()
    ways = np.array([attempt_ends.way(tokenizer.decode(tokens.tolist())) for tokens in written])
    yield {**labels, "measure": "reached"} | cases.proportion(ways == aim.name)
    if labels["place"] == "end":
        return
    pairs = zip(written, unsteered, strict=True)
    found = [attempt_ends.degeneration(tokenizer, steered, plain) for steered, plain in pairs]
    numbers = cases.means(np.array([list(one.values()) for one in found]))
    for measure, mean in zip(found[0], numbers, strict=True):
        yield {**labels, "measure": measure} | mean
