"""Sweeps: many edits of one model on the same texts, doing only the work that each edit changes.

A cell restarts from the unedited run's residual stream at the first block that it edits, holds only the columns from
the first token that it edits on, and is unembedded at the last token alone, and there only for the tokens that the
metric looks at. Cells under way advance together, block by block, in tiles of a size that suits the machine; each
kind of block is compiled once for each tile size. The values are those of one full forward pass for each cell, up to
floating-point rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.ledger import Ledger, digest_of
from jaxinterp.activations.memory import available
from jaxinterp.activations.metrics import Measure, Metric, bind_metric, normalise
from jaxinterp.activations.plan import Base, check_rows, find_route, first_columns
from jaxinterp.activations.precision import mark_noise, noise_floor
from jaxinterp.activations.run import Inputs, bucket, pad_rows, prepare
from jaxinterp.activations.schedule import Block, CleanRun, measure_cells
from jaxinterp.activations.sizes import Sizes, choose_sizes
from jaxinterp.activations.stages import Texts
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel.placement import agree, fetch, least, mesh_of

Labels = dict[str, Any]

_MEASURED = ("prompt", "clean", "corrupted", "value", "effect", "normalised", "noise", "resolved")
_RESAMPLES = 2000


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

    Raises:
        ValueError: A setting has no values.

    Examples:
        >>> import jaxinterp as ji
        >>> cells = grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(2), head=range(3))
        >>> len(cells), dict(cells[-1].labels)
        (6, {'layer': 1, 'head': 2})
    """
    names = list(values)
    choices = [list(choice) for choice in values.values()]
    empty = [name for name, choice in zip(names, choices, strict=True) if not choice]
    if empty:
        raise ValueError(f"the grid selects nothing: {empty[0]} has no values")
    settings = [dict(zip(names, combination, strict=True)) for combination in itertools.product(*choices)]
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
    corrupted: Inputs | None = None,
    noise: bool = False,
    memory: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Measures every edit on every prompt.

    A model that is on no mesh is copied to all devices of this process, which share the cells. One on a mesh is swept
    by all processes of the mesh together: its `sweep` axis shares the cells and its `data` axis the texts, and every
    process returns the whole table.

    Args:
        model: The unedited model.
        prompts: Texts, lists of token ids, or ids [batch, seq].
        edits: Cells, such as `grid` makes; all kinds may be mixed.
        metric: `logit_diff(...)`, `log_prob(...)`, `kl(...)`, or a function from last-token logits
            [batch, vocabulary] to a number for each row [batch].
        mask: With ids [batch, seq]: which of them are tokens.
        corrupted: The other text of each pair, if there is one: adds what the metric is there. Ids are masked alike.
        noise: Whether to measure how far some of the cells are from float64, and to say beside each effect how large
            that noise is and whether the effect exceeds it; see `jaxinterp.activations.precision.noise_floor`.
        memory: Bytes that may be used besides the model; by default half of what is free. What of it is used for
            what is said in `jaxinterp.activations.sizes.choose_sizes`.
        folder: Where to keep what is done, so that the same sweep, started again, goes on where it was, on as many
            devices as there then are. Several processes share it.
        progress: Whether to show a bar on stderr, with the rate and what remains.

    Returns:
        One row for each cell and prompt: the cell's labels, `prompt`, `clean`, `value`, and `effect`, value minus
        clean. With `corrupted` also `corrupted` and `normalised`, the effect as a fraction of corrupted minus clean
            (null where these are equal). With `noise` also `noise` and `resolved`.

    Raises:
        ValueError: There are no cells, an edit does not fit the model or the prompts, the memory holds not one row, or
            the folder holds another sweep.
    """
    if not edits:
        raise ValueError("there are no edits to sweep; make some with ji.grid")
    tokens, valid = _padded(model, *prepare(model, prompts, mask))
    batch = len(tokens)
    measure = bind_metric(metric, model, batch)
    texts = Texts(jnp.asarray(tokens), jnp.asarray(valid))
    base = Base.of(cast("Decoder", model.body))
    routes = [find_route(base, cast("Decoder", cell.edit(model).body)) for cell in edits]
    for route in routes:
        check_rows(route.edits, batch)
    mesh = mesh_of(model.body)
    if noise and mesh is not None and mesh.is_multi_process:
        raise ValueError("noise is measured by one process; leave noise=True out on a mesh of several")
    sizes = choose_sizes(model.architecture, tokens.shape, available() // 2 if memory is None else memory)
    sizes = Sizes(*least(dataclasses.astuple(sizes), mesh))
    labels = [cell.labels for cell in edits]
    ledger = None if folder is None else Ledger(folder, digest_of(base, labels, routes, texts, measure))
    keep_compiled_programs()
    other = None if corrupted is None else _corrupted(model, base, corrupted, mask, measure, batch, sizes.rows)
    values = np.full((len(edits), batch), np.nan, np.float32)
    clean = np.full(batch, np.nan, np.float32)
    columns = (
        TextColumn("sweep"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("sweep", total=len(edits))

        def take(block: Block) -> None:
            values[np.ix_(block.cells, block.rows)] = block.values
            clean[block.rows] = block.clean
            bar.advance(task, len(block.cells) * len(block.rows) / batch)

        for block in () if ledger is None else ledger.blocks():
            take(block)
        values, clean = agree(values, mesh), agree(clean, mesh)
        done = ~np.isnan(clean) & ~np.isnan(values)
        for block in measure_cells(base, routes, first_columns(routes, texts), texts, measure, sizes, done):
            take(block)
            if ledger is not None and block.written:
                ledger.add(block)
    values, clean = agree(values, mesh), agree(clean, mesh)
    table = _table(edits, clean, values, other)
    return mark_noise(table, _measure_noise(model, prompts, edits, metric, mask, table)) if noise else table


def _measure_noise(
    model: LanguageModel, prompts: Inputs, edits: Sequence[Cell], metric: Any, mask: Any, table: pl.DataFrame
) -> float:
    """The largest error of an effect among some cells, as the sweep got them and as whole forward passes do."""
    samples = noise_floor(model, prompts, edits, metric, mask, precisions=["float32"]).samples.filter(
        pl.col("cell") >= 0
    )
    effects = table["effect"].to_numpy().reshape(len(edits), -1)
    found = effects[samples["cell"].to_numpy(), samples["prompt"].to_numpy()]
    exact = samples["exact_effect"].to_numpy()
    return float(max(np.abs(found - exact).max(), np.abs(samples["effect"].to_numpy() - exact).max()))


class _Rate(ProgressColumn):
    """Cells per second so far."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn.render`."""
        return Text("" if task.speed is None else f"{task.speed:.1f} cells/s")


