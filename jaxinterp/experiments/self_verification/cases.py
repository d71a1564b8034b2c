"""Verdicts of CountDown traces as texts of their own, each ending with the token after which the verdict is given.

The `verdicts` experiment lets a model write traces and picks verdicts from them; every other experiment on
self-verification loads its cases from that table, reads them, and sweeps edits over them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

import jaxinterp as ji
from jaxinterp.analysis import statistics
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

Place = Literal["verdict", "result"]
"""The token that opens the verdict (t_valid or t_invalid), and the last digit of the result before it (t_ans)."""

PLACES: tuple[Place, ...] = ("verdict", "result")
READ_AT_ONCE = 32
"""Most cases whose activations are held at once."""

ROWS = 8
"""Cases in a forward pass that reads: groups of whatever number then compile one shape."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A trace up to the token that opens one of its verdicts.

    Attributes:
        ids: Tokens; the last one is `" ("`.
        verdict: Which verdict is right, and where result and target stand; positions are indices into `ids`.
        problem: Number of the problem: cases of one problem are not independent.
    """

    ids: tuple[int, ...]
    verdict: verification.Verdict
    problem: int

    @property
    def valid(self) -> bool:
        """Whether the verdict is to accept."""
        return self.verdict.valid

    def token(self, place: Place) -> int:
        """Index of a place in `ids`."""
        return self.verdict.open if place == "verdict" else self.verdict.result


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases of similar length, padded on the left.

    Attributes:
        cases: The cases.
        order: Index of each among all cases, [batch].
        ids: Tokens, [batch, seq].
        mask: Which of them are tokens, [batch, seq].
    """

    cases: tuple[Case, ...]
    order: np.ndarray
    ids: np.ndarray
    mask: np.ndarray

    @property
    def pads(self) -> np.ndarray:
        """Padding in front of each case, [batch]."""
        return (~self.mask).sum(axis=1)

    def columns(self, place: Place) -> np.ndarray:
        """Column of each case's place, padding counted, [batch]."""
        return np.array([case.token(place) for case in self.cases], int) + self.pads

    def part(self, rows: slice) -> Group:
        """Some of its cases."""
        return Group(self.cases[rows], self.order[rows], self.ids[rows], self.mask[rows])


def load(
    model: LanguageModel, table: pl.DataFrame, split: str, *, valid: bool | None = None, most: int | None = None
) -> list[Case]:
    """The cases of one split.

    Args:
        model: Its tokenizer is used.
        table: As from the `verdicts` experiment.
        split: `"training"`, `"selection"` or `"evaluation"`.
        valid: Only those whose verdict accepts, or rejects; by default both, the accepted ones first.
        most: At most so many (of each kind).

    Returns:
        The cases, in the order of the table.

    Raises:
        ValueError: There are none.
    """
    rows = table.filter((pl.col("split") == split) & pl.col("chosen"))
    kinds = (True, False) if valid is None else (valid,)
    kept = [rows.filter(pl.col("valid") == kind)[:most] for kind in kinds]
    chosen = [row for some in kept for row in some.iter_rows(named=True)]
    if not chosen:
        kind = "" if valid is None else "accepted " if valid else "rejected "
        raise ValueError(
            f"the table of verdicts has no {kind}attempts in its {split} split; use a model that writes CountDown "
            "traces, or ask it more problems"
        )
    return [make(model, row["prefix"], row["valid"], row["problem"]) for row in chosen]


def load_pairs(
    model: LanguageModel, table: pl.DataFrame, most: int | None = None, *, split: str = "pairs"
) -> list[tuple[Case, Case]]:
    """Minimal pairs: two cases that differ in the target alone, and in nothing that does not depend on it.

    Args:
        model: Its tokenizer is used.
        table: As from the `verdicts` experiment.
        most: At most so many of each kind.
        split: `"pairs"`, or the part of them kept for choosing, `"pairs, selection"`.

    Returns:
        (valid member, invalid member) pairs; both have the same number of tokens.

    Raises:
        ValueError: There are none.
    """
    rows = table.filter((pl.col("split") == split) & pl.col("twin").is_not_null())
    if not rows.height:
        raise ValueError("the table of verdicts has no minimal pairs; use a model that writes CountDown traces")
    pairs = []
    for written_valid in (True, False):
        for row in rows.filter(pl.col("valid") == written_valid)[:most].iter_rows(named=True):
            own = make(model, row["prefix"], row["valid"], row["problem"])
            twin = make(model, row["twin"], not row["valid"], row["problem"])
            pairs.append((own, twin) if own.valid else (twin, own))
    return pairs


