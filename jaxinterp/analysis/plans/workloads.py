"""The programs of a workload, as this library runs them, and how often each runs."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations import decoding
from jaxinterp.activations.plan import Base
from jaxinterp.activations.reading import read_pass
from jaxinterp.activations.run import bucket
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.plans.compiler import Cost, compile_cost
from jaxinterp.analysis.plans.shapes import (
    Load,
    Part,
    first_blocks,
    of_all_blocks,
    on_every_chip,
    over_rows,
    placed,
    shape_of,
    texts_over,
)
from jaxinterp.analysis.plans.sweeps import patch_sweep
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.steer import steer
from jaxinterp.models import nnx as scanned
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.placement import rows_over
from jaxinterp.parallel.stacked import shardings
from jaxinterp.sites.positions import last
from jaxinterp.sites.selectors import head, resid_post, unit
from jaxinterp.training import language_model

Workload = Literal["forward", "edited_forward", "generate", "patch_sweep", "train"]
WORKLOADS: tuple[str, ...] = get_args(Workload)


def parts(workload: str, model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    """Compiles the programs of a workload.

    Args:
        workload: One of `WORKLOADS`.
        model: Without numbers, see `jaxinterp.models.shape_model.load_shapes`.
        mesh: Over the devices of a topology.
        load: How much is asked for.

    Returns:
        The programs.

    Raises:
        ValueError: The rows do not divide over the mesh, or the compiler refuses.
        DoesNotFitError: A program takes more memory than a chip has.
    """
    makers = {
        "forward": functools.partial(_forward, edited=False),
        "edited_forward": functools.partial(_forward, edited=True),
        "generate": _generate,
        "patch_sweep": patch_sweep,
        "train": _train,
    }
    over = rows_over(mesh)
    if load.rows % over:
        raise ValueError(f"{load.rows} rows do not divide among {over} groups of chips; take a multiple of {over}")
    return makers[workload](model, mesh, load)


def _forward(model: LanguageModel, mesh: Mesh, load: Load, *, edited: bool) -> list[Part]:
    def costs(depth: int) -> list[Cost]:
        small = first_blocks(model, depth)
        some = placed(_edited(small) if edited else small, mesh)
        base = Base.of(cast("Decoder", some.body))
        site = resid_post(...)
        wanted = dict.fromkeys(site.addresses(some.body), site)

        def forward(blocks: Any, ends: Any, texts: Texts) -> Any:
            return read_pass(dataclasses.replace(base, blocks=blocks, ends=ends), texts, wanted, "last")

        limit = small.architecture.context if small.architecture.learned_positions else None
        texts = texts_over(load.rows, bucket(load.seq, limit), mesh)
        return [compile_cost(forward, base.blocks, base.ends, texts, what="the forward pass")]

    return [Part("forward pass", 1, cost) for cost in of_all_blocks(costs, model)]


def _edited(model: LanguageModel) -> LanguageModel:
    """The model with a head and a unit taken out of each block, and the stream steered behind it."""
    a = model.architecture
    for layer in range(a.layers):
        model = ablate(model, head(layer, 0, 0))
        model = ablate(model, unit(layer, 0, 0), at=last())
        model = steer(model, resid_post(layer), np.zeros(a.embedding, np.float32), at=last())
    return model


def _generate(model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    a = model.architecture
    slots = bucket(load.seq) + load.new

    def costs(depth: int) -> list[Cost]:
        some = placed(first_blocks(model, depth), mesh)
        texts = texts_over(load.rows, bucket(load.seq), mesh)

        def read(body: Any, tokens: jax.Array, mask: jax.Array) -> Any:
            return decoding.read_prompt(body, tokens, mask, slots=slots, kv_heads=a.kv_heads, projection=a.projection)

        def step(body: Any, memory: Any, token: jax.Array, text: decoding.Text) -> Any:
            found = decoding.read_next(body, memory, token, text)
            return found.memory, jnp.argmax(found.logits, axis=-1), text.extended()

        prompt = compile_cost(read, some.body, texts.tokens, texts.mask, what="reading the prompt")
        memory = _placed_memory(jax.eval_shape(read, some.body, texts.tokens, texts.mask).memory, mesh)
        text = decoding.Text(
            over_rows((load.rows, slots), jnp.bool_, mesh),
            over_rows((load.rows,), jnp.int32, mesh),
            on_every_chip((), jnp.int32, mesh),
        )
        token = over_rows((load.rows,), jnp.int32, mesh)
        return [prompt, compile_cost(step, some.body, memory, token, text, donate=(1,), what="a generated token")]

    prompt, step = of_all_blocks(costs, model)
    return [Part("prompt", 1, prompt), Part("token", load.new, step)]


def _placed_memory(memory: Any, mesh: Mesh) -> Any:
    """Keys and values with their heads over `tensor` and their rows over the rest."""
    sizes = {axes.BATCH: meshes.ROWS, axes.KV_HEAD: (meshes.TENSOR,)}

    def place(array: Any) -> Any:
        names = list(array.named_axes)
        split = [sizes.get(name) for name in names]
        fits = [
            over if over and size % math.prod(mesh.shape[axis] for axis in over) == 0 else None
            for over, size in zip(split, array.named_axes.values(), strict=True)
        ]
        sharding = NamedSharding(mesh, PartitionSpec(*fits))
        data = jax.ShapeDtypeStruct(array.data_array.shape, array.data_array.dtype, sharding=sharding)
        return dataclasses.replace(array, data_array=data)

    named = lambda node: isinstance(node, pz.nx.NamedArray)  # noqa: E731
    return jax.tree_util.tree_map(place, memory, is_leaf=named)


def _train(model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    """One step of AdamW: float32 weights, passes in bfloat16, each block computed again for its gradient.

    Memory is that of the step as it runs, with a loop over all blocks. The compiler counts the inside of a loop once,
    so that all else is counted with the loop written out.
    """
    course = language_model.Course(rows=load.rows, compute="bfloat16")
    rule = language_model.optimiser(course)

    def cost(depth: int, unroll: bool) -> Cost:
        architecture = first_blocks(model, depth).architecture
        decoder = nnx.eval_shape(
            lambda: scanned.Decoder(architecture, nnx.Rngs(0), jnp.float32, remat=True, unroll=unroll)
        )
        graph, weights = nnx.split(decoder)
        state = {"weights": weights, "optimiser": jax.eval_shape(rule.init, weights)}
        places = shardings(mesh, architecture, state)
        gathered = shardings(mesh, architecture, weights, gathered=True)
        state = jax.tree.map(shape_of, state, places)
        batch = (over_rows((load.rows, load.seq + 1), jnp.int32, mesh), None, None)
        kept = tuple(jax.tree.leaves(places)), tuple(jax.tree.leaves(gathered))
        step = functools.partial(language_model.take_step, graph, rule, course.compute, kept)
        return compile_cost(step, state, batch, donate=(0,), what="a training step")

    whole = cost(model.architecture.layers, unroll=False)
    (counted,) = of_all_blocks(lambda depth: [cost(depth, unroll=True)], model)
    taken = {name: getattr(whole, name) for name in ("arguments", "results", "working")}
    return [Part("training step", 1, dataclasses.replace(counted, **taken))]
