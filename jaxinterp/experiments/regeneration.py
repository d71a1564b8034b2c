"""What does a CountDown model write when something is missing only while it gives a verdict?

The model goes on from a trace in front of an attempt's verdict. Everything is written by the unedited model, except
for the token after each `" ("`, which is written by the model with heads or units taken out. So it rejects what it
would have accepted, or does not, and then has to live with what it said.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import statistics
from jaxinterp.experiments import ablation, units
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.self_verification import cases, missing_parts
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.experiments.self_verification.missing_parts import (
    ANY_HEADS,
    BOTH,
    FIRST,
    OTHER_HEADS,
    OTHER_UNITS,
    PAPER_SET,
    TARGET,
    VALID,
    Missing,
)
from jaxinterp.figures import regenerated_texts
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import continuations
from jaxinterp.tasks.continuations import OUTCOMES

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

_COLUMNS = {
    "measure": pl.String,
    "condition": pl.String,
    "outcome": pl.String,
    "reads": pl.String,
    "removed": pl.String,
    "count": pl.Int64,
    "draw": pl.Int64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
    "case": pl.Int64,
    "before": pl.String,
    "text": pl.String,
}
_SHORT = 50
_ENDINGS = ("\n\n", "Using the numbers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on generation without heads or units."""

    evaluation: int = 300
    """Held-out traces that go on from an attempt which the model accepts."""
    max_new_tokens: int = 60
    """Cap on what is written, in tokens."""
    curve: int = 3
    """Longest prefix of the circuit's heads that is taken out."""
    random: int = 120
    """Of these, traces at which random heads and units are taken out."""
    draws: int = 20
    """Random sets of heads and of units; each is taken out in its own part of these traces."""
    recomputed: int = 4
    """Traces that are written once more without a key-value cache."""
    samples: int = 4
    """Traces of which the texts are shown."""
    batch_size: int = 60
    """Traces at a time."""
    seed: int = 0
    """Of the random sets."""


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Let the model go on, each verdict given without some heads or units.

    Heads are taken out at all tokens of the pass that gives a verdict, and once at the verdict's opening alone; units
    there alone, as in the paper.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": ..., "ablation": ..., "units": ...}`, the tables of those experiments.

    Returns:
        One row per number. `measure`: rule A, rule B, rule C (share of traces with each `outcome`; see
        `jaxinterp.tasks.continuations`), first word is not this, says this or equals, same without cache, sample.
        `condition`; `reads` (text: taken out at all tokens; token: at `" ("` alone); `removed` and `count` (which
        heads or units); `draw` (rows about one random set); `value`, `low` and `high` (95 %: Wilson, for random sets
        a bootstrap over the sets), `n` (traces; 0 for an empty set, which has no value) and `control`. Of a sample:
        `case`, `before` (what the unedited model writes), and `text` (what is written under the condition).

    Raises:
        ValueError: There are no accepted attempts in the evaluation, or an input is missing.
    """
    model = models["model"]
    some = cases.load(model, inputs["verdicts"], "evaluation", valid=True, most=config.evaluation)
    conditions = missing_parts.plan(
        model,
        ablation.found(inputs["ablation"]),
        units.found(inputs["units"]),
        len(some),
        curve=config.curve,
        random=config.random,
        draws=config.draws,
        seed=config.seed,
    )
    written = _write_all(model, some, conditions, config)
    before = next(texts for texts in written if texts is not None)
    rows: list[dict[str, Any]] = []
    for condition, texts in zip(conditions, written, strict=True):
        if texts is None:
            rows += _nothing(condition)
            continue
        own = some[: len(condition.sites)]
        rows += _score(model, condition, texts)
        if condition.condition in (TARGET, BOTH, OTHER_HEADS) and condition.count:
            rows += _samples(model, condition, own, before, texts, config.samples)
        if condition.condition == TARGET:
            rows.append(_recompute(model, condition, own, texts, config))
    return pl.DataFrame(rows, schema=_COLUMNS)


def _write_all(
    model: LanguageModel, some: Sequence[Case], conditions: Sequence[Missing], config: Config
) -> list[list[str] | None]:
    """The continuations under each condition, those on the same texts together; `None` where the set is empty."""
    groups: dict[int, list[int]] = {}
    for index, condition in enumerate(conditions):
        if condition.condition == missing_parts.NOTHING or condition.count:
            groups.setdefault(len(condition.sites), []).append(index)
    found: list[list[str] | None] = [None] * len(conditions)
    for count, members in groups.items():
        here = [conditions[index] for index in members]
        _LOG.info("%d traces: %s", count, "; ".join(f"{each.condition} ({each.count}) out" for each in here))
        for index, texts in zip(members, _write(model, some[:count], here, config), strict=True):
            found[index] = texts
    return found


def _write(
    model: LanguageModel,
    some: Sequence[Case],
    conditions: Sequence[Missing],
    config: Config,
    cache: bool = True,
) -> list[list[str]]:
    """The continuations under each condition, from in front of `" ("` on."""
    every = ji.generate_switching_each(
        model,
        [ji.ablate_by_row(model, each.sites[: len(some)]) if each.count else model for each in conditions],
        [case.ids[:-1] for case in some],
        config.max_new_tokens,
        after=some[0].ids[-1],
        reads=[each.reads for each in conditions],
        cache=cache,
        batch_size=config.batch_size,
    )
    return [[_cut(text) for text in texts] for texts in every]


def _cut(text: str) -> str:
    """Up to where a trace ends, for a model that writes on."""
    return text[: min((text.index(word) for word in _ENDINGS if word in text), default=len(text))]


def _score(model: LanguageModel, condition: Missing, texts: Sequence[str]) -> list[dict[str, Any]]:
    tokenizer = model.require_tokenizer()
    short = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:_SHORT]) for text in texts]
    rules: dict[str, list[str]] = {
        "rule A": [continuations.score_first_word(text) for text in texts],
        "rule B": [continuations.score_substrings(text) for text in short],
        "rule C": [continuations.score_grammar(text) for text in texts],
    }
    rows = []
    for rule, outcomes in rules.items():
        for outcome in OUTCOMES:
            hits = np.array([one == outcome for one in outcomes])
            rows.append({"measure": rule, "outcome": outcome} | condition.labels | _share(hits, condition.draws))
    flips = np.array([one == "success" for one in rules["rule A"]])
    if condition.draws is not None:
        for draw in np.unique(condition.draws):
            own = cases.proportion(flips[condition.draws == draw])
            rows.append({"measure": "rule A", "outcome": "success", "draw": int(draw)} | condition.labels | own)
    others: dict[str, Callable[[str], bool]] = {
        "first word is not this": lambda text: continuations.first_word(text) != "this",
        "says this or equals": continuations.accepts_or_concludes,
    }
    for name, says in others.items():
        hits = np.array([says(text) for text in texts])
        rows.append({"measure": name} | condition.labels | _share(hits, condition.draws))
    return rows


def _share(hits: np.ndarray, draws: np.ndarray | None) -> dict[str, Any]:
    """A share; with random sets the mean over them, with an interval over them."""
    if draws is None:
        return cases.proportion(hits)
    means = np.array([hits[draws == draw].mean() for draw in np.unique(draws)])
    low, high = statistics.bootstrap(means, seed=0)
    return {"value": float(means.mean()), "low": low, "high": high, "n": len(hits)}


def _nothing(condition: Missing) -> list[dict[str, Any]]:
    """Rows of an empty set: there is nothing to take out."""
    names = ("rule A", "rule B", "rule C")
    return [{"measure": name, "outcome": outcome, "n": 0} | condition.labels for name in names for outcome in OUTCOMES]


def _samples(
    model: LanguageModel,
    condition: Missing,
    some: Sequence[Case],
    before: Sequence[str],
    after: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    """The first cases, whatever they show."""
    rows = []
    for index in range(min(count, len(some))):
        line = model.require_tokenizer().decode(some[index].ids[:-1]).rpartition("\n")[2]
        old, new = (_one_line(f"{line}|{text}") for text in (before[index], after[index]))
        about = {"measure": "sample", "case": index, "before": old, "text": new}
        rows.append(about | condition.labels)
    return rows


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ")


def _recompute(
    model: LanguageModel, condition: Missing, some: Sequence[Case], texts: Sequence[str], config: Config
) -> dict[str, Any]:
    few = min(config.recomputed, len(some))
    (again,) = _write(model, some[:few], [condition], config, cache=False) if few else ([],)
    same = np.array([one == other for one, other in zip(again, texts[:few], strict=True)], bool)
    return {"measure": "same without cache"} | condition.labels | cases.proportion(same)


def figure(table: pl.DataFrame) -> Figure:
    """Outcomes under the headline rule, and how far the three rules agree.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return regenerated_texts.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the paper's claims.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned. Where there was
        nothing to take out, `n` is 0 and the claim is not met.
    """
    pooled = table.filter(pl.col("draw").is_null())

    def row(condition: str, rule: str, outcome: str, reads: str = "text", count: int | None = None) -> dict[str, Any]:
        chosen = pooled.filter(condition=condition, measure=rule, outcome=outcome, reads=reads)
        if count is not None:
            chosen = chosen.filter(count=count)
        return chosen.row(0, named=True) if chosen.height else {"value": None, "n": 0, "removed": "", "count": 0}

    def percent(found: Mapping[str, Any]) -> str:
        return "none" if found["value"] is None else f"{found['value']:.3f}"

    clean = row("none", "rule C", "failure", "token")
    random = {name: row(name, "rule A", "success") for name in (ANY_HEADS, OTHER_HEADS)}
    against = "; ".join(f"{name}: {percent(found)}" for name, found in random.items())
    flips, fails = row(TARGET, "rule A", "success"), row(TARGET, "rule C", "failure")
    succeeds, at_token = row(TARGET, "rule C", "success"), row(TARGET, "rule A", "success", "token")
    claims = [
        _claim(
            "Without the heads that attend to the target the verdict written is 'not' in at least 95 % of traces",
            "299 of 300 (33 heads)",
            flips,
            flips["value"] is not None and flips["value"] >= 0.95,
            f"{against}; out at the verdict's opening alone: {percent(at_token)}",
        ),
        _claim(
            "and at most 5 % of what is written then is a failure by rule C",
            "0.3 % failure, 3.7 % partial, 96.0 % success (33 heads, n = 300)",
            fails,
            fails["value"] is not None and fails["value"] <= 0.05,
            f"success {percent(succeeds)}; nothing out: failure {percent(clean)}",
        ),
        _claim(
            "Without the heads of the paper's own definition the verdict is 'not' in at least 95 % of traces",
            "299 of 300 (33 heads)",
            (own := row(PAPER_SET, "rule A", "success")),
            own["value"] is not None and own["value"] >= 0.95,
            "the set is empty: nothing to take out" if not own["n"] else f"{own['removed']}; {against}",
        ),
    ]
    curve = [row(FIRST, "rule A", "success", count=size) for size in (1, 2, 3)]
    few = max(curve, key=lambda found: (found["value"] or 0.0, -found["count"]))
    by_grammar = row(FIRST, "rule C", "success", count=few["count"])
    claims.append(
        _claim(
            "Three heads or fewer, in order of their single effect, make the verdict 'not' in at least 90 % of traces",
            "300 of 300 and 95.3 % success by rule C (3 heads)",
            few,
            few["value"] is not None and few["value"] >= 0.9,
            f"{few['removed']}: success by rule C {percent(by_grammar)}; {against}",
        )
    )
    for name, found in random.items():
        draws = table.filter(pl.col("condition") == name, pl.col("draw").is_not_null())["value"]
        claims.append(
            _claim(
                f"As many {name.replace(', ', ' (')}) make it 'not' in at most 10 % of traces on average",
                "not done",
                found,
                found["value"] is not None and found["value"] <= 0.1,
                f"the largest of {len(draws)} draws: {draws.max() or 0.0:.3f}",
            )
        )
    return [*claims, *_unit_claims(row), *_cache_claims(table)]


def _unit_claims(row: Callable[..., dict[str, Any]]) -> list[Claim]:
    valid, both, random = (row(name, "rule A", "success", "token") for name in (VALID, BOTH, OTHER_UNITS))
    shares = {
        name: "none" if found["value"] is None else f"{found['value']:.3f}"
        for name, found in (("valid", valid), ("random", random), ("C", row(BOTH, "rule C", "success", "token")))
    }
    return [
        _claim(
            "Without the chosen units of both polarities at least 1.5 times as many verdicts become 'not' as without "
            "the valid ones alone",
            "47.3 % against 17.3 % not 'this' (0.23 % of all units each)",
            both,
            bool(both["value"]) and both["value"] >= 1.5 * valid["value"],
            f"valid ones alone: {shares['valid']}; as many random units: {shares['random']}; both, success by rule C: "
            f"{shares['C']}",
        ),
        _claim(
            "As many random units make it 'not' in at most 2 % of traces on average",
            "not done",
            random,
            random["value"] is not None and random["value"] <= 0.02,
            f"units of both polarities: {both['value'] or 0.0:.3f}",
        ),
    ]


def _cache_claims(table: pl.DataFrame) -> list[Claim]:
    same = table.filter(measure="same without cache")
    n, equal = int(same["n"].sum()), round(float((same["value"].fill_nan(0) * same["n"]).sum()))
    low, high = statistics.wilson(equal, n)
    return [
        _claim(
            "Every text is the same when each step reads the whole text anew, without a key-value cache",
            "written without a cache",
            {"value": equal / n if n else None, "low": low, "high": high, "n": n},
            n > 0 and equal == n,
            f"{equal} of {n} texts, out at all tokens and at the verdict's opening alone",
        )
    ]


def _claim(criterion: str, paper: str, found: Mapping[str, Any], met: bool, control: str) -> Claim:
    return Claim(
        criterion=criterion,
        paper=paper,
        ours=found["value"] or 0.0,
        low=found.get("low"),
        high=found.get("high"),
        n=found["n"],
        control=control,
        met=met,
    )
