"""Do models rebuild a token from the same neighbours with the same weights?

Each token's embedding is written as a weighted sum of its nearest neighbours' (locally linear embedding). The weights
are one sparse row per token, indexed by tokens, so rows of models of any width can be compared: by their cosine over
the union of neighbours, each model with its own; and with one model's neighbours in both.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import intrinsic_dimension, neighbourhoods, pair_scores, statistics
from jaxinterp.analysis.neighbour_search import Metric
from jaxinterp.analysis.neighbours import locally_linear_weights, nearest_neighbours
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.embedding_geometry import local_claims, shared_tokens
from jaxinterp.experiments.embedding_geometry.local_claims import OWN, WITHOUT_SPELLINGS
from jaxinterp.experiments.embedding_geometry.shared_tokens import RELABELLED, WITHIN_BINS
from jaxinterp.figures import local_geometry as drawing
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

SAME = "same neighbours"
GAUSSIAN, ANOTHER, RANDOM = "Gaussian tables", "another token's weights", "random neighbours"
_COLUMNS = ("pair", "first", "second", "tokens", "metric", "k", "part", "measure", "model", "null", "token", "place")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on local geometry."""

    table: Literal["W_E", "W_U"] = "W_E"
    """The embedding or the unembedding; the same where a model ties them."""
    queries: int = 4000
    """Tokens that are compared, drawn at random from each list; all shared tokens are their possible neighbours."""
    neighbours: tuple[int, ...] = (10, 20, 50)
    """Sizes of the neighbourhood; the first one is also tried with Euclidean distance, words and Gaussian tables."""
    regularisation: float = 1e-3
    """Of the weights, as a share of the trace of each neighbourhood's Gram matrix."""
    relabellings: int = 100
    """Times that tokens are relabelled at random for each null of the first size with cosines."""
    other_relabellings: int = 20
    """Times that they are in the other settings."""
    rank_bins: int = 20
    """Bins of token rank within which the rank-matched null relabels; rank stands for frequency."""
    resamples: int = 2000
    """Bootstrap resamples of tokens."""
    bins: int = 24
    """Bars of the histogram of cosines."""
    shown: tuple[str, ...] = (" October", " seventeen", " Belgium", " doctor", " although", " guitar")
    """Tokens whose neighbours are written out, where the models share them."""
    shown_at_random: int = 4
    """Words drawn at random whose neighbours are written out too."""
    seed: int = 0
    """Of the sample, the relabellings, the Gaussian tables and the bootstrap."""


