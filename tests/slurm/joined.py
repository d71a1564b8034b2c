"""A product of matrices that lie on the devices of several hosts, and a record of where they lay. Started by srun."""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxinterp import artefacts


def main() -> None:
    """Joins the processes, multiplies with the contraction divided among all, and writes from the first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", required=True)
    output = parser.parse_args().output
    jax.distributed.initialize()
    mesh = jax.sharding.Mesh(jax.devices(), ("x",))
    a, b = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    left = jax.make_array_from_callback(a.shape, NamedSharding(mesh, PartitionSpec(None, "x")), a.__getitem__)
    right = jax.make_array_from_callback(b.shape, NamedSharding(mesh, PartitionSpec("x")), b.__getitem__)
    whole = NamedSharding(mesh, PartitionSpec())
    product = jax.jit(jnp.matmul, out_shardings=whole)(left, right)
    node = int(os.environ["SLURMD_NODENAME"].removeprefix("n"))
    nodes = multihost_utils.process_allgather(jnp.array(node))
    if jax.process_index() == 0:
        record = artefacts.provenance({"command": "product of two matrices"}) | {
            "error": float(np.abs(np.asarray(product) - a @ b).max()),
            "local_devices": jax.local_device_count(),
            "nodes": [f"n{number}" for number in nodes.ravel().tolist()],
        }
        artefacts.write_json(record, output)


if __name__ == "__main__":
    main()
