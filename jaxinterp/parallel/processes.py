"""Several processes that work as one, and what each of them holds."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel.mesh import Mesh
from jaxinterp.parallel.placement import every, mesh_of

_MIB = 2**20


def join() -> None:
    """Joins the other processes of a job; call it before anything else of JAX.

    Under Slurm, on a Cloud TPU and in a pod of a GKE TPU slice JAX finds the others by itself. Elsewhere three
    variables say it: `JAX_COORDINATOR_ADDRESS` (host and port of the first process), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`. `JAX_COORDINATOR_BIND_ADDRESS` keeps the first process to one network address.

    Raises:
        ValueError: The others cannot be found, or do not come.
    """
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count), process_id=None if number is None else int(number)
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes of this job did not find each other ({str(error).splitlines()[0]}); start it with srun, on "
            "a TPU slice, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process"
        ) from error


def default_mesh() -> Mesh:
    """The mesh of a job that names none: a whole model on every device, which share the cells of a sweep."""
    return Mesh(sweep=len(jax.devices()))


def held(model: LanguageModel) -> dict[str, float]:
    """What this process holds of a model on a mesh, in MiB.

    Args:
        model: A model on a mesh.

    Returns:
        `whole`, the weights of the model; `read`, the parts of them that this process's devices hold, each counted
        once, which is what it reads from disk; `held`, the same with every copy counted.
    """
    arrays = model.weights().values()
    read = held = 0
    for array in arrays:
        parts = {str(piece.index): piece.data.nbytes for piece in array.addressable_shards}
        read += sum(parts.values())
        held += sum(piece.data.nbytes for piece in array.addressable_shards)
    return {"whole": sum(array.nbytes for array in arrays) / _MIB, "read": read / _MIB, "held": held / _MIB}


def resident() -> tuple[float, float]:
    """Host memory of this process in MiB: now, and the most so far (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    now, most = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def hosts(model: LanguageModel) -> list[str]:
    """The name of the host (under Slurm, of the node) of each process of a model's mesh, in all of them."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    letters = np.frombuffer(name.encode()[:64].ljust(64), np.uint8)
    return [bytes(row.astype(np.uint8)).decode().strip() for row in every(letters, mesh_of(model.body))]


def compare(model: LanguageModel, **own: float) -> list[dict[str, Any]]:
    """What each process of a model's mesh says, in all of them.

    Args:
        model: The model.
        **own: Numbers of this process.

    Returns:
        For each process its `process`, `devices` and the numbers.
    """
    mine = [jax.process_index(), jax.local_device_count(), *own.values()]
    rows = every(np.asarray(mine, np.float32), mesh_of(model.body))
    return [
        {"process": int(row[0]), "devices": int(row[1])}
        | {name: round(float(value), 3) for name, value in zip(own, row[2:], strict=True)}
        for row in rows
    ]
