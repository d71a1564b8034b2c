# ruff: noqa: INP001  # scripts, each run in its own environment
"""faiss on the CPU: exact neighbours."""

from types import MappingProxyType

import numpy as np
from protocol import DEVICES, DTYPES, Arrays, Worker, serve, variant


class FaissWorker(Worker):
    """Its flat index."""

    packages = ("faiss-cpu",)
    dtypes, devices = DTYPES, DEVICES  # the model's; what is computed here is float32, on the CPU
    absent = MappingProxyType({"w8_weights": "faiss finds neighbours and no weights"})

    def load(self) -> None:
        """See `Worker.load`."""
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(self.number("threads"))

    @variant("w8_neighbours", "IndexFlatL2")
    def neighbours(self) -> Arrays:
        """Exact neighbours of every token; one more is asked for, since a token is its own nearest."""
        count, points = self.number("w8_neighbours"), self.inputs["w8_points"]
        index = self.faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        _, found = index.search(points, count + 1)
        others = found != np.arange(len(points))[:, None]
        others[others.all(axis=1), -1] = False  # a token with an exact double may be missing from its own list
        return {"indices": found[others].reshape(len(points), count)}


if __name__ == "__main__":
    serve(FaissWorker())
