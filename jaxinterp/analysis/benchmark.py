"""The benchmark: the same work, on the same weights, by this package and by its peers, in one run.

Every peer works in a process of its own environment, and all of them are asked in turn, so that whatever else the
machine does meets all alike. A time counts only if the result agrees with the reference's, which is plain forward hooks
on PyTorch where a model runs, and scikit-learn where none does.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from jaxinterp.analysis.benchmark_inputs import Sizes, make_inputs
from jaxinterp.analysis.benchmark_workers import Launch, WorkerProcess, on_cores
from jaxinterp.models.language_model import LanguageModel, load

_LOG = logging.getLogger(__name__)
Start = Literal["cold", "cold, compiled before", "first", "warm"]
Kind = Literal["absolute", "relative", "sets", "accuracy"]
OURS = "jaxinterp"
PEERS = (OURS, "torch", "transformer_lens", "nnsight", "pyvene", "scikit_learn", "faiss")
GATE = 1e-4
ACCURACY_GATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that all peers are asked to do.

    Attributes:
        title: What it is, in a few words.
        kind: How results are compared. "absolute": effects, differences of logits, weights and token ids by their
            largest difference; "relative": activations and logits by the same, over the largest absolute value of
            the reference; "sets": rows of indices by the part of the reference's that is missing; "accuracy": as
            "absolute", at a thousandth.
        reference: The peer whose result the others must agree with.
    """

    title: str
    kind: Kind
    reference: str = "torch"


TASKS = {
    "w1_first": Task("first logits, 1 x 16", "relative"),
    "w1_new_length": Task("logits of a new length, 1 x 17", "relative"),
    "w2_residuals": Task("read the residual stream", "relative"),
    "w2_all": Task("read eleven sites of every layer", "relative"),
    "w3_patching": Task("patch every layer and position", "absolute"),
    "w4_heads": Task("ablate every head", "absolute"),
    "w5_generate": Task("generate while steering", "absolute"),
    "w5_grid": Task("generate over layers x scales", "absolute"),
    "w6_forward": Task("forward pass of the pairs", "absolute"),
    "w6_attribution": Task("attribution patching", "absolute"),
    "w6_edges": Task("attribution of edges", "absolute"),
    "w6_integrated": Task("integrated gradients", "absolute"),
    "w7_probes": Task("probes at every layer", "accuracy", "scikit_learn"),
    "w8_neighbours": Task("nearest neighbours of every token", "sets", "scikit_learn"),
    "w8_weights": Task("locally linear weights", "absolute", "scikit_learn"),
}
"""Task -> what it is; the first two letters are its workload."""

FASTER = {
    ("w2_residuals", "torch", "hooks"): 1.0,
    ("w2_all", "torch", "hooks"): 1.0,
    ("w3_patching", "transformer_lens", None): 12.0,
    ("w3_patching", "nnsight", "invokes batched"): 3.0,
    ("w3_patching", "torch", "restarting loop"): 3.0,
    ("w4_heads", "transformer_lens", None): 6.0,
    ("w5_generate", "torch", "hook"): 1.3,
    ("w7_probes", "scikit_learn", None): 1.0,
    ("w8_neighbours", "faiss", None): 1.0,
    ("w8_neighbours", "scikit_learn", None): 1.0,
    ("w8_neighbours", "torch", None): 1.0,
    ("w8_weights", "scikit_learn", None): 1.0,
    ("w8_weights", "torch", None): 1.0,
}
"""(task, peer, variant or any) -> how many times faster, warm, this package is to be."""

WITHIN = {"w5_grid": ("w5_generate", 4.0), "w6_attribution": ("w6_forward", 3.4)}
"""Task -> another task, and how many times its seconds this package's may be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        peers: Whom to ask, in the order of the table.
        tasks: Which tasks; all if empty.
        reference: The peer to agree with, for all tasks; each task's own if empty.
        repeats: Timed repetitions, after a first run.
        repeats_of: Task -> repetitions, where they are others.
        threads: Threads, and cores, that a peer may use.
        patience: Seconds after which a run is given up.
        long_run: Seconds from which the first run of a peer that compiles nothing counts as a repetition.
        sizes: How large the workloads are.
    """

    peers: tuple[str, ...] = PEERS
    tasks: tuple[str, ...] = ()
    reference: str = ""
    repeats: int = 5
    repeats_of: dict[str, int] = dataclasses.field(default_factory=dict)
    threads: int = 2
    patience: float = 900.0
    long_run: float = 10.0
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    def chosen(self) -> list[str]:
        """The tasks, in the benchmark's order.

        Raises:
            ValueError: One of them does not exist, or nothing would be timed.
        """
        unknown = [name for name in (*self.tasks, *self.repeats_of) if name not in TASKS]
        if unknown:
            raise ValueError(f"there is no benchmark task '{unknown[0]}'; there are: {', '.join(TASKS)}")
        if min([self.repeats, *self.repeats_of.values()]) < 1:
            raise ValueError("every task is repeated at least once; set repeats to 1 or more")
        return [name for name in TASKS if not self.tasks or name in self.tasks]

    def count(self, task: str) -> int:
        """Timed repetitions of a task."""
        return self.repeats_of.get(task, self.repeats)


