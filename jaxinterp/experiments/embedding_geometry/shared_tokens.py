"""What experiments on token tables have in common: the rows of the tokens that models share, and their cosines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxinterp.analysis import geometry, statistics
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies
from jaxinterp.tasks.tokenizer import Tokenizer

Row = dict[str, Any]

VARIANTS = {
    "raw": {"centred": False, "without": 0},
    "centred": {"centred": True, "without": 0},
    "centred, 3 directions out": {"centred": True, "without": 3},
}
"""What is done to the rows before their cosines are taken."""

RELABELLED, WITHIN_BINS = "relabelled", "relabelled within rank bins"


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """One model's table with a row for each token.

    Attributes:
        source: Where the model is from.
        tokenizer: Its tokenizer.
        rows: Float32 [vocabulary, embedding].
        trained: Which rows were trained, as far as the table tells, boolean [vocabulary].
    """

    source: str
    tokenizer: Tokenizer
    rows: np.ndarray
    trained: np.ndarray


@dataclasses.dataclass(frozen=True)
class SharedTokens:
    """Trained tokens that several models share, matched by their bytes, in the order of the first model's ids.

    Attributes:
        keys: The bytes of each token.
        ids: Role -> ids in that model's vocabulary, int [token].
        rows: Role -> rows of that model's table, float32 [token, embedding].
    """

    keys: tuple[bytes, ...]
    ids: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How correlations are tested.

    Attributes:
        null_tokens: Tokens that the nulls are made on.
        permutations: Relabellings.
        rank_bins: Bins of token rank within which the rank-matched null relabels.
        rank_permutations: Relabellings within them.
        resamples: Bootstrap resamples of tokens.
        seed: Of all of them.
    """

    null_tokens: int
    permutations: int
    rank_bins: int
    rank_permutations: int
    resamples: int
    seed: int


def read_table(model: LanguageModel, name: Literal["W_E", "W_U"] = "W_E") -> TokenTable:
    """Reads one of a model's two token tables.

    Args:
        model: With a tokenizer.
        name: The embedding or the unembedding; the same table where the two are tied.

    Returns:
        The table.

    Raises:
        ValueError: The model has no tokenizer, or no such table.
    """
    rows = np.asarray(model.token_table(name), np.float32)
    return TokenTable(model.source, model.require_tokenizer(), rows, vocabularies.trained_rows(rows))


def share(tables: Mapping[str, TokenTable]) -> SharedTokens:
    """Finds the tokens that all of some tables have and were trained on.

    Args:
        tables: Role -> table, two or more.

    Returns:
        The tokens and their rows; possibly few or none that were trained.

    Raises:
        ValueError: The tokenizers share no token at all.
    """
    ids, keys = vocabularies.match_all([table.tokenizer for table in tables.values()])
    kept = np.all([table.trained[own] for table, own in zip(tables.values(), ids, strict=True)], axis=0)
    chosen = dict(zip(tables, ids[:, kept], strict=True))
    rows = {role: table.rows[chosen[role]] for role, table in tables.items()}
    return SharedTokens(tuple(key for key, keep in zip(keys, kept, strict=True) if keep), chosen, rows)


def bins_of_rank(ids: np.ndarray, count: int) -> np.ndarray:
    """Bins of equal size by id; in most vocabularies frequent tokens come first.

    Args:
        ids: Ids of all shared tokens, int [token].
        count: How many bins.

    Returns:
        Int [token].
    """
    return np.digitize(ids, np.quantile(ids, np.linspace(0, 1, count + 1)[1:-1]))


def null_rows(
    measure: str, observed: float, null: np.ndarray, alternative: statistics.Alternative = "greater"
) -> Iterator[Row]:
    """A null as two rows: its mean with the range of its middle 95 %, and the p-value of what was observed.

    Args:
        measure: Name of the null; that of the second row is "p, " and this.
        observed: The number with the true labels.
        null: The number of each relabelling.
        alternative: Which side counts as extreme.

    Yields:
        The rows.
    """
    low, high = np.quantile(null, [0.025, 0.975])
    yield {"measure": measure, "value": null.mean(), "low": low, "high": high, "n": len(null), "control": True}
    yield {"measure": f"p, {measure}", "value": statistics.permutation_p(observed, null, alternative), "n": len(null)}


def correlation_rows(
    first: np.ndarray,
    second: np.ndarray,
    options: Mapping[str, Any],
    sampling: Sampling,
    *,
    order: np.ndarray,
    bins: np.ndarray,
    words: np.ndarray,
) -> Iterator[Row]:
    """Correlates all pairwise cosines of two tables, and holds them against relabelled tokens.

    Args:
        first: Rows of one table [token, embedding].
        second: Rows of the other, the same tokens in the same order.
        options: What is done to the rows first, a value of `VARIANTS`.
        sampling: Sizes of the nulls.
        order: The tokens in random order, int [token]; the nulls are made on the first ones.
        bins: Each token's bin of rank, int [token].
        words: Which tokens are words, int [word].

    Yields:
        `measure` ("r" of all tokens, "r of the sample", each null and its "p", "r of words"), `value`, `low`, `high`,
        `n` and `control`.
    """
    a, b = geometry.unit_rows(first, **options), geometry.unit_rows(second, **options)
    yield from _correlated("r", a, b, sampling)
    sample = order[: sampling.null_tokens]
    some_a, some_b = a[sample], b[sample]
    r = geometry.cosine_correlation(some_a, some_b)
    yield {"measure": "r of the sample", "value": r, "n": len(sample)}
    tests = (RELABELLED, None, sampling.permutations), (WITHIN_BINS, bins[sample], sampling.rank_permutations)
    for name, groups, count in tests:
        null = geometry.permutation_null(some_a, some_b, permutations=count, seed=sampling.seed, groups=groups)
        yield from null_rows(name, r, null)
    if len(words) > 2:
        a, b = geometry.unit_rows(first[words], **options), geometry.unit_rows(second[words], **options)
        yield from _correlated("r of words", a, b, sampling)


def _correlated(measure: str, a: np.ndarray, b: np.ndarray, sampling: Sampling) -> Iterator[Row]:
    low, high = geometry.node_bootstrap(a, b, resamples=sampling.resamples, seed=sampling.seed)
    yield {"measure": measure, "value": geometry.cosine_correlation(a, b), "low": low, "high": high, "n": len(a)}
