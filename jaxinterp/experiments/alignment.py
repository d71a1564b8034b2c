"""Do two models of different families place the same tokens alike, and does one linear map carry one to the other?

Tokens are matched by the bytes they stand for. All pairwise cosines of one embedding table are correlated with those
of the other; then a linear map is fitted on most of the tokens and judged on the rest. The maps are kept: the
steering experiment carries concept vectors over with them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import geometry, statistics, transfer
from jaxinterp.experiments.claims import Claim
from jaxinterp.figures import embedding_alignment
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

DIRECTIONS = ("source to target", "target to source")
METHODS: tuple[transfer.Fit, ...] = ("least_squares", "procrustes")
VARIANTS = {
    "raw": {"centred": False, "without": 0},
    "centred": {"centred": True, "without": 0},
    "centred, 3 directions out": {"centred": True, "without": 3},
}
"""What is done to the rows before their cosines are taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the alignment experiment."""

    held_out: int = 5000
    """Matched tokens that no map is fitted on."""
    pairs: tuple[int, ...] = (1000, 5000)
    """Sizes of smaller training sets that are tried besides all training tokens."""
    permutations: int = 1000
    """Relabellings in the permutation test."""
    null_tokens: int = 1500
    """Matched tokens that the permutation test is made on; the correlation itself is over all of them."""
    rank_bins: int = 20
    """Bins of token rank within which the rank-matched test relabels; rank stands for frequency."""
    rank_permutations: int = 200
    """Relabellings in the rank-matched test."""
    resamples: int = 2000
    """Bootstrap resamples of tokens."""
    shuffled_maps: int = 10
    """Maps in each direction that are fitted on wrongly paired tokens."""
    seed: int = 0
    """Of the split, the relabellings, the shuffles and the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """The arrays that other experiments take from this one.

    Attributes:
        values: Name -> array: `{direction}/{method}` [from_embedding, to_embedding], `{direction}/shuffled` [map,
            from_embedding, to_embedding], and `source mean` and `target mean` [embedding] over all matched tokens.
        axes: Name -> names of the array's axes.
    """

    values: dict[str, np.ndarray]
    axes: dict[str, tuple[str, ...]]


def run(config: Config, models: Mapping[str, LanguageModel]) -> tuple[pl.DataFrame, Maps]:
    """Compare the embedding tables, fit the maps and judge them.

    Args:
        config: Settings.
        models: `{"source": ..., "target": ...}`, two models with tokenizers.

    Returns:
        The table, and the maps. Table: `part` (tokens, correlation, map), `measure`, `direction`, `method`, `pairs`
        (training pairs), `value`, `low`, `high`, `n`, `control` (whether the row is a null). Intervals: node bootstrap
        (correlation), Wilson (top-1, top-10), bootstrap over tokens (cosine), range of the middle 95 % (nulls).

    Raises:
        ValueError: Too few tokens are shared to fit a map.
    """
    matched, source, target = _matched_rows(models["source"], models["target"], config)
    order = np.random.default_rng(config.seed).permutation(len(matched))
    rows = [{"part": "tokens", "measure": "matched tokens", "value": len(matched), "n": len(matched)}]
    rows += _correlations(config, matched, source, target, order)
    held, train = order[: config.held_out], order[config.held_out :]
    values: dict[str, np.ndarray] = {"source mean": source.mean(axis=0), "target mean": target.mean(axis=0)}
    for direction, (here, there) in zip(DIRECTIONS, ((source, target), (target, source)), strict=True):
        _LOG.info("maps from %s", direction)
        for row, name, fitted in _maps(config, direction, here, there, train, held):
            rows += row
            values[name] = fitted
    columns = ("part", "measure", "direction", "method", "pairs", "value", "low", "high", "n", "control")
    empty = dict.fromkeys(columns) | {"control": False}
    table = pl.DataFrame([empty | row for row in rows], infer_schema_length=None).select(columns)
    table = table.with_columns(pl.col("value", "low", "high").cast(pl.Float64), pl.col("pairs").cast(pl.Int64))
    names = {1: ("embedding",), 2: ("from_embedding", "to_embedding"), 3: ("map", "from_embedding", "to_embedding")}
    return table, Maps(values, {name: names[array.ndim] for name, array in values.items()})