@dataclasses.dataclass
class Measurement:
    """What one peer needed for one task in one way.

    Attributes:
        task: The task.
        peer: The peer.
        variant: Which of its ways.
        start: Whether the process was fresh, or the run the first of its kind, or neither.
        version: Versions of the peer's packages.
        answers: One for each repetition.
        error: Why there is none.
        difference: Largest difference from the reference's result; `None` if it was not compared.
        is_reference: Whether it is that result.
    """

    task: str
    peer: str
    variant: str
    start: Start
    version: str
    answers: list[dict[str, float]] = dataclasses.field(default_factory=list)
    error: str | None = None
    difference: float | None = None
    is_reference: bool = False


def find_launches(settings: Settings, workers: Path, environments: Path) -> dict[str, Launch]:
    """How the workers of the peers are started.

    Args:
        settings: Which peers.
        workers: The folder of scripts, `worker_<peer>.py`.
        environments: The folder of virtual environments, one a peer; this package runs in the present one.

    Returns:
        Peer -> launch.

    Raises:
        ValueError: A peer has no script, or no environment.
    """
    launches = {}
    for peer in settings.peers:
        python = Path(sys.executable) if peer == OURS else environments / peer / "bin" / "python"
        launches[peer] = Launch(python, workers / f"worker_{peer}.py")
        for path, what in ((launches[peer].script, "script"), (python, "environment")):
            if not path.exists():
                raise ValueError(f"the peer '{peer}' has no {what} {path}; `snakemake benchmarks` makes environments")
    return launches


def measure(folder: Path, launches: Mapping[str, Launch], settings: Settings) -> pl.DataFrame:
    """Runs the benchmark.

    Args:
        folder: The model as a Hugging Face folder, in float32.
        launches: Peer -> how its worker is started, in the order of the table.
        settings: What is measured.

    Returns:
        One row for each task, peer, variant and start, whether it could be measured or not; see `tabulate`.

    Raises:
        ValueError: A task does not exist, or a worker does not start.
    """
    tasks = settings.chosen()
    model = load(folder)
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place, on_cores(settings.threads):
        for workload in dict.fromkeys(name[:2] for name in tasks):
            _LOG.info("benchmark %s: preparing", workload)
            bench = _Bench(folder, Path(place) / workload, launches, settings)
            found += bench.run(model, workload, [name for name in tasks if name[:2] == workload])
    return tabulate(found)


