"""Memory: how much there is, and a bound on what a forward pass with reads takes of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxinterp import axes
from jaxinterp.models.architecture import Architecture
from jaxinterp.sites.selectors import Site

_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""Names of limit, use and reclaimable cache: version 2 of Linux control groups, and version 1."""


def available(device: Any = None) -> int:
    """Bytes of memory that a computation may still take.

    On an accelerator that counts its memory this is what is free of it; otherwise it is the host's: what Linux calls
    available, or what is left under the limit of a control group (a container, a batch job), whichever is less.

    Args:
        device: The JAX device that will compute; by default the first.

    Returns:
        Bytes.

    Examples:
        >>> available() > 2**20
        True
    """
    device = jax.local_devices()[0] if device is None else device
    counted = None if device.platform == "cpu" else device.memory_stats()
    if counted and "bytes_limit" in counted:
        return max(0, counted["bytes_limit"] - counted.get("bytes_in_use", 0))
    return host_memory()


def host_memory(processes: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of host memory that may still be taken.

    Args:
        processes: Where the kernel reports on memory and processes.
        groups: Where control groups are mounted.

    Returns:
        Bytes; on systems without `/proc/meminfo`, all the memory there is.
    """
    try:
        lines = (processes / "meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return max(0, min([free["MemAvailable"], *_left_in_groups(processes, groups)]))


def _left_in_groups(processes: Path, groups: Path) -> list[int]:
    try:
        own = (processes / "self" / "cgroup").read_text().splitlines()
    except OSError:
        own = []
    folders = {groups, groups / "memory"}
    for line in own:
        for base in (groups, groups / "memory"):
            here = base / line.split(":", 2)[2].lstrip("/")
            folders |= {folder for folder in (here, *here.parents) if folder.is_relative_to(groups)}
    left = []
    for folder in folders:
        for names in _CONTROL_GROUPS:
            limit, use = (_number(folder / Path(name).name) for name in names[:2])
            if limit is not None and use is not None:
                left.append(limit - use + _reclaimable(folder, names[2]))
    return left


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _reclaimable(folder: Path, name: str) -> int:
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(number) for key, number in pairs if key == name)
    except (OSError, ValueError):
        return 0


def bytes_read(architecture: Architecture, sites: Sequence[Site], seq: int, itemsize: int = 4) -> int:
    """Bytes of the activations that one row leaves behind.

    Args:
        architecture: Of the model.
        sites: What is read.
        seq: Tokens of the row, padding included.
        itemsize: Bytes of a number.

    Returns:
        The sum over sites and layers of the product of the site's axes.

    Examples:
        >>> import jaxinterp as ji
        >>> from jaxinterp.models.toy import toy
        >>> bytes_read(toy("llama").architecture, [ji.resid_post(...)], seq=16) == 3 * 16 * 32 * 4
        True
    """
    sizes = architecture.axis_sizes() | {axes.BATCH: 1, axes.SEQ: seq, axes.KV_SEQ: seq}
    total = 0
    for site in sites:
        chosen = sizes | ({site.axis: len(site.indices)} if site.axis else {})
        layers = architecture.layers if site.layers is None else len(site.layers)
        times = 1 if site.name in axes.UNLAYERED else layers
        total += times * itemsize * math.prod(chosen[name] for name in axes.SITES[site.name][0])
    return total


def bytes_per_row(
    architecture: Architecture,
    sites: Sequence[Site] = (),
    *,
    seq: int,
    logits: Literal["all", "last"] | None = "last",
    itemsize: int = 4,
) -> int:
    r"""A bound on the memory that each row of a forward pass takes, besides the weights.

    With $n$ = `seq`, $w$ = `itemsize`, and the architecture's embedding $d$, heads $h$, key-value heads $g$, projection
    $p$, neurons $m$ and vocabulary $V$, it is what is read, plus the residual stream and its copies, $6 n d w$, plus
    the largest of

    * attention: $n (2 h + 4 g) p w + 3 h n^2 \max(w, 4) + n^2$: queries, keys, values and z, the scores, the masked
      scores and the pattern (in float32 at least), and the mask;
    * the MLP: $4 n m w$: both branches, the activations and one more;
    * the readout: $3 \cdot 4 V$ for the last token alone, $3 \cdot 4 n V$ for all of them.

    A pass that is compiled keeps no block's arrays longer than the block, so the number of layers does not appear. A
    CPU makes scores a part at a time where they are neither read nor edited, and then needs less than this. What
    a pass takes besides, whatever its rows are, is `bytes_fixed`.

    Args:
        architecture: Of the model.
        sites: What is read.
        seq: Tokens of the row, padding included; `jaxinterp.activations.run.bucket` says to how many `run` pads.
        logits: As in `run`.
        itemsize: Bytes of a number of the model.

    Returns:
        Bytes.
    """
    a = architecture
    everywhere = logits == "all" or any(site.name in ("ln_final", "logits") for site in sites)
    stream = 6 * seq * a.embedding * itemsize
    square = 3 * a.heads * seq * seq * max(itemsize, 4) + seq * seq
    attention = seq * (2 * a.heads + 4 * a.kv_heads) * a.projection * itemsize + square
    mlp = 4 * seq * a.neurons * itemsize
    readout = 0 if logits is None and not everywhere else 12 * a.vocabulary * (seq if everywhere else 1)
    return bytes_read(a, sites, seq, itemsize) + stream + max(attention, mlp, readout)


def bytes_fixed(architecture: Architecture, itemsize: int = 4) -> int:
    """A bound on the memory that a forward pass takes whatever its rows are, besides the weights.

    The compiler lays one matrix of each MLP out anew, for all blocks before the first of them runs: layers times
    embedding times neurons numbers, in float32 at least. (Measured on the CPU.)

    Args:
        architecture: Of the model.
        itemsize: Bytes of a number of the model.

    Returns:
        Bytes.
    """
    return architecture.layers * architecture.embedding * architecture.neurons * max(itemsize, 4)


def bytes_cached(architecture: Architecture, seq: int, itemsize: int = 4) -> int:
    """Bytes of the keys and values that generation keeps of one row.

    Args:
        architecture: Of the model.
        seq: Tokens of prompt and response, padding included.
        itemsize: Bytes of a number of the model.

    Returns:
        Two arrays [seq, kv_head, projection] for each layer.
    """
    return 2 * architecture.layers * seq * architecture.kv_heads * architecture.projection * itemsize


def rows_that_fit(per_row: int, memory: int | None = None, most: int = 64, fixed: int = 0) -> int:
    """How many rows to take at a time.

    Args:
        per_row: Bytes that one row takes, such as `bytes_per_row` says.
        memory: Bytes that may be taken; by default half of what is available.
        most: Rows beyond which a pass gains nothing.
        fixed: Bytes that are taken whatever the rows are, such as `bytes_fixed` says.

    Returns:
        The largest power of two that fits, at most `most`, so that few sizes are compiled.

    Raises:
        ValueError: Not even one row fits.

    Examples:
        >>> rows_that_fit(10, memory=100)
        8
    """
    memory = available() // 2 if memory is None else memory
    count = (memory - fixed) // per_row
    if count < 1:
        raise ValueError(
            f"one row takes up to {(fixed + per_row) / 2**30:.2f} GiB, more than the {memory / 2**30:.2f} GiB it may; "
            "read fewer sites or layers, or shorter texts"
        )
    return min(most, 1 << (count.bit_length() - 1))