def make(model: LanguageModel, prefix: str, valid: bool, problem: int = 0) -> Case:
    """A case from its text.

    Args:
        model: Its tokenizer is used.
        prefix: A trace up to and including `" ("`.
        valid: Whether the verdict that follows is to accept.
        problem: Number of the problem.

    Returns:
        The case.

    Raises:
        ValueError: The text ends with no attempt.
    """
    tokenizer = model.require_tokenizer()
    closed = prefix + ("this works)" if valid else "not 0)")
    found = verification.verdicts(tokenizer, tokenizer.encode(closed)) if prefix.endswith(verification.OPEN) else []
    if not found:
        raise ValueError(f"{prefix[-40:]!r} does not end with an attempt and {verification.OPEN!r}")
    ids = tokenizer.encode(closed)[: found[-1].open + 1]
    return Case(tuple(ids), found[-1], problem)


def grouped(cases: Sequence[Case], most: int | None = None) -> Iterator[Group]:
    """Cases of similar length together, so that few shapes are compiled and little is padding.

    Args:
        cases: The cases.
        most: Most cases in a group.

    Yields:
        Groups, the shortest first.
    """
    widths: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        widths.setdefault(_width(len(case.ids)), []).append(index)
    for width, indices in sorted(widths.items()):
        for first in range(0, len(indices), most or len(indices)):
            some = indices[first : first + (most or len(indices))]
            ids, mask = np.zeros((len(some), width), np.int32), np.zeros((len(some), width), bool)
            for row, index in enumerate(some):
                own = cases[index].ids
                ids[row, width - len(own) :], mask[row, width - len(own) :] = own, True
            yield Group(tuple(cases[index] for index in some), np.array(some), ids, mask)


def _width(count: int) -> int:
    """What texts are padded to: long ones, of which there are few, more widely.

    >>> [_width(count) for count in (40, 65, 250, 257, 449)]
    [64, 128, 256, 448, 640]
    """
    return -(-count // 64) * 64 if count <= 256 else 256 + -(-(count - 256) // 192) * 192


def sweep(
    model: LanguageModel,
    cases: Sequence[Case],
    cells: Callable[[Group], Sequence[ji.Cell]],
    metric: Any,
    most: int | None = None,
) -> pl.DataFrame:
    """Measures edits on every case; the metric is that of the token that follows `" ("`.

    Args:
        model: The unedited model.
        cases: The cases.
        cells: Edits for a group of cases, with the same labels for each group; whatever holds numbers for every case,
            such as a cache, is of the group's rows.
        metric: As in `ji.sweep`; such as `margin(model)`.
        most: Most cases in a group, where the cells hold large numbers for every case.

    Returns:
        As from `ji.sweep`, with the index of the case in `case` instead of `prompt`: all cases of the first cell, then
        all of the second, and so on.
    """
    parts = []
    for group in grouped(cases, most):
        table = ji.sweep(model, group.ids, cells(group), metric, group.mask, progress=False)
        order = pl.Series("case", group.order)
        count = len(group.cases)
        parts.append(
            table.with_columns(
                cell=pl.int_range(pl.len()) // count, case=order.gather(table["prompt"].to_numpy())
            ).drop("prompt")
        )
    return pl.concat(parts).sort("cell", "case").drop("cell")


def values(table: pl.DataFrame, cases: Sequence[Case], column: str = "value") -> np.ndarray:
    """A column of a sweep's table as an array [cell, case]."""
    return table[column].to_numpy().reshape(-1, len(cases))


def read(
    model: LanguageModel, cases: Sequence[Case], sites: Sequence[ji.Site], place: Place = "verdict"
) -> dict[str, np.ndarray]:
    """What a model has at one token of every case.

    Args:
        model: The model.
        cases: The cases.
        sites: What to read; sites with a layer for each block at all of their layers.
        place: At which token.

    Returns:
        Site name -> [layer, case, ...] ([1, case, ...] for a site without layers), the axes after that those of the
        site without `seq`; the key axis of an attention pattern counts from the end: its last entry is `" ("`.
    """
    return read_at(model, cases, sites, {place: [case.token(place) for case in cases]})[place]


def read_at(
    model: LanguageModel, cases: Sequence[Case], sites: Sequence[ji.Site], tokens: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, np.ndarray]]:
    """As `read`, at several tokens of every case in one pass.

    Args:
        model: The model.
        cases: The cases.
        sites: What to read.
        tokens: Name -> index of a token in each case.

    Returns:
        Name -> site name -> array, as from `read`.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in tokens}
    for group in grouped(cases, READ_AT_ONCE):
        _, cache = ji.run(model, group.ids, group.mask, sites=list(sites), logits=None, batch_size=ROWS)
        rows = np.arange(len(group.cases))
        for name, indices in tokens.items():
            columns = np.asarray(indices)[group.order] + group.pads
            for site in dict.fromkeys(address[0] for address in cache):
                layers = [address for address in cache if address[0] == site]
                for index, address in enumerate(layers):
                    here = _at(cache[address], site, rows, columns)
                    _put(found[name], site, here, index, group.order, (len(layers), len(cases)))
    return found


def _put(
    found: dict[str, np.ndarray], site: str, here: np.ndarray, index: int, order: np.ndarray, shape: tuple[int, int]
) -> None:
    """Puts what some cases have in one layer where it belongs; the key axis of attention grows at its front."""
    array = found[site] if site in found else np.zeros((*shape, *here.shape[1:]), here.dtype)
    if site in ("pattern", "attn_scores") and array.shape[-1] < here.shape[-1]:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(here.shape[-1] - array.shape[-1], 0)])
    if here.ndim == 1:
        array[index, order] = here
    else:
        array[index, order, ..., array.shape[-1] - here.shape[-1] :] = here
    found[site] = array


def _at(array: np.ndarray, name: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One token of each row; `seq` is the second axis except in attention, [batch, head, seq, kv_seq]."""
    return array[rows, :, columns] if name in ("pattern", "attn_scores") else array[rows, columns]


