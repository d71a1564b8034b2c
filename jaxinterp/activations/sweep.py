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
from jaxinterp.activations.metrics import Measure, Metric, bind_metric
from jaxinterp.activations.run import Inputs, bucket, compiled_form, pad_rows, prepare
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel

Labels = dict[str, Any]

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


def sweep(
    model: LanguageModel,
    prompts: Inputs,
    edits: Sequence[Cell],
    metric: Metric | Callable[[jax.Array], jax.Array],
    mask: Any = None,
    *,
    progress: bool = True,
) -> pl.DataFrame:
    """Measures every edit on every prompt.

    Edits that differ only in numbers (which head, layer or position, what vector, scale or source) share one compiled
    program; their numbers are stacked and mapped over while the weights stay where they are.

    Args:
        model: The unedited model.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        edits: Cells, such as `grid` makes.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function from last-token logits [batch, vocabulary] to a
            number for each row [batch].
        mask: With ids [batch, seq]: which of them are tokens.
        progress: Whether to show a bar on stderr.

    Returns:
        One row for each cell and prompt: the cell's labels, `prompt`, `clean`, `value`, and `effect`, value minus
        clean.

    Raises:
        ValueError: There are no cells, or an edit does not fit the model.
    """
    if not edits:
        raise ValueError("there are no edits to sweep; make some with ji.grid")
    tokens, valid = prepare(model, prompts, mask)
    rows = len(tokens)
    measure = bind_metric(metric, model, rows)
    limit = model.architecture.context if model.architecture.learned_positions else None
    tokens, valid = pad_rows(tokens, valid, rows, bucket(tokens.shape[1], limit))
    bodies = [compiled_form(cell.edit(model).body) for cell in edits]
    clean = np.asarray(_measure_one(model.body, tokens, valid, measure))
    values = np.empty((len(edits), rows), np.float32)
    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("sweep", total=len(edits))
        for group in _by_structure(bodies):
            per_block = min(max(1, _ROWS // rows), len(group.members))
            for first in range(0, len(group.members), per_block):
                block = range(first, min(first + per_block, len(group.members)))
                varying = group.stack([*block] + [first] * (per_block - len(block)))
                out = _measure_many(
                    group.shared, varying, tokens, valid, measure, structure=group.structure, cells=per_block
                )
                values[[group.members[place] for place in block]] = np.asarray(out)[: len(block)]
                bar.advance(task, len(block))
    return _table(edits, clean, values)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Edited trees of one structure.

    Attributes:
        members: Which cells they belong to.
        structure: Their common structure.
        shared: The leaves that all of them have in common, `None` elsewhere.
        leaves: All leaves of each.
    """

    members: list[int]
    structure: Any
    shared: list[Any]
    leaves: list[list[Any]]

    def stack(self, places: Sequence[int]) -> list[jax.Array | None]:
        """The other leaves of some members, with a cell axis in front."""
        return [
            None if common is not None else jnp.stack([self.leaves[place][number] for place in places])
            for number, common in enumerate(self.shared)
        ]


def _by_structure(bodies: Sequence[pz.nn.Layer]) -> list[_Group]:
    flattened = [jax.tree_util.tree_flatten(body) for body in bodies]
    members: dict[Any, list[int]] = {}
    for number, (leaves, structure) in enumerate(flattened):
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        members.setdefault((structure, shapes), []).append(number)
    groups = []
    for (structure, _), numbers in members.items():
        leaves = [flattened[number][0] for number in numbers]
        shared = [
            column[0] if all(leaf is column[0] for leaf in column) else None for column in zip(*leaves, strict=True)
        ]
        groups.append(_Group(numbers, structure, shared, leaves))
    return groups


@functools.partial(jax.jit, static_argnames=("structure", "cells"))
def _measure_many(
    shared: list[Any],
    varying: list[Any],
    tokens: jax.Array,
    mask: jax.Array,
    measure: Measure,
    *,
    structure: Any,
    cells: int,
) -> jax.Array:
    def one(numbers: list[Any]) -> jax.Array:
        leaves = [own if common is None else common for common, own in zip(shared, numbers, strict=True)]
        return _last_logits(jax.tree_util.tree_unflatten(structure, leaves), tokens, mask, measure)

    return jax.vmap(one, axis_size=cells)(varying)


@jax.jit
def _measure_one(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, measure: Measure) -> jax.Array:
    return _last_logits(body, tokens, mask, measure)


def _last_logits(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, measure: Measure) -> jax.Array:
    inputs = side_inputs(tokens, mask)
    inputs["read"] = pz.nx.wrap(jnp.full(len(tokens), tokens.shape[1] - 1), axes.BATCH)
    logits = body(pz.nx.wrap(tokens, axes.BATCH, axes.SEQ), **inputs)
    values = logits.unwrap(axes.BATCH, axes.VOCABULARY)
    return measure(values if measure.tokens is None else jnp.take_along_axis(values, measure.tokens, axis=1))


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
