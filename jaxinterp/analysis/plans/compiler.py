"""The TPU's ahead-of-time compiler, on a machine that has no TPU.

It is part of libtpu, which Google publishes under the Google Cloud Platform Terms of Service and not as open source;
`pip install jaxinterp[tpu-plan]` brings it. It compiles and counts; nothing runs, so that neither numbers nor times are
checked by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jaxinterp.analysis.plans import collectives
from jaxinterp.analysis.plans.chips import Topology

_SETTINGS = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu would otherwise ask a TPU's host for; and that several processes may compile at a time."""

_OVERFLOW = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)G|\b([\d.]+)([KMGT])\)? exceeds available HBM \(([\d.]+)G\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a program takes of each chip.

    Attributes:
        flops: Operations.
        bytes: That pass between a chip and its memory.
        arguments: Bytes of what it is given.
        results: Bytes of what it returns and does not lie where an argument was.
        working: Bytes that it takes in between.
        sent: Kind of collective -> how many there are, and the bytes that a chip sends in them.
    """

    flops: float
    bytes: float
    arguments: float
    results: float
    working: float
    sent: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def memory(self) -> float:
        """Bytes that are taken while it runs."""
        return self.arguments + self.results + self.working

    def continued(self, before: Cost, blocks: int) -> Cost:
        """The cost with more blocks, each of which adds what the last one did.

        Args:
            before: With a block less.
            blocks: How many more there are; -1 gives `before`.

        Returns:
            The cost; no number falls below that of `before`.
        """

        def follow(now: float, then: float) -> float:
            return now + blocks * max(0.0, now - then)

        numbers = {
            field.name: follow(getattr(self, field.name), getattr(before, field.name))
            for field in dataclasses.fields(Cost)
            if field.name != "sent"
        }
        nothing = (0.0, 0.0)
        sent = {
            kind: (follow(often, before.sent.get(kind, nothing)[0]), follow(size, before.sent.get(kind, nothing)[1]))
            for kind, (often, size) in self.sent.items()
        }
        return Cost(**numbers, sent=sent)


class DoesNotFitError(ValueError):
    """A program that takes more memory than a chip has.

    Attributes:
        needed: Bytes; `None` where that is not known.
    """

    def __init__(self, needed: float | None, sentence: str) -> None:
        super().__init__(sentence)
        self.needed = needed


def devices_of(topology: Topology) -> Sequence[Any]:
    """Devices to compile for.

    Args:
        topology: A slice.

    Returns:
        One for each chip; they can be put into a mesh and not computed with.

    Raises:
        ValueError: libtpu is not installed, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is not installed, and it has the TPU's compiler: pip install 'jaxinterp[tpu-plan]' (Google's "
            "licence, the Google Cloud Platform Terms of Service)"
        )
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.generation}-{topology.chips}")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=str(topology)).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ValueError(f"topology {topology}: the compiler does not take it ({_first_line(error)})") from error
    if len(devices) != topology.chips:
        raise ValueError(f"topology {topology}: the compiler sees {len(devices)} devices; choose another slice")
    return devices


def compile_cost(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = (), what: str = "") -> Cost:
    """Compiles a program and counts what it takes.

    Args:
        function: The program.
        *arguments: Trees of shapes, each with a sharding over the devices of a topology.
        donate: Which of them are used up.
        what: Name of the program, for errors.

    Returns:
        Its cost.

    Raises:
        DoesNotFitError: It takes more memory than a chip has.
        ValueError: The TPU has no way to do an operation in it.
    """
    try:
        with _nothing_kept():
            compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    except NotImplementedError as error:
        raise ValueError(f"{what}: a TPU cannot do this: {_first_line(error)}") from error
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error, what) from error
    taken, counted, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert taken is not None and counted is not None and text is not None, "the compiler counts"
    return Cost(
        flops=max(0.0, counted.get("flops", 0.0)),
        bytes=counted.get("bytes accessed", 0.0),
        arguments=taken.argument_size_in_bytes,
        results=taken.output_size_in_bytes - taken.alias_size_in_bytes,
        working=taken.temp_size_in_bytes,
        sent=collectives.count(text),
    )


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """Keeps programs out of the folder of compiled programs: for chips that are not there they cannot be read back."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def _explained(error: Exception, what: str) -> Exception:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return ValueError(f"{what}: the TPU's compiler refuses: {_first_line(error)}")
    found = _OVERFLOW.search(text)
    if found is None:
        return DoesNotFitError(None, f"{what}: does not fit: {_first_line(error)}")
    number, unit, has = (group for group in found.groups() if group is not None)
    needed = float(number) * _UNITS[unit]
    return DoesNotFitError(needed, f"{what} takes {needed / 2**30:.2f} GiB of each chip, and there are {has}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
