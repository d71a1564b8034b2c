"""Where in the network does a CountDown model know that an attempt is right?

A linear probe per layer reads the verdict off the residual stream: at the token that opens it, at the last digit of
the result before it, and where the attempt is still being written. Probes are trained on shuffled labels too, tested on
minimal pairs (texts that differ in the target alone, so that nothing about the form of a trace can help), and compared
with scikit-learn's logistic regression. Their directions are kept for other experiments.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jaxinterp as ji
from jaxinterp.analysis import probes
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import PLACES, Case
from jaxinterp.figures import probe_layers
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import countdown

PAPER = "lee2025selfverification"

_LOG = logging.getLogger(__name__)

POSITIONS = (*PLACES, "first partial result", "end of the expression")
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the probing experiment."""

    permutations: int = 20
    """Shuffled copies of the training labels."""
    l2: float = 1.0
    """Weight decay of the probes."""
    pairs: int = 200
    """Most minimal pairs made of accepted attempts, and most made of rejected ones."""
    seed: int = 0
    """Of the shuffles and the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Activations at verdicts.

    Attributes:
        features: Position -> [layer, n, embedding]; layer 0 is the embedding, layer k the output of block k - 1.
        labels: Whether the verdict is to accept, [n].
        problems: Number of the problem of each example, [n].
        accepted: Whether the model itself goes on with acceptance, [n].
    """

    features: dict[str, np.ndarray]
    labels: np.ndarray
    problems: np.ndarray
    accepted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Directions:
    """The arrays that other experiments take from this one.

    Attributes:
        values: `verdict/directions` and `result/directions`, float32 [layer, class, embedding] in units of the residual
            stream: class 0 is "not", class 1 "this"; layer 0 is the embedding (all zeros where every example has the
            same token), layer k the output of block k - 1.
        axes: Name -> names of the array's axes.
    """

    values: dict[str, np.ndarray]
    axes: dict[str, tuple[str, ...]]


def run(
    config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, pl.DataFrame]
) -> tuple[pl.DataFrame, Directions]:
    """Train the probes on the training cases and test them on the evaluation and on minimal pairs.

    Args:
        config: Settings.
        models: `{"model": ...}`, a CountDown model.
        inputs: `{"verdicts": ...}`, the table of that experiment.

    Returns:
        The table, and the directions. Table: one row per measure, position and layer. `measure`: balanced accuracy;
        scikit-learn (balanced accuracy of its logistic regression on the same features); shuffled labels; minimal pairs
        (share of their members told right); cosine; shuffled cosine; model on minimal pairs. `position`: verdict;
        result; first partial result (its last digit); end of the expression (its last digit). `layer` (-1 for the
        embedding), `depth` (blocks passed / blocks), `value`, `low`, `high`, `n` (verdicts, permutations or pairs),
        `n_train`, `control` (whether the row is one). `low` and `high` are a 95 % bootstrap interval over problems, or
        the 2.5 and 97.5 percentiles over permutations.

    Raises:
        ValueError: A split has no cases, or training or evaluation only of one kind.
    """
    model, table = models["model"], inputs["verdicts"]
    split = {name: cases.load(model, table, name) for name in ("training", "evaluation")}
    for name, some in split.items():
        accepted = sum(case.valid for case in some)
        if not 0 < accepted < len(some):
            raise ValueError(
                f"{accepted} of the {len(some)} attempts in the {name} split are accepted; a probe needs both kinds: "
                "ask the model more problems, or use one that was trained on this task"
            )
    pairs = cases.load_pairs(model, table, config.pairs)
    _LOG.info("reading %d cases and %d pairs", sum(map(len, split.values())), len(pairs))
    train, test = (_read(model, split[name]) for name in ("training", "evaluation"))
    twins = _read(model, [member for pair in pairs for member in pair])
    rows: list[dict[str, Any]] = []
    directions: dict[str, np.ndarray] = {}
    for position in POSITIONS:
        _LOG.info("probes at the %s", position)
        found, control = probes.fit_softmax(
            train.features[position],
            train.labels,
            l2=config.l2,
            permutations=config.permutations,
            seed=config.seed,
        )
        reference = _reference(train, test, position, config.l2)
        measured = _measure(found, control, reference, position, test, twins, config.seed)
        rows += [row | {"position": position} for row in measured]
        if position in PLACES:
            directions[f"{position}/directions"] = np.asarray(found.directions(), np.float32)
    blocks = model.architecture.layers
    agree = (twins.accepted == twins.labels).reshape(-1, 2).all(axis=1)
    behaviour = {"measure": "model on minimal pairs", "position": "verdict", "layer": blocks - 1, "control": False}
    rows.append(behaviour | cases.proportion(agree))
    made = pl.DataFrame(rows, infer_schema_length=None)
    made = made.with_columns(depth=(pl.col("layer") + 1) / blocks, n_train=pl.lit(len(train.labels)))
    made = made.select("measure", "position", "layer", "depth", "value", "low", "high", "n", "n_train", "control")
    return made, Directions(directions, dict.fromkeys(directions, ("layer", "class", "embedding")))