@dataclasses.dataclass
class _Bench:
    """One workload: its folder, its processes, what they needed."""

    folder: Path
    place: Path
    launches: Mapping[str, Launch]
    settings: Settings

    def run(self, model: LanguageModel, workload: str, tasks: list[str]) -> list[Measurement]:
        self.place.mkdir()
        arrays = make_inputs(model, self.settings.sizes, workload)
        common: dict[str, Any] = {"threads": np.asarray(self.settings.threads)}
        np.savez(self.place / "inputs.npz", allow_pickle=False, **common, **arrays)
        found: list[Measurement] = []
        processes: dict[str, WorkerProcess] = {}
        try:
            for peer in self.launches:
                found += self._open(peer, tasks, processes, last=workload != "w1" or self.settings.repeats == 1)
            if workload == "w1":
                for repeat in range(1, self.settings.repeats):
                    for peer in list(processes):
                        processes.pop(peer).close()
                        again = self._open(peer, tasks, processes, last=repeat == self.settings.repeats - 1)
                        _append(found, again)
            self._compare(found, tasks)
            warm = [self._warm(entry) for entry in found if entry.start == "first" and entry.error is None]
            for repeat in range(max(map(self.settings.count, tasks))):
                order = warm[repeat % max(1, len(warm)) :] + warm[: repeat % max(1, len(warm))]
                for entry in order:
                    if len(entry.answers) < self.settings.count(entry.task) and entry.error is None:
                        self._ask(processes[entry.peer], entry)
                _LOG.info("benchmark %s: repetition %d", workload, repeat + 1)
        finally:
            for process in processes.values():
                process.close()
            shutil.rmtree(self.place)
        return found + warm

    def _open(
        self, peer: str, tasks: list[str], processes: dict[str, WorkerProcess], *, last: bool
    ) -> list[Measurement]:
        """Starts a peer's process and does each task once; a cold start is timed from the process's start."""
        compiled = self.place / f"{peer}-{time.monotonic_ns()}"
        found = self._start(peer, tasks, processes, compiled, "cold", last=last)
        if compiled.exists() and any(compiled.iterdir()) and "w1" in {name[:2] for name in tasks}:
            processes.pop(peer).close()
            again = self._start(peer, tasks, processes, compiled, "cold, compiled before", last=last)
            found = [entry for entry in found if entry.start == "cold"] + again
        return found

    def _start(
        self,
        peer: str,
        tasks: list[str],
        processes: dict[str, WorkerProcess],
        compiled: Path,
        start: Start,
        *,
        last: bool,
    ) -> list[Measurement]:
        log = self.place.parent / f"{peer}.log"
        process = WorkerProcess(peer, self.launches[peer], self.settings.threads, compiled, log, self.settings.patience)
        said = process.ask("describe")
        if "error" in said:
            process.close()
            raise ValueError(f"the worker of {peer} does not start: {said['error']}\n{log.read_text()[-2000:]}")
        variants = [(task, name) for task, name in said["variants"] if task in tasks]
        version = " ".join(f"{name} {number}" for name, number in said["versions"].items())
        absent = {task: reason for task, reason in said["absent"].items() if task in tasks}
        found = [Measurement(task, peer, "", "warm", version, error=reason) for task, reason in absent.items()]
        if not variants:
            process.close()
            return found
        processes[peer] = process
        loaded = process.ask("load", folder=str(self.folder), inputs=str(self.place / "inputs.npz"))
        for task, name in variants:
            entry = Measurement(task, peer, name, "first", version, error=loaded.get("error"))
            found.append(entry)
            if entry.error is None:
                self._ask(process, entry, self._result(entry))
            if task[:2] == "w1":
                cold = dataclasses.replace(entry, start=start, answers=[dict(answer) for answer in entry.answers])
                if task == "w1_first" and cold.answers:
                    cold.answers[0] |= {
                        "wall": time.perf_counter() - process.started,
                        "cpu": cold.answers[0]["cpu_since_start"],
                        "peak_memory": max(cold.answers[0]["peak_memory"], loaded["peak_memory"]),
                    }
                found[-1:] = [cold, entry] if last else [cold]
        return found

    def _ask(self, process: WorkerProcess, entry: Measurement, output: Path | None = None) -> None:
        details = {} if output is None else {"output": str(output)}
        answer = process.ask("run", task=entry.task, variant=entry.variant, **details)
        if "error" in answer:
            entry.error = answer["error"]
            _LOG.info("%s, %s, %s: %s", entry.task, entry.peer, entry.variant, entry.error)
        else:
            entry.answers.append(answer)
            _LOG.info("%s, %s, %s: %.2f s", entry.task, entry.peer, entry.variant, answer["wall"])

    def _warm(self, entry: Measurement) -> Measurement:
        """The repetitions to come; a long first run of a peer that compiles nothing is one of them."""
        counts = entry.peer != OURS and entry.answers[0]["wall"] >= self.settings.long_run
        return dataclasses.replace(entry, start="warm", answers=entry.answers[:1] if counts else [])

    def _result(self, entry: Measurement) -> Path:
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{entry.task} {entry.peer} {entry.variant}")
        return self.place / f"{name}.npz"

    def _compare(self, found: list[Measurement], tasks: list[str]) -> None:
        for task in tasks:
            entries = [entry for entry in found if entry.task == task and entry.error is None]
            wanted = self.settings.reference or TASKS[task].reference
            reference = next((entry for entry in entries if entry.peer == wanted), None)
            if reference is None:
                continue
            with np.load(self._result(reference)) as stored:
                right = dict(stored)
            for entry in entries:
                with np.load(self._result(entry)) as stored:
                    entry.difference = difference(dict(stored), right, TASKS[task].kind)
                entry.is_reference = (entry.peer, entry.variant) == (reference.peer, reference.variant)


def difference(given: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], kind: Kind) -> float:
    """How far a result is from the reference's.

    Args:
        given: Name -> array.
        reference: The same arrays, from the reference.
        kind: See `Task`.

    Returns:
        The largest difference over all arrays; infinite if an array is missing, has another shape or is not finite.

    Examples:
        >>> difference({"x": np.array([1.0, 2.5])}, {"x": np.array([1.0, 2.0])}, "absolute")
        0.5
        >>> difference({"x": np.array([[3, 1]])}, {"x": np.array([[1, 2]])}, "sets")
        0.5
    """
    worst = 0.0
    for name, right in reference.items():
        if name not in given or given[name].shape != right.shape or not np.isfinite(given[name]).all():
            return float("inf")
        if kind == "sets":
            kept = [len(set(mine) & set(theirs)) for mine, theirs in zip(given[name], right, strict=True)]
            worst = max(worst, 1 - sum(kept) / right.size)
            continue
        largest = float(np.abs(given[name].astype(np.float64) - right).max(initial=0))
        worst = max(worst, largest / float(np.abs(right).max()) if kind == "relative" else largest)
    return worst


