"""Which attention heads does a CountDown model need in order to accept a right attempt?

Heads are found on some traces, by what they look at and by what happens without them, and taken out on others.
Random sets of heads of the same size say how much of the effect any damage would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import heads, statistics
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments import countdown_traces as traces
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.countdown_traces import Batch, Place, Written
from jaxinterp.figures import head_ablation
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown

PAPER = "lee2025selfverification"

PLACES: tuple[Place, ...] = ("verdict", "result")
_DIGITS = 3  # a target has at most three

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
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ablation experiment."""

    selection: int = 300
    """Traces with an accepted attempt on which heads are chosen."""
    evaluation: int = 300
    """Other traces with an accepted attempt, on which chosen heads are taken out; and as many rejected attempts."""
    scan: int = 32
    """Traces of the selection on which each single head is taken out."""
    random: int = 24
    """Traces of the evaluation on which each random set is taken out."""
    draws: int = 20
    """Random sets of each kind."""
    curve: int = 4
    """Longest prefix of the heads, in order of their single effect, that is taken out."""
    attention_threshold: float = 0.1
    """A head looks at the target if it spends more than this share of its attention on one of its digits."""
    circuit_threshold: float = 0.1
    """A head belongs to the circuit if at least this share of verdicts flips without it."""
    max_new_tokens: int = 160
    """Cap on a response, in tokens: about six attempts. Traces without an accepted attempt by then are left out."""
    batch_size: int = 32
    """Sequences at a time; twice as many in generation."""
    seed: int = 0
    """Of the order of the problems, the choice of rejected attempts and the random sets."""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Chosen verdicts of some traces.

    Attributes:
        batches: All of them, ready to be read.
        valid: Whether each verdict is to accept, [n].
    """

    batches: list[Batch]
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Removal:
    """What is taken out, and why.

    Attributes:
        condition: Name of the set in the table.
        heads: The set.
        method: Zeros, or the mean over the selection's tokens, in place of the heads.
        position: At which tokens.
        draw: Number of a random set.
    """

    condition: str
    heads: Sequence[Head]
    method: Literal["zero", "mean"] = "zero"
    position: Place | Literal["all tokens"] = "all tokens"
    draw: int | None = None


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Find heads on some test problems and take them out on others.

    Verdicts are teacher-forced: the model reads its own trace up to `" ("` with the heads off, at all tokens unless
    said otherwise, and its most probable next token is the verdict.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.

    Returns:
        One row per number: `stage` (selection, evaluation), `measure` (attention from verdict; attention from
        result; flips; rejections kept), `condition` (which heads), `method` (zero, mean), `position` (all tokens,
        verdict, result), `heads`, `n_heads`, `layer` and `head` (rows about one head), `draw` (random sets), `value`
        in [0, 1], `low` and `high` (95 %, Wilson), `n` (verdicts) and `control`.

    Raises:
        ValueError: The model accepted too few attempts to choose heads on some and evaluate them on others.
    """
    model = models["model"]
    rng = np.random.default_rng(config.seed)
    selection, evaluation = _write_splits(model, config, rng)
    attention = _attention(model, _accepted(selection, config.batch_size))
    scanned = _accepted(selection[: config.scan], config.batch_size)
    shape = (model.architecture.layers, model.architecture.heads)
    every = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    flipped = [_rejects(model, scanned, Removal("single", [head])) for head in every]
    effects = np.array([rejects.mean() for rejects in flipped]).reshape(shape)
    rows: list[dict[str, Any]] = []
    for head, rejects in zip(every, flipped, strict=True):
        row = {"stage": "selection", "heads": heads.label([head]), "n_heads": 1, "layer": head[0], "head": head[1]}
        numbers = {"method": "zero", "position": "all tokens"} | _proportion(rejects)
        rows.append(row | {"measure": "flips"} | numbers)
        rows += [
            row | {"measure": f"attention from {place}", "value": attention[place][head], "n": len(selection)}
            for place in PLACES
        ]
    cache = _read_values(model, scanned)
    stages = (
        (_chosen_sets(attention, effects, config), evaluation),
        (_random_sets(attention, effects, config), evaluation[: config.random]),
    )
    for removals, written in stages:
        verdicts = _both_kinds(written, config.batch_size, rng)
        for removal in removals:
            rejects = _rejects(model, verdicts, removal, cache)
            rows += _evaluation_rows(removal, rejects, verdicts.valid)
    return pl.DataFrame(rows, schema=_COLUMNS)


