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

from jaxinterp.analysis import statistics, transfer
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.experiments.embedding_geometry import shared_tokens
from jaxinterp.figures import embedding_alignment
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

DIRECTIONS = ("source to target", "target to source")
METHODS: tuple[transfer.Fit, ...] = ("least_squares", "ridge", "procrustes")
VARIANTS = shared_tokens.VARIANTS


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
    ridge: float = 0.1
    """Penalty of the ridge map, in units of the mean eigenvalue of the source rows' Gram matrix."""
    shuffled_maps: int = 20
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
    shared = _share(models["source"], models["target"], config)
    source, target = shared.rows.values()
    order = np.random.default_rng(config.seed).permutation(len(shared))
    rows: list[dict] = [{"part": "tokens", "measure": "matched tokens", "value": len(shared), "n": len(shared)}]
    rows += _correlations(config, shared, order)
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


def _share(source: LanguageModel, target: LanguageModel, config: Config) -> shared_tokens.SharedTokens:
    tables = {"source": shared_tokens.read_table(source), "target": shared_tokens.read_table(target)}
    shared = shared_tokens.share(tables)
    needed = config.held_out + max(table.rows.shape[1] for table in tables.values())
    if len(shared) <= needed:
        raise ValueError(
            f"{source.source} and {target.source} share {len(shared)} trained tokens, but {config.held_out} held out "
            f"and a map fitted on the rest need more than {needed}; lower held_out or take models that share more"
        )
    return shared


def _correlations(config: Config, shared: shared_tokens.SharedTokens, order: np.ndarray) -> Iterator[dict]:
    names = (field.name for field in dataclasses.fields(shared_tokens.Sampling))
    sampling = shared_tokens.Sampling(**{name: getattr(config, name) for name in names})
    source, target = shared.rows.values()
    bins = shared_tokens.bins_of_rank(shared.ids["source"], config.rank_bins)
    words = np.flatnonzero(vocabularies.are_words(shared.keys))
    for name, options in VARIANTS.items():
        _LOG.info("pairwise cosines of %d tokens, %s", len(source), name)
        for row in shared_tokens.correlation_rows(
            source, target, options, sampling, order=order, bins=bins, words=words
        ):
            yield {"part": "correlation", "method": name} | row


def _maps(
    config: Config, direction: str, here: np.ndarray, there: np.ndarray, train: np.ndarray, held: np.ndarray
) -> Iterator[tuple[list[dict], str, np.ndarray]]:
    """Each kept map in turn: its rows of the table, its name and its matrix."""
    least = {"least_squares": here.shape[1]}
    for method in METHODS:
        rows: list[dict] = []
        sizes = sorted({size for size in config.pairs if least.get(method, 0) < size < len(train)} | {len(train)})
        for size in sizes:
            found = transfer.fit_map(here[train[:size]], there[train[:size]], method, ridge=config.ridge)
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
                **from_row(row),
                control=by_chance,
                met=row["value"] >= least,
            )
        )
    worst = shuffled.sort("value").row(-1, named=True)
    claims.append(
        Claim(
            criterion="Maps fitted on shuffled pairs find at most 0.002 of held-out tokens (top-1)",
            paper="not reported",
            **from_row(worst),
            control=f"the direction with more hits is shown ({worst['direction']})",
            met=worst["value"] <= 0.002,
        )
    )
    return claims
