"""Can a model be pushed to accept a wrong attempt, or to stop searching, by a vector added to its residual stream?

At the token that opens a verdict, directions of the probes and differences of class means are added to rejected and
accepted attempts. At the end of an attempt, the difference between ends where the model stops and ends where it tries
again is added, at each layer alone; how much the text then repeats itself tells working layers from broken ones.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import statistics
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import attempt_ends, cases, end_pushes, pushes, verdict_pushes
from jaxinterp.experiments.self_verification.attempt_ends import Streams
from jaxinterp.figures import steered_verdicts
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

_COLUMNS = {
    "part": pl.String,
    "stage": pl.String,
    "aim": pl.String,
    "place": pl.String,
    "vector": pl.String,
    "layers": pl.String,
    "layer": pl.Int64,
    "scale": pl.Float64,
    "draw": pl.Int64,
    "chosen": pl.Boolean,
    "best": pl.Boolean,
    "measure": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control": pl.Boolean,
    "text": pl.String,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on steering verdicts and the ends of attempts."""

    training: int = 150
    """Accepted, and rejected, cases of the training split whose means are compared and whose norms set the scale."""
    selection: int = 60
    """Cases of each kind on which layers and scales are chosen."""
    evaluation: int = 300
    """Cases of each kind on which what was chosen is evaluated, at the verdict."""
    ends: int = 100
    """Cases of each kind on which it is evaluated at the ends of attempts, and in the paper's own variant."""
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Lengths of the added vectors, as a share of the mean norm of the residual stream at that layer and token."""
    most_malformed: float = 0.1
    """Layers and scales after which a larger share of next tokens has no place in a trace are not chosen."""
    random: int = 20
    """Random directions, each at the same layers and scales."""
    written: int = 8
    """Held-out ends of each kind behind which text is written with the push kept up at every token."""
    new_tokens: int = 80
    """Length of these texts, in tokens."""
    samples: int = 2
    """Cases of each kind shown in the report, before and after."""
    seed: int = 0
    """Of the random directions."""


def run(
    config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame | Mapping[str, np.ndarray]]
) -> pl.DataFrame:
    """Steer verdicts, then the ends of attempts.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": table, "probes": arrays}`, of the experiments of these names.

    Returns:
        One row per number. `part` (verdict; end), `stage` (vectors; selection; evaluation; written), `aim` (accept,
        reject, finish, go on), `place` (verdict; result: the last digit, with the verdict read behind `" ("`; result,
        at once: the last digit, where `" ("` is due; end; from the end on: every later token too), `vector` (probe;
        mean difference; probe of the verdict; stop minus go on; random; none), `layers` and `layer` (null for several
        at once), `scale`, `draw` of a random vector, `chosen` (on selection; at the verdict among single layers and
        among several at once), `best` (the better one of these; at ends, the two neighbouring layers of the middle
        half that did best), `measure` (shares: reached, same meaning, malformed, opens a verdict; cosine to mean
        difference; length, as a share of the norm; of texts: new tokens, bigram repetition, compression ratio, and
        both in excess of the unsteered text), `value`, `low`, `high`, `n`, `control`, and `text` of a few cases.

    Raises:
        ValueError: The probes were trained on another model, or there are no cases of one kind.
    """
    model, table = models["model"], inputs["verdicts"]
    assert isinstance(table, pl.DataFrame)
    verification.verdict_tokens(model.require_tokenizer(), model.source)
    probes = _read_probes(model, inputs["probes"])
    training = cases.load(model, table, "training", most=config.training)
    _LOG.info("reading %d training cases", len(training))
    streams = attempt_ends.read(model, [attempt_ends.complete(model, case) for case in training])
    valid = np.array([case.valid for case in training])
    directions = _directions(probes, streams, valid)
    norms = {place: streams.norms(place) for place in verdict_pushes.PLACES}
    rows = [
        *_compare(directions),
        *verdict_pushes.steer(config, model, table, directions, norms),
        *end_pushes.steer(config, model, table, streams),
    ]
    empty = dict.fromkeys(_COLUMNS) | {"chosen": False, "best": False, "control": False}
    return pl.DataFrame([empty | row for row in rows], schema=_COLUMNS)


def _read_probes(model: LanguageModel, probes: Any) -> dict[str, np.ndarray]:
    """Place -> [layer, polarity, embedding], unit vectors behind each block."""
    wanted = (model.architecture.layers + 1, 2, model.architecture.embedding)
    found = {}
    for place in verdict_pushes.PLACES:
        name = f"{place}/directions"
        shape = np.shape(probes[name]) if name in probes else None
        if shape != wanted:
            raise ValueError(
                f"the probes' {name!r} have shape {shape} and not {wanted}; pass the arrays that the probing "
                f"experiment made with {model.source}"
            )
        found[place] = pushes.units(np.asarray(probes[name], np.float32)[1:])
    return found


def _directions(
    probes: Mapping[str, np.ndarray], streams: Streams, valid: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """(Place, vector) -> unit vectors [layer, polarity, embedding]; polarity 1 accepts."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for place in verdict_pushes.PLACES:
        difference = pushes.units(streams.difference(place, valid, ~valid))
        found[place, "probe"] = probes[place]
        found[place, "mean difference"] = np.stack([-difference, difference], axis=1)
    found["result", "probe of the verdict"] = probes["verdict"]
    return found


