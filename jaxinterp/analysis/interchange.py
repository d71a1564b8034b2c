"""Interchange intervention accuracy: how often an exchanged activation makes the model say what a causal model says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxinterp.activations.run import run
from jaxinterp.activations.sweep import Cell, sweep
from jaxinterp.analysis.pairs import Pairs
from jaxinterp.analysis.statistics import wilson
from jaxinterp.interventions.interchange import interchange
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.selectors import Site, resid_post

ANSWERS = ("expected", "clean", "counterfactual")
_ROWS = 128
"""Pairs that are run, and whose activations are held, at a time."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What is exchanged in one edited run.

    Attributes:
        labels: What it is called, column -> value.
        site: The site, with heads or units if only those are exchanged.
        layer: Block `l`, `None` for sites that stand once in the model.
        group: The group of tokens that take their values from the counterfactual run.
        basis: Rows of the subspace, or layer -> rows; `None` for the whole space.
        weights: Weights of the rows, or layer -> weights.
        up_to: Whether all blocks 0..l are edited, each with its own values, rather than `l` alone.
        held: Groups of tokens that keep their clean values in all blocks.
        held_up_to: Groups of tokens that keep them in the blocks 0..l.
    """

    labels: Mapping[str, Any]
    site: Site
    layer: int | None
    group: str
    basis: Any = None
    weights: Any = None
    up_to: bool = False
    held: tuple[str, ...] = ()
    held_up_to: tuple[str, ...] = ()

    def edit(self, model: LanguageModel, pairs: Pairs, source: Cache, clean: Cache | None) -> LanguageModel:
        """The model with everything exchanged."""
        table = pairs.positions[self.group]
        numbers = {"basis": self.basis, "weights": self.weights}
        below = None if self.layer is None else range(self.layer + 1)
        edited = below if self.up_to or below is None else below[-1:]
        if clean is None:
            site = dataclasses.replace(self.site, layers=edited and tuple(edited))
            return interchange(model, site, source, positions=table, **numbers)
        site = dataclasses.replace(self.site, layers=None)
        model = interchange(model, site, source, positions=table, active=edited, **numbers)
        for groups, active in ((self.held, None), (self.held_up_to, below)):
            for name in groups:
                own = np.repeat(pairs.positions[name][..., :1], 2, axis=-1)
                model = interchange(model, site, clean, positions=own, active=active)
        return model


def iia(
    model: LanguageModel,
    pairs: Pairs,
    site: Site | None = None,
    groups: Sequence[str] | str | None = None,
    *,
    basis: Any = None,
    weights: Any = None,
    up_to: bool = False,
    held: Sequence[str] | str = (),
    held_up_to: Sequence[str] | str = (),
    seed: int = 0,
    progress: bool = True,
) -> pl.DataFrame:
    r"""Measures interchange intervention accuracy at layers and groups of tokens.

    With $x_i$ the clean and $x'_i$ the counterfactual prompt of a pair and $y_i$ what the causal model predicts under
    the same interchange (`pairs.expected`), the accuracy of a cell is
    $\frac{1}{n} \sum_i 1[\arg\max f(x_i; h \leftarrow h(x'_i)) = y_i]$. Beside it stand how often the edited run still
    says what the clean run says, how often it says what the counterfactual run says, and all three where the source is
    the counterfactual prompt of a random other pair.

    Args:
        model: The unedited model.
        pairs: Pairs, such as `make_pairs` makes; it can leave out those that the model gets wrong.
        site: Where; by default the residual stream after each block. One cell for each layer it names.
        groups: Groups of `pairs.positions` to exchange, each in a cell of its own; by default all that are not held.
        basis: Rows of a subspace to exchange instead of everything, or layer -> rows.
        weights: Weights of orthonormal rows, or layer -> weights; see `interchange`.
        up_to: Whether a cell edits all blocks up to its layer, rather than that layer alone.
        held: Groups of tokens to hold at their clean values at this site, in all blocks.
        held_up_to: Groups of tokens to hold there in the blocks up to the cell's layer.
        seed: Of the random other pairs.
        progress: Whether to show a bar on stderr.

    Returns:
        One row for each layer, group of `positions`, `source` (`"pair"` or `"other pair"`) and `answer`
        (`"expected"`, `"clean"` or `"counterfactual"`): `n`, `hits`, the fraction `iia`, and its 95 % Wilson interval
        `low`, `high`.

    Raises:
        ValueError: A group of positions does not exist, the site does not, or a basis does not fit it.

    References:
        Geiger et al., 2021, "Causal abstractions of neural networks", arXiv:2106.02997.
    """
    chosen = site or resid_post()
    held, held_up_to = group_names(pairs, held), group_names(pairs, held_up_to)
    default = [name for name in pairs.positions if name not in (*held, *held_up_to)]
    exchanges = []
    for _, layer in chosen.addresses(model.body):
        for name in default if groups is None else group_names(pairs, groups):
            labels = {"layer": layer, "positions": name}
            exchanges.append(Exchange(labels, chosen, layer, name, basis, weights, up_to, held, held_up_to))
    parts = []
    for source, used in (("pair", pairs), ("other pair", pairs.with_other_sources(seed))):
        found = predictions(model, used, exchanges, progress=progress)
        parts.append(found.with_columns(pl.lit(source).alias("source")))
    return accuracy(pl.concat(parts), [*exchanges[0].labels, "source"])


def predictions(
    model: LanguageModel, pairs: Pairs, exchanges: Sequence[Exchange], *, progress: bool = True
) -> pl.DataFrame:
    """What the model says after each exchange, pair by pair.

    Args:
        model: The unedited model.
        pairs: The pairs.
        exchanges: What is exchanged, one cell each; the same columns of labels in all. Those that differ in numbers
            only share one compiled program.
        progress: Whether to show a bar on stderr.

    Returns:
        One row for each exchange and pair: its labels, `pair`, and as token ids what the edited run predicts
        (`predicted`), what was `expected`, and what the `clean` and the `counterfactual` run predict.

    Raises:
        ValueError: There are no exchanges, or a group, site or basis does not fit.
    """
    if not exchanges:
        raise ValueError("there is nothing to exchange; choose a group of positions that is not held")
    sites = _reads(model, exchanges)
    holding = any(exchange.held or exchange.held_up_to for exchange in exchanges)
    count = len(pairs)
    step = math.ceil(count / math.ceil(count / _ROWS))
    predicted = np.empty((len(exchanges), count), np.int64)
    own, other = np.empty(count, np.int64), np.empty(count, np.int64)
    columns = (TextColumn("interchange"), BarColumn(), MofNCompleteColumn(), TextColumn("pairs"))
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("interchange", total=count)
        for first in range(0, count, step):
            # The last block is filled with pairs of before, so that it is the same compiled program.
            rows = np.arange(first, first + step) % count
            block = pairs.take(rows)
            logits, source = run(model, block.counterfactual, block.counterfactual_mask, sites=sites, logits="last")
            clean = run(model, block.clean, block.clean_mask, sites=sites, logits=None)[1] if holding else None
            cells = [
                Cell({"cell": number}, _editing(exchange, block, source, clean))
                for number, exchange in enumerate(exchanges)
            ]
            table = sweep(model, block.clean, cells, _said, block.clean_mask, progress=False)
            fresh = rows[: count - first]
            predicted[:, fresh] = table["value"].to_numpy().reshape(len(cells), step)[:, : len(fresh)]
            own[fresh] = table["clean"].to_numpy()[: len(fresh)]
            other[fresh] = logits.argmax(axis=1)[: len(fresh)]
            bar.advance(task, len(fresh))
    cells = len(exchanges)
    labels = {name: [e.labels[name] for e in exchanges for _ in range(count)] for name in exchanges[0].labels}
    ids = {"expected": pairs.expected, "clean": own, "counterfactual": other}
    said = {"pair": np.tile(np.arange(count), cells), "predicted": predicted.reshape(-1)}
    return pl.DataFrame(labels | said | {name: np.tile(column, cells) for name, column in ids.items()})


def evaluate(
    model: LanguageModel, splits: Mapping[str, Pairs], exchanges: Sequence[Exchange], *, progress: bool = True
) -> pl.DataFrame:
    """Interchange intervention accuracy of some exchanges on several sets of pairs.

    Args:
        model: The unedited model.
        splits: Name -> pairs.
        exchanges: See `predictions`.
        progress: Whether to show a bar on stderr.

    Returns:
        What `accuracy` gives, with a column `split` behind the labels.
    """
    parts = [
        predictions(model, pairs, exchanges, progress=progress).with_columns(pl.lit(split).alias("split"))
        for split, pairs in splits.items()
    ]
    return accuracy(pl.concat(parts), [*exchanges[0].labels, "split"])


def accuracy(table: pl.DataFrame, cells: Sequence[str]) -> pl.DataFrame:
    """Counts how often predictions are the expected, the clean and the counterfactual answer.

    Args:
        table: Predictions, pair by pair, as `predictions` gives them.
        cells: Columns that tell cells apart.

    Returns:
        One row for each cell and `answer`: `n`, `hits`, `iia`, and the 95 % Wilson interval `low`, `high`.
    """
    hits = [(pl.col("predicted") == pl.col(answer)).sum().cast(pl.Int64).alias(answer) for answer in ANSWERS]
    counted = table.group_by(cells, maintain_order=True).agg(pl.len().cast(pl.Int64).alias("n"), *hits)
    tidy = counted.unpivot(ANSWERS, index=[*cells, "n"], variable_name="answer", value_name="hits")
    ends = [wilson(hit, n) for hit, n in tidy.select("hits", "n").iter_rows()]
    return tidy.select(
        *cells,
        "answer",
        "n",
        "hits",
        (pl.col("hits") / pl.col("n")).alias("iia"),
        pl.Series("low", [low for low, _ in ends]),
        pl.Series("high", [high for _, high in ends]),
    )


def group_names(pairs: Pairs, groups: Sequence[str] | str) -> tuple[str, ...]:
    """Names of groups of tokens, one or several, that the pairs have.

    Raises:
        ValueError: They do not have one of them.
    """
    return tuple(pairs.group(name) for name in ([groups] if isinstance(groups, str) else groups))


def _said(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.float32)  # exact: no vocabulary has 2^24 tokens


def _editing(exchange: Exchange, pairs: Pairs, source: Cache, clean: Cache | None) -> Any:
    return lambda model: exchange.edit(model, pairs, source, clean)


def _reads(model: LanguageModel, exchanges: Sequence[Exchange]) -> list[Site]:
    """The sites to read, each once, at the layers that some exchange needs."""
    needed: dict[str, set[int]] = {}
    for exchange in exchanges:
        layers = needed.setdefault(exchange.site.name, set())
        if exchange.held:
            layers.update(layer for _, layer in Site(exchange.site.name).addresses(model.body) if layer is not None)
        elif exchange.layer is not None:
            layers.update(range(exchange.layer + 1) if exchange.up_to or exchange.held_up_to else [exchange.layer])
    return [Site(name, tuple(sorted(layers)) if layers else None) for name, layers in needed.items()]
