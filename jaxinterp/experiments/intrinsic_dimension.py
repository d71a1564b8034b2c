"""How many dimensions do a token's neighbours spread over, do models agree on it, and is it about meaning?

For tokens that all models share: principal components that explain 95 % of the variance of the nearest neighbours,
against points without structure; its correlation across models, also with frequency and row norm held constant; and the
share of neighbours that WordNet relates to the token, where the dimension is low and where it is high.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import statistics, token_agreement
from jaxinterp.analysis.coherence import semantic_coherence
from jaxinterp.analysis.intrinsic_dimension import (
    LocalDimension,
    gaussian_table,
    local_dimension,
    two_nearest_dimension,
)
from jaxinterp.analysis.neighbours import Metric, nearest_neighbours
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.embedding_geometry import dimension_claims
from jaxinterp.experiments.embedding_geometry.bootstrapped import Bootstrap
from jaxinterp.experiments.embedding_geometry.drawn_words import DrawnWords, draw_words
from jaxinterp.experiments.embedding_geometry.shared_tokens import RELABELLED, WITHIN_BINS, bins_of_rank, null_rows
from jaxinterp.figures import token_dimensions
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import wordnet

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

VARIANTS: dict[str, tuple[Metric, float, bool]] = {
    "as above": ("cosine", 0.95, True),
    "Euclidean neighbours": ("euclidean", 0.95, True),
    "90 % of the variance": ("cosine", 0.90, True),
    "99 % of the variance": ("cosine", 0.99, True),
    "among all tokens of the model": ("cosine", 0.95, False),
}
"""Metric, threshold, and whether neighbours are shared tokens."""
DECILES = 10
_COLUMNS = ("part", "measure", "model", "other", "k", "variant", "place", "token", "text", "value", "low", "high", "n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on intrinsic dimension."""

    neighbours: tuple[int, ...] = (20, 100, 400, 1200)
    """Sizes of the neighbourhood, in rising order; the last one is that of the criteria on dimension."""
    queries: int = 1800
    """Words whose dimension is measured."""
    coherence_size: int = 100
    """Size of the neighbourhood of the criteria on coherence and of the variants; one of `neighbours`."""
    coherence_neighbours: int = 50
    """Nearest words that are looked up in WordNet."""
    gaussian_queries: int = 100
    """Points of each table without structure whose dimension is measured; it has as many rows as tokens are shared."""
    variant_queries: int = 500
    """Words that metric, threshold and pool are varied for."""
    global_tokens: int = 10_000
    """Tokens that the dimension of the whole table is measured on."""
    examples: int = 8
    """Words of lowest, and of highest, dimension that are shown for each model."""
    rank_bins: int = 20
    """Bins of token rank within which the rank-matched test relabels; rank stands for frequency."""
    permutations: int = 1000
    """Relabellings of tokens."""
    resamples: int = 1000
    """Bootstrap resamples of tokens."""
    seed: int = 0
    """Of the words drawn, the points without structure, the relabellings and the bootstrap."""

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are made."""
        return Bootstrap(self.resamples, self.seed)


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Measure the dimensions in every model, compare them, and hold them against WordNet.

    Args:
        config: Settings.
        models: One or more models with tokenizers, under any names.

    Returns:
        Columns `part` (tokens, dimension, variant, whole, agreement, coherence, word, example), `measure`, `model`,
        `other` (the second model of a pair), `k` (neighbours), `variant` (what was varied, or the table without
        structure), `place` (decile of dimension, or place among the examples), `token`, `text` (an example's
        neighbours), `value`, `low`, `high`, `n`, `control`. Intervals: bootstrap over tokens; for relabelled tokens the
        range of the middle 95 %.

    Raises:
        ValueError: The models share too few tokens, or the settings do not fit each other.
    """
    if sorted(set(config.neighbours)) != list(config.neighbours):
        raise ValueError(f"neighbours are {config.neighbours}; give sizes in rising order")
    if config.coherence_size not in config.neighbours:
        raise ValueError(f"coherence_size is {config.coherence_size}; give one of the neighbours {config.neighbours}")
    drawn = draw_words(models, config.queries, config.seed)
    rows: list[dict[str, Any]] = [
        {"part": "tokens", "measure": f"shared {what}", "value": len(some), "n": len(some)}
        for what, some in (("tokens", drawn.shared.keys), ("words", drawn.words))
    ]
    found: dict[str, dict[int, LocalDimension]] = {}
    scores: dict[str, np.ndarray] = {}
    for name, table in drawn.shared.rows.items():
        _LOG.info("dimensions in %s (%d tokens)", name, len(table))
        near, _ = nearest_neighbours(table, config.neighbours[-1], rows=drawn.queries)
        found[name] = _dimensions(config, table, near)
        measured = itertools.chain(
            _dimension_rows(config, drawn, name, found[name]),
            _reference_rows(config, table, found[name]),
            _variant_rows(config, drawn, name),
            _word_rows(config, drawn, near, found[name]),
        )
        rows += [{"model": name} | row for row in measured]
        _LOG.info("coherence of neighbours in %s", name)
        scores[name], chance = _coherence(config, drawn, table)
        rows += [{"model": name} | row for row in _coherence_rows(config, drawn, name, scores[name], found[name])]
        rows.append({"model": name} | chance)
    for name, other in itertools.combinations(models, 2):
        measured = _pair_rows(config, drawn, (name, other), found, scores)
        rows += [{"model": name, "other": other} | row for row in measured]
    empty = dict.fromkeys(_COLUMNS) | {"control": False}
    frame = pl.DataFrame([empty | row for row in rows], infer_schema_length=None)
    return frame.with_columns(pl.col("value", "low", "high").cast(pl.Float64), pl.col("k", "place", "n").cast(pl.Int64))