def _matched_rows(
    source: LanguageModel, target: LanguageModel, config: Config
) -> tuple[vocabularies.Matched, np.ndarray, np.ndarray]:
    matched = vocabularies.match_tokens(source.require_tokenizer(), target.require_tokenizer())
    tables = [np.asarray(model.weights()["W_E"], np.float32) for model in (source, target)]
    trained = [vocabularies.trained_rows(table) for table in tables]
    matched = matched.where(trained[0][matched.source] & trained[1][matched.target])
    needed = config.held_out + max(table.shape[1] for table in tables)
    if len(matched) <= needed:
        raise ValueError(
            f"{source.source} and {target.source} share {len(matched)} trained tokens, but {config.held_out} held out "
            f"and a map fitted on the rest need more than {needed}; lower held_out or take models that share more"
        )
    return matched, tables[0][matched.source], tables[1][matched.target]


def _correlations(
    config: Config, matched: vocabularies.Matched, source: np.ndarray, target: np.ndarray, order: np.ndarray
) -> Iterator[dict]:
    words = np.flatnonzero(matched.words())
    sample = order[: config.null_tokens]
    edges = np.quantile(matched.source, np.linspace(0, 1, config.rank_bins + 1)[1:-1])
    bins = np.digitize(matched.source[sample], edges)
    for name, options in VARIANTS.items():
        _LOG.info("pairwise cosines of %d tokens, %s", len(source), name)
        a, b = geometry.unit_rows(source, **options), geometry.unit_rows(target, **options)
        row = {"part": "correlation", "method": name}
        low, high = geometry.node_bootstrap(a, b, resamples=config.resamples, seed=config.seed)
        r = geometry.cosine_correlation(a, b)
        yield row | {"measure": "r", "value": r, "low": low, "high": high, "n": len(a)}
        r = geometry.cosine_correlation(a[sample], b[sample])
        yield row | {"measure": "r of the sample", "value": r, "n": len(sample)}
        within_bins = ("relabelled within rank bins", bins, config.rank_permutations)
        tests = [within_bins] if options["without"] else [("relabelled", None, config.permutations), within_bins]
        for null_name, groups, count in tests:
            null = geometry.permutation_null(a[sample], b[sample], permutations=count, seed=config.seed, groups=groups)
            low, high = np.quantile(null, [0.025, 0.975])
            yield row | {
                "measure": null_name,
                "value": null.mean(),
                "low": low,
                "high": high,
                "n": count,
                "control": True,
            }
            p = statistics.permutation_p(r, null)
            yield row | {"measure": f"p, {null_name}", "value": p, "n": count}
        if len(words) > 2:
            some_a, some_b = geometry.unit_rows(source[words], **options), geometry.unit_rows(target[words], **options)
            low, high = geometry.node_bootstrap(some_a, some_b, resamples=config.resamples, seed=config.seed)
            r = geometry.cosine_correlation(some_a, some_b)
            yield row | {"measure": "r of words", "value": r, "low": low, "high": high, "n": len(words)}


def _maps(
    config: Config, direction: str, here: np.ndarray, there: np.ndarray, train: np.ndarray, held: np.ndarray
) -> Iterator[tuple[list[dict], str, np.ndarray]]:
    """Each kept map in turn: its rows of the table, its name and its matrix."""
    least = {"least_squares": here.shape[1], "procrustes": 0}
    for method in METHODS:
        rows: list[dict] = []
        sizes = sorted({size for size in config.pairs if least[method] < size < len(train)} | {len(train)})
        for size in sizes:
            found = transfer.fit_map(here[train[:size]], there[train[:size]], method)
            quality = transfer.map_quality(found, here[held], there, held)
            measured = _quality_rows([quality], config.seed)
            rows += [row | {"direction": direction, "method": method, "pairs": size} for row in measured]
        yield rows, f"{direction}/{method}", found.matrix
    maps = transfer.fit_shuffled(here[train], there[train], count=config.shuffled_maps, seed=config.seed)
    parts = [part for part in np.array_split(held, len(maps)) if len(part)]
    judged = [transfer.map_quality(found, here[part], there, part) for found, part in zip(maps, parts, strict=False)]
    marks = {"direction": direction, "method": "shuffled pairs", "pairs": len(train), "control": True}
    rows = [row | marks for row in _quality_rows(judged, config.seed)]
    yield rows, f"{direction}/shuffled", np.stack([found.matrix for found in maps])