def tabulate(found: Iterable[Measurement]) -> pl.DataFrame:
    """Turns measurements into the table: a time stands in it only if its gate was passed.

    Args:
        found: What was measured, or could not be.

    Returns:
        Columns `workload`, `task`, `title`, `peer`, `variant`, `version`, `start`, `gate` ("passed", "failed",
        "reference", "no reference", or "not measured"), `gate_difference`, `wall_min`, `wall_median`, `cpu_min`,
        `cpu_median` (seconds; CPU over all threads), `peak_memory` and `extra_memory` (MiB resident at most, and
        above what was resident before), `repeats`, `ratio_to_ours` and `cpu_ratio_to_ours` (median over our fastest
        median of the same task and start), `target`, `reached`, `reason`.
    """
    rows = [_row(entry) for entry in found]
    best: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["peer"] == OURS and row["wall_median"] is not None:
            key = (row["task"], row["start"])
            best[key] = min(best.get(key, row), row, key=lambda entry: entry["wall_median"])
    for row in rows:
        own = best.get((row["task"], row["start"])) or best.get((row["task"], row["start"].partition(",")[0]))
        if own and row["wall_median"] is not None:
            row["ratio_to_ours"] = row["wall_median"] / own["wall_median"]
            row["cpu_ratio_to_ours"] = row["cpu_median"] / own["cpu_median"]
        if row["start"] == "warm":
            row |= _target(row, best)
    order = {name: place for place, name in enumerate(TASKS)}
    rows.sort(key=lambda row: (order[row["task"]], ("cold", "first", "warm").index(row["start"].partition(",")[0])))
    return pl.DataFrame(rows, schema=SCHEMA)


SCHEMA = {
    **dict.fromkeys(("workload", "task", "title", "peer", "variant", "version", "start", "gate"), pl.String),
    **dict.fromkeys(("gate_difference", "wall_min", "wall_median", "cpu_min", "cpu_median"), pl.Float64),
    **dict.fromkeys(("peak_memory", "extra_memory"), pl.Float64),
    "repeats": pl.Int64,
    **dict.fromkeys(("ratio_to_ours", "cpu_ratio_to_ours"), pl.Float64),
    "target": pl.String,
    "reached": pl.Boolean,
    "reason": pl.String,
}


def _row(entry: Measurement) -> dict[str, Any]:
    task = TASKS[entry.task]
    limit = ACCURACY_GATE if task.kind == "accuracy" else GATE
    row = dict.fromkeys(SCHEMA) | {
        "workload": entry.task[:2].upper(),
        "task": entry.task,
        "title": task.title,
        "peer": entry.peer,
        "variant": entry.variant,
        "version": entry.version,
        "start": entry.start,
        "gate_difference": entry.difference,
        "repeats": len(entry.answers),
    }
    if entry.error is not None:
        return row | {"gate": "not measured", "reason": entry.error}
    if entry.difference is not None and entry.difference > limit:
        return row | {"gate": "failed", "reason": f"differs from the reference by {entry.difference:.2g}"}
    row["gate"] = "no reference" if entry.difference is None else "reference" if entry.is_reference else "passed"
    for name in ("wall", "cpu"):
        seconds = [answer[name] for answer in entry.answers]
        row |= {f"{name}_min": min(seconds), f"{name}_median": statistics.median(seconds)}
    for name in ("peak_memory", "extra_memory"):
        row[name] = max(answer[name] for answer in entry.answers)
    return row


def _target(row: Mapping[str, Any], best: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """What this row has to show, and whether it does; `None` where a time is missing."""
    task, peer = row["task"], row["peer"]
    if peer == OURS and task in WITHIN:
        other, factor = WITHIN[task]
        base = best.get((other, "warm"))
        reached = None
        if base is not None and row["wall_median"] is not None:
            reached = row["wall_median"] <= factor * base["wall_median"]
        return {"target": f"at most {factor:g} times our {TASKS[other].title}", "reached": reached}
    factor = FASTER.get((task, peer, row["variant"])) or FASTER.get((task, peer, None))
    if factor is None:
        return {}
    ratio = row["ratio_to_ours"]
    return {"target": f"at least {factor:g} times our seconds", "reached": None if ratio is None else ratio >= factor}


def _append(found: list[Measurement], again: list[Measurement]) -> None:
    """Adds further cold starts to those there are."""
    known = {(entry.task, entry.peer, entry.variant, entry.start): entry for entry in found}
    for entry in again:
        before = known.get((entry.task, entry.peer, entry.variant, entry.start))
        if before is None:
            found.append(entry)
        else:
            before.answers += entry.answers
            before.error = before.error or entry.error
