"""The settings of the benchmark."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxinterp.analysis.benchmark_inputs import Sizes
from jaxinterp.analysis.benchmark_table import OURS, TASKS

PEERS = (OURS, "torch", "transformer_lens", "nnsight", "pyvene", "scikit_learn", "faiss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        peers: Whom to ask, in the order of the table.
        tasks: Which tasks, or workloads such as "w3" with all of theirs; all if empty.
        reference: The peer to agree with, for all tasks; each task's own if empty.
        repeats: Timed repetitions, after a first run.
        repeats_of: Task -> repetitions, where they are others.
        threads: Threads, and cores, that a peer may use.
        patience: Seconds after which a run is given up.
        long_run: Seconds from which the first run of a peer that compiles nothing counts as a repetition; where no
            target is set against it, it is then the only one, as the column `repeats` says.
        dtype: Dtype of the model's weights and activations; what else is computed, such as probes, is in float32.
        device: Where the model runs: "cpu", or "gpu" for the first one that PyTorch and JAX find.
        peak_flops: Floating-point operations a second that the device can do in this dtype, from its maker's tables;
            0 if unknown, and then nothing is said of how much of it is used.
        sizes: How large the workloads are.
    """

    peers: tuple[str, ...] = PEERS
    tasks: tuple[str, ...] = ()
    reference: str = ""
    repeats: int = 5
    repeats_of: dict[str, int] = dataclasses.field(default_factory=dict)
    threads: int = 2
    patience: float = 900.0
    long_run: float = 12.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["cpu", "gpu"] = "cpu"
    peak_flops: float = 0.0
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    def chosen(self) -> list[str]:
        """The tasks, in the benchmark's order.

        Raises:
            ValueError: One of them does not exist, nothing would be timed, or a speed is below zero.
        """
        known = {*TASKS, *(name[:2] for name in TASKS)}
        unknown = [*(name for name in self.tasks if name not in known), *(self.repeats_of.keys() - TASKS.keys())]
        if unknown:
            raise ValueError(f"there is no benchmark task '{unknown[0]}'; there are: {', '.join(TASKS)}")
        if self.peak_flops < 0:
            raise ValueError(f"peak_flops is {self.peak_flops:g}; give operations a second, or 0 if they are unknown")
        if min([self.repeats, *self.repeats_of.values()]) < 1:
            raise ValueError("every task is repeated at least once; set repeats to 1 or more")
        return [name for name in TASKS if not self.tasks or {name, name[:2]} & set(self.tasks)]

    def count(self, task: str) -> int:
        """Timed repetitions of a task."""
        return self.repeats_of.get(task, self.repeats)

    def dtype_of(self, task: str) -> str:
        """What a task is computed in: the model's dtype, or float32 where the inputs are arrays of numbers."""
        return "float32" if task[:2] in ("w7", "w8") else self.dtype
