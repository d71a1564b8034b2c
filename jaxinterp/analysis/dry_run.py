"""What a model would ask for, found out without its weights: the programs that run and the memory that they take.

A model of any size is built with shapes in place of weights; edits and reads are attached to it as in an experiment,
and forward passes are traced. Whatever does not fit together raises here, in seconds, and not after an hour of
fetching.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxinterp.activations.memory import bytes_cached, bytes_fixed, bytes_per_row, bytes_read, rows_that_fit
from jaxinterp.activations.plan import Base
from jaxinterp.activations.reading import read_pass
from jaxinterp.activations.run import bucket
from jaxinterp.activations.stages import Texts
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.patch import patch
from jaxinterp.interventions.steer import steer
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import last
from jaxinterp.sites.selectors import Site, head, mlp_post, pattern, resid_post, unit, z
from jaxinterp.sites.taps import Address

Layout = Literal["whole", "split"]
"""How weights lie on several devices: all of them on each, or each matrix divided among them."""

READS: dict[str, tuple[Site, ...]] = {
    "nothing": (),
    "residual stream of every layer": (resid_post(...),),
    "heads of every layer": (z(...),),
    "units of every layer": (mlp_post(...),),
    "attention of every layer": (pattern(...),),
}
"""What an experiment may read in one pass."""

_GIB = 2**30
_MOST_ROWS = 1 << 20


def measure(
    source: str | Path, dtype: str = "bfloat16", devices: int = 1, memory: float = 80.0, seq: int = 1024
) -> pl.DataFrame:
    """Traces a model under edits and reads, and counts what it takes.

    Args:
        source: As in `jaxinterp.models.shape_model.load_shapes`.
        dtype: Dtype of the weights.
        devices: How many there are.
        memory: GiB of each of them.
        seq: Tokens of a text, such as worked examples, prompt and response.

    Returns:
        One row per number, with `source`, `dtype`, `devices`, `memory`, `seq` and

        * `part`: "model"; "weights"; "row", memory of one text besides the weights; "rows", how many texts fit at a
          time; "program", a traced forward pass;
        * `quantity`: what it is, or what is read, or which edit the program has;
        * `layout`: "whole" (what this library does: every device has all weights and texts are divided) or "split"
          (each matrix is divided along an axis that `devices` divide); null where it does not matter;
        * `value` and `unit`: "GiB", "rows on each device", or "" for a count. A program's value is what one text leaves
          behind: the last token's logits and the residual stream of every layer.

        Rows are counted as `jaxinterp.run` does: within half of what the weights leave, and a power of two; 0 where the
        weights or one row do not fit. In the split layout a row is still counted whole on every device, so that the
        number holds for any way to divide activations.

    Raises:
        ValueError: There is no such config, a setting is out of range, or an edit does not fit the model.
    """
    if devices < 1 or memory <= 0 or seq < 1:
        raise ValueError(f"devices is {devices}, memory {memory} and seq {seq}; each must be positive")
    model = load_shapes(source, dtype)
    architecture = model.architecture
    if architecture.learned_positions and seq > architecture.context:
        raise ValueError(f"seq is {seq}, and {model.source} has {architecture.context} learned positions")
    rows = [*_of_model(model, devices), *_of_rows(model, devices, memory, seq), *_of_programs(model, seq)]
    settings = {"source": model.source, "dtype": dtype, "devices": devices, "memory": float(memory), "seq": seq}
    schema = {"part": pl.String, "quantity": pl.String, "layout": pl.String, "value": pl.Float64, "unit": pl.String}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.select(*(pl.lit(value).alias(name) for name, value in settings.items()), pl.all())


def trace(
    model: LanguageModel, seq: int, sites: Sequence[Site] = (), rows: int = 1
) -> tuple[jax.ShapeDtypeStruct, dict[Address, jax.ShapeDtypeStruct]]:
    """Traces the forward pass that `jaxinterp.run` makes, without running or compiling it.

    Args:
        model: A model, with weights or without, edited or not.
        seq: Tokens of each text.
        sites: What is read.
        rows: Texts.

    Returns:
        The last token's logits [batch, vocabulary], and what is read.

    Raises:
        ValueError: A site does not exist, or an edit does not fit.
    """
    base = Base.of(cast("Decoder", model.body))
    wanted = {address: site for site in sites for address in site.addresses(model.body)}
    texts = Texts(*(cast("Any", jax.ShapeDtypeStruct((rows, seq), kind)) for kind in (jnp.int32, jnp.bool_)))

    def forward(blocks: Any, ends: Any, texts: Texts) -> Any:
        return read_pass(dataclasses.replace(base, blocks=blocks, ends=ends), texts, wanted, "last")

    return jax.eval_shape(forward, base.blocks, base.ends, texts)


def edited_models(model: LanguageModel) -> dict[str, LanguageModel]:
    """The model under every kind of edit that the experiments make, at its last layers, heads and units.

    Args:
        model: A model, with weights or without.

    Returns:
        What is done -> the edited model; all are for texts one at a time.
    """
    a = model.architecture
    at_heads, at_units = head(a.layers - 1, 0, a.heads - 1), unit(a.layers - 1, 0, a.neurons - 1)
    stream = resid_post(a.layers // 2)
    other = Cache(
        {("resid_post", a.layers // 2): np.zeros((1, 1, a.embedding), np.float32)},
        np.zeros((1, 1), np.int32),
        np.ones((1, 1), bool),
    )

    def patched(lm: LanguageModel) -> LanguageModel:
        return patch(lm, stream, other, at=last(), positions=[(-1, -1)])

    def steered(lm: LanguageModel) -> LanguageModel:
        return steer(lm, stream, np.zeros(a.embedding, np.float32), at=last())

    return {
        "no edit": model,
        "heads zeroed": ablate(model, at_heads),
        "units zeroed at the last token": ablate(model, at_units, at=last()),
        "stream steered": steered(model),
        "stream patched": patched(model),
        "all of these": patched(steered(ablate(model, at_heads, at_units))),
    }


def split_bytes(architecture: Architecture, devices: int, itemsize: int) -> int:
    """Bytes of weights on each device if every weight is divided along an axis that the devices divide.

    Args:
        architecture: Of the model.
        devices: How many.
        itemsize: Bytes of a number.

    Returns:
        Bytes; weights without such an axis count whole.
    """
    total = 0
    for sizes in architecture.weights().values():
        count = math.prod(sizes.values())
        total += count // devices if any(size % devices == 0 for size in sizes.values()) else count
    return total * itemsize


def describe(table: pl.DataFrame) -> str:
    """Writes what `measure` found for a terminal.

    Args:
        table: As from `measure`.

    Returns:
        Lines of text.
    """
    first = table.row(0, named=True)
    devices = f"{first['devices']} device{'s' if first['devices'] > 1 else ''} of {first['memory']:g} GiB"
    parts = {part: table.filter(pl.col("part") == part) for part in table["part"].unique(maintain_order=True)}
    layouts = parts["weights"]["layout"].to_list()
    lines = [f"{first['source']} in {first['dtype']}, texts of {first['seq']} tokens, {devices}", ""]
    lines += [_line(row["quantity"], f"{row['value']:,.0f}") for row in parts["model"].iter_rows(named=True)]
    held = zip(layouts, parts["weights"]["value"], strict=True)
    lines += [_line(f"weights on each device, {layout}", f"{value:,.2f} GiB") for layout, value in held]
    lines += ["", _line("what is read", "one text takes", *(f"texts, {layout}" for layout in layouts))]
    for name, takes in parts["row"].select("quantity", "value").iter_rows():
        fit = parts["rows"].filter(pl.col("quantity") == name)["value"]
        lines.append(_line(name, f"{takes:,.2f} GiB", *(f"{count:,.0f}" for count in fit)))
    if "split" in layouts:
        lines.append(
            "whole: every device holds all weights, as this library runs; split: weights divided among devices"
        )
    lines += ["", "traced, with the last token's logits and the residual stream of every layer read:"]
    return "\n".join([*lines, *(f"  {name}" for name in parts["program"]["quantity"])])


def _line(name: str, *values: str) -> str:
    return f"{name:<34}" + "".join(f"{value:>18}" for value in values)


def _of_model(model: LanguageModel, devices: int) -> list[tuple]:
    architecture = model.architecture
    weights = model.weights().values()
    parameters, itemsize = sum(math.prod(weight.shape) for weight in weights), _itemsize(model)
    counts: Mapping[str, int] = {
        "parameters": parameters,
        "layers": architecture.layers,
        "heads of a layer": architecture.heads,
        "units of a layer": architecture.neurons,
    }
    return [
        *(("model", name, None, float(value), "") for name, value in counts.items()),
        *(
            ("weights", "on each device", layout, held / _GIB, "GiB")
            for layout, held in _held(architecture, parameters * itemsize, devices, itemsize).items()
        ),
    ]


def _of_rows(model: LanguageModel, devices: int, memory: float, seq: int) -> list[tuple]:
    architecture, itemsize = model.architecture, _itemsize(model)
    padded = bucket(seq, architecture.context if architecture.learned_positions else None)
    takes = {
        name: bytes_per_row(architecture, sites, seq=padded, logits="last", itemsize=itemsize)
        for name, sites in READS.items()
    }
    takes["nothing, in generation"] = takes["nothing"] + bytes_cached(architecture, padded, itemsize)
    rows: list[tuple] = [("row", name, None, taken / _GIB, "GiB") for name, taken in takes.items()]
    total = sum(math.prod(sizes.values()) for sizes in architecture.weights().values()) * itemsize
    for layout, held in _held(architecture, total, devices, itemsize).items():
        fixed = bytes_fixed(architecture, itemsize) // (devices if layout == "split" else 1)
        budget = (int(memory * _GIB) - held) // 2
        for name, taken in takes.items():
            fits = budget - fixed >= taken
            count = rows_that_fit(taken, budget, _MOST_ROWS, fixed) if fits else 0
            rows.append(("rows", name, layout, float(count), "rows on each device"))
    return rows


def _of_programs(model: LanguageModel, seq: int) -> list[tuple]:
    rows = []
    sites = (resid_post(...),)
    for name, edited in edited_models(model).items():
        logits, read = trace(edited, seq, sites)
        assert logits.shape == (1, model.architecture.vocabulary), f"{name}: logits of shape {logits.shape}"
        left = _bytes(logits) + sum(map(_bytes, read.values()))
        assert left == _bytes(logits) + bytes_read(model.architecture, sites, seq, _itemsize(model)), name
        rows.append(("program", name, None, left / _GIB, "GiB"))
    return rows


def _held(architecture: Architecture, total: int, devices: int, itemsize: int) -> dict[Layout, int]:
    """Bytes of weights on each device in every layout."""
    held: dict[Layout, int] = {"whole": total}
    if devices > 1:
        held["split"] = split_bytes(architecture, devices, itemsize)
    return held


def _itemsize(model: LanguageModel) -> int:
    return next(iter(model.weights().values())).dtype.itemsize


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
