"""The processes of a benchmark: one for each peer, in the peer's own environment, spoken to in lines of JSON.

What is said is written down in `workflows/peers/protocol.py`, which the workers run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DEVICE_SHARE = 0.42
"""The share of an accelerator's memory that a worker may take: two compute there, and both live at once."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a worker is started.

    Attributes:
        python: The interpreter of its environment.
        script: The worker's script.
    """

    python: Path
    script: Path


class WorkerProcess:
    """A running worker, until it is closed.

    Attributes:
        name: The peer's name.
        started: When the process was started, on the clock of `time.perf_counter`.
    """

    def __init__(self, name: str, launch: Launch, threads: int, compiled: Path, log: Path, patience: float) -> None:
        """Starts the process.

        Args:
            name: The peer's name.
            launch: How it is started.
            threads: Threads it may use.
            compiled: Folder in which jax keeps compiled programs.
            log: File to which what it prints is added.
            patience: Seconds after which a request is given up and the process ended.
        """
        self.name = name
        self._patience = patience
        self._log = log.open("a", encoding="utf-8")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603  # an interpreter and a script that the caller names
            [str(launch.python), str(launch.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(threads, compiled),
        )

    def ask(self, verb: str, **details: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Args:
            verb: "describe", "load" or "run".
            **details: What the verb needs.

        Returns:
            The answer; with the key "error" if there is none, because the worker raised, ended or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **details}) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # a broken pipe, or one that `close` has closed
            return {"error": f"the process ended with status {self._process.wait()}"}
        return self._receive(verb)

    def _receive(self, verb: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(self._patience):
                self._process.kill()
                self.close()
                return {"error": f"no answer to '{verb}' within {self._patience:.0f} s; the process was ended"}
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"the process ended with status {self._process.wait()} (see {self._log.name})"}
        return json.loads(line)

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keeps this process, and the processes it starts meanwhile, on so many cores (Linux only).

    Args:
        count: Cores; all there are if fewer.

    Yields:
        Nothing.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _environment(threads: int, compiled: Path) -> Mapping[str, str]:
    """A worker's environment: threads that sleep while they wait, nothing from the network, bytecode kept."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    fixed = {
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(DEVICE_SHARE),
        "PYTHONUNBUFFERED": "1",
    }
    return kept | dict.fromkeys(_THREADS, str(threads)) | fixed
