"""What the tests of this folder run in processes of their own: everything on a mesh, its numbers and its shardings.

worker.py FOLDER TASK FAMILY MESH ...: TASK is "model", "brief" (no sweep) or "train"; the first process writes
FOLDER/FAMILY-MESH.npz and .json. Mesh "none" is one device without any.
"""

import functools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, 96, (6, 10)).astype(np.int32)
OTHERS = RANDOM.integers(0, 96, (6, 10)).astype(np.int32)
VECTOR = RANDOM.standard_normal(32).astype(np.float32)


def model(family, mesh, swept=True):
    import jaxinterp as ji
    from jaxinterp.models.toy import toy

    lm = toy(family, **{("n_layer" if family == "gpt2" else "num_hidden_layers"): 2}, vocab_size=96)
    _, cache = ji.run(lm, OTHERS, sites=[ji.resid_pre(...)], logits=None)
    if mesh != "none":
        lm = ji.shard(lm, mesh)
    edited = ji.steer(ji.ablate(lm, ji.head(1, 2)), ji.resid_post(0), VECTOR, scale=0.5)
    edited = ji.patch(edited, ji.resid_pre(1), cache, at=ji.at(4))
    logits, acts = ji.run(edited, TOKENS, sites=[ji.pattern(1), ji.resid_post(1)])
    written = ji.generate_tokens(edited, TOKENS, 4, keep_logits=True)
    cells = ji.grid(lambda m, layer, head: ji.ablate(m, ji.head(layer, head)), layer=range(2), head=range(4))
    cells += ji.grid(
        lambda m, layer, position: ji.patch(m, ji.resid_pre(layer), cache, at=ji.at(position)),
        layer=range(2),
        position=[3, 9],
    )
    numbers = {
        "logits": logits,
        "pattern": acts["pattern", 1],
        "stream": acts["resid_post", 1],
        "written": written.tokens,
        "written logits": written.logits,
    }
    if swept:
        table = ji.sweep(lm, TOKENS, cells, ji.logit_diff(5, 6), progress=False)
        numbers |= {name: table[name].to_numpy() for name in ("value", "clean")}
    return numbers, shardings(lm, mesh)


def shardings(lm, mesh):
    """Shapes of the parts that a device holds, as they are and not as they should be."""
    if mesh == "none":
        return {}
    from jaxinterp.activations.plan import Base
    from jaxinterp.activations.reading import _begin, _read_block
    from jaxinterp.activations.stages import Texts
    from jaxinterp.parallel.placement import mesh_of, put_rows

    weights = {name: array.sharding.shard_shape(array.shape) for name, array in lm.weights().items()}
    base = Base.of(lm.body)
    tokens = np.tile(TOKENS, (4, 1))
    texts = put_rows(Texts(tokens, np.ones(tokens.shape, bool)), mesh_of(lm.body))
    stream, _ = _begin(base.ends, texts, sites=())
    program = _read_block.lower(base.blocks[0], stream, texts, sites=()).compile()
    words = program.as_text().splitlines()
    collectives = [line for line in words if "= " in line and " all-" in line]
    leaving = program.output_shardings[0].shard_shape(stream.shape)
    found = {"weights": weights, "leaving": leaving, "collectives": len(collectives), "devices": len(jax.devices())}
    return found | {"cache": shards_of_cache(lm, texts)}


def shards_of_cache(lm, texts):
    """Shapes of the parts of the keys and values that are kept of prompts, [cell, batch, kv_head, slot, projection]."""
    from jaxinterp.activations.generate import _read_prompt
    from jaxinterp.activations.groups import by_structure
    from jaxinterp.activations.run import compiled_form

    (group,) = by_structure([compiled_form(lm.body)], common=lambda _: True)
    sizes = {"slots": 16, "kv_heads": lm.architecture.kv_heads, "projection": lm.architecture.projection}
    key = jax.random.key(0)
    state = _read_prompt(group.shared, group.stack([0]), texts.tokens, texts.mask, key, cells=1, **sizes)
    return sorted({leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state.reading.memory)})


def train(_, mesh):
    from flax import nnx

    from jaxinterp.models.architecture import Architecture, Rope
    from jaxinterp.models.nnx import Decoder, to_weights
    from jaxinterp.parallel.mesh import Mesh
    from jaxinterp.training import language_model

    sizes = {"vocabulary": 18, "embedding": 16, "layers": 2, "heads": 2, "kv_heads": 2, "projection": 8, "neurons": 32}
    ropes = (Rope(theta=1e4, rotary=8),) * 2
    architecture = Architecture(family="qwen2", context=32, ropes=ropes, qkv_bias=True, tied=False, **sizes)
    decoder = Decoder(architecture, nnx.Rngs(0))
    rows = np.random.default_rng(0).integers(0, 17, (40, 13)).astype(np.int32)
    course = language_model.Course(steps=4, rows=8, warm_up=1, log_every=2)
    devices = Mesh.of(None if mesh == "none" else mesh)
    trained, log = language_model.train(decoder, rows, course, held_out=rows[:8], devices=devices)
    weights = {name: np.asarray(array) for name, array in to_weights(trained).items()}
    return weights | {name: log[name].to_numpy() for name in ("loss", "held_out", "gradient_norm")}, {}


TASKS = {"model": model, "brief": functools.partial(model, swept=False), "train": train}


def main(folder, task, family, *meshes):
    if "JAX_NUM_PROCESSES" in __import__("os").environ:
        from jaxinterp.parallel.processes import join

        join()
    for mesh in meshes:
        began = time.monotonic()
        numbers, found = TASKS[task](family, mesh)
        found["seconds"] = time.monotonic() - began
        if jax.process_index() == 0:
            np.savez(Path(folder) / f"{family}-{mesh}.npz", **numbers)
            (Path(folder) / f"{family}-{mesh}.json").write_text(json.dumps(found))
        print(mesh, f"{found['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("error")
    main(*sys.argv[1:])