def places(model: LanguageModel, case: Case) -> dict[str, int]:
    """Tokens of a case at which its verdict may be known.

    Args:
        model: Its tokenizer is used.
        case: The case.

    Returns:
        Position -> index into the case's tokens: the verdict's opening and the last digits of the result, of the first
        partial result, and of the expression.

    Raises:
        ValueError: Such a digit is not the end of a token.
    """
    tokenizer = model.require_tokenizer()
    text = tokenizer.decode(case.ids)
    attempt = countdown.parse(f"{text}this works)").attempts[-1]
    start = attempt.open - len(" = ".join([attempt.expression, *attempt.steps]))
    ends = {"end of the expression": start + len(attempt.expression)}
    partial = attempt.steps[0].split(" ")[0]
    ends["first partial result"] = ends["end of the expression"] + len(f" = {partial}")
    token = {end: index for index, (begin, end) in enumerate(tokenizer.offsets(text)) if end > begin}
    found = {place: case.token(place) for place in PLACES} | {name: token.get(end, -1) for name, end in ends.items()}
    joined = [name for name, index in found.items() if index < 0]
    if joined:
        raise ValueError(f"the tokenizer joins the last digit of the {joined[0]} with what follows in {text[start:]!r}")
    return {name: found[name] for name in POSITIONS}


def _read(model: LanguageModel, some: Sequence[Case]) -> Examples:
    tokens = [places(model, case) for case in some]
    sites = [ji.embed(), ji.resid_post(...)]
    read = cases.read_at(model, some, sites, {name: [one[name] for one in tokens] for name in POSITIONS})
    features = {name: np.concatenate([found["embed"], found["resid_post"]]) for name, found in read.items()}
    judged = cases.sweep(model, some, lambda _: [ji.Cell({}, lambda lm: lm)], cases.margin(model))
    accepted = cases.values(judged, some)[0] > 0
    labels, problems = (np.array([getattr(case, name) for case in some]) for name in ("valid", "problem"))
    return Examples(features, labels, problems, accepted)


def _reference(train: Examples, test: Examples, position: str, l2: float) -> np.ndarray:
    """What scikit-learn's logistic regression says of the test cases, [layer, n]: the same problem, but for a bias."""
    predicted = []
    for features, held_out in zip(train.features[position], test.features[position], strict=True):
        logistic = LogisticRegression(C=2 / l2, class_weight="balanced", max_iter=2000)
        pipeline = make_pipeline(StandardScaler(), logistic).fit(features, train.labels)
        predicted.append(pipeline.predict(held_out))
    return np.stack(predicted)