def _dimensions(config: Config, table: np.ndarray, near: np.ndarray) -> dict[int, LocalDimension]:
    return {k: local_dimension(table, near[:, :k]) for k in config.neighbours}


def _dimension_rows(
    config: Config, drawn: DrawnWords, name: str, found: Mapping[int, LocalDimension]
) -> Iterator[dict[str, Any]]:
    for k, of in found.items():
        mark = {"part": "dimension", "k": k}
        yield mark | config.bootstrap.row("components", of.components)
        yield mark | config.bootstrap.row("participation ratio", of.participation)
        explained = drawn.rank_and_norm(name)
        for what, numbers in zip(("token rank", "row norm"), explained.T, strict=True):
            both = np.column_stack([of.components, numbers])
            yield mark | config.bootstrap.row(f"Spearman with {what}", both, _spearman)


def _reference_rows(config: Config, table: np.ndarray, found: Mapping[int, LocalDimension]) -> Iterator[dict[str, Any]]:
    """Tables without structure: their dimensions, how far the model's lie below, and the dimension of the whole."""
    rng = np.random.default_rng(config.seed)
    few = rng.permutation(len(table))[: config.global_tokens]
    yield {"part": "whole"} | _whole_row(config, table[few])
    for reference, covariance in zip(dimension_claims.GAUSSIANS, (False, True), strict=True):
        _LOG.info("%s", reference)
        points = gaussian_table(table, len(table), config.seed, covariance=covariance)
        yield {"part": "whole", "variant": reference, "control": True} | _whole_row(config, points[few])
        asked = np.arange(min(config.gaussian_queries, len(points)))
        near, _ = nearest_neighbours(points, config.neighbours[-1], rows=asked)
        for k, without in _dimensions(config, points, near).items():
            mark = {"part": "dimension", "k": k, "variant": reference, "control": True}
            yield mark | config.bootstrap.row("components", without.components)
            yield mark | config.bootstrap.row("participation ratio", without.participation)
            values = found[k].components
            draws = (rng.integers(0, len(some), (config.resamples, len(some))) for some in (values, without.components))
            means = [some[draw].mean(axis=1) for some, draw in zip((values, without.components), draws, strict=True)]
            low, high = np.quantile(1 - means[0] / means[1], [0.025, 0.975])
            below = {"value": 1 - values.mean() / without.components.mean(), "low": low, "high": high}
            yield mark | below | {"measure": "share below", "n": len(values), "control": False}
        k = config.neighbours[-1]
        mark = {"part": "word", "measure": "components", "k": k, "variant": reference, "n": 1, "control": True}
        yield from (mark | {"value": value} for value in without.components)


def _whole_row(config: Config, rows: np.ndarray) -> dict[str, Any]:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, away = nearest_neighbours(rows, 2, "euclidean")
    return config.bootstrap.row("two nearest neighbours", away, lambda some: two_nearest_dimension(*some.T))


def _variant_rows(config: Config, drawn: DrawnWords, name: str) -> Iterator[dict[str, Any]]:
    """The mean dimension with another metric, another threshold, or neighbours that other models need not have."""
    k = config.coherence_size
    for variant, (metric, threshold, among_shared) in VARIANTS.items():
        table, rows = (drawn.shared.rows[name], drawn.queries) if among_shared else drawn.among_all(name)
        near, _ = nearest_neighbours(table, k, metric, rows=rows[: config.variant_queries])
        of = local_dimension(table, near, threshold=threshold)
        yield {"part": "variant", "k": k, "variant": variant} | config.bootstrap.row("components", of.components)


def _word_rows(
    config: Config, drawn: DrawnWords, near: np.ndarray, found: Mapping[int, LocalDimension]
) -> Iterator[dict[str, Any]]:
    """Each word's dimension, and words of the lowest and highest with their neighbours."""
    k = config.neighbours[-1]
    values = found[k].components
    words = [drawn.text(token) for token in drawn.queries]
    for word, value in zip(words, values, strict=True):
        yield {"part": "word", "measure": "components", "k": k, "token": word, "value": value, "n": 1}
    order = np.argsort(values, kind="stable")
    for kind, chosen in (("lowest", order[: config.examples]), ("highest", order[::-1][: config.examples])):
        for place, row in enumerate(chosen):
            others = dict.fromkeys(drawn.text(token).lower() for token in near[row])
            text = ", ".join([other for other in others if other != words[row].lower()][:8])
            shown = {"part": "example", "measure": kind, "k": k, "place": place, "token": words[row], "text": text}
            yield shown | {"value": values[row], "n": 1}


