"""What a workload takes on a slice, whether it fits, how long it takes at least, and what to change."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from jaxinterp.analysis.plans import compiler, workloads
from jaxinterp.analysis.plans.chips import CHIPS, SLICES, Chip, Topology
from jaxinterp.analysis.plans.compiler import Cost, DoesNotFitError
from jaxinterp.analysis.plans.shapes import Load, Part
from jaxinterp.analysis.plans.workloads import WORKLOADS
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.parallel.mesh import Mesh

_GIB = 2**30
_ROOM = 0.8
"""Of a chip's memory, what weights may take where a slice or a mesh is proposed."""
_TRAINED, _GATHERED = 12, 4
"""Bytes of each weight that training keeps, divided over `fsdp`; and that every chip has within a step, of a weight and
its gradient in bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is planned."""

    workload: str = "forward"
    """"forward", "edited_forward", "generate", "patch_sweep" or "train"."""
    topology: str = "v5e:2x4"
    """Generation and chips, such as "v5e:4x4", "v6e:2x2" or "v5p:2x2x1"."""
    mesh: str | None = None
    """How chips share the work, such as "data=2,tensor=4"; by default chosen from the sizes."""
    dtype: str = "bfloat16"
    """Of the weights; in training they are float32, and the passes bfloat16."""
    rows: int = 16
    """Texts."""
    seq: int = 512
    """Tokens in each text."""
    new: int = 128
    """Tokens that are generated behind each."""


def measure(source: str | Path, settings: Settings) -> pl.DataFrame:
    """Compiles a workload for a slice and counts what it takes.

    Args:
        source: As in `jaxinterp.models.shape_model.load_shapes`.
        settings: What is planned.

    Returns:
        One row per number, with `model`, `workload`, `topology`, `mesh`, `dtype`, `rows`, `seq`, `new`, and

        * `part`: "whole", or a program;
        * `quantity`: of the whole "parameters", "memory", "available", "fits" (1 or 0), "flops", "bytes", "sent",
          "least time" and "compiled in"; of a program "times", "memory", "arguments", "results", "working", "flops",
          "bytes", "sent" and "least time" of one run, and for each kind of collective how many there are and the bytes;
        * `value` and `unit`, of each chip; `note`: what bounds a time, where a figure is from, or what to change.

        A program that the compiler refuses for its memory has only that. The least time is the largest of operations
        over the chip's peak, bytes over its memory's, and bytes sent over half of its links', since they count both
        directions; nothing runs faster, and real programs run slower.

    Raises:
        ValueError: A setting is out of range, libtpu is missing, or the TPU cannot do an operation.
    """
    if settings.workload not in WORKLOADS:
        raise ValueError(f"there is no workload {settings.workload!r}; there are {', '.join(WORKLOADS)}")
    if min(settings.rows, settings.seq, settings.new) < 1:
        raise ValueError(f"rows is {settings.rows}, seq {settings.seq} and new {settings.new}; each must be positive")
    topology = Topology.of(settings.topology)
    settings = dataclasses.replace(settings, dtype="float32") if settings.workload == "train" else settings
    model = load_shapes(source, settings.dtype)
    a, asked = model.architecture, settings.seq + (settings.new if settings.workload == "generate" else 0)
    if a.learned_positions and asked > a.context:
        raise ValueError(f"{model.source} has {a.context} learned positions, and {asked} tokens are asked for")
    mesh = Mesh.of(settings.mesh) if settings.mesh else choose_mesh(model, topology, settings)
    if mesh.size != topology.chips:
        raise ValueError(f"mesh {mesh} has {mesh.size} devices, and {topology} has {topology.chips} chips")
    laid_out = mesh.arrange(compiler.devices_of(topology))
    load = Load(rows=settings.rows, seq=settings.seq, new=settings.new, memory=topology.chip.memory)
    started = time.monotonic()
    try:
        found, refused = workloads.parts(settings.workload, model, laid_out, load), None
    except DoesNotFitError as error:
        found, refused = [], error
    taken = time.monotonic() - started
    needed = refused.needed if refused else peak(found)
    fits = refused is None and needed is not None and needed <= topology.chip.memory * _GIB
    rows = [*_of_whole(model, found, topology.chip), *_of_parts(found, topology.chip)]
    rows += [
        ("whole", "memory", None if needed is None else needed / _GIB, "GiB", str(refused) if refused else None),
        ("whole", "fits", float(fits), "", None),
        ("whole", "compiled in", taken, "s", "on this machine"),
    ]
    if not fits:
        changes = advice(model, settings, topology, mesh, None if needed is None else needed / _GIB)
        rows += [("whole", "change", float(number), "", change) for number, change in enumerate(changes, 1)]
    known = {"model": model.source, **dataclasses.asdict(settings), "mesh": str(mesh), "topology": str(topology)}
    schema = {"part": pl.String, "quantity": pl.String, "value": pl.Float64, "unit": pl.String, "note": pl.String}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.select(*(pl.lit(value).alias(name) for name, value in known.items()), pl.all())


