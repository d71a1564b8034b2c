"""Do single MLP units write the verdict, in words that one can read, and is the verdict lost without them?

Units are chosen by the cosine of what they write with the probe of the verdict, read out through the unembedding, and
taken out at the verdict's opening alone. Which units, and how many, is fixed on weights, probes and the selection
split; what happens without them is measured on the evaluation split, against random units.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import statistics
from jaxinterp.analysis.units import Unit, ablate_units, draw_units, highest
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case, Group
from jaxinterp.experiments.self_verification.unit_readings import (
    POLARITIES,
    TOKENS_READ,
    UNITS_READ,
    WORDS_NEEDED,
    Facts,
    Lists,
    find_facts,
    list_rows,
    random_rows,
)
from jaxinterp.figures import unit_readouts
from jaxinterp.models.language_model import LanguageModel

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

_COLUMNS = {
    "part": pl.String,
    "measure": pl.String,
    "list": pl.String,
    "polarity": pl.String,
    "layer": pl.Int64,
    "unit": pl.Int64,
    "rank": pl.Int64,
    "place": pl.Int64,
    "token": pl.String,
    "word": pl.String,
    "k": pl.Int64,
    "units": pl.Int64,
    "draw": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on MLP units."""

    share: float = 0.0045
    """Units of each polarity taken from each layer of the upper half, as a share of the layer's units, rounded up."""
    sweep: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Other numbers of units per layer and polarity that are taken out; that of `share` is added."""
    ranking: float = 0.005
    """Units in the ranking pooled over layers, as a share of all units, rounded up."""
    selection: int = 300
    """Cases of each verdict in which activations are read."""
    evaluation: int = 300
    """Other cases of each verdict in which units are taken out."""
    draws: int = 20
    """Random sets of units of each size."""
    random: int = 60
    """Cases of each verdict, of the evaluation, in which random sets are taken out and malformed verdicts counted."""
    random_units: int = 400
    """Random units that are read out for comparison."""
    seed: int = 0
    """Of the random units."""


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, Any]) -> pl.DataFrame:
    """Choose units, read them out, and take them out.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": table, "probes": arrays}` of the experiments `verdicts` and `probing`.

    Returns:
        One row per number. `list` says how units were chosen: cosine (the k nearest to the probe of their own layer, in
        every layer of the upper half), ranking (the nearest to any probe, pooled over layers), activation (the k of
        each layer with the largest score of activation and product), random, none; `polarity` is valid, invalid or
        both. `part` is

        * unit: about one unit of a list (`layer`, `unit`, `rank`): cosines, mean activation at each verdict and share
          of cases in which it is positive, verdict words of the right and of the opposite polarity among the eight
          tokens that `v` and `-v` raise most, with and without the final norm's gain;
        * readout: one of these tokens (`place` from 0, `token`, `word`: accepts, rejects or null, `value`: product);
        * list: shares of a list's units, the first 20 of a ranking;
        * ablation: `k` units per layer and polarity (`units` altogether) zeroed at the verdict's opening: flips,
          rejections kept, margin in nats, and malformed, the share of cases with no verdict at all.

        `low` and `high` are 95 %: Wilson for shares, bootstrap over cases for means; `n` cases, units or tokens.

    Raises:
        ValueError: An input is missing, does not fit the model or holds no cases, or a layer has too few units.
    """
    model = models["model"]
    directions = _directions(model, inputs)
    neurons, first = model.architecture.neurons, model.architecture.layers // 2
    headline = math.ceil(config.share * neurons)
    sizes = sorted({*config.sweep, headline})
    if 6 * sizes[-1] > neurons or sizes[0] < 1:
        raise ValueError(
            f"sweep asks for {sizes[0]} to {sizes[-1]} units per layer and polarity; layers of {neurons} units allow 1 "
            f"to {neurons // 6}, so that as many random ones are left"
        )
    selection = _load(model, inputs["verdicts"], "selection", config.selection)
    evaluation = _load(model, inputs["verdicts"], "evaluation", config.evaluation)
    _LOG.info("reading the activations of %d units in %d cases", neurons * model.architecture.layers, len(selection))
    most = math.ceil(config.ranking * neurons * model.architecture.layers)
    facts = find_facts(model, directions, selection, headline, most)
    lists: Lists = {}
    for row, polarity in enumerate(POLARITIES):
        lists["cosine", polarity] = highest(facts.own[row], headline, first)
        lists["ranking", polarity] = facts.rankings[row]
        lists["activation", polarity] = highest(facts.scores[row], headline, first)
    rng = np.random.default_rng(config.seed)
    rows = [*list_rows(model, facts, lists), *random_rows(model, facts, lists, config.random_units, rng)]
    removed = _removed_sets(facts, sizes, first, config.draws, rng)
    _LOG.info("zeroing %d sets of units in %d cases", len(removed), len(evaluation))
    listed, drawn = ([entry for entry in removed if ("draw" in entry[0]) == random] for random in (False, True))
    kinds = [[case for case in evaluation if case.valid == valid][: config.random] for valid in (True, False)]
    fewer = [case for some in kinds for case in some]
    rows += _ablation_rows(model, evaluation, listed)
    rows += _ablation_rows(model, fewer, drawn)
    rows += _malformed_rows(model, fewer, listed)
    return pl.DataFrame(rows, schema=_COLUMNS)


def _load(model: LanguageModel, table: pl.DataFrame, split: str, most: int) -> list[Case]:
    """Cases of both verdicts, or a sentence on the one that is missing."""
    return [case for valid in (True, False) for case in cases.load(model, table, split, valid=valid, most=most)]


def _directions(model: LanguageModel, inputs: Mapping[str, Any]) -> np.ndarray:
    """Probe directions behind each block, [layer, 2, embedding]."""
    name, architecture = "verdict/directions", model.architecture
    if name not in inputs["probes"]:
        raise ValueError(f"the probes hold no array {name!r}; pass the arrays that the probing experiment writes")
    found = np.asarray(inputs["probes"][name], np.float32)
    wanted = (architecture.layers + 1, 2, architecture.embedding)
    if found.shape != wanted:
        raise ValueError(
            f"the probes have shape {list(found.shape)}, this model needs {list(wanted)}; train them on it"
        )
    return found[1:]


def _removed_sets(
    facts: Facts, sizes: Sequence[int], first: int, draws: int, rng: np.random.Generator
) -> list[tuple[dict[str, Any], list[Unit]]]:
    """What is taken out: labels and units."""
    layers, neurons = facts.vectors.shape[:2]
    removed: list[tuple[dict[str, Any], list[Unit]]] = [({"list": "none"}, [])]
    for name, scores in (("cosine", facts.own), ("activation", facts.scores)):
        for k in sizes:
            invalid, valid = (highest(scores[row], k, first) for row in range(2))
            sets = {"valid": valid, "invalid": invalid, "both": [*dict.fromkeys([*valid, *invalid])]}
            removed += [({"list": name, "polarity": polarity, "k": k}, some) for polarity, some in sets.items()]
    for k in sorted({size * times for size in sizes for times in (1, 2)}):
        near = {unit for row in range(2) for unit in highest(facts.own[row], k, first)}
        for draw in range(draws):
            some = draw_units(neurons, range(first, layers), k, near, rng)
            removed.append(({"list": "random", "k": k, "draw": draw}, some))
    return removed


Removed = Sequence[tuple[dict[str, Any], list[Unit]]]
"""Labels and units of what is taken out."""


def _ablation_rows(model: LanguageModel, chosen: Sequence[Case], removed: Removed) -> Iterator[dict[str, Any]]:
    accepted = np.array([case.valid for case in chosen])
    margins = cases.values(cases.sweep(model, chosen, _cells(removed), cases.margin(model)), chosen)
    mean = {kind: cases.means(margins[:, where].T) for kind, where in (("accepted", accepted), ("rejected", ~accepted))}
    for index, (labels, units) in enumerate(removed):
        about = {"part": "ablation", "units": len(units), "control": labels["list"] in ("none", "random"), **labels}
        yield {**about, "measure": "flips", **cases.proportion(margins[index, accepted] < 0)}
        yield {**about, "measure": "rejections kept", **cases.proportion(margins[index, ~accepted] < 0)}
        yield from ({**about, "measure": f"margin, {kind}", **rows[index]} for kind, rows in mean.items())


def _malformed_rows(model: LanguageModel, chosen: Sequence[Case], removed: Removed) -> Iterator[dict[str, Any]]:
    accepted = np.array([case.valid for case in chosen])
    found = cases.values(cases.sweep(model, chosen, _cells(removed), cases.malformed(model)), chosen) > 0
    for (labels, units), flags in zip(removed, found, strict=True):
        about = {"part": "ablation", "units": len(units), "control": labels["list"] == "none", **labels}
        yield {**about, "measure": "malformed, accepted", **cases.proportion(flags[accepted])}
        yield {**about, "measure": "malformed, rejected", **cases.proportion(flags[~accepted])}


def _cells(removed: Removed) -> Callable[[Group], Sequence[ji.Cell]]:
    def cells(_: Group) -> list[ji.Cell]:
        edits = (functools.partial(ablate_units, units=units, at=ji.last()) for _, units in removed)
        return [ji.Cell({"set": number}, edit) for number, edit in enumerate(edits)]

    return cells


def found(table: pl.DataFrame) -> dict[str, list[Unit]]:
    """The units whose ablation carries the paper's claim, as chosen on weights and probes alone.

    Args:
        table: As from `run`.

    Returns:
        `"valid"` and `"invalid"` -> (layer, unit), layer by layer, the nearest to the probe first.

    Raises:
        ValueError: The table lists none.
    """
    return {polarity: _listed(table, "cosine", polarity) for polarity in ("valid", "invalid")}


def ranked(table: pl.DataFrame) -> list[Unit]:
    """The valid units of the ranking pooled over layers, with which heads are scored.

    Args:
        table: As from `run`.

    Returns:
        (layer, unit), the largest cosine first.

    Raises:
        ValueError: The table lists none.
    """
    return _listed(table, "ranking", "valid")


def _listed(table: pl.DataFrame, name: str, polarity: str) -> list[Unit]:
    rows = table.filter(part="unit", measure="cosine", list=name, polarity=polarity).sort("rank")
    if not rows.height:
        raise ValueError(f"the table lists no {polarity} units chosen by {name}; pass that of the experiment `units`")
    return list(zip(rows["layer"].to_list(), rows["unit"].to_list(), strict=True))


def figure(table: pl.DataFrame) -> Figure:
    """The readouts of the first units with their activations, and what happens without them.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return unit_readouts.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the paper's claims.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned.
    """
    return [*_readout_claims(table), *_ablation_claims(table)]


def _readout_claims(table: pl.DataFrame) -> Iterator[Claim]:
    measure = "right words in v or -v"
    shares = table.filter(part="list", measure=measure)

    def share(name: str, polarity: str) -> dict[str, Any]:
        return shares.filter(list=name, polarity=polarity).row(0, named=True)

    for polarity, kind, paper in (
        ("valid", "accepting", "units that read as successful, yes, correctly; some of the list as noise"),
        ("invalid", "rejecting", "units that read as not, unable, different in several languages"),
    ):
        ours, random = share("ranking", polarity), share("random", polarity)
        alone = table.filter(part="list", measure="right words in v", list="ranking", polarity=polarity)["value"][0]
        yield Claim(
            criterion=f"Of the {UNITS_READ} units nearest to the probe's {polarity} direction at least 50 % have "
            f"{WORDS_NEEDED} or more of the six {kind} words among the {TOKENS_READ} tokens that v, or -v, raises most",
            paper=paper,
            **from_row(ours),
            control=f"{random['n']} random units: {random['value']:.3f}; by v alone {alone:.3f}",
            met=ours["value"] >= 0.5,
        )
    random = max((share("random", polarity) for polarity in POLARITIES), key=lambda row: row["value"])
    yield Claim(
        criterion="At most 5 % of random units do, for either polarity",
        paper="not done",
        **from_row(random),
        control=f"read as {random['polarity']} units, the polarity with the larger share",
        met=random["value"] <= 0.05,
    )


def _ablation_claims(table: pl.DataFrame) -> Iterator[Claim]:
    flips = table.filter(part="ablation", measure="flips")
    by = {(row["polarity"], row["k"]): row for row in flips.filter(list="cosine").sort("k").iter_rows(named=True)}
    sizes = sorted({k for _, k in by})
    drawn = {size: rows["value"].to_numpy() for (size,), rows in flips.filter(list="random").group_by("k")}
    headline = _headline(table)
    best = max(sizes, key=lambda k: by["both", k]["value"] - 1.5 * by["valid", k]["value"])
    both, valid = by["both", best], by["valid", best]
    at = {polarity: by[polarity, headline]["value"] for polarity in ("valid", "invalid", "both")}
    yield Claim(
        criterion="Without the units of both polarities at least 1.5 times as many acceptances flip as without the "
        "valid ones alone, for some number of units per layer",
        paper="47.3 % against 17.3 % (n = 300)",
        **from_row(both),
        control=f"{best} units per layer and polarity; valid ones alone: {valid['value']:.3f}; as many random ones: "
        f"{drawn[2 * best].mean():.3f}. With {headline} per layer: both {at['both']:.3f}, valid {at['valid']:.3f}, "
        f"invalid {at['invalid']:.3f}",
        met=both["value"] > 0 and both["value"] >= 1.5 * valid["value"],
    )
    worst = max(drawn, key=lambda size: drawn[size].mean())
    low, high = statistics.bootstrap(drawn[worst], seed=0)
    yield Claim(
        criterion="As many random units flip at most 2 % of acceptances on average, for every number of units",
        paper="not done",
        ours=float(drawn[worst].mean()),
        low=low,
        high=high,
        n=len(drawn[worst]),
        control=f"the worst number is shown, {worst} per layer, the largest draw {drawn[worst].max():.3f}; "
        f"{2 * headline} per layer: {drawn[2 * headline].mean():.3f}",
        met=float(drawn[worst].mean()) <= 0.02,
    )


def _headline(table: pl.DataFrame) -> int:
    """How many units per layer and polarity were fixed beforehand: those that the table lists."""
    listed = found(table)["valid"]
    return max(sum(layer == own for layer, _ in listed) for own, _ in listed)