def _compare(directions: Mapping[tuple[str, str], np.ndarray]) -> Iterator[dict[str, Any]]:
    """How far probe and mean difference point the same way, layer by layer."""
    for place in verdict_pushes.PLACES:
        probe, difference = directions[place, "probe"], directions[place, "mean difference"]
        for layer, cosine in enumerate((probe[:, 1] * difference[:, 1]).sum(axis=-1)):
            row = {"part": "verdict", "stage": "vectors", "place": place, "vector": "probe", "layer": layer}
            yield row | {"layers": f"L{layer}", "measure": "cosine to mean difference", "value": float(cosine), "n": 1}


def figure(table: pl.DataFrame) -> Figure:
    """Verdicts and ends of attempts under vectors of every length at every layer, with the controls.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return steered_verdicts.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before anything was measured.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion, on held-out cases.
    """
    held = table.filter(pl.col("stage") == "evaluation")
    claims = []
    for aim, said in (("accept", "'this'"), ("reject", "'not'")):
        here = held.filter(pl.col("aim") == aim, pl.col("place") == "verdict")
        for vector, name in (
            ("probe", f"W[{int(aim == 'accept')}] of the probe"),
            ("mean difference", "mean difference"),
        ):
            claims.append(_claim_verdict(here, vector, name, aim, said))
        claims.append(_claim_random(here, said))
    for aim, what in (("finish", "adding"), ("go on", "subtracting")):
        claims.append(_claim_end(table, held, aim, what))
    return claims


def _share(rows: pl.DataFrame, measure: str) -> dict[str, Any]:
    return rows.filter(pl.col("measure") == measure).row(0, named=True)


def _random(rows: pl.DataFrame, like: Mapping[str, Any], measure: str = "reached") -> np.ndarray:
    """Shares under random vectors of the length of a push, at its layers, [draw]."""
    same = [pl.col(name) == like[name] for name in ("layers", "scale")]
    return rows.filter(pl.col("vector") == "random", pl.col("measure") == measure, *same)["value"].to_numpy()


def _claim_verdict(here: pl.DataFrame, vector: str, name: str, aim: str, said: str) -> Claim:
    best = here.filter(pl.col("vector") == vector, pl.col("best"))
    reached, malformed = _share(best, "reached"), _share(best, "malformed")
    random = _random(here, reached)
    pushed = "rejected" if aim == "accept" else "accepted"
    return Claim(
        criterion=f"{name}, added where the verdict opens, makes the model say {said} in at least 80 % of {pushed} "
        "cases, with at most 10 % malformed",
        paper="3 worked examples, no rate" if vector == "probe" and aim == "accept" else "not done",
        **from_row(reached),
        control=f"malformed {malformed['value']:.3f}; {reached['layers']}, {reached['scale']:g} of the norm; "
        f"random vectors: {random.mean():.3f} on average, at most {random.max():.3f}",
        met=bool(reached["value"] >= 0.8 and malformed["value"] <= 0.1),
    )


def _claim_random(here: pl.DataFrame, said: str) -> Claim:
    reached = _share(here.filter(pl.col("vector") == "probe", pl.col("best")), "reached")
    random = _random(here, reached)
    low, high = statistics.bootstrap(random, seed=0)
    return Claim(
        criterion=f"Random vectors of the probe's length at its layers make it say {said} in at most 5 % of the same "
        "cases",
        paper="not done",
        ours=float(random.mean()),
        low=low,
        high=high,
        n=len(random),
        control=f"the largest of {len(random)} draws: {random.max():.3f}; the probe: {reached['value']:.3f}",
        met=bool(random.mean() <= 0.05),
    )


def _claim_end(table: pl.DataFrame, held: pl.DataFrame, aim: str, what: str) -> Claim:
    best = held.filter(pl.col("part") == "end", pl.col("aim") == aim, pl.col("best")).sort("layer")
    layers = best["layer"].unique().sort().to_list()
    weaker = best.filter(pl.col("measure") == "reached").sort("value").row(0, named=True)
    malformed = best.filter(pl.col("measure") == "malformed")["value"].to_numpy().max()
    random = _random(held.filter(pl.col("part") == "end", pl.col("aim") == aim), weaker)
    excess = table.filter(
        *(pl.col(name) == value for name, value in (("stage", "written"), ("aim", aim), ("place", "from the end on"))),
        pl.col("measure") == "excess bigram repetition",
        pl.col("vector") == end_pushes.VECTOR,
    )
    most = excess.sort("value").row(-1, named=True)
    here = excess.filter(pl.col("layer").is_in(layers))["value"].to_numpy()
    between = " and ".join(map(str, layers))
    return Claim(
        criterion=f"In two neighbouring layers of the middle half, {what} the vector at the end of an attempt makes "
        f"the model {aim} in at least 60 % of the cases where it would not",
        paper="works over a wide band of layers; the last ones loop; no rate",
        **from_row(weaker),
        control=f"layers {between}, the weaker one shown; malformed at most {malformed:.3f}; random vectors: "
        f"{random.mean():.3f}; bigram repetition beyond the unsteered text, steered at every token: "
        f"{here.mean():+.3f} there, at most {most['value']:+.3f} (layer {most['layer']})",
        met=bool(len(layers) == 2 and weaker["value"] >= 0.6),
    )
