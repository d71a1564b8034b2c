"""Sweeps: many edits of one model, run as one compiled program of the edits' numbers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxinterp import axes
from jaxinterp.activations.run import Inputs, bucket, compiled_form, pad_rows, prepare
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel

Labels = dict[str, Any]
Measure = Callable[[jax.Array], jax.Array]
Metric = Callable[[LanguageModel], Measure]

_ROWS = 128
"""Rows, over all cells, in one forward pass of a sweep."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One edit of a sweep.

    Attributes:
        labels: What it is called, column -> value.
        edit: Model -> edited model.
    """

    labels: Mapping[str, Any]
    edit: Callable[[LanguageModel], LanguageModel]


def grid(edit: Callable[..., LanguageModel], **values: Iterable[Any]) -> list[Cell]:
    """All combinations of some settings of an edit.

    Args:
        edit: (model, one keyword argument for each name) -> edited model.
        **values: Setting -> its values.

    Returns:
        One cell for each combination, labelled with it.

    Examples:
        >>> import jaxinterp as ji
        >>> cells = grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(2), head=range(3))
        >>> len(cells), dict(cells[-1].labels)
        (6, {'layer': 1, 'head': 2})
    """
    names = list(values)
    combinations = itertools.product(*values.values())
    settings = [dict(zip(names, combination, strict=True)) for combination in combinations]
    return [Cell(setting, functools.partial(_apply, edit, setting)) for setting in settings]


def _apply(edit: Callable[..., LanguageModel], setting: Labels, model: LanguageModel) -> LanguageModel:
    return edit(model, **setting)


def logit_diff(right: str | int | Sequence[int], wrong: str | int | Sequence[int]) -> Metric:
    """Logit of one token minus logit of another, at the last token, in nats.

    Args:
        right: A token's text or id, or an id for each row.
        wrong: The same for the other token.

    Returns:
        A metric for `sweep`.
    """

    def prepare_metric(model: LanguageModel) -> Measure:
        first, second = _ids(model, right), _ids(model, wrong)

        def measure(logits: jax.Array) -> jax.Array:
            rows = jnp.arange(len(logits))
            return logits[rows, first] - logits[rows, second]

        return measure

    return prepare_metric


def log_prob(token: str | int | Sequence[int]) -> Metric:
    """Log-probability of a token after the last one, in nats.

    Args:
        token: Its text or id, or an id for each row.

    Returns:
        A metric for `sweep`.
    """

    def prepare_metric(model: LanguageModel) -> Measure:
        ids = _ids(model, token)
        return lambda logits: jax.nn.log_softmax(logits)[jnp.arange(len(logits)), ids]

    return prepare_metric


def _ids(model: LanguageModel, token: str | int | Sequence[int]) -> Any:
    return model.require_tokenizer().id(token) if isinstance(token, str) else np.asarray(token)


def sweep(
    model: LanguageModel,
    prompts: Inputs,
    edits: Sequence[Cell],
    metric: Metric | Measure,
    mask: Any = None,
    *,
    prepared: bool = False,
    progress: bool = True,
) -> pl.DataFrame:
    """Measures every edit on every prompt.

    Edits that differ only in numbers (which head, layer or position, what vector, scale or source) share one compiled
    program; their numbers are stacked and mapped over while the weights stay where they are.

    Args:
        model: The unedited model.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        edits: Cells, such as `grid` makes.
        metric: `logit_diff(...)`, `log_prob(...)`, or with `prepared` a function from last-token logits
            [batch, vocabulary] to a number for each row [batch].
        mask: With ids [batch, seq]: which of them are tokens.
        prepared: Whether `metric` already is such a function.
        progress: Whether to show a bar on stderr.

    Returns:
        One row for each cell and prompt: the cell's labels, `prompt`, `clean`, `value`, and `effect`, value minus
        clean.

    Raises:
        ValueError: There are no cells, or an edit does not fit the model.
    """
    if not edits:
        raise ValueError("there are no edits to sweep; make some with ji.grid")
    measure = metric if prepared else metric(model)
    tokens, valid = prepare(model, prompts, mask)
    rows = len(tokens)
    limit = model.architecture.context if model.architecture.learned_positions else None
    tokens, valid = pad_rows(tokens, valid, rows, bucket(tokens.shape[1], limit))
    bodies = [compiled_form(cell.edit(model).body) for cell in edits]
    clean = np.asarray(_measure_one(model.body, tokens, valid, measure=measure))
    values = np.empty((len(edits), rows), np.float32)
    per_block = max(1, _ROWS // rows)
    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("sweep", total=len(edits))
        for members in _by_structure(bodies).values():
            for first in range(0, len(members), per_block):
                block = members[first : first + per_block]
                filled = block + block[:1] * (min(per_block, len(members)) - len(block))
                shared, varying = _split(model.body, [bodies[number] for number in filled])
                structure = jax.tree_util.tree_structure(bodies[block[0]])
                out = _measure_many(
                    shared, varying, tokens, valid, structure=structure, cells=len(filled), measure=measure
                )
                values[block] = np.asarray(out)[: len(block)]
                bar.advance(task, len(block))
    return _table(edits, clean, values)


def _by_structure(bodies: Sequence[pz.nn.Layer]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for number, body in enumerate(bodies):
        leaves, structure = jax.tree_util.tree_flatten(body)
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        groups.setdefault((structure, shapes), []).append(number)
    return groups


def _split(
    original: pz.nn.Layer, bodies: Sequence[pz.nn.Layer]
) -> tuple[list[jax.Array | None], list[jax.Array | None]]:
    """The leaves of some trees: those that all share as they are, the others stacked."""
    unedited = {id(leaf) for leaf in jax.tree_util.tree_leaves(original)}
    columns = list(zip(*(jax.tree_util.tree_leaves(body) for body in bodies), strict=True))
    same = [id(column[0]) in unedited or all(leaf is column[0] for leaf in column) for column in columns]
    shared = [column[0] if whole else None for column, whole in zip(columns, same, strict=True)]
    varying = [None if whole else jnp.stack(column) for column, whole in zip(columns, same, strict=True)]
    return shared, varying


@functools.partial(jax.jit, static_argnames=("structure", "cells", "measure"))
def _measure_many(
    shared: list[Any],
    varying: list[Any],
    tokens: jax.Array,
    mask: jax.Array,
    *,
    structure: Any,
    cells: int,
    measure: Measure,
) -> jax.Array:
    def one(numbers: list[Any]) -> jax.Array:
        leaves = [own if common is None else common for common, own in zip(shared, numbers, strict=True)]
        return _last_logits(jax.tree_util.tree_unflatten(structure, leaves), tokens, mask, measure)

    return jax.vmap(one, axis_size=cells)(varying)


@functools.partial(jax.jit, static_argnames=("measure",))
def _measure_one(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, *, measure: Measure) -> jax.Array:
    return _last_logits(body, tokens, mask, measure)


def _last_logits(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, measure: Measure) -> jax.Array:
    inputs = side_inputs(tokens, mask)
    inputs["read"] = pz.nx.wrap(jnp.full(len(tokens), tokens.shape[1] - 1), axes.BATCH)
    logits = body(pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), **inputs)
    return measure(logits.unwrap(axes.BATCH, axes.VOCABULARY))


def _table(edits: Sequence[Cell], clean: np.ndarray, values: np.ndarray) -> pl.DataFrame:
    rows = values.shape[1]
    labels = {
        name: [cell.labels.get(name) for cell in edits for _ in range(rows)]
        for name in dict.fromkeys(name for cell in edits for name in cell.labels)
    }
    every_clean = np.tile(clean, len(edits)).astype(np.float32)
    flat = values.reshape(-1)
    measured = {"prompt": np.tile(np.arange(rows), len(edits)), "clean": every_clean, "value": flat}
    return pl.DataFrame(labels | measured | {"effect": flat - every_clean})
