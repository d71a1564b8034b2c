"""Which attention heads does a CountDown model need in order to accept a right attempt?

Heads are found on some cases, by what they look at and by what happens without them, and taken out on others: all of a
set and the first few, at all tokens and at one, with zeros and with what they give out in other texts. Random sets of
as many heads say how much of the effect any damage would have. `found` gives the sets to other experiments, and
`head_removal.removal_cells` makes the cells of a sweep of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.self_verification import cases, head_attention, head_claims, head_removal
from jaxinterp.experiments.self_verification.cases import Case, Place
from jaxinterp.experiments.self_verification.head_claims import ORDERS, POOLS, SETS
from jaxinterp.experiments.self_verification.head_removal import Removal, Sources
from jaxinterp.figures import head_ablation
from jaxinterp.models.language_model import LanguageModel

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

_AT_ONCE = 128
_COLUMNS = {
    "stage": pl.String,
    "measure": pl.String,
    "condition": pl.String,
    "method": pl.String,
    "position": pl.String,
    "heads": pl.String,
    "n_heads": pl.Int64,
    "layer": pl.Int64,
    "head": pl.Int64,
    "draw": pl.Int64,
    "token": pl.Int64,
    "written": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ablation experiment."""

    scan: int = 60
    """Accepted cases of the selection on which each single head is taken out; attention is measured on all of them."""
    sources: int = 40
    """Cases of the selection, of either verdict, that give the means and the resampled outputs."""
    curve: int = 8
    """Longest prefix of the heads, in order of attention and of their single effect, that is taken out."""
    curve_cases: int = 60
    """Cases of the evaluation, of either verdict, for these curves, and for means and resampled outputs."""
    draws: int = 20
    """Random sets of each kind."""
    random: int = 20
    """Cases of the evaluation, of either verdict, on which each random set is taken out."""
    attention_threshold: float = 0.1
    """A head looks at the target if it spends more than this share of its attention on it."""
    circuit_threshold: float = 0.1
    """A head belongs to the circuit if at least this share of acceptances flips without it."""
    seed: int = 0
    """Of the random sets and of the choice of other texts."""


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """What is known of the heads from the selection alone.

    Attributes:
        sets: The sets, as in `found`.
        by_attention: All heads, the one that looks most at the target from the verdict first.
        by_effect: All heads, the one without which most verdicts flip first.
    """

    sets: dict[str, list[Head]]
    by_attention: list[Head]
    by_effect: list[Head]


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Find heads on the selection and take them out on the evaluation.

    The model reads a case, a trace up to `" ("`, with the heads out, and the larger logit decides between the two
    verdicts. Three sets are found. The paper's: heads that attend from the result's last digit to the last digits of
    the target's mentions in prompt and preamble. The one that fits a model which compares digit by digit where the
    verdict opens: heads that attend from there to one digit of the target, all its mentions together. The circuit:
    heads without which, each alone zeroed at all tokens, verdicts flip; in order of the share that flips, and of the
    margin lost where shares are equal.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": ...}`, the table of that experiment.

    Returns:
        One row per number. `stage`: selection, evaluation, or trace (one case, its tokens written out). `measure`:
        attention from verdict, attention from result (of each head to the target), rank (from 0, within the set
        `condition`), flips (accepted cases whose verdict rejects), rejections kept, margin change and margin change
        at rejections (nats), attention (of a head to one token). `condition` (which heads), `method`, `position` (see
        `head_removal`; of the trace: from where the head looks), `heads`, `n_heads`, `layer` and `head` (rows about
        one head), `draw` (random sets), `token` and `written` (the trace's), `value`, `low` and `high` (95 %: Wilson
        for shares, bootstrap over cases for means), `n` and `control`.

    Raises:
        ValueError: A split has no cases of a kind, or the model has another tokenizer.
    """
    model, table = models["model"], inputs["verdicts"]
    selection = [cases.load(model, table, "selection", valid=valid) for valid in (True, False)]
    evaluation = [cases.load(model, table, "evaluation", valid=valid) for valid in (True, False)]
    _LOG.info("attention of all heads on %d cases", len(selection[0]))
    attention = head_attention.to_target(model, selection[0])
    rows, chosen = _select(model, config, selection[0], attention)
    zeroed, replaced = _removals(chosen)
    layers = sorted({head[0] for removal in replaced for head in removal.heads})
    others = [case for kind in selection for case in kind[: config.sources]]
    sources = head_removal.read_sources(model, others, layers) if layers else None
    drawn = _random_removals(config, chosen, (model.architecture.layers, model.architecture.heads))
    parts = (
        (zeroed, None, None),
        (replaced, config.curve_cases, sources),
        (_curves(config, chosen), config.curve_cases, None),
        (drawn, config.random, None),
    )
    for some, most, given in parts:
        if not some:
            continue
        held_out = [case for kind in evaluation for case in kind[:most]]
        _LOG.info("%d sets of heads on %d held-out cases", len(some), len(held_out))
        rows += _evaluate(model, held_out, some, given, config.seed)
    shown = list(dict.fromkeys([*chosen.sets["circuit"], *chosen.sets["target"]]))[: config.curve]
    rows += _trace(model, evaluation[0], shown or chosen.by_attention[:1])
    return pl.DataFrame([{"control": False} | row for row in rows], schema=_COLUMNS)


def found(table: pl.DataFrame) -> dict[str, list[Head]]:
    """The heads that were found on the selection, for other experiments.

    Args:
        table: As from `run`.

    Returns:
        `"paper"`: attend from the result's last digit to the target as the paper says, most attention first (may be
        empty). `"target"`: attend from the verdict's opening to one digit of the target, most attention first.
        `"circuit"`: flip verdicts when each is zeroed alone, largest effect first.

    >>> row = {"measure": "rank", "condition": "target", "layer": 4, "head": 5, "value": 0.0}
    >>> found(pl.DataFrame([row]))
    {'paper': [], 'target': [(4, 5)], 'circuit': []}
    """
    ranks = table.filter(pl.col("measure") == "rank").sort("value")
    return {name: list(ranks.filter(pl.col("condition") == name).select("layer", "head").iter_rows()) for name in SETS}


def _of_head(head: Head) -> dict[str, Any]:
    return {"heads": heads.label([head]), "n_heads": 1, "layer": head[0], "head": head[1]}


def _select(
    model: LanguageModel, config: Config, accepted: Sequence[Case], attention: Mapping[Place, np.ndarray]
) -> tuple[list[dict[str, Any]], _Chosen]:
    """Rows about single heads, and the sets."""
    every = [(layer, head) for layer, head in np.ndindex(attention["verdict"].shape)]
    positions: tuple[head_removal.Position, ...] = ("all tokens", "verdict", "result")
    singles = [Removal("one head", (head,), position=position) for position in positions for head in every]
    scanned = accepted[: config.scan]
    _LOG.info("%d heads, one at a time, on %d cases", len(every), len(scanned))
    margins, clean = _margins(model, scanned, singles, None, config.seed)
    rows: list[dict[str, Any]] = []
    for removal, margin, change in zip(singles, margins, cases.means((margins - clean).T), strict=True):
        row = {"stage": "selection"} | removal.labels | _of_head(removal.heads[0])
        rows.append(row | {"measure": "flips"} | cases.proportion(margin < 0))
        rows.append(row | {"measure": "margin change"} | change)
    for place, scores in attention.items():
        rows += [
            {"stage": "selection", "measure": f"attention from {place}"}
            | {"value": float(scores[head]), "n": len(accepted)}
            | _of_head(head)
            for head in every
        ]
    alone = margins[: len(every)]
    effects = {head: (margin < 0).mean() for head, margin in zip(every, alone, strict=True)}
    lost = {head: (clean - margin).mean() for head, margin in zip(every, alone, strict=True)}
    by_effect = sorted(every, key=lambda head: (-effects[head], -lost[head]))
    sets = {
        "paper": heads.above(attention["result"], config.attention_threshold),
        "target": heads.above(attention["verdict"], config.attention_threshold),
        "circuit": [head for head in by_effect if effects[head] >= config.circuit_threshold],
    }
    for name, some in sets.items():
        rows += [
            {"stage": "selection", "measure": "rank", "condition": name, "value": float(rank)} | _of_head(head)
            for rank, head in enumerate(some)
        ]
    return rows, _Chosen(sets, heads.ranked(attention["verdict"]), by_effect)


def _removals(chosen: _Chosen) -> tuple[list[Removal], list[Removal]]:
    """The sets zeroed, at each position; and what other texts have in their place."""
    zeroed, replaced = [Removal("none", ())], []
    for name, condition in SETS.items():
        some = tuple(chosen.sets[name])
        positions = head_removal.POSITIONS if some else head_removal.POSITIONS[:1]
        zeroed += [Removal(condition, some, position=position) for position in positions]
        replaced += [
            Removal(condition, some, method, position)
            for method in head_removal.METHODS[1:]
            for position in head_removal.POSITIONS[:2]
            if some
        ]
    return zeroed, replaced


def _curves(config: Config, chosen: _Chosen) -> list[Removal]:
    removals = []
    for condition, order in zip(ORDERS, (chosen.by_attention, chosen.by_effect), strict=True):
        for position in ("all tokens", "verdict"):
            longest = min(config.curve, len(order))
            prefixes = [tuple(order[:count]) for count in range(1, longest + 1)]
            removals += [Removal(condition, prefix, position=position) for prefix in prefixes]
    return removals


def _random_removals(config: Config, chosen: _Chosen, shape: tuple[int, int]) -> list[Removal]:
    """As many heads as attend to the target, from three pools."""
    of_set = set(chosen.sets["target"])
    avoided = (set[Head](), of_set, of_set | set(chosen.sets["circuit"]))
    removals = []
    for pool, outside in zip(POOLS, avoided, strict=True):
        size = min(max(len(of_set), 1), shape[0] * shape[1] - len(outside))
        if size:
            sets = heads.draw_sets(shape, outside, size, config.draws, config.seed)
            removals += [Removal(f"random, {pool}", tuple(some), draw=draw) for draw, some in enumerate(sets)]
    return removals


def _margins(
    model: LanguageModel, some: Sequence[Case], removals: Sequence[Removal], sources: Sources | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The margin with each set out, [removal, case], and with none, [case]; the same edit is run once."""
    edits = [dataclasses.replace(one, condition="", heads=tuple(sorted(one.heads)), draw=None) for one in removals]
    different = list(dict.fromkeys(edits))
    cells = head_removal.removal_cells(different, sources, seed)
    swept = cases.sweep(model, some, cells, cases.margin(model), None if sources is None else _AT_ONCE)
    numbers = cases.values(swept, some)
    place = {edit: index for index, edit in enumerate(different)}
    return numbers[[place[edit] for edit in edits]], cases.values(swept, some, "clean")[0]