@dataclasses.dataclass(frozen=True)
class _Setting:
    """One way to ask the question: which tokens, which distance, how many neighbours."""

    tokens: str
    metric: Metric
    k: int


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Compare the neighbourhoods of every pair of models.

    Args:
        config: Settings.
        models: Two or more models with tokenizers, under any names.

    Returns:
        A row for each number. `pair`, `first`, `second` (where the models are from), `tokens` (all or words), `metric`
        and `k` say of what; `part` is own neighbours (also without weight on other spellings of the token), same
        neighbours, overlap, error, histogram or examples; `measure` says which number, `model` whose neighbours or
        error, `null` which comparison. `value`, `low`, `high`, `n`, `control`. Intervals: bootstrap over tokens, Wilson
        (shares); of relabellings their middle 95 %. Examples have the neighbours in `text`, nearest first, and in
        `value` the cosine of the token's two rows.

    Raises:
        ValueError: There are fewer than two models, one has no such table, or they share too few tokens.
    """
    if len(models) < 2:
        raise ValueError(f"local geometry compares two or more models, and {len(models)} was given; name another")
    tables = {role: shared_tokens.read_table(model, config.table) for role, model in models.items()}
    rows: list[dict] = []
    for first, second in itertools.combinations(models, 2):
        shared = shared_tokens.share({role: tables[role] for role in (first, second)})
        marks = {
            "pair": f"{first} and {second}",
            "first": tables[first].source,
            "second": tables[second].source,
        }
        rows += [marks | row for row in _pair_rows(config, shared, (first, second))]
    numbers = ("value", "low", "high", "n", "control", "text")
    empty = dict.fromkeys((*_COLUMNS, *numbers)) | {"control": False}
    table = pl.DataFrame([empty | row for row in rows], infer_schema_length=None).select(list(empty))
    return table.with_columns(
        pl.col("value", "low", "high", "place").cast(pl.Float64),
        pl.col("k", "n").cast(pl.Int64),
        pl.col("model", "null", "token", "text").cast(pl.String),
    )


def _pair_rows(config: Config, shared: shared_tokens.SharedTokens, pair: tuple[str, str]) -> Iterator[dict]:
    words = np.flatnonzero(vocabularies.are_words(shared.keys))
    needed = max(config.neighbours) + 1
    _, spellings = np.unique([key.strip().lower().hex() for key in shared.keys], return_inverse=True)
    lists = {"all": np.arange(len(shared)), "words": words}
    if len(shared) <= needed:
        raise ValueError(
            f"{pair[0]} and {pair[1]} share {len(shared)} trained tokens, too few for {needed - 1} neighbours of each; "
            "lower neighbours or take models that share more"
        )
    main = config.neighbours[0]
    settings = [("all", "cosine", config.neighbours), ("all", "euclidean", (main,)), ("words", "cosine", (main,))]
    for tokens, metric, sizes in settings:
        members = lists[tokens]
        if len(members) <= max(sizes):
            _LOG.info("%s and %s share %d %s: left out", *pair, len(members), tokens)
            continue
        _LOG.info("%s and %s: %s neighbours among %d tokens (%s)", *pair, metric, len(members), tokens)
        here = (shared.rows[pair[0]][members], shared.rows[pair[1]][members])
        asked = _sample(config, len(members))
        found = [nearest_neighbours(table, max(sizes), metric, rows=asked)[0] for table in here]
        bins = shared_tokens.bins_of_rank(shared.ids[pair[0]][members], config.rank_bins)
        for k in sizes:
            setting = _Setting(tokens, metric, k)
            near = [indices[:, :k] for indices in found]
            yield from _setting_rows(config, setting, here, asked, near, bins, spellings[members], pair)
    yield from _example_rows(config, shared, pair, words)


def _sample(config: Config, n: int) -> np.ndarray:
    return np.sort(np.random.default_rng(config.seed).permutation(n)[: config.queries])


def _setting_rows(
    config: Config,
    setting: _Setting,
    tables: Sequence[np.ndarray],
    asked: np.ndarray,
    near: Sequence[np.ndarray],
    bins: np.ndarray,
    spellings: np.ndarray,
    pair: tuple[str, str],
) -> Iterator[dict]:
    found = neighbourhoods.in_two_tables(tables, asked, near, config.regularisation)
    main = setting == _Setting("all", "cosine", config.neighbours[0])
    if not main:
        config = dataclasses.replace(config, relabellings=config.other_relabellings)
    own, overlap = found.cosines(), neighbourhoods.overlap(*found.near)
    same, same_nulls = _same_neighbours(config, found, pair)
    means = [({"part": OWN, "measure": "mean cosine"}, own)]
    means += [({"part": "overlap", "measure": "shared neighbours"}, overlap), *same, *_errors(config, found, pair)]
    rows = [*_other_own_rows(config, own), *same_nulls, *_null_rows(config, found, bins)]
    if main:
        bare = _without_spellings(found, spellings)
        means.append(({"part": WITHOUT_SPELLINGS, "measure": "mean cosine"}, bare.cosines()))
        rows += [row | {"part": WITHOUT_SPELLINGS} for row in _null_rows(config, bare, bins) if row["part"] == OWN]
        drawn = _gaussian(config, setting, found)
        means += _gaussian_values(drawn, pair)
        (order,) = pair_scores.relabellings(len(bins), 1, config.seed, _groups(bins, found.asked))
        shapes = {"": own, WITHIN_BINS: found.relabelled(order)[0], GAUSSIAN: drawn.cosines()}
        rows += _histogram_rows(config, shapes)
    for row in [*_mean_rows(config, means), *rows]:
        yield dataclasses.asdict(setting) | row


def _mean_rows(config: Config, named: Sequence[tuple[dict, np.ndarray]]) -> Iterator[dict]:
    """Means over the same tokens, which are drawn together for all of them."""
    values = np.stack([column for _, column in named], axis=1)
    lows, highs = statistics.bootstrap_means(values, config.seed, config.resamples)
    for (marks, column), low, high in zip(named, lows, highs, strict=True):
        yield marks | {"value": column.mean(), "low": low, "high": high, "n": len(column)}


def _other_own_rows(config: Config, own: np.ndarray) -> Iterator[dict]:
    part = {"part": OWN, "n": len(own)}
    low, high = statistics.bootstrap(own, config.seed, np.median, config.resamples)
    yield part | {"measure": "median cosine", "value": np.median(own), "low": low, "high": high}
    above = int((own > 0.5).sum())
    low, high = statistics.wilson(above, len(own))
    yield part | {"measure": "share above 0.5", "value": above / len(own), "low": low, "high": high}


def _without_spellings(found: neighbourhoods.InTwoTables, spellings: np.ndarray) -> neighbourhoods.InTwoTables:
    """The same, with no weight on neighbours that are the token itself but for case and spaces."""
    weights = [
        np.where(spellings[near] == spellings[found.asked][:, None], 0, own)
        for near, own in zip(found.near, found.weights, strict=True)
    ]
    return dataclasses.replace(found, weights=(weights[0], weights[1]))


def _groups(bins: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Groups that keep the asked tokens, whose neighbourhoods are known, apart from the others."""
    is_asked = np.zeros(len(bins), np.int64)
    is_asked[asked] = 1
    return 2 * bins + is_asked


