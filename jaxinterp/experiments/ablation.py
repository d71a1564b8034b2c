"""Which attention heads does a CountDown model need in order to accept a right attempt?

Heads are found on some traces, by what they look at and by what happens without them, and taken out on others.
Random sets of heads of the same size say how much of the effect any damage would have.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import heads, statistics
from jaxinterp.experiments import countdown_traces as traces
from jaxinterp.experiments import head_removal
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.countdown_traces import Place, Written
from jaxinterp.experiments.head_removal import PLACES, Removal
from jaxinterp.figures import head_ablation
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

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
    scan: int = 24
    """Traces of the selection on which each single head is taken out."""
    random: int = 16
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
    selection, evaluation, unsolved = _write_splits(model, config, rng)
    attention = head_removal.attention_to_target(model, head_removal.accepted_of(selection, config.batch_size))
    scanned = head_removal.accepted_of(selection[: config.scan], config.batch_size)
    shape = (model.architecture.layers, model.architecture.heads)
    every = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    flipped = []
    for head in every:
        if head[1] == 0:
            _LOG.info("zeroing each head of layer %d of %d", head[0], shape[0])
        flipped.append(head_removal.read_rejections(model, scanned, Removal("single", [head])))
    effects = np.array([rejected.mean() for rejected in flipped]).reshape(shape)
    rows: list[dict[str, Any]] = []
    for head, rejected in zip(every, flipped, strict=True):
        row = {"stage": "selection", "heads": heads.label([head]), "n_heads": 1, "layer": head[0], "head": head[1]}
        numbers = {"method": "zero", "position": "all tokens"} | _proportion(rejected)
        rows.append(row | {"measure": "flips"} | numbers)
        rows += [
            row | {"measure": f"attention from {place}", "value": attention[place][head], "n": len(selection)}
            for place in PLACES
        ]
    cache = head_removal.read_values(model, scanned)
    main = head_removal.both_kinds_of(evaluation, unsolved, config.batch_size, rng)
    fewer = head_removal.both_kinds_of(evaluation[: config.random], [], config.batch_size, rng)
    chosen, drawn = _chosen_sets(attention, effects, config), _random_sets(attention, effects, config)
    for removals, verdicts in ((chosen, main), (drawn, fewer)):
        _LOG.info("zeroing %d sets of heads on %d held-out verdicts", len(removals), len(verdicts.valid))
        untouched = head_removal.read_rejections(model, verdicts, Removal("none", []))
        for removal in removals:
            rejected = untouched
            if removal.heads:
                rejected = head_removal.read_rejections(model, verdicts, removal, cache)
            rows += _evaluation_rows(removal, rejected, verdicts.valid)
    return pl.DataFrame(rows, schema=_COLUMNS)


def _write_splits(
    model: LanguageModel, config: Config, rng: np.random.Generator
) -> tuple[list[Written], list[Written], list[Written]]:
    """Traces with an accepted attempt for selection and for evaluation, and evaluation traces without one.

    The problems are drawn from the test problems, each at most once.
    """
    wanted = config.selection + config.evaluation
    problems = countdown.eval_problems()
    problems = [problems[index] for index in rng.permutation(len(problems))]
    written: list[Written] = []
    solved: list[int] = []
    asked = 0
    while len(solved) < wanted and asked < len(problems):
        more = problems[asked : asked + max(wanted - len(solved), 2 * config.batch_size)]
        _LOG.info("writing traces of %d problems", len(more))
        asked += len(more)
        written += traces.write_traces(
            model, more, max_new_tokens=config.max_new_tokens, batch_size=2 * config.batch_size
        )
        solved = [index for index, trace in enumerate(written) if any(verdict.valid for verdict in trace.verdicts)]
        if not solved:
            break
    if len(solved) < 2:
        raise ValueError(
            f"{model.source} accepted an attempt in {len(solved)} of {asked} CountDown problems; "
            "pass a model that was trained on this task"
        )
    half = min(config.selection, len(solved) // 2)
    unsolved = [trace for trace in written[solved[half] :] if not any(verdict.valid for verdict in trace.verdicts)]
    selection, evaluation = solved[:half], solved[half : half + config.evaluation]
    return [written[index] for index in selection], [written[index] for index in evaluation], unsolved


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


def _proportion(successes: np.ndarray) -> dict[str, Any]:
    low, high = statistics.wilson(int(successes.sum()), len(successes))
    value = float(successes.mean()) if len(successes) else float("nan")
    return {"value": value, "low": low, "high": high, "n": len(successes), "control": False}


def _evaluation_rows(removal: Removal, rejected: np.ndarray, valid: np.ndarray) -> list[dict[str, Any]]:
    row = {"stage": "evaluation", "condition": removal.condition, "method": removal.method}
    row |= {"position": removal.position, "draw": removal.draw}
    row |= {"heads": heads.label(removal.heads), "n_heads": len(removal.heads)}
    control = {"control": removal.draw is not None or removal.condition == "none"}
    flips, kept = _proportion(rejected[valid]), _proportion(rejected[~valid])
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
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned. Where there was
        nothing to measure, `n` is 0 and the claim is not met.
    """
    total = table.filter((pl.col("stage") == "selection") & (pl.col("measure") == "flips")).height
    traces_read = table.filter(pl.col("measure") == "attention from verdict")["n"][0]
    here = table.filter(pl.col("stage") == "evaluation")
    zeroed = here.filter((pl.col("method") == "zero") & (pl.col("position") == "all tokens"))

    def row(condition: str, measure: str) -> dict[str, Any]:
        return zeroed.filter((pl.col("condition") == condition) & (pl.col("measure") == measure)).row(0, named=True)

    def random(condition: str, measure: str = "flips") -> tuple[float, float | None, float | None, int, float]:
        drawn = zeroed.filter((pl.col("condition") == condition) & (pl.col("measure") == measure))["value"].to_numpy()
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return 0.0, None, None, 0, 0.0
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
            ours=kept["value"] if kept["n"] else 0.0,
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
                criterion=f"As many random heads from outside {name} flip at most 10 % on average, interval included",
                paper="not done",
                ours=mean,
                low=low,
                high=high,
                n=draws,
                control=f"the largest of {draws} draws flips {most:.3f}",
                met=high is not None and high <= 0.1,
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
