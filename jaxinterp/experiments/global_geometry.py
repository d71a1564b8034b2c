"""Do the token tables of several models share their global geometry? Every pair is compared on the tokens it shares.

Tokens are matched by the bytes they stand for. The main number is Pearson's r of all pairwise cosines; beside it stand
the rank correlation, debiased CKA, the Procrustes distance and shared neighbours, each with a null.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import geometry, pair_scores, similarity, statistics
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.embedding_geometry import shared_tokens
from jaxinterp.experiments.embedding_geometry.global_claims import list_claims
from jaxinterp.experiments.embedding_geometry.shared_tokens import (
    RELABELLED,
    VARIANTS,
    WITHIN_BINS,
    Row,
    SharedTokens,
    TokenTable,
)
from jaxinterp.figures import global_geometry
from jaxinterp.models.language_model import EmbeddingTable, LanguageModel
from jaxinterp.tasks import vocabularies

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)
_COLUMNS = ("part", "matrix", "pool", "first", "second", "method", "measure")
_NUMBERS = ("value", "low", "high")

Matrix = Literal["W_E", "W_U"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the comparison of token tables."""

    least_tokens: int = 1000
    """Trained tokens that two models have to share."""
    null_tokens: int = 1000
    """Shared tokens on which nulls, the rank correlation and the explicit matrices are computed; r is over all."""
    large_sample: int = 20_000
    """Shared tokens of a second r, as many as the paper draws; left out where fewer are shared."""
    permutations: int = 1000
    """Relabellings in the permutation test."""
    rank_bins: int = 20
    """Bins of token rank within which the rank-matched test relabels; rank stands for frequency."""
    rank_permutations: int = 200
    """Relabellings in the rank-matched test, and in both tests of the rank correlation."""
    random_tables: int = 20
    """Pairs of random tables with the models' own means and covariances."""
    neighbours: int = 10
    """Neighbours of a token."""
    neighbour_tokens: int = 2000
    """Shared tokens whose neighbours among all shared tokens are compared."""
    relabellings: int = 20
    """Relabellings in the nulls of debiased CKA, the Procrustes distance and shared neighbours."""
    resamples: int = 2000
    """Bootstrap resamples of tokens."""
    seed: int = 0
    """Of the samples, the relabellings and the bootstrap."""


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Compares every pair of models.

    Args:
        config: Settings.
        models: Role -> model with a tokenizer, two or more. The unembedding is compared too among models that have
            one, unless it is the embedding in all of them.

    Returns:
        Columns `part` (model, tokens, correlation, noise, other), `matrix` (W_E, W_U), `pool` (the tokens that the
        "pair" shares, or that "all" models share), `first` and `second` (roles), `method` (what was done to the rows),
        `measure`, `value`, `low`, `high`, `n`, `control` (whether the row is a null), `text` (a model's source).
        Intervals: bootstrap over tokens (r, rank correlation, shared neighbours), jackknife over groups of tokens (CKA,
        Procrustes), middle 95 % (nulls).

    Raises:
        ValueError: There is one model only, or two of them share too few tokens.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} model was given; give two or more, each under a name of its own")
    rows: list[Row] = []
    for matrix in get_args(Matrix):
        rows += _matrix_rows(config, matrix, models)
    frame = pl.DataFrame(rows, infer_schema_length=None)
    missing = [name for name in (*_COLUMNS, *_NUMBERS, "n", "control", "text") if name not in frame.columns]
    frame = frame.with_columns(pl.lit(None).alias(name) for name in missing)
    frame = frame.with_columns(pl.col("control").fill_null(value=False), pl.col("n").cast(pl.Int64))
    frame = frame.with_columns(pl.col(*_COLUMNS, "text").cast(pl.String), pl.col(*_NUMBERS).cast(pl.Float64))
    return frame.select(*_COLUMNS, *_NUMBERS, "n", "control", "text")


def _matrix_rows(config: Config, matrix: Matrix, models: Mapping[str, LanguageModel]) -> Iterator[Row]:
    chosen = dict(models)
    if matrix == "W_U":
        chosen = {role: model for role, model in models.items() if not isinstance(model, EmbeddingTable)}
        if len(chosen) < 2 or all(model.architecture.tied for model in chosen.values()):
            return
    tables = {role: shared_tokens.read_table(model, matrix) for role, model in chosen.items()}
    for role, table in tables.items():
        count = {"value": table.trained.sum(), "n": len(table.rows)}
        yield {
            "part": "model",
            "matrix": matrix,
            "first": role,
            "measure": "trained rows",
            "text": table.source,
        } | count
    pairs = list(itertools.combinations(tables, 2))
    for first, second in pairs:
        shared = shared_tokens.share({role: tables[role] for role in (first, second)})
        if len(shared) < config.least_tokens:
            raise ValueError(
                f"{tables[first].source} and {tables[second].source} share {len(shared)} trained tokens and a "
                f"comparison needs {config.least_tokens}; take models that share more, or lower least_tokens"
            )
        marks = {"matrix": matrix, "pool": "pair", "first": first, "second": second}
        for row in _pair_rows(config, shared, first, second):
            yield row | marks
    if len(tables) > 2:
        yield from _common_rows(config, matrix, tables, pairs)


def _common_rows(
    config: Config, matrix: Matrix, tables: Mapping[str, TokenTable], pairs: list[tuple[str, str]]
) -> Iterator[Row]:
    """Every pair again, on the tokens that all models share: so that pairs can be compared with each other."""
    try:
        shared = shared_tokens.share(tables)
    except ValueError as error:
        _LOG.info("%s", error)
        return
    for first, second in pairs:
        marks = {"matrix": matrix, "pool": "all", "first": first, "second": second}
        if len(shared) < config.least_tokens:
            yield {"part": "tokens", "measure": "shared tokens", "value": len(shared), "n": len(shared)} | marks
            continue
        for row in _pair_rows(config, shared, first, second):
            yield row | marks