def _null_rows(config: Config, found: neighbourhoods.InTwoTables, bins: np.ndarray) -> Iterator[dict]:
    observed = found.cosines().mean(), neighbourhoods.overlap(*found.near).mean()
    for null, groups in ((RELABELLED, np.zeros_like(bins)), (WITHIN_BINS, bins)):
        kept = _groups(groups, found.asked)
        orders = pair_scores.relabellings(len(bins), config.relabellings, config.seed, kept)
        means = np.array([[values.mean() for values in found.relabelled(order)] for order in orders])
        yield from _against(OWN, "mean cosine", null, observed[0], means[:, 0])
        yield from _against("overlap", "shared neighbours", null, observed[1], means[:, 1])


def _against(part: str, measure: str, null: str, observed: float, drawn: np.ndarray) -> Iterator[dict]:
    """The null's mean and range, and the p-value of what was observed."""
    for row in shared_tokens.null_rows(null, observed, drawn):
        name = measure if row.get("control") else f"p of {measure}"
        yield row | {"part": part, "measure": name, "null": null}


def _same_neighbours(
    config: Config, found: neighbourhoods.InTwoTables, pair: tuple[str, str]
) -> tuple[list[tuple[dict, np.ndarray]], list[dict]]:
    """One model's neighbours in both, and as the null weights of other tokens in the order of the neighbours' ranks."""
    named, nulls = [], []
    for model, near, own, table in zip(pair, found.near, found.weights, reversed(found.tables), strict=True):
        other = locally_linear_weights(table, near, rows=found.asked, regularisation=config.regularisation)
        cosines = neighbourhoods.cosines(own, other)
        named.append(({"part": SAME, "measure": "mean cosine", "model": model}, cosines))
        orders = pair_scores.relabellings(len(own), config.relabellings, config.seed)
        drawn = np.array([neighbourhoods.cosines(own, other[order]).mean() for order in orders])
        rows = _against(SAME, "mean cosine", ANOTHER, float(cosines.mean()), drawn)
        nulls += [row | {"model": model} for row in rows]
    return named, nulls


def _errors(
    config: Config, found: neighbourhoods.InTwoTables, pair: tuple[str, str]
) -> Iterator[tuple[dict, np.ndarray]]:
    """How badly each token is rebuilt from its neighbours, and from random ones."""
    draw = np.random.default_rng(config.seed)
    for model, table, near, weights in zip(pair, found.tables, found.near, found.weights, strict=True):
        row = {"part": "error", "measure": "relative error", "model": model}
        yield row, neighbourhoods.reconstruction_errors(table, found.asked, near, weights)
        others = draw.integers(0, len(table) - 1, near.shape)
        others += others >= found.asked[:, None]
        weights = locally_linear_weights(table, others, rows=found.asked, regularisation=config.regularisation)
        errors = neighbourhoods.reconstruction_errors(table, found.asked, others, weights)
        yield row | {"null": RANDOM, "control": True}, errors


