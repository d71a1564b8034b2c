# ruff: noqa: INP001  # scripts, each run in its own environment
"""What the benchmark's driver and its workers say to each other: one JSON object a line, on stdin and stdout.

A worker is one process in one environment. It answers `describe`, `load` and `run`; arrays travel as `.npz` files. Only
the standard library and NumPy are needed, so that this file works in the environment of every peer.
"""

import ctypes
import gc
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "gpu")
Arrays = dict[str, Any]
"""Name -> what `np.asarray` makes an array of."""
Method = Callable[["Worker"], Arrays]


def variant(task: str, name: str = "default") -> Callable[[Any], Any]:
    """Marks a worker's method as one way to do a task.

    Args:
        task: The task, such as "w3_patching".
        name: What tells it from the worker's other ways.

    Returns:
        A decorator.
    """

    def mark(method: Any) -> Any:
        method.variant = (task, name)
        return method

    return mark


class Worker:
    """A peer in its own process.

    Attributes:
        packages: Distributions whose versions are reported; the first one is the peer.
        absent: Task -> why the peer cannot do it, where there is nothing to call.
        dtypes: Dtypes in which it can be asked to compute with the model.
        devices: Devices on which it can be.
        inputs: The driver's arrays, by name.
        folder: The model.
    """

    packages: tuple[str, ...] = ()
    absent: Mapping[str, str] = MappingProxyType({})
    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    inputs: Arrays
    folder: Path

    def load(self) -> None:
        """Imports the library and loads the model; both are part of a cold start."""

    def device_name(self) -> str:
        """What the worker computes on, asked when it is loaded."""
        return "cpu"

    def wait(self) -> None:
        """Waits until the device has done what it was given, the last thing that is timed."""

    def settle(self) -> None:
        """Lets go of what a run left behind, between two timings."""
        gc.collect()

    def check_place(self) -> None:
        """Raises a `NotImplementedError` if the worker is asked for a dtype or a device that it does not know."""
        for name, known in (("dtype", self.dtypes), ("device", self.devices)):
            if self.text(name) not in known:
                raise NotImplementedError(f"this worker is written for {name} {known[0]}, not for {self.text(name)}")

    def variants(self) -> dict[tuple[str, str], Method]:
        """The marked methods, by task and name, in the order they are written."""
        members = [member for owner in reversed(type(self).__mro__) for member in vars(owner).values()]
        return {member.variant: member for member in members if hasattr(member, "variant")}

    def number(self, name: str) -> int:
        """A whole number among the inputs."""
        return int(self.inputs[name])

    def text(self, name: str) -> str:
        """A word among the inputs."""
        return str(self.inputs[name])


def serve(worker: Worker) -> None:
    """Answers the driver until it closes the pipe.

    Args:
        worker: Whose methods are run.
    """
    replies = _claim_stdout()
    methods = worker.variants()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(worker, methods, request)
        except Exception as error:  # noqa: BLE001  # whatever a library raises is the row's reason
            traceback.print_exc(file=sys.stderr)
            answer = {"error": f"{type(error).__name__}: {_one_line(error)}"}
        print(json.dumps(answer), file=replies, flush=True)


def _answer(worker: Worker, methods: dict[tuple[str, str], Method], request: dict[str, Any]) -> dict[str, Any]:
    if request["verb"] == "describe":
        versions = {name: importlib.metadata.version(name) for name in worker.packages}
        return {"versions": versions, "variants": [list(name) for name in methods], "absent": dict(worker.absent)}
    if request["verb"] == "load":
        worker.folder = Path(request["folder"])
        with np.load(request["inputs"]) as stored:
            worker.inputs = dict(stored)
        worker.check_place()
        return _measured(worker.load, worker.wait)[1] | {"device": worker.device_name()}
    method = methods[request["task"], request["variant"]]
    worker.settle()
    arrays, answer = _measured(lambda: method(worker), worker.wait)
    if request.get("output"):
        np.savez(request["output"], **{name: _storable(array) for name, array in arrays.items()})
    return answer


def _storable(value: Any) -> np.ndarray:
    """An array that a file can hold: numbers in 16 bits that NumPy does not know become float32."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _measured(action: Callable[[], Any], wait: Callable[[], None]) -> tuple[Any, dict[str, float]]:
    """Runs something; wall and CPU seconds of all threads, and the highest resident memory meanwhile in MiB."""
    _trim_heap()
    before = _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _memory("VmHWM")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return result, {
        "wall": wall,
        "cpu": cpu,
        "peak_memory": peak,
        "extra_memory": max(0.0, peak - before),
        "cpu_since_start": usage.ru_utime + usage.ru_stime,
    }


def _trim_heap() -> None:
    """Gives freed memory back to the system, so that the next peak is the next run's own."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        return


def _forget_peak() -> float:
    """Starts the count of the highest resident memory anew (Linux only); resident MiB now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of resident memory cannot be reset here; it counts from the start", file=sys.stderr)
    return _memory("VmRSS")


def _memory(field: str) -> float:
    """A field of this process's status, in MiB; where there is none, the highest resident memory since the start."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _claim_stdout() -> TextIO:
    """Keeps stdout for replies: whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return replies


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


@contextmanager
def removing(handles: list[Any]) -> Iterator[None]:
    """Removes PyTorch hooks when the block ends, however it ends.

    Args:
        handles: What registering them returned.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
