"""The benchmark: the same work, on the same weights, by this package and by its peers, in one run.

Every peer works in a process of its own environment, and all of them are asked in turn, so that whatever else the
machine does meets all alike. A time counts only if the result agrees with the reference's, which is plain forward hooks
on PyTorch where a model runs, and scikit-learn where none does.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxinterp.analysis.benchmark_flops import task_flops
from jaxinterp.analysis.benchmark_inputs import make_inputs, size_of_logits
from jaxinterp.analysis.benchmark_settings import Settings
from jaxinterp.analysis.benchmark_table import (
    GATE_ONLY,
    OURS,
    TASKS,
    Measurement,
    Start,
    difference,
    tabulate,
    wanted_factor,
)
from jaxinterp.analysis.benchmark_workers import DEVICE_SHARE, Launch, WorkerProcess, on_cores
from jaxinterp.models.language_model import LanguageModel, load

_LOG = logging.getLogger(__name__)


def find_launches(settings: Settings, workers: Path, environments: Path | None = None) -> dict[str, Launch]:
    """How the workers of the peers are started.

    Args:
        settings: Which peers.
        workers: The folder of scripts, `worker_<peer>.py`.
        environments: The folder of virtual environments, one a peer, all but this package, which runs in the present
            one; by default all peers do.

    Returns:
        Peer -> launch.

    Raises:
        ValueError: A peer has no script, or no environment.
    """
    launches = {}
    for peer in settings.peers:
        python = Path(sys.executable)
        if environments is not None and peer != OURS:
            python = environments / peer / "bin" / "python"
        launches[peer] = Launch(python, workers / f"worker_{peer}.py")
        for path, what in ((launches[peer].script, "script"), (python, "environment")):
            if not path.exists():
                raise ValueError(f"the peer '{peer}' has no {what} {path}; `snakemake benchmarks` makes environments")
    return launches


def measure(folder: Path, launches: Mapping[str, Launch], settings: Settings) -> pl.DataFrame:
    """Runs the benchmark.

    Args:
        folder: The model as a Hugging Face folder; it is loaded in the dtype of the settings.
        launches: Peer -> how its worker is started, in the order of the table.
        settings: What is measured.

    Returns:
        One row for each task, peer, variant and start, whether it could be measured or not; see `tabulate`.

    Raises:
        ValueError: A task does not exist, or a worker does not start.
    """
    tasks = settings.chosen()
    found: list[Measurement] = []
    cpu = jax.local_devices(backend="cpu")[0]  # an accelerator's memory is for those who are measured
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as place,
        on_cores(settings.threads),
        jax.default_device(cpu),
    ):
        model = load(folder, settings.dtype)
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
        scale = 1.0 if self.settings.dtype == "float32" else size_of_logits(model, arrays)
        common: dict[str, Any] = {
            "threads": np.asarray(self.settings.threads),
            "dtype": np.asarray(self.settings.dtype),
            "device": np.asarray(self.settings.device),
            "device_share": np.asarray(DEVICE_SHARE),
        }
        np.savez(self.place / "inputs.npz", allow_pickle=False, **common, **arrays)
        found: list[Measurement] = []
        processes: dict[str, WorkerProcess] = {}
        starts = max(map(self.settings.count, tasks)) if workload == "w1" else 1
        try:
            for peer in self.launches:
                found += self._open(peer, tasks, processes, last=starts == 1)
            for start in range(1, starts):
                for peer in list(processes):
                    processes.pop(peer).close()
                    _append(found, self._open(peer, tasks, processes, last=start == starts - 1))
            self._compare(found, tasks, scale)
            flops = task_flops(model.architecture, arrays)
            for entry in found:
                entry.flops, entry.peak_flops = flops.get(entry.task), self.settings.peak_flops or None
            done = [entry for entry in found if entry.start == "first" and entry.error is None]
            warm = [self._warm(entry) for entry in done if entry.variant != GATE_ONLY]
            for repeat in range(max(map(self.settings.count, tasks))):
                order = warm[repeat % max(1, len(warm)) :] + warm[: repeat % max(1, len(warm))]
                for entry in order:
                    if entry.error is None and len(entry.answers) < self._wanted(entry):
                        self._ask(self._living(entry.peer, processes), entry)
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
        process, said = self._launch(peer, compiled)
        variants = [(task, name) for task, name in said["variants"] if task in tasks]
        version = " ".join(f"{name} {number}" for name, number in said["versions"].items())
        absent = {task: reason for task, reason in said["absent"].items() if task in tasks}
        found = [Measurement(task, peer, "", "warm", version, error=reason) for task, reason in absent.items()]
        if not variants:
            process.close()
            return found
        processes[peer] = process
        loaded = self._load(process)
        for task, name in variants:
            entry = Measurement(task, peer, name, "first", version, error=loaded.get("error"))
            entry.dtype, entry.device = self.settings.dtype_of(task), loaded.get("device", "")
            found.append(entry)
            if entry.error is None:
                self._ask(self._living(peer, processes), entry, self._result(entry))
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

    def _launch(self, peer: str, compiled: Path) -> tuple[WorkerProcess, dict[str, Any]]:
        """A new process of a peer, and what it says it can do."""
        log = self.place.parent / f"{peer}.log"
        launch, threads = self.launches[peer], self.settings.threads
        process = WorkerProcess(peer, launch, threads, compiled, log, self.settings.patience)
        said = process.ask("describe")
        if "error" in said:
            process.close()
            raise ValueError(f"the worker of {peer} does not start: {said['error']}\n{log.read_text()[-2000:]}")
        return process, said

    def _load(self, process: WorkerProcess) -> dict[str, Any]:
        return process.ask("load", folder=str(self.folder), inputs=str(self.place / "inputs.npz"))

    def _living(self, peer: str, processes: dict[str, WorkerProcess]) -> WorkerProcess:
        """A peer's process; a new one if a run has ended the last."""
        if not processes[peer].is_alive():
            processes[peer].close()
            processes[peer], _ = self._launch(peer, self.place / f"{peer}-{time.monotonic_ns()}")
            self._load(processes[peer])
        return processes[peer]

    def _ask(self, process: WorkerProcess, entry: Measurement, output: Path | None = None) -> None:
        details = {} if output is None else {"output": str(output)}
        answer = process.ask("run", task=entry.task, variant=entry.variant, **details)
        if "error" in answer:
            entry.error = answer["error"]
            _LOG.info("%s, %s, %s: %s", entry.task, entry.peer, entry.variant, entry.error)
        else:
            entry.answers.append(answer)
            _LOG.info("%s, %s, %s: %.2f s", entry.task, entry.peer, entry.variant, answer["wall"])

    def _wanted(self, entry: Measurement) -> int:
        """How often an entry is repeated."""
        aimed_at = entry.peer == OURS or wanted_factor(entry.task, entry.peer, entry.variant) is not None
        long = bool(entry.answers) and entry.answers[0]["wall"] >= self.settings.long_run
        return 1 if long and not aimed_at else self.settings.count(entry.task)

    def _warm(self, entry: Measurement) -> Measurement:
        """The repetitions to come; a long first run of a peer that compiles nothing is one of them."""
        counts = entry.peer != OURS and entry.answers[0]["wall"] >= self.settings.long_run
        return dataclasses.replace(entry, start="warm", answers=entry.answers[:1] if counts else [])

    def _result(self, entry: Measurement) -> Path:
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{entry.task} {entry.peer} {entry.variant}")
        return self.place / f"{name}.npz"

    def _compare(self, found: list[Measurement], tasks: list[str], scale: float) -> None:
        for task in tasks:
            entries = [entry for entry in found if entry.task == task and entry.error is None]
            wanted = self.settings.reference or TASKS[task].reference
            reference = next((entry for entry in entries if entry.peer == wanted), None)
            if reference is None:
                continue
            with np.load(self._result(reference)) as stored:
                right = dict(stored)
            points = None
            if TASKS[task].kind == "neighbours":
                with np.load(self.place / "inputs.npz") as inputs:
                    points = inputs["w8_points"]
            for entry in entries:
                with np.load(self._result(entry)) as stored:
                    entry.difference = difference(dict(stored), right, TASKS[task].kind, scale, points)
                entry.is_reference = (entry.peer, entry.variant) == (reference.peer, reference.variant)


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