def _coherence(config: Config, drawn: DrawnWords, table: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Each query's share of related neighbours, NaN where there is none; and the share among random words."""
    asked = np.searchsorted(drawn.words, drawn.queries)
    near, _ = nearest_neighbours(table[drawn.words], config.coherence_neighbours, rows=asked)
    random = np.random.default_rng(config.seed).integers(0, len(drawn.words), near.shape)
    words, net = [drawn.text(token) for token in drawn.words], wordnet.load()
    queries = [words[place] for place in asked]
    scores, by_chance = (
        semantic_coherence(queries, [[words[place] for place in row] for row in rows], net) for rows in (near, random)
    )
    chance = config.bootstrap.row("of random words", by_chance[~np.isnan(by_chance)])
    return scores, {"part": "coherence", "control": True} | chance


def _coherence_rows(
    config: Config, drawn: DrawnWords, name: str, scores: np.ndarray, found: Mapping[int, LocalDimension]
) -> Iterator[dict[str, Any]]:
    def ratio(both: np.ndarray) -> float:
        lowest, *_, highest = _deciles(both)
        return lowest.mean() / max(highest.mean(), 1 / (config.coherence_neighbours * len(highest)))

    known = np.flatnonzero(~np.isnan(scores))
    if len(known) < 2 * DECILES:
        raise ValueError(
            f"WordNet has {len(known)} of {len(scores)} words of {name}, but {2 * DECILES} are needed; raise queries, "
            "or take models of English"
        )
    yield {"part": "coherence"} | config.bootstrap.row("of neighbours", scores[known])
    given = token_agreement.ranks(drawn.rank_and_norm(name)[known])
    for k, of in found.items():
        both = np.column_stack([of.components[known], scores[known]])
        mark = {"part": "coherence", "k": k}
        correlation = config.bootstrap.row("Spearman", both, _spearman)
        null = token_agreement.relabelled(
            *token_agreement.ranks(both).T, permutations=config.permutations, seed=config.seed
        )
        yield mark | correlation
        yield from (mark | row for row in null_rows("Spearman, relabelled", correlation["value"], null, "less"))
        both_given = np.hstack([token_agreement.ranks(both), given])
        yield mark | config.bootstrap.row("Spearman given rank and norm", both_given, _partial)
        for place, decile in enumerate(_deciles(both)):
            yield mark | {"place": place} | config.bootstrap.row("by decile", decile)
        if k == config.coherence_size:
            yield mark | config.bootstrap.row("lowest / highest decile", both, ratio)


def _deciles(both: np.ndarray) -> list[np.ndarray]:
    """Scores of the words in each tenth of the dimensions, lowest first; `both` is dimension and score, [word, 2]."""
    return np.array_split(both[np.argsort(both[:, 0], kind="stable"), 1], DECILES)


def _pearson(rows: np.ndarray) -> float:
    return token_agreement.pearson(rows[:, 0], rows[:, 1])


def _spearman(rows: np.ndarray) -> float:
    return statistics.spearman(rows[:, 0], rows[:, 1])


def _partial(rows: np.ndarray) -> float:
    """The correlation of the first two columns given the others."""
    return token_agreement.partial_correlation(rows[:, 0], rows[:, 1], rows[:, 2:])


def _pair_rows(
    config: Config,
    drawn: DrawnWords,
    pair: tuple[str, str],
    found: Mapping[str, Mapping[int, LocalDimension]],
    scores: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    given = np.hstack([drawn.rank_and_norm(name) for name in pair])
    bins = bins_of_rank(drawn.shared.ids[pair[0]][drawn.queries], config.rank_bins)
    for k in config.neighbours:
        first, second = (found[name][k] for name in pair)
        both = np.column_stack([first.components, second.components]).astype(np.float64)
        mark = {"part": "agreement", "k": k}
        agreement = config.bootstrap.row("Pearson", both, _pearson)
        yield mark | agreement
        yield mark | config.bootstrap.row("Pearson given rank and norm", np.hstack([both, given]), _partial)
        ratios = np.column_stack([first.participation, second.participation])
        yield mark | config.bootstrap.row("Pearson of participation ratios", ratios, _pearson)
        for name, groups in ((RELABELLED, None), (WITHIN_BINS, bins)):
            null = token_agreement.relabelled(
                *both.T, permutations=config.permutations, seed=config.seed, groups=groups
            )
            yield from (mark | row for row in null_rows(name, agreement["value"], null))
    both = np.column_stack([scores[name] for name in pair])
    both = both[~np.isnan(both).any(axis=1)]
    yield {"part": "agreement"} | config.bootstrap.row("Spearman of coherence", both, _spearman)


def figure(table: pl.DataFrame) -> Figure:
    """The dimensions of each model beside tables without structure, the agreement, and coherence by dimension.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return token_dimensions.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before this code was written.

    Args:
        table: As from `run`.

    Returns:
        Claims on dimension for each model, on agreement for each pair of models, and on coherence for each model.
    """
    return dimension_claims.judge(table)
