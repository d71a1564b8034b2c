"""Models of one family, whose truth is known: is their geometry shared, and does a vector of one steer another?

The models are small, of two widths and several seeds, and were trained on the same texts of a generated language; some
have an unembedding of their own. Texts of the language are formal or casual, and nothing but the words tells which. A
vector from formal minus casual texts of one model is carried to another by a linear map between their unembeddings,
added in the middle of it, and judged by the formal and casual twins of verbs that built no vector.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping

import polars as pl
from matplotlib.figure import Figure

from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.family import claims, steered, tables, vectors
from jaxinterp.figures import family
from jaxinterp.models.language_model import LanguageModel

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

COLUMNS = {
    **dict.fromkeys(("part", "first", "second", "tied", "table", "method", "measure"), pl.String),
    **dict.fromkeys(("depth", "scale", "value", "low", "high"), pl.Float64),
    **dict.fromkeys(("draw", "n"), pl.Int64),
    **dict.fromkeys(("control", "chosen"), pl.Boolean),
    "text": pl.String,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the experiment on models of one family."""

    directions: tuple[str, ...] = (
        "narrow-0 to wide-0",
        "wide-0 to narrow-0",
        "narrow-1 to wide-1",
        "wide-1 to narrow-1",
        "untied-0 to untied-1",
        "untied-1 to untied-0",
    )
    """Which models' vectors are carried to which; the criterion is about the pairs of tied models among them."""
    depth: float = 0.5
    """Share of the blocks after which a vector is added, where effects are compared."""
    scale: float = 1.0
    """Length of the vectors there, in units of the target's own vector."""
    depths: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Other depths that are shown; at the full depth a vector only acts on the unembedding."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Other lengths that are shown."""
    contrasts: int = 120
    """Pairs of a formal and a casual text from which vectors are made."""
    prompts: int = 48
    """Beginnings on which effects are measured."""
    random_vectors: int = 100
    """Random vectors for each direction."""
    shuffled_maps: int = 20
    """Maps fitted on wrongly paired tokens, for each direction."""
    held_out: float = 0.2
    """Share of the tokens on which maps are judged that were fitted on the others."""
    neighbours: int = 10
    """Nearest neighbours whose overlap is measured."""
    permutations: int = 1000
    """Relabellings of tokens in the permutation tests."""
    rank_bins: int = 10
    """Bins of frequency rank within which the second test relabels."""
    resamples: int = 2000
    """Of the bootstraps."""
    sample_prompts: int = 2
    """Beginnings that are written on under each vector, for each direction."""
    sample_tokens: int = 24
    """Length of these texts, in tokens."""
    seed: int = 0
    """Of everything drawn."""


def run(config: Config, models: Mapping[str, LanguageModel]) -> pl.DataFrame:
    """Compare the tables of every pair of models, and steer along the directions.

    Args:
        config: Settings.
        models: Models that read the small language, by the names that `directions` uses; two or more.

    Returns:
        One row per number. `part`: geometry (`measure`: r, relabelled, relabelled within rank bins, p, neighbours),
        map (top-1 and cosine on held-out tokens), model (split-half cosine of its vector, effect of formal against
        casual texts), effect (in nats), direct path (the effect of the same vector after the last block), ratio
        (effect as a share of the native vector's), sample (`text`). `first` and `second` are the models; vectors go
        from the first to the second. `tied` says which of them have tied embeddings (both, one, neither), `table`
        what is compared, `method` how, or which vector. `chosen` marks the depth and scale where effects are compared.
        Intervals: node bootstrap (r), bootstrap over tokens or prompts, middle 95 % (nulls).

    Raises:
        ValueError: Fewer than two models are given, a direction names one that is not, or a model does not read the
            small language.
    """
    pairs = _pairs(config, models)
    steering = {name: models[name] for name in models if any(name in pair for pair in pairs)}
    judged = {name: vectors.held_out_pairs(model) for name, model in steering.items()}
    rows: list[dict] = []
    for first, second in itertools.combinations(models, 2):
        _LOG.info("tables of %s and %s", first, second)
        rows += [row | _labels(models, first, second) for row in tables.compare(config, models[first], models[second])]
    own = {name: vectors.own_vectors(config, model) for name, model in steering.items()}
    for name, model in steering.items():
        found = vectors.describe(config, model, own[name], judged[name])
        rows += [row | {"first": name, "second": name} for row in found]
    for first, second in pairs:
        _LOG.info("vectors of %s in %s", first, second)
        found = steered.steer(config, models[first], models[second], own[first], own[second], judged[second])
        rows += [row | _labels(models, first, second) for row in found]
    empty = dict.fromkeys(COLUMNS) | {"control": False}
    return pl.DataFrame([empty | row for row in rows], schema=COLUMNS)


def _pairs(config: Config, models: Mapping[str, LanguageModel]) -> list[tuple[str, str]]:
    if len(models) < 2:
        raise ValueError(f"{len(models)} models are given; pass two or more of one family, each with a name of its own")
    pairs = []
    for direction in config.directions:
        first, _, second = direction.partition(" to ")
        missing = [name for name in (first, second) if name not in models]
        if missing:
            raise ValueError(
                f"the direction '{direction}' names {' and '.join(map(repr, missing))}, but the models are "
                f"{', '.join(models)}; write 'one to other'"
            )
        pairs.append((first, second))
    return pairs


def _labels(models: Mapping[str, LanguageModel], first: str, second: str) -> dict:
    tied = sum(models[name].architecture.tied for name in (first, second))
    return {"first": first, "second": second, "tied": ("neither", "one", "both")[tied]}


def figure(table: pl.DataFrame) -> Figure:
    """The agreement of every pair of models, and the effects of native, carried and control vectors.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return family.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before any model was trained.

    Args:
        table: As from `run`.

    Returns:
        Claims on the tables of tied and untied models, one for each direction between tied models, one for all.
    """
    return claims.check(table)