def choose_mesh(model: LanguageModel, topology: Topology, settings: Settings) -> Mesh:
    """A mesh that suits a workload: training divides weights and rows, the others heads and units as far as needed.

    Args:
        model: Without numbers.
        topology: The slice.
        settings: What is planned.

    Returns:
        The mesh.
    """
    a, chips = model.architecture, topology.chips
    divisors = _divisors(a, chips)
    if settings.workload == "train":
        within = _GATHERED * _parameters(model) / (topology.chip.memory * _GIB / 2)
        tensor = next((size for size in divisors if within / size <= 1), max(divisors))
        over = chips // tensor
        return Mesh(tensor=tensor, **{"data" if a.embedding % over else "fsdp": over})
    held = _weights(model) / (topology.chip.memory * _ROOM * _GIB)
    tensor = next((size for size in divisors if held / size <= 1), max(divisors))
    if settings.workload == "patch_sweep":
        return Mesh(sweep=chips // tensor, tensor=tensor)
    return Mesh(data=chips // tensor, tensor=tensor)


def _divisors(a: Architecture, chips: int) -> list[int]:
    """Among how many of some chips the heads and units of a model may be divided."""
    return [
        size
        for size in range(1, chips + 1)
        if not (chips % size or a.heads % size or a.neurons % size or (a.kv_heads % size and size % a.kv_heads))
    ]


def _parameters(model: LanguageModel) -> int:
    return sum(math.prod(weight.shape) for weight in model.weights().values())


def _weights(model: LanguageModel) -> int:
    """Bytes of all weights."""
    return sum(math.prod(weight.shape) * weight.dtype.itemsize for weight in model.weights().values())


def least_time(cost: Cost, chip: Chip) -> tuple[float, str]:
    """How long a program takes at least.

    Args:
        cost: Of the program.
        chip: What runs it.

    Returns:
        Seconds, and what they go into.
    """
    sent = sum(size for _, size in cost.sent.values())
    times = {
        "operations": cost.flops / chip.flops,
        "memory": cost.bytes / chip.bandwidth,
        "links": sent / (chip.links / 2),
    }
    slowest = max(times, key=lambda name: times[name])
    return times[slowest], slowest


def _of_parts(found: Sequence[Part], chip: Chip) -> list[tuple]:
    rows = []
    for part in found:
        cost = part.cost
        seconds, bound = least_time(cost, chip)
        sizes = {"memory": cost.memory, "arguments": cost.arguments, "results": cost.results, "working": cost.working}
        rows.append((part.name, "times", float(part.times), "", None))
        rows += [(part.name, name, size / _GIB, "GiB", None) for name, size in sizes.items()]
        rows.append((part.name, "flops", cost.flops, "", None))
        rows.append((part.name, "bytes", cost.bytes, "B", None))
        rows.append((part.name, "least time", seconds, "s", bound))
        for kind, (often, size) in cost.sent.items():
            rows += [(part.name, kind, often, "", None), (part.name, f"{kind} bytes", size, "B", None)]
    return rows


def peak(found: Sequence[Part]) -> float:
    """The most bytes of a chip that are taken at a time.

    Args:
        found: The programs; those that are not given all weights run beside what the first was given and returned.

    Returns:
        Bytes.
    """
    kept = found[0].cost.arguments + found[0].cost.results
    return max(part.cost.memory + (0 if part.whole else kept) for part in found)


def _of_whole(model: LanguageModel, found: Sequence[Part], chip: Chip) -> list[tuple]:
    rows: list[tuple] = [
        ("whole", "parameters", float(_parameters(model)), "", None),
        ("whole", "available", chip.memory, "GiB", "what the compiler lets a program take"),
    ]
    if not found:
        return rows
    sums = {
        "flops": sum(part.times * part.cost.flops for part in found),
        "bytes": sum(part.times * part.cost.bytes for part in found),
        "sent": sum(part.times * size for part in found for _, size in part.cost.sent.values()),
    }
    seconds = sum(part.times * least_time(part.cost, chip)[0] for part in found)
    units = {"flops": "", "bytes": "B", "sent": "B"}
    rows += [("whole", name, value, units[name], None) for name, value in sums.items()]
    return [*rows, ("whole", "least time", seconds, "s", f"by the figures of {chip.source}")]


def advice(model: LanguageModel, settings: Settings, topology: Topology, mesh: Mesh, needed: float | None) -> list[str]:
    """What to change so that a workload fits.

    Args:
        model: Without numbers.
        settings: What was planned.
        topology: The slice.
        mesh: How it was divided.
        needed: GiB of a chip; `None` if that is not known.

    Returns:
        Sentences, the smallest change first. They are estimates from the weights alone; plan again to be sure.
    """
    trained = settings.workload == "train"
    kept = (_TRAINED * _parameters(model) if trained else _weights(model)) / _GIB
    within = _GATHERED * _parameters(model) / _GIB if trained else 0.0
    share = (kept / mesh.fsdp + within) / mesh.tensor
    changes = []
    if settings.dtype == "float32" and not trained:
        changes.append("take --dtype bfloat16: weights take half")
    room, groups = topology.chip.memory - share, mesh.rows
    if needed is not None and needed > share and room > 0:
        fewer = max(groups, int(settings.rows * room / (needed - share)) // groups * groups)
        changes += [f"take fewer texts at a time: about --rows {fewer}"] if fewer < settings.rows else []
    if room > 0:
        changes.append(f"take shorter texts than --seq {settings.seq}")
    wider = _wider(model, topology, mesh, trained)
    if wider is not None:
        changes.append(f"divide the weights further: --mesh {wider}")
    for generation in dict.fromkeys((topology.generation, *CHIPS)):
        beyond = topology if generation == topology.generation else None
        found = _smallest(generation, model.architecture, kept, within, beyond)
        if found is not None:
            changes.append(f"take a slice whose chips hold the weights with room to spare: --topology {found}")
    return changes


def _wider(model: LanguageModel, topology: Topology, mesh: Mesh, trained: bool) -> Mesh | None:
    """A mesh of the same chips that divides the weights further, if there is one."""
    larger = [size for size in _divisors(model.architecture, topology.chips) if size > mesh.tensor]
    if not larger:
        return None
    over = topology.chips // larger[0]
    return Mesh(tensor=larger[0], fsdp=over) if trained else Mesh(tensor=larger[0], data=over)


def _smallest(
    generation: str, architecture: Architecture, kept: float, within: float, beyond: Topology | None
) -> Topology | None:
    """The smallest slice with room to spare for GiB that are divided over all chips, and others over `tensor`."""
    for grid in SLICES[generation]:
        found = Topology.of(f"{generation}:{grid}")
        larger = beyond is None or found.chips > beyond.chips
        each = kept / found.chips + within / max(_divisors(architecture, found.chips))
        if larger and each <= _ROOM * found.chip.memory:
            return found
    return None


def describe(table: pl.DataFrame) -> str:
    """Writes what `measure` found for a terminal.

    Args:
        table: As from `measure`.

    Returns:
        Lines of text.
    """
    first = table.row(0, named=True)
    whole = table.filter(pl.col("part") == "whole")
    values = {row["quantity"]: row for row in whole.iter_rows(named=True)}
    asked = f"{first['rows']} texts of {first['seq']} tokens"
    asked += f" and {first['new']} new ones" if first["workload"] == "generate" else ""
    lines = [
        f"{first['model']} in {first['dtype']}, {first['workload']}, {asked}",
        f"on {first['topology']} as {first['mesh']}; each chip:",
        "",
    ]
    fits = "fits" if values["fits"]["value"] else "DOES NOT FIT"
    needed = values["memory"]["value"]
    shown = f"{'?' if needed is None else f'{needed:,.2f}':>12}"
    lines.append(f"{'memory':<20}{shown} of {values['available']['value']:g} GiB: {fits}")
    lines += [f"  {values['memory']['note']}"] if values["memory"]["note"] else []
    if "flops" in values:
        lines.append(f"{'operations':<20}{values['flops']['value'] / 1e12:>12,.3f} TFLOP")
        lines.append(f"{'memory traffic':<20}{values['bytes']['value'] / 1e9:>12,.2f} GB")
        lines.append(f"{'sent to others':<20}{values['sent']['value'] / 1e9:>12,.3f} GB")
        lines.append(
            f"{'time, at least':<20}{values['least time']['value']:>12,.4g} s ({values['least time']['note']})"
        )
    for name in table.filter(pl.col("part") != "whole")["part"].unique(maintain_order=True):
        lines += ["", *_described(table.filter(pl.col("part") == name))]
    lines += ["", f"compiled in {values['compiled in']['value']:.0f} s; nothing was run, and no TPU was asked"]
    changes = whole.filter(pl.col("quantity") == "change")["note"].to_list()
    return "\n".join([*lines, *(["", "what to change:"] if changes else []), *(f"  {change}" for change in changes)])


def _described(part: pl.DataFrame) -> list[str]:
    values = {row["quantity"]: row for row in part.iter_rows(named=True)}
    seconds = values["least time"]
    lines = [
        f"{part['part'][0]}, {values['times']['value']:,.4g} times",
        (
            f"  {values['flops']['value'] / 1e12:,.4g} TFLOP, {values['bytes']['value'] / 1e9:,.4g} GB, "
            f"{values['memory']['value']:,.2f} GiB; at least {seconds['value'] * 1e3:,.4g} ms, "
            f"bound by {seconds['note']}"
        ),
    ]
    sent = [
        f"{row['value']:,.0f} {name} ({values[f'{name} bytes']['value'] / 1e6:,.4g} MB)"
        for name, row in values.items()
        if f"{name} bytes" in values
    ]
    return [*lines, f"  {', '.join(sent)}"] if sent else lines
