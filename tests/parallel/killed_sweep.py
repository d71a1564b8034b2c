"""A process of a sweep on a mesh. killed_sweep.py FOLDER LEFT: the second one dies once it has written LEFT blocks.

With LEFT of -1 it goes on to the end. What each wrote itself is counted in FOLDER/added-PROCESS.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.activations import ledger
from jaxinterp.models.toy import toy
from jaxinterp.parallel.processes import join


def main(folder, left):
    join()
    add, added = ledger.Ledger.add, []

    def counted(self, block):
        add(self, block)
        added.append(block.cells.tolist())
        if jax.process_index() == 1 and len(added) == int(left):
            os.kill(os.getpid(), signal.SIGKILL)

    ledger.Ledger.add = counted
    lm = ji.shard(toy("llama", hidden_size=16, intermediate_size=24), "sweep=2")
    cells = ji.grid(lambda m, layer, head: ji.ablate(m, ji.head(layer, head)), layer=range(3), head=range(4))
    texts = np.random.default_rng(0).integers(0, 101, (4, 12))
    options = {"memory": 200_000, "progress": False, "folder": Path(folder) / "blocks"}
    table = ji.sweep(lm, texts, cells, ji.logit_diff(5, 6), **options)
    whole = ji.sweep(toy("llama", hidden_size=16, intermediate_size=24), texts, cells, ji.logit_diff(5, 6))
    np.testing.assert_allclose(table["value"], whole["value"], rtol=1e-5, atol=1e-5)
    (Path(folder) / f"added-{jax.process_index()}.json").write_text(json.dumps(added))


if __name__ == "__main__":
    main(*sys.argv[1:])