def _pair_rows(config: Config, shared: SharedTokens, first: str, second: str) -> Iterator[Row]:
    _LOG.info("%s and %s: %d shared tokens", first, second, len(shared))
    words = np.flatnonzero(vocabularies.are_words(shared.keys))
    for measure, count in (("shared tokens", len(shared)), ("shared words", len(words))):
        yield {"part": "tokens", "measure": measure, "value": count, "n": len(shared)}
    rows = shared.rows[first], shared.rows[second]
    order = np.random.default_rng(config.seed).permutation(len(shared))
    bins = shared_tokens.bins_of_rank(shared.ids[first], config.rank_bins)
    names = (field.name for field in dataclasses.fields(shared_tokens.Sampling))
    sampling = shared_tokens.Sampling(**{name: getattr(config, name) for name in names})
    for name, options in VARIANTS.items():
        marks = {"part": "correlation", "method": name}
        for row in shared_tokens.correlation_rows(*rows, options, sampling, order=order, bins=bins, words=words):
            yield row | marks
        for row in _sample_rows(config, *rows, options, order, bins):
            yield row | marks
        if not options["without"]:
            yield _noise_row(config, *rows, options) | {"part": "noise", "method": name}
    for row in _other_rows(config, *rows, order):
        yield row | {"part": "other"}


def _sample_rows(
    config: Config,
    first: np.ndarray,
    second: np.ndarray,
    options: Mapping[str, Any],
    order: np.ndarray,
    bins: np.ndarray,
) -> Iterator[Row]:
    """What needs the matrices of all pairs of a sample, or is compared with them."""
    if config.large_sample <= len(order):
        a, b = (geometry.unit_rows(table[order[: config.large_sample]], **options) for table in (first, second))
        low, high = geometry.node_bootstrap(a, b, resamples=config.resamples, seed=config.seed)
        r = geometry.cosine_correlation(a, b)
        yield {"measure": "r of a large sample", "value": r, "low": low, "high": high, "n": len(a)}
    sample = order[: config.null_tokens]
    a, b = (geometry.unit_rows(table, **options)[sample] for table in (first, second))
    explicit = geometry.cosine_correlation_explicit(a, b)
    yield {"measure": "r of the sample, explicit matrices", "value": explicit, "n": len(a)}
    if not options["without"]:
        null = geometry.random_table_null(
            first, second, tokens=len(sample), draws=config.random_tables, seed=config.seed, **options
        )
        yield from shared_tokens.null_rows("random tables", explicit, null)
    ranks = [pair_scores.standardise(rows @ rows.T, ranks=True) for rows in (a, b)]
    rho = pair_scores.correlation(*ranks)
    low, high = pair_scores.node_bootstrap(*ranks, resamples=config.resamples, seed=config.seed)
    yield {"measure": "rank correlation", "value": rho, "low": low, "high": high, "n": len(a)}
    for name, groups in ((RELABELLED, None), (WITHIN_BINS, bins[sample])):
        null = pair_scores.permutation_null(
            *ranks, permutations=config.rank_permutations, seed=config.seed, groups=groups
        )
        yield from shared_tokens.null_rows(f"rank correlation, {name}", rho, null)


def _noise_row(config: Config, first: np.ndarray, second: np.ndarray, options: Mapping[str, Any]) -> Row:
    """How far r moves if both tables were rounded to 8 bits once more."""
    clean = [geometry.unit_rows(table, **options) for table in (first, second)]
    noisy = [
        geometry.unit_rows(table + geometry.quantisation_noise(table, config.seed + place), **options)
        for place, table in enumerate((first, second))
    ]
    moved = abs(geometry.cosine_correlation(*noisy) - geometry.cosine_correlation(*clean))
    return {"measure": "change of r under 8-bit noise", "value": moved, "n": len(first)}


def _other_rows(config: Config, first: np.ndarray, second: np.ndarray, order: np.ndarray) -> Iterator[Row]:
    compared = similarity.compare_spaces(first, second, relabellings=config.relabellings, seed=config.seed)
    for name, found in compared.items():
        yield {"measure": name, "value": found.value, "low": found.low, "high": found.high, "n": len(first)}
        side = "less" if name == similarity.PROCRUSTES else "greater"
        yield from shared_tokens.null_rows(f"{name}, {RELABELLED}", found.value, found.null, side)
    asked = order[: config.neighbour_tokens]
    near = [similarity.neighbours_of(table, asked, config.neighbours) for table in (first, second)]
    shares = similarity.shared_neighbours(*near)
    low, high = statistics.bootstrap(shares, config.seed)
    yield {"measure": "shared neighbours", "value": shares.mean(), "low": low, "high": high, "n": len(asked)}
    draw = np.random.default_rng(config.seed)
    others = (draw.permutation(len(asked)) for _ in range(config.relabellings))
    null = np.array([similarity.shared_neighbours(near[0], near[1][other]).mean() for other in others])
    yield from shared_tokens.null_rows(f"shared neighbours, {RELABELLED}", float(shares.mean()), null)


def figure(table: pl.DataFrame) -> Figure:
    """Correlations of all pairs as heat maps, and every measure beside its nulls.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return global_geometry.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before this code was written.

    Args:
        table: As from `run`.

    Returns:
        For each pair of models that they share their geometry; for pairs that were measured before, that the numbers
        come out again; that the closed form is exact and the rounding of the weights without effect.
    """
    return list_claims(table)