def _evaluate(
    model: LanguageModel, held_out: Sequence[Case], removals: Sequence[Removal], sources: Sources | None, seed: int
) -> list[dict[str, Any]]:
    valid = np.array([case.valid for case in held_out])
    margins, clean = _margins(model, held_out, removals, sources, seed)
    changes = [cases.means((margins - clean)[:, kind].T) for kind in (valid, ~valid)]
    rows = []
    for removal, margin, accepted, rejected in zip(removals, margins, *changes, strict=True):
        measured = {
            "flips": cases.proportion(margin[valid] < 0),
            "rejections kept": cases.proportion(margin[~valid] < 0),
            "margin change": accepted,
            "margin change at rejections": rejected,
        }
        row = {"stage": "evaluation", "control": removal.draw is not None or removal.condition == "none"}
        rows += [row | removal.labels | {"measure": name} | numbers for name, numbers in measured.items()]
    return rows


def _trace(model: LanguageModel, accepted: Sequence[Case], shown: Sequence[Head]) -> list[dict[str, Any]]:
    """Attention over the shortest case that has a rejected attempt in front, or over the shortest of all."""
    case = min(accepted, key=lambda one: (len(one.verdict.mentions) <= one.verdict.stated, len(one.ids)))
    tokenizer = model.require_tokenizer()
    written = [tokenizer.decode([token]) for token in case.ids]
    rows = []
    for place, attention in head_attention.over(model, case, shown).items():
        for head, values in zip(shown, attention, strict=True):
            row = {"stage": "trace", "measure": "attention", "position": place, "n": 1} | _of_head(head)
            rows += [
                row | {"token": index, "written": text, "value": float(value)}
                for index, (text, value) in enumerate(zip(written, values, strict=True))
            ]
    return rows


def figure(table: pl.DataFrame) -> Figure:
    """Effect of each head, of the first few together, of chosen against random sets, and attention over a trace.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return head_ablation.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the paper's claims.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned. Where there was
        nothing to measure, `n` is 0 and the claim is not met.
    """
    return head_claims.claims(table, found(table))