def _measure(
    probe: probes.SoftmaxProbes,
    control: probes.SoftmaxProbes,
    reference: np.ndarray,
    position: str,
    test: Examples,
    twins: Examples,
    seed: int,
) -> list[dict[str, Any]]:
    predicted = probe.scores(test.features[position]) > 0
    shuffled = probes.balanced_accuracy(control.scores(test.features[position]) > 0, test.labels)
    right = (probe.scores(twins.features[position]) > 0) == twins.labels
    matched = right.reshape(len(right), -1, 2).sum(axis=2)
    whole = np.full(matched.shape[1], 2)
    cosines, shuffled_cosines = probe.cosine(), control.cosine()
    rows = []
    for layer in range(len(predicted)):
        measures: dict[str, dict[str, Any]] = {
            "balanced accuracy": _balanced(predicted[layer], test, seed),
            "scikit-learn": _balanced(reference[layer], test, seed),
            "minimal pairs": _over_problems(twins.problems[::2], [matched[layer], whole], _ratio, seed),
            "cosine": {"value": None if np.isnan(cosines[layer]) else float(cosines[layer]), "n": 1},
            "shuffled labels": _range(shuffled[:, layer]),
            "shuffled cosine": _range(shuffled_cosines[:, layer]),
        }
        defaults = {"layer": layer - 1, "low": None, "high": None, "control": False}
        rows += [{"measure": name} | defaults | numbers for name, numbers in measures.items()]
    return rows


def _balanced(predicted: np.ndarray, test: Examples, seed: int) -> dict[str, Any]:
    right = predicted == test.labels
    columns = [right & test.labels, test.labels, right & ~test.labels, ~test.labels]
    return _over_problems(test.problems, columns, lambda sums: (_ratio(sums) + _ratio(sums[..., 2:])) / 2, seed)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _over_problems(
    problems: np.ndarray, columns: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> dict[str, Any]:
    """A statistic of sums of columns, with its bootstrap interval over problems; where it is undefined is left out."""
    _, which = np.unique(problems, return_inverse=True)
    counts = np.stack([np.bincount(which, weights=column) for column in columns], axis=1)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(drawn @ counts)
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return {"value": float(statistic(counts.sum(axis=0))), "low": low, "high": high, "n": len(problems)}


def _range(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "n": len(values), "control": True}
    low, high = np.percentile(known, [2.5, 97.5])
    return {"value": float(known.mean()), "low": low, "high": high, "n": len(values), "control": True}


def figure(table: pl.DataFrame) -> Figure:
    """Accuracy over layers at the token that opens the verdict, at the last digit of the result, and earlier.

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
    nothing: dict[str, Any] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0}
    weakest = matched.row(0, named=True) if len(matched) else nothing
    stray = shuffled.sort((pl.col("value") - 0.5).abs()).row(-1, named=True)
    embedding = probe.filter(pl.col("layer") == -1).row(0, named=True)
    cosine = parts["cosine"].filter(pl.col("layer") >= 0).sort("value").row(-1, named=True)
    reference = parts["scikit-learn"].filter(pl.col("layer") >= 0)["value"].to_numpy()
    by_chance = f"shuffled labels: {shuffled['value'].mean():.3f} on average over layers"
    by_construction = parts["shuffled cosine"]["value"].max()
    return [
        Claim(
            criterion="The probe's balanced accuracy is at least 99 % in at least half of the layers",
            paper="near 100 % from the 4th of 36 layers on",
            **from_row(dict(zip(("value", "low", "high"), shares, strict=True)) | {"n": probe["n"][0]}),
            control=f"{by_chance}; scikit-learn's logistic regression: {(reference >= 0.99).mean():.3f} of layers",
            met=shares[0] >= 0.5,
        ),
        Claim(
            criterion="Balanced accuracy reaches 95 % within the first 40 % of the depth",
            paper="near 100 % at relative depth 0.11",
            **from_row(early),
            control=by_chance,
            met=early["value"] >= 0.95,
        ),
        Claim(
            criterion="In every layer where the probe reaches 99 %, it is right on at least 95 % of minimal pairs",
            paper="not done",
            **from_row(weakest),
            control=f"embedding: {pairs.filter(pl.col('layer') == -1)['value'][0]:.3f}; no such layer counts as 0",
            met=weakest["value"] >= 0.95,
        ),
        Claim(
            criterion="Probes on shuffled labels stay within 45 to 55 % on average, in every layer",
            paper="not done",
            **from_row(stray),
            control=f"the layer that strays most is shown ({stray['layer']})",
            met=abs(stray["value"] - 0.5) <= 0.05,
        ),
        Claim(
            criterion="A probe on the token embedding stays within 45 to 55 %",
            paper="not done",
            **from_row(embedding),
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
