"""How alike the tables of two models are that share a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.analysis import geometry, neighbours, similarity, statistics
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies

if TYPE_CHECKING:
    from jaxinterp.experiments.within_family import Config

TABLES = ("W_E", "W_U")
VARIANTS = {"raw": {"centred": False}, "centred": {"centred": True}}
"""What is done to the rows before their cosines are taken."""


def tables(model: LanguageModel) -> dict[str, np.ndarray]:
    """The embedding and the unembedding of a model, [vocabulary, embedding] each; the same for a tied one."""
    weights = model.weights()
    return {
        "W_E": np.asarray(weights["W_E"], np.float32),
        "W_U": np.asarray(weights.get("W_U", weights["W_E"]), np.float32),
    }


def compare(config: Config, first: LanguageModel, second: LanguageModel) -> Iterator[dict]:
    """Compares the tables of two models over the tokens that they share.

    Args:
        config: Settings.
        first: One model.
        second: The other.

    Yields:
        Rows of the correlation of all pairwise cosines, its nulls, and the overlap of nearest neighbours.
    """
    if first.architecture.tied and second.architecture.tied:
        for row in _compare(config, first, second, TABLES[:1]):
            yield from (row | {"table": name} for name in TABLES)
    else:
        yield from _compare(config, first, second, TABLES)


def _compare(config: Config, first: LanguageModel, second: LanguageModel, names: Sequence[str]) -> Iterator[dict]:
    matched = vocabularies.match_tokens(first.require_tokenizer(), second.require_tokenizer())
    bins = np.arange(len(matched)) * config.rank_bins // len(matched)
    both = tables(first), tables(second)
    for name in names:
        here, there = both[0][name][matched.source], both[1][name][matched.target]
        for variant, options in VARIANTS.items():
            a, b = geometry.unit_rows(here, **options), geometry.unit_rows(there, **options)
            labels = {"part": "geometry", "table": name, "method": variant, "n": len(a)}
            r = geometry.cosine_correlation(a, b)
            low, high = geometry.node_bootstrap(a, b, resamples=config.resamples, seed=config.seed)
            yield labels | {"measure": "r", "value": r, "low": low, "high": high}
            for null_name, groups in (("relabelled", None), ("relabelled within rank bins", bins)):
                null = geometry.permutation_null(
                    a, b, permutations=config.permutations, seed=config.seed, groups=groups
                )
                low, high = np.quantile(null, [0.025, 0.975])
                row = labels | {"n": len(null)}
                yield row | {"measure": null_name, "value": null.mean(), "low": low, "high": high, "control": True}
                yield row | {"measure": f"p, {null_name}", "value": statistics.permutation_p(r, null)}
        nearest = [neighbours.nearest_neighbours(table, config.neighbours)[0] for table in (here, there)]
        shared = similarity.shared_neighbours(*nearest)
        low, high = statistics.bootstrap(shared, config.seed, n=config.resamples)
        labels = {"part": "geometry", "table": name, "method": "cosine", "n": len(shared)}
        yield labels | {"measure": "neighbours", "value": shared.mean(), "low": low, "high": high}
        by_chance = config.neighbours / (len(shared) - 1)
        yield labels | {"measure": "neighbours of unrelated tables", "value": by_chance, "control": True}
