"""Where in the network does a CountDown model know that an attempt is right?

A linear probe per layer reads the verdict off the residual stream at the token that opens it. The same probes are
trained on shuffled labels, and tested on minimal pairs: prefixes that differ in the target alone, so that nothing
about the form of a trace can help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import probes, statistics
from jaxinterp.experiments import countdown_traces as traces
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.countdown_traces import Place, Written
from jaxinterp.figures import probe_layers
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown, verification

PAPER = "lee2025selfverification"

POSITIONS: tuple[Place, ...] = ("verdict", "result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the probing experiment."""

    train_problems: int = 384
    """Problems of the validation split whose traces train the probes."""
    test_problems: int = 320
    """Problems of the test split whose traces test them, at most 1,024."""
    rejected_per_trace: int = 2
    """At most this many rejected attempts are taken from one trace; it has one accepted attempt at most."""
    permutations: int = 40
    """Shuffled copies of the training labels."""
    l2: float = 1.0
    """Weight decay of the probes."""
    max_new_tokens: int = 160
    """Cap on a response, in tokens: about six attempts; later ones are lost."""
    batch_size: int = 32
    """Sequences at a time; twice as many in generation."""
    seed: int = 0
    """Of the validation problems, the choice of attempts, the shuffles and the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Activations at chosen verdicts.

    Attributes:
        features: Place -> [layer, n, embedding]; layer 0 is the embedding, layer k the output of block k - 1.
        labels: Whether the verdict is to accept, [n].
        traces: Which trace each example comes from, [n].
        accepted: Whether the model itself goes on with acceptance, [n].
    """

    features: dict[Place, np.ndarray]
    labels: np.ndarray
    traces: np.ndarray
    accepted: np.ndarray


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Train and test the probes.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.

    Returns:
        One row per measure, position and layer: `measure` (balanced accuracy; shuffled labels; minimal pairs;
        cosine; shuffled cosine; model on minimal pairs), `position` (verdict or result), `layer` (-1 for the
        embedding), `depth` (blocks passed / blocks), `value`, `low`, `high`, `n` (test verdicts, permutations or
        pairs), `n_train`, `control` (whether the row is one). `low` and `high` are a 95 % bootstrap interval over
        traces, or the 2.5 and 97.5 percentiles over permutations.

    Raises:
        ValueError: The model's traces have no verdicts of one kind, so that there is nothing to tell apart.
    """
    model = models["model"]
    rng = np.random.default_rng(config.seed)
    train_problems = countdown.draw_problems("validation", config.train_problems, config.seed)
    train_traces, train_chosen = _write(model, train_problems, config, rng)
    test_traces, test_chosen = _write(model, countdown.eval_problems()[: config.test_problems], config, rng)
    train = _read(model, train_traces, train_chosen, config.batch_size)
    test = _read(model, test_traces, test_chosen, config.batch_size)
    members = [member for pair in _pairs(test_traces, test_chosen, rng) for member in traces.pair_members(model, pair)]
    twins = _read(model, members, [(index, 0) for index in range(len(members))], config.batch_size)
    rows = []
    for position in POSITIONS:
        probe, control = probes.fit_softmax(
            train.features[position],
            train.labels,
            l2=config.l2,
            permutations=config.permutations,
            seed=config.seed,
        )
        rows += [row | {"position": position} for row in _measure(probe, control, position, test, twins, config.seed)]
    blocks = model.architecture.layers
    agree = (twins.accepted == twins.labels).reshape(-1, 2).mean(axis=1)
    behaviour = {"measure": "model on minimal pairs", "position": "verdict", "layer": blocks - 1}
    rows.append(behaviour | _interval(agree, config.seed))
    table = pl.DataFrame(rows, infer_schema_length=None)
    table = table.with_columns(depth=(pl.col("layer") + 1) / blocks, n_train=pl.lit(len(train.labels)))
    return table.select("measure", "position", "layer", "depth", "value", "low", "high", "n", "n_train", "control")


def _write(
    model: LanguageModel, problems: Sequence[countdown.Problem], config: Config, rng: np.random.Generator
) -> tuple[list[Written], list[tuple[int, int]]]:
    written = traces.write_traces(
        model, problems, max_new_tokens=config.max_new_tokens, batch_size=2 * config.batch_size
    )
    chosen = traces.choose_verdicts(written, rng, rejected_per_trace=config.rejected_per_trace)
    accepted = sum(written[index].verdicts[place].valid for index, place in chosen)
    if not 0 < accepted < len(chosen):
        raise ValueError(
            f"{model.source} accepted {accepted} of {len(chosen)} attempts in {len(problems)} CountDown problems; "
            "a probe needs both kinds: pass a model that was trained on this task"
        )
    return written, chosen


def _read(
    model: LanguageModel, written: Sequence[Written], chosen: Sequence[tuple[int, int]], batch_size: int
) -> Examples:
    """One forward pass per trace gives all its verdicts: what comes later cannot change them."""
    depth, width = model.architecture.layers + 1, model.architecture.embedding
    features: dict[Place, np.ndarray] = {
        position: np.zeros((depth, len(chosen), width), np.float32) for position in POSITIONS
    }
    labels, accepted = np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
    accepting, _ = verification.verdict_tokens(model.require_tokenizer())
    for batch in traces.batch_verdicts(written, chosen, batch_size):
        logits, cache = ji.run(model, batch.ids, mask=batch.mask, sites=[ji.embed(), ji.resid_post(...)])
        stream = np.concatenate([cache["embed"][None], cache.stack("resid_post")])
        for position in POSITIONS:
            features[position][:, batch.order] = stream[:, batch.rows, batch.slots(position)]
        labels[batch.order] = [verdict.valid for verdict in batch.verdicts]
        accepted[batch.order] = np.isin(logits[batch.rows, batch.slots("verdict")].argmax(-1), accepting)
    return Examples(features, labels, np.array([index for index, _ in chosen]), accepted)


def _pairs(
    written: Sequence[Written], chosen: Sequence[tuple[int, int]], rng: np.random.Generator
) -> list[verification.MinimalPair]:
    attempts = ((written[index].trace, written[index].trace.attempts[place]) for index, place in chosen)
    found = (verification.minimal_pair(trace, attempt, rng) for trace, attempt in attempts)
    return [pair for pair in found if pair is not None]


def _interval(values: np.ndarray, seed: int) -> dict[str, Any]:
    low, high = statistics.bootstrap(values, seed)
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values), "control": False}


def _range(values: np.ndarray) -> dict[str, Any]:
    low, high = np.percentile(values, [2.5, 97.5])
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values), "control": True}


def _measure(
    probe: probes.SoftmaxProbes,
    control: probes.SoftmaxProbes,
    position: Place,
    test: Examples,
    twins: Examples,
    seed: int,
) -> list[dict[str, Any]]:
    predicted = probe.scores(test.features[position]) > 0
    accuracy = probes.balanced_accuracy(predicted, test.labels)
    shuffled = probes.balanced_accuracy(control.scores(test.features[position]) > 0, test.labels)
    right = (probe.scores(twins.features[position]) > 0) == twins.labels
    cosines, shuffled_cosines = probe.cosine(), control.cosine()
    rows = []
    for layer, prediction in enumerate(predicted):
        low, high = statistics.bootstrap(_trace_counts(prediction, test), seed, _balanced_from_counts)
        measures: dict[str, dict[str, Any]] = {
            "balanced accuracy": {"value": accuracy[layer], "low": low, "high": high, "n": len(prediction)},
            "minimal pairs": _interval(right[layer].reshape(-1, 2).mean(axis=1), seed),
            "cosine": {"value": cosines[layer], "n": 1},
            "shuffled labels": _range(shuffled[:, layer]),
            "shuffled cosine": _range(shuffled_cosines[:, layer]),
        }
        defaults = {"layer": layer - 1, "low": None, "high": None, "control": False}
        rows += [{"measure": name} | defaults | numbers for name, numbers in measures.items()]
    return rows


def _trace_counts(predicted: np.ndarray, test: Examples) -> np.ndarray:
    """Per trace: accepted and right, accepted, rejected and right, rejected."""
    right = predicted == test.labels
    columns = [right & test.labels, test.labels, right & ~test.labels, ~test.labels]
    return np.stack([np.bincount(test.traces, weights=column) for column in columns], axis=1)


def _balanced_from_counts(counts: np.ndarray) -> float:
    right_valid, valid, right_invalid, invalid = counts.sum(0)
    return float("nan") if 0 in (valid, invalid) else (right_valid / valid + right_invalid / invalid) / 2


def figure(table: pl.DataFrame) -> Figure:
    """Accuracy over layers, at the token that opens the verdict and at the last digit of the result.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return probe_layers.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the paper's claims.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion; thresholds are those of the reproduction's plan and were not tuned.
    """
    here = table.filter((pl.col("position") == "verdict") & (pl.col("measure") != "model on minimal pairs"))
    parts = {name: here.filter(pl.col("measure") == name).sort("layer") for name in here["measure"].unique()}
    probe, shuffled, pairs = parts["balanced accuracy"], parts["shuffled labels"], parts["minimal pairs"]
    blocks = probe.filter(pl.col("layer") >= 0)
    shares = [float((blocks[column].to_numpy() >= 0.99).mean()) for column in ("value", "low", "high")]
    early = blocks.filter(pl.col("depth") <= 0.4).sort("value").row(-1, named=True)
    readable = blocks.filter(pl.col("value") >= 0.99)["layer"]
    matched = pairs.filter(pl.col("layer").is_in(readable.implode())).sort("value")
    weakest = matched.row(0, named=True) if len(matched) else dict.fromkeys(("value", "low", "high", "n"), 0)
    stray = shuffled.sort((pl.col("value") - 0.5).abs()).row(-1, named=True)
    embedding = probe.filter(pl.col("layer") == -1).row(0, named=True)
    cosine = parts["cosine"].filter(pl.col("layer") >= 0).sort("value").row(-1, named=True)
    by_chance = f"shuffled labels: {shuffled['value'].mean():.3f} on average over layers"
    by_construction = parts["shuffled cosine"]["value"].max()
    return [
        Claim(
            criterion="The probe's balanced accuracy is at least 99 % in at least half of the layers",
            paper="near 100 % from the 4th of 36 layers on",
            ours=shares[0],
            low=shares[1],
            high=shares[2],
            n=probe["n"][0],
            control=by_chance,
            met=shares[0] >= 0.5,
        ),
        Claim(
            criterion="Balanced accuracy reaches 95 % within the first 40 % of the depth",
            paper="near 100 % at relative depth 0.11",
            ours=early["value"],
            low=early["low"],
            high=early["high"],
            n=early["n"],
            control=by_chance,
            met=early["value"] >= 0.95,
        ),
        Claim(
            criterion="In every layer where the probe reaches 99 %, it is right on at least 95 % of minimal pairs",
            paper="not done",
            ours=weakest["value"],
            low=weakest["low"],
            high=weakest["high"],
            n=weakest["n"],
            control=f"embedding: {pairs.filter(pl.col('layer') == -1)['value'][0]:.3f}; no such layer counts as 0",
            met=weakest["value"] >= 0.95,
        ),
        Claim(
            criterion="Probes on shuffled labels stay within 45 to 55 % on average, in every layer",
            paper="not done",
            ours=stray["value"],
            low=stray["low"],
            high=stray["high"],
            n=stray["n"],
            control=f"the layer that strays most is shown ({stray['layer']})",
            met=abs(stray["value"] - 0.5) <= 0.05,
        ),
        Claim(
            criterion="A probe on the token embedding stays within 45 to 55 %",
            paper="not done",
            ours=embedding["value"],
            low=embedding["low"],
            high=embedding["high"],
            n=embedding["n"],
            control=by_chance,
            met=abs(embedding["value"] - 0.5) <= 0.05,
        ),
        Claim(
            criterion="The two class directions oppose each other: cosine at most -0.95 in every layer",
            paper="-0.981 to -0.994",
            ours=cosine["value"],
            n=len(parts["cosine"]) - 1,
            control=f"shuffled labels: {by_construction:.3f}; a two-class softmax without bias forces it",
            met=cosine["value"] <= -0.95,
        ),
    ]