def margin(model: LanguageModel) -> Callable[[jax.Array], jax.Array]:
    """The metric that most experiments use: largest accepting minus largest rejecting logit.

    Args:
        model: A CountDown model.

    Returns:
        Logits [batch, vocabulary] -> nats [batch]; the verdict accepts where it is positive.
    """
    accepting, rejecting = verification.verdict_tokens(model.require_tokenizer())
    return _margin(tuple(accepting), tuple(rejecting))


@functools.cache  # a sweep compiles once for each function, so that there shall be one function for each model
def _margin(first: tuple[int, ...], second: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    def largest_difference(logits: jax.Array) -> jax.Array:
        return logits[:, jnp.array(first)].max(-1) - logits[:, jnp.array(second)].max(-1)

    return largest_difference


def malformed(model: LanguageModel) -> Callable[[jax.Array], jax.Array]:
    """A metric: largest logit of any other token minus the largest of a verdict.

    Args:
        model: A CountDown model.

    Returns:
        Logits [batch, vocabulary] -> nats [batch]; positive where no verdict follows.
    """
    accepting, rejecting = verification.verdict_tokens(model.require_tokenizer())
    verdict = tuple({*accepting, *rejecting})
    return _margin(tuple(token for token in range(model.architecture.vocabulary) if token not in verdict), verdict)


def proportion(successes: np.ndarray) -> dict[str, Any]:
    """A share with its Wilson interval: `value`, `low`, `high` and `n`; NaN for none of none.

    >>> proportion(np.array([True, True, False, True]))["value"]
    0.75
    """
    low, high = statistics.wilson(int(np.sum(successes)), len(successes))
    return {
        "value": float(np.mean(successes)) if len(successes) else float("nan"),
        "low": low,
        "high": high,
        "n": len(successes),
    }


def mean(numbers: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """A mean with its bootstrap interval: `value`, `low`, `high` and `n`.

    >>> mean(np.array([1.0, 1.0]))
    {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 2}
    """
    low, high = statistics.bootstrap(numbers, seed)
    return {"value": float(np.mean(numbers)), "low": low, "high": high, "n": len(numbers)}


def means(numbers: np.ndarray, seed: int = 0) -> list[dict[str, Any]]:
    """As `mean`, of every column of [case, column], drawing the same cases for all columns.

    >>> means(np.array([[1.0, 0.0], [1.0, 0.0]]))[1]
    {'value': 0.0, 'low': 0.0, 'high': 0.0, 'n': 2}
    """
    low, high = statistics.bootstrap_means(numbers, seed)
    rows = zip(numbers.mean(axis=0, dtype=float), low, high, strict=True)
    return [dict(zip(("value", "low", "high"), map(float, row), strict=True)) | {"n": len(numbers)} for row in rows]