def _write_splits(
    model: LanguageModel, config: Config, rng: np.random.Generator
) -> tuple[list[Written], list[Written]]:
    """Traces with an accepted attempt, of disjoint sets of test problems."""
    wanted = config.selection + config.evaluation
    problems = countdown.eval_problems()
    problems = [problems[index] for index in rng.permutation(len(problems))]
    found: list[Written] = []
    asked = 0
    while len(found) < wanted and asked < len(problems):
        more = problems[asked : asked + max(wanted - len(found), 2 * config.batch_size)]
        asked += len(more)
        written = traces.write_traces(
            model, more, max_new_tokens=config.max_new_tokens, batch_size=2 * config.batch_size
        )
        found += [trace for trace in written if any(verdict.valid for verdict in trace.verdicts)]
    if len(found) < 2:
        raise ValueError(
            f"{model.source} accepted an attempt in {len(found)} of {asked} CountDown problems; "
            "pass a model that was trained on this task"
        )
    half = min(config.selection, len(found) // 2)
    return found[:half], found[half : half + config.evaluation]


def _accepted(written: Sequence[Written], batch_size: int) -> Verdicts:
    chosen = [
        (index, next(place for place, verdict in enumerate(trace.verdicts) if verdict.valid))
        for index, trace in enumerate(written)
    ]
    return Verdicts(traces.batch_verdicts(written, chosen, batch_size), np.ones(len(chosen), bool))


def _both_kinds(written: Sequence[Written], batch_size: int, rng: np.random.Generator) -> Verdicts:
    """The accepted attempt of each trace, and as many rejected ones, at random among all of them."""
    accepted = [
        (index, next(place for place, verdict in enumerate(trace.verdicts) if verdict.valid))
        for index, trace in enumerate(written)
    ]
    rejected = [
        (index, place)
        for index, trace in enumerate(written)
        for place, verdict in enumerate(trace.verdicts)
        if not verdict.valid
    ]
    kept = [rejected[index] for index in rng.permutation(len(rejected))[: len(accepted)]]
    valid = np.arange(len(accepted) + len(kept)) < len(accepted)
    return Verdicts(traces.batch_verdicts(written, [*accepted, *kept], batch_size), valid)


def _attention(model: LanguageModel, verdicts: Verdicts) -> dict[Place, np.ndarray]:
    """Attention mass on the target, averaged over verdicts, [layer, head].

    From the verdict's opening: to each digit of the target, all its mentions together; the larger digit counts.
    From the result's last digit: to the last digit of the mentions in prompt and preamble, which is the paper's score.
    """
    totals = {place: np.zeros((model.architecture.layers, model.architecture.heads, _DIGITS)) for place in PLACES}
    for batch in verdicts.batches:
        groups = _targets(batch)
        _, cache = ji.run(model, batch.ids, batch.mask, sites=[ji.pattern(...)], logits=None, batch_size=16)
        for layer in range(model.architecture.layers):
            pattern = cache["pattern", layer][None, batch.rows]
            for place in PLACES:
                mass = heads.attention_to(pattern, batch.slots(place), groups[place])
                totals[place][layer] += mass.sum(axis=(0, 1))
    return {place: (total / len(verdicts.valid)).max(axis=-1) for place, total in totals.items()}


def _targets(batch: Batch) -> dict[Place, np.ndarray]:
    """The slots that count as the target from each place, [n, digit, seq]; digits from the last one."""
    shape = (len(batch.rows), _DIGITS, batch.ids.shape[1])
    groups: dict[Place, np.ndarray] = {place: np.zeros(shape, bool) for place in PLACES}
    for index, (verdict, pad) in enumerate(zip(batch.verdicts, batch.pads, strict=True)):
        for mention in verdict.mentions:
            for digit, token in enumerate(reversed(mention)):
                groups["verdict"][index, digit, token + pad] = True
        groups["result"][index, 0, np.array(verdict.stated_last_digits, int) + pad] = True
    return groups


def _read_values(model: LanguageModel, verdicts: Verdicts) -> ji.Cache:
    """Values of all heads on the longest traces of some, for their means over tokens."""
    batch = verdicts.batches[-1]
    filled = np.unique(batch.rows)
    return ji.run(model, batch.ids[filled], batch.mask[filled], sites=[ji.z(...)], logits=None)[1]


def _chosen_sets(attention: Mapping[Place, np.ndarray], effects: np.ndarray, config: Config) -> list[Removal]:
    found = heads.above(attention["verdict"], config.attention_threshold)
    order = heads.ranked(effects)
    return [
        Removal("none", []),
        Removal("paper's definition", heads.above(attention["result"], config.attention_threshold)),
        Removal("attends to target", found),
        Removal("attends to target", found, method="mean"),
        *(Removal("attends to target", found, position=place) for place in PLACES),
        *(Removal("largest effects", order[:count]) for count in range(1, config.curve + 1)),
    ]


def _random_sets(attention: Mapping[Place, np.ndarray], effects: np.ndarray, config: Config) -> list[Removal]:
    found = set(heads.above(attention["verdict"], config.attention_threshold))
    circuit = {head for head in heads.ranked(effects) if effects[head] >= config.circuit_threshold}
    removals = []
    for condition, outside in (("random, outside the set", found), ("random, outside the circuit", found | circuit)):
        size = min(max(len(found), 1), effects.size - len(outside))
        if size:
            sets = heads.draw_sets(effects.shape, outside, size, config.draws, config.seed)
            removals += [Removal(condition, chosen, draw=draw) for draw, chosen in enumerate(sets)]
    return removals


def _rejects(model: LanguageModel, verdicts: Verdicts, removal: Removal, cache: ji.Cache | None = None) -> np.ndarray:
    """Whether the model rejects at each verdict with the heads taken out, [n]."""
    _, rejecting = countdown.verdict_tokens(model.require_tokenizer())
    by_layer: dict[int, list[int]] = {}
    for layer, head in removal.heads:
        by_layer.setdefault(layer, []).append(head)
    sites = [ji.head(layer, *chosen) for layer, chosen in by_layer.items()]
    rejects = np.zeros(len(verdicts.valid), bool)
    everywhere = ji.ablate(model, *sites, method=removal.method, cache=cache) if sites else model
    for batch in verdicts.batches:
        edited = everywhere
        if sites and removal.position != "all tokens":
            at = ji.mask(batch.tokens_at(removal.position))
            edited = ji.ablate(model, *sites, method=removal.method, cache=cache, at=at)
        logits, _ = ji.run(edited, batch.ids, batch.mask)
        assert logits is not None
        rejects[batch.order] = np.isin(logits[batch.rows, batch.slots("verdict")].argmax(-1), rejecting)
    return rejects


def _proportion(successes: np.ndarray) -> dict[str, Any]:
    low, high = statistics.wilson(int(successes.sum()), len(successes))
    value = float(successes.mean()) if len(successes) else float("nan")
    return {"value": value, "low": low, "high": high, "n": len(successes), "control": False}


def _evaluation_rows(removal: Removal, rejects: np.ndarray, valid: np.ndarray) -> list[dict[str, Any]]:
    row = {"stage": "evaluation", "condition": removal.condition, "method": removal.method}
    row |= {"position": removal.position, "draw": removal.draw}
    row |= {"heads": heads.label(removal.heads), "n_heads": len(removal.heads)}
    control = {"control": removal.draw is not None or removal.condition == "none"}
    flips, kept = _proportion(rejects[valid]), _proportion(rejects[~valid])
    return [row | {"measure": "flips"} | flips | control, row | {"measure": "rejections kept"} | kept | control]


def figure(table: pl.DataFrame) -> Figure:
    """Effect of each head, of the first few together, and of chosen against random sets.

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
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned.
    """
    total = table.filter((pl.col("stage") == "selection") & (pl.col("measure") == "flips")).height
    traces_read = table.filter(pl.col("measure") == "attention from verdict")["n"][0]
    here = table.filter(pl.col("stage") == "evaluation")
    zeroed = here.filter((pl.col("method") == "zero") & (pl.col("position") == "all tokens"))

    def row(condition: str, measure: str) -> dict[str, Any]:
        return zeroed.filter((pl.col("condition") == condition) & (pl.col("measure") == measure)).row(0, named=True)

    def random(condition: str, measure: str = "flips") -> tuple[float, float | None, float | None, int, float]:
        drawn = zeroed.filter((pl.col("condition") == condition) & (pl.col("measure") == measure))["value"].to_numpy()
        if not len(drawn):
            return float("nan"), None, None, 0, float("nan")
        return float(drawn.mean()), *statistics.bootstrap(drawn, seed=0), len(drawn), float(drawn.max())

    flips, kept = row("attends to target", "flips"), row("attends to target", "rejections kept")
    by_paper = row("paper's definition", "flips")
    outside_set, outside_circuit = random("random, outside the set"), random("random, outside the circuit")
    share = flips["n_heads"] / total
    against = f"random sets outside it: {outside_set[0]:.3f}; outside the circuit: {outside_circuit[0]:.3f}"
    curve = zeroed.filter((pl.col("condition") == "largest effects") & (pl.col("measure") == "flips"))
    few = curve.filter(pl.col("n_heads") <= 3).sort("value", "n_heads", descending=[False, True]).row(-1, named=True)
    kept_by_random = random("random, outside the set", "rejections kept")[0]
    claims = [
        Claim(
            criterion="Some heads attend from the verdict's opening to the target's digits, at most 15 % of all heads",
            paper="33 of 576 heads (5.7 %), measured at the result's last digit",
            ours=share,
            n=traces_read,
            control=f"{flips['n_heads']} of {total} heads: {flips['heads']}",
            met=0 < share <= 0.15,
        ),
        Claim(
            criterion="Some heads attend from the result's last digit to the target, the paper's own definition",
            paper="33 of 576 heads (5.7 %)",
            ours=by_paper["n_heads"] / total,
            n=traces_read,
            control=f"{by_paper['n_heads']} of {total} heads: {by_paper['heads'] or 'none'}",
            met=by_paper["n_heads"] > 0,
        ),
        Claim(
            criterion="Without the heads that attend to the target at least 95 % of acceptances flip",
            paper="100 % (33 heads, n = 300)",
            ours=flips["value"],
            low=flips["low"],
            high=flips["high"],
            n=flips["n"],
            control=against,
            met=flips["n_heads"] > 0 and flips["value"] >= 0.95,
        ),
        Claim(
            criterion="Without them at least 95 % of rejections stay",
            paper="not done",
            ours=kept["value"],
            low=kept["low"],
            high=kept["high"],
            n=kept["n"],
            control=f"random sets: {kept_by_random:.3f}; zeroing pushes to the commoner verdict, so it says little",
            met=kept["n_heads"] > 0 and kept["value"] >= 0.95,
        ),
    ]
    for name, (mean, low, high, draws, most) in (
        ("the set", outside_set),
        ("the set and the circuit", outside_circuit),
    ):
        claims.append(
            Claim(
                criterion=f"As many random heads from outside {name} flip at most 10 % on average",
                paper="not done",
                ours=mean,
                low=low,
                high=high,
                n=draws,
                control=f"the largest of {draws} draws flips {most:.3f}",
                met=mean <= 0.1,
            )
        )
    claims.append(
        Claim(
            criterion="Three heads or fewer, in order of their single effect, flip at least 90 %",
            paper="100 % (3 heads, n = 300)",
            ours=few["value"],
            low=few["low"],
            high=few["high"],
            n=few["n"],
            control=f"{few['heads']}; {against}",
            met=few["value"] >= 0.9,
        )
    )
    return claims