def _quality_rows(judged: list[transfer.MapQuality], seed: int) -> list[dict]:
    cosines = np.concatenate([quality.cosines for quality in judged])
    rows: list[dict] = []
    for k in (1, 10):
        hits = sum(quality.hits(k) for quality in judged)
        low, high = statistics.wilson(hits, len(cosines))
        rows.append({"measure": f"top-{k}", "value": hits / len(cosines), "low": low, "high": high})
    low, high = statistics.bootstrap(cosines, seed, n=500)
    rows.append({"measure": "cosine", "value": cosines.mean(), "low": low, "high": high})
    rows.append({"measure": "R2", "value": np.mean([quality.r2 for quality in judged])})
    return [{"part": "map", "n": len(cosines)} | row for row in rows]


def figure(table: pl.DataFrame) -> Figure:
    """The correlations against their nulls, and the maps over the number of training pairs.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return embedding_alignment.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before this code was written.

    Args:
        table: As from `run`.

    Returns:
        One claim per criterion.
    """
    claims = []
    for method, expected in (("raw", 0.197), ("centred", 0.298)):
        part = {row["measure"]: row for row in table.filter(pl.col("method") == method).iter_rows(named=True)}
        null, ranked = part["relabelled"], part["relabelled within rank bins"]
        claims.append(
            Claim(
                criterion=f"r of all pairwise cosines ({method}) within 0.01 of {expected}, p < 0.001",
                paper="high within a family; not reported across families",
                ours=part["r"]["value"],
                low=part["r"]["low"],
                high=part["r"]["high"],
                n=part["r"]["n"],
                control=f"tokens relabelled: {null['value']:.4f} [{null['low']:.4f}, {null['high']:.4f}], p = "
                f"{part['p, relabelled']['value']:.2g}; within rank bins: {ranked['value']:.4f}",
                met=abs(part["r"]["value"] - expected) <= 0.01 and part["p, relabelled"]["value"] < 0.001,
            )
        )
    top1 = table.filter(pl.col("measure") == "top-1")
    shuffled = top1.filter(pl.col("control"))
    by_chance = f"maps fitted on shuffled pairs: {shuffled['value'].max():.4f}"
    best = top1.filter(~pl.col("control")).sort("pairs").group_by("direction", "method", maintain_order=True).last()
    for direction, method, least in (
        (DIRECTIONS[0], "least_squares", 0.93),
        (DIRECTIONS[0], "procrustes", 0.87),
        (DIRECTIONS[1], "procrustes", 0.87),
    ):
        row = best.filter(pl.col("direction") == direction, pl.col("method") == method).row(0, named=True)
        claims.append(
            Claim(
                criterion=f"{direction}, {method.replace('_', ' ')}: at least {least} of held-out tokens are found "
                "among all matched tokens (top-1)",
                paper="a linear map carries steering vectors over; retrieval not reported",
                ours=row["value"],
                low=row["low"],
                high=row["high"],
                n=row["n"],
                control=by_chance,
                met=row["value"] >= least,
            )
        )
    worst = shuffled.sort("value").row(-1, named=True)
    claims.append(
        Claim(
            criterion="Maps fitted on shuffled pairs find at most 0.002 of held-out tokens (top-1)",
            paper="not reported",
            ours=worst["value"],
            low=worst["low"],
            high=worst["high"],
            n=worst["n"],
            control=f"the direction with more hits is shown ({worst['direction']})",
            met=worst["value"] <= 0.002,
        )
    )
    return claims