def _gaussian(config: Config, setting: _Setting, found: neighbourhoods.InTwoTables) -> neighbourhoods.InTwoTables:
    """The same with tables that have no structure but each table's mean and covariance."""
    drawn = [
        intrinsic_dimension.gaussian_table(table, len(table), seed, covariance=True)
        for table, seed in zip(found.tables, np.random.default_rng(config.seed).integers(2**32, size=2), strict=True)
    ]
    near = [nearest_neighbours(table, setting.k, setting.metric, rows=found.asked)[0] for table in drawn]
    return neighbourhoods.in_two_tables(drawn, found.asked, near, config.regularisation)


def _gaussian_values(drawn: neighbourhoods.InTwoTables, pair: tuple[str, str]) -> Iterator[tuple[dict, np.ndarray]]:
    marks = {"null": GAUSSIAN, "control": True}
    yield {"part": OWN, "measure": "mean cosine"} | marks, drawn.cosines()
    yield {"part": "overlap", "measure": "shared neighbours"} | marks, neighbourhoods.overlap(*drawn.near)
    for model, table, near, weights in zip(pair, drawn.tables, drawn.near, drawn.weights, strict=True):
        errors = neighbourhoods.reconstruction_errors(table, drawn.asked, near, weights)
        yield {"part": "error", "measure": "relative error", "model": model} | marks, errors


def _histogram_rows(config: Config, shapes: Mapping[str, np.ndarray]) -> Iterator[dict]:
    edges = np.linspace(-1, 1, config.bins + 1)
    for null, cosines in shapes.items():
        counts, _ = np.histogram(np.clip(cosines, -1, 1), edges)
        for left, count in zip(edges, counts, strict=False):
            low, high = statistics.wilson(int(count), len(cosines))
            numbers = {"value": count / len(cosines), "low": low, "high": high, "n": len(cosines)}
            marks = {"null": null or None, "control": bool(null)}
            yield {"part": "histogram", "measure": "share of tokens", "place": left} | numbers | marks


def _example_rows(
    config: Config, shared: shared_tokens.SharedTokens, pair: tuple[str, str], words: np.ndarray
) -> Iterator[dict]:
    """Neighbours of some tokens, written out; spaces become `·`, so that neighbours can be told apart."""
    draw = np.random.default_rng(config.seed)
    places = [shared.keys.index(text.encode()) for text in config.shown if text.encode() in shared.keys]
    places += sorted(set(draw.permutation(words)[: config.shown_at_random].tolist()) - set(places))
    if not places:
        return
    asked, k = np.array(places), config.neighbours[0]
    here = (shared.rows[pair[0]], shared.rows[pair[1]])
    near = [nearest_neighbours(table, k, rows=asked)[0] for table in here]
    found = neighbourhoods.in_two_tables(here, asked, near, config.regularisation)
    for place, cosine, *nears in zip(asked, found.cosines(), *found.near, strict=True):
        marks = {"tokens": "all", "metric": "cosine", "k": k, "part": "examples", "measure": "cosine", "n": 1}
        for model, near in zip(pair, nears, strict=True):
            text = " ".join(_visible(shared.keys[token]) for token in near)
            yield marks | {"token": _visible(shared.keys[place]), "model": model, "value": cosine, "text": text}


def _visible(key: bytes) -> str:
    text = key.decode(errors="replace").replace(" ", "·")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def figure(table: pl.DataFrame) -> Figure:
    """The cosines against their nulls, their distribution, and neighbours of some tokens side by side.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return drawing.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before this code was written.

    Args:
        table: As from `run`.

    Returns:
        Two claims for each pair of models, and five more for the pair that was measured before.
    """
    return local_claims.list_claims(table)