def _padded(model: LanguageModel, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    limit = model.architecture.context if model.architecture.learned_positions else None
    return pad_rows(tokens, mask, len(tokens), bucket(tokens.shape[1], limit))


def _corrupted(
    model: LanguageModel, base: Base, corrupted: Inputs, mask: Any, measure: Measure, batch: int, rows: int
) -> np.ndarray:
    """The metric of the corrupted texts, so many at a time, [batch]."""
    tokens, valid = _padded(model, *prepare(model, corrupted, mask))
    if len(tokens) != batch:
        raise ValueError(f"there are {len(tokens)} corrupted prompts for {batch} prompts; pair them up")
    parts = []
    for first in range(0, batch, rows):
        some = np.minimum(np.arange(first, first + rows), batch - 1)
        own = base if rows == batch else base.of_rows(some)
        texts = Texts(jnp.asarray(tokens[some]), jnp.asarray(valid[some]))
        parts.append(fetch(CleanRun.of(own, texts, measure.take(jnp.asarray(some))).value)[0])
    return np.concatenate(parts)[:batch]


def _table(edits: Sequence[Cell], clean: np.ndarray, values: np.ndarray, corrupted: np.ndarray | None) -> pl.DataFrame:
    cells, rows = values.shape
    labels = {
        name: [cell.labels.get(name) for cell in edits for _ in range(rows)]
        for name in dict.fromkeys(name for cell in edits for name in cell.labels)
    }
    every = {"prompt": np.arange(rows), "clean": clean}
    every |= {} if corrupted is None else {"corrupted": corrupted.astype(np.float32)}
    measured = {name: np.tile(column, cells) for name, column in every.items()} | {"value": values.reshape(-1)}
    table = pl.DataFrame(labels | measured).with_columns(effect=pl.col("value") - pl.col("clean"))
    if corrupted is None:
        return table
    return table.with_columns(normalised=normalise(pl.col("effect")))


def summarise(
    table: pl.DataFrame, value: str = "effect", *, permutations: int = 0, level: float = 0.95, seed: int = 0
) -> pl.DataFrame:
    """The mean effect of every cell over prompts, with an interval and, on request, a null.

    Args:
        table: A sweep's table.
        value: What is averaged: `"effect"`, `"value"` or `"normalised"`.
        permutations: How many times the effects' signs are flipped at random to see how large a mean arises where an
            effect is as likely to raise the metric as to lower it; 0 for no test.
        level: Coverage of the interval.
        seed: Of the random numbers.

    Returns:
        One row for each cell: its labels, `n` prompts, the mean under the name of `value`, `low` and `high` of a
        bootstrap over prompts (NaN where there is only one), and with `permutations` the two-sided `p`.

    Raises:
        ValueError: The table has no such column.
    """
    if value not in table.columns:
        raise ValueError(f"the table has no column {value!r}; it has {', '.join(table.columns)}")
    labels = [name for name in table.columns if name not in _MEASURED]
    numbers = table[value].to_numpy().reshape(-1, table["prompt"].n_unique())
    count = numbers.shape[1]
    random = np.random.default_rng(seed)
    mean = numbers.mean(axis=1)
    columns: dict[str, Any] = {"n": np.full(len(numbers), count), value: mean}
    tail = 100 * (1 - level) / 2
    drawn = random.integers(0, count, (_RESAMPLES, count))
    ends = np.full((len(numbers), 2), np.nan)
    if count > 1:
        ends = np.stack([np.percentile(row[drawn].mean(axis=1), (tail, 100 - tail)) for row in numbers])
    columns["low"], columns["high"] = ends.T
    if permutations:
        signs = random.choice(np.array([-1, 1], np.float32), (count, permutations))
        extreme = np.abs(numbers @ signs / count) >= np.abs(mean)[:, None]
        columns["p"] = (1 + extreme.sum(axis=1)) / (1 + permutations)
    return table[::count].select(labels).with_columns(pl.DataFrame(columns))
