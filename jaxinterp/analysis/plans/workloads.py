"""The programs of a workload, as this library runs them, and how often each runs.

Blocks of a model are alike, and a tree of eighty of them takes the compiler half an hour. So programs that go through
all blocks are compiled with two and with three, and each further block adds what the third one did.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations import decoding, stages
from jaxinterp.activations.groups import Shared, by_structure
from jaxinterp.activations.metrics import LogitDiff
from jaxinterp.activations.plan import Base, find_route
from jaxinterp.activations.reading import read_pass
from jaxinterp.activations.run import bucket
from jaxinterp.activations.schedule import STARTS, CleanRun
from jaxinterp.activations.sizes import ACCELERATOR_TILE, choose_sizes
from jaxinterp.activations.stages import Texts
from jaxinterp.analysis.plans.compiler import Cost, compile_cost
from jaxinterp.interventions.ablate import ablate
from jaxinterp.interventions.patch import patch
from jaxinterp.interventions.steer import steer
from jaxinterp.models import nnx as scanned
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel import mesh as meshes
from jaxinterp.parallel.placement import shard
from jaxinterp.sites.cache import Cache
from jaxinterp.sites.positions import at, last
from jaxinterp.sites.selectors import head, resid_post, unit
from jaxinterp.training import language_model
from jaxinterp.training import mesh as training_mesh

Workload = Literal["forward", "edited_forward", "generate", "patch_sweep", "train"]
WORKLOADS: tuple[str, ...] = get_args(Workload)

_FEW = 2
"""Blocks of the smaller of two programs that are compiled."""

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of a workload.

    Attributes:
        name: What it does.
        times: How often a chip runs it.
        cost: Of one run.
        whole: Whether it is given all weights, so that they count within its memory.
    """

    name: str
    times: float
    cost: Cost
    whole: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked for.

    Attributes:
        rows: Texts.
        seq: Tokens in each.
        new: Tokens that are generated.
        memory: GiB of a chip.
    """

    rows: int
    seq: int
    new: int
    memory: float


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
        "patch_sweep": _patch_sweep,
        "train": _train,
    }
    over = int(np.prod([mesh.shape[name] for name in meshes.ROWS]))
    if load.rows % over:
        raise ValueError(f"{load.rows} rows do not divide among {over} groups of chips; take a multiple of {over}")
    return makers[workload](model, mesh, load)


def _forward(model: LanguageModel, mesh: Mesh, load: Load, *, edited: bool) -> list[Part]:
    def cost(depth: int) -> Cost:
        small = _first_blocks(model, depth)
        some = _placed(_edited(small) if edited else small, mesh)
        base = Base.of(cast("Decoder", some.body))
        site = resid_post(...)
        wanted = dict.fromkeys(site.addresses(some.body), site)

        def forward(blocks: Any, ends: Any, texts: Texts) -> Any:
            return read_pass(dataclasses.replace(base, blocks=blocks, ends=ends), texts, wanted, "last")

        return compile_cost(forward, base.blocks, base.ends, _texts(load.rows, load.seq, mesh), what="the forward pass")

    return [Part("forward pass", 1, _of_all_blocks(cost, model))]


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

    def programs(depth: int) -> tuple[Cost, Cost]:
        some = _placed(_first_blocks(model, depth), mesh)
        texts = _texts(load.rows, bucket(load.seq), mesh)

        def read(body: Any, tokens: jax.Array, mask: jax.Array) -> Any:
            return decoding.read_prompt(body, tokens, mask, slots=slots, kv_heads=a.kv_heads, projection=a.projection)

        def step(body: Any, memory: Any, token: jax.Array, text: decoding.Text) -> Any:
            found = decoding.read_next(body, memory, token, text)
            return found.memory, jnp.argmax(found.logits, axis=-1), text.extended()

        prompt = compile_cost(read, some.body, texts.tokens, texts.mask, what="reading the prompt")
        memory = _placed_memory(jax.eval_shape(read, some.body, texts.tokens, texts.mask).memory, mesh)
        text = decoding.Text(
            _rows((load.rows, slots), jnp.bool_, mesh),
            _rows((load.rows,), jnp.int32, mesh),
            _whole((), jnp.int32, mesh),
        )
        token = _rows((load.rows,), jnp.int32, mesh)
        return prompt, compile_cost(step, some.body, memory, token, text, donate=(1,), what="a generated token")

    few, more = programs(_FEW), programs(_FEW + 1)
    further = a.layers - _FEW - 1
    prompt, step = (two.continued(one, further) for one, two in zip(few, more, strict=True))
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


def _patch_sweep(model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    """Every layer and every position patched; no cell is skipped for changing nothing."""
    a, seq = model.architecture, bucket(load.seq)
    itemsize = jax.tree_util.tree_leaves(model.body)[0].dtype.itemsize
    groups, mine = mesh.shape[meshes.SWEEP], -(-load.rows // mesh.shape[meshes.DATA])
    mesh = meshes.groups(mesh)[0][0]
    held = _weights_held(model, mesh)
    sizes = choose_sizes(a, (mine, seq), int((load.memory * _GIB - held) // 2), itemsize, ACCELERATOR_TILE)
    block = _placed(_first_blocks(model, 1), mesh)
    base = Base.of(cast("Decoder", block.body))
    texts = Texts(_whole((sizes.rows, seq), jnp.int32, mesh), _whole((sizes.rows, seq), jnp.bool_, mesh))
    tokens = _whole((sizes.rows, 2), jnp.int32, mesh)
    dtype = jax.tree_util.tree_leaves(model.body)[0].dtype
    keys = tuple(_whole((sizes.rows, seq, a.kv_heads, a.projection), dtype, mesh) for _ in range(2))

    def clean(depth: int) -> Cost:
        some = _placed(_first_blocks(model, depth), mesh)
        own = Base.of(cast("Decoder", some.body))

        def run(blocks: Any, ends: Any, texts: Texts, tokens: jax.Array) -> Any:
            here = dataclasses.replace(own, blocks=blocks, ends=ends)
            found = CleanRun.of(here, texts, LogitDiff(tokens), frozenset(range(depth)), keep=True)
            return found.streams, found.keys, found.value

        return compile_cost(run, own.blocks, own.ends, texts, tokens, what="the unedited run")

    turns = -(-mine // sizes.rows)
    found = [Part("unedited run", turns, _of_all_blocks(clean, model))]
    columns = _columns(seq)
    for start, positions in columns.items():
        width = seq - start
        tile = _power_of_two(sizes.tile // (sizes.rows * width))
        most = max(1, sizes.cells * seq // width)
        cells = positions * a.layers / groups
        buffer = _whole((_at_least(min(most, math.ceil(cells)), tile), sizes.rows, width, a.embedding), dtype, mesh)
        chosen = _whole((tile,), jnp.int32, mesh)
        earlier = keys if start else None
        name = f"{tile} cells, last {width} tokens"
        cost = compile_cost(
            functools.partial(stages.advance_unedited, last=False),
            *(buffer, chosen, base.blocks[0], earlier, texts),
            donate=(0,),
            what="a block of patched cells",
        )
        found.append(
            Part(f"a block, {name}", turns * _block_passes(positions, a.layers, tile, most) / groups, cost, False)
        )
        shared, own = _entry(model, sizes.rows, seq, tile, mesh)
        stream = _whole((sizes.rows, seq, a.embedding), dtype, mesh)
        cost = compile_cost(
            stages.enter, buffer, chosen, shared, own, stream, texts, donate=(0,), what="entering patched cells"
        )
        found.append(Part(f"patching, {name}", turns * math.ceil(cells / tile), cost, False))
        if start == max(columns):
            many = _power_of_two(min(tile, sizes.logits // sizes.rows))
            some = _whole((many,), jnp.int32, mesh)
            ends = (base.ends, texts, LogitDiff(tokens))
            cost = compile_cost(stages.measure_unedited, buffer, some, *ends, what="measuring patched cells")
            every = turns * math.ceil(seq * a.layers / groups / many)
            found.append(Part(f"measuring {many} cells", every, cost, False))
    return found


def _columns(seq: int) -> dict[int, int]:
    """First columns of buffers -> how many positions start there, as the scheduler rounds them."""
    step = max(1, seq // STARTS)
    positions = np.arange(seq)
    starts = np.where(positions == seq - 1, positions, positions // step * step)
    return {int(start): int(number) for start, number in zip(*np.unique(starts, return_counts=True), strict=True)}


def _block_passes(positions: int, layers: int, tile: int, most: int) -> float:
    """How many full tiles go through a block, for cells that enter behind each block, `most` in a buffer."""
    entered = np.repeat(np.arange(1, layers + 1), positions)
    quarter, passes = max(1, tile // 4), 0.0
    for first in range(0, len(entered), most):
        under_way = np.searchsorted(entered[first : first + most], np.arange(layers), side="right")
        passes += float(np.ceil(under_way / quarter).sum()) * quarter / tile
    return passes


def _entry(model: LanguageModel, rows: int, seq: int, tile: int, mesh: Mesh) -> tuple[Shared, list[Any]]:
    """Edits of a tile of cells that patch the stream: what they share, and what each has of its own."""
    a = model.architecture
    small = _first_blocks(model, 2)
    other = Cache(
        {("resid_post", 0): np.zeros((rows, seq, a.embedding), np.float32)},
        np.zeros((rows, seq), np.int32),
        np.ones((rows, seq), bool),
    )
    base = Base.of(cast("Decoder", small.body))
    trees = [
        find_route(base, cast("Decoder", patch(small, resid_post(0), other, at=at(place)).body)).entry
        for place in range(2)
    ]
    (group,) = by_structure(trees)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = [None if leaf is None else _shape(leaf, everywhere) for leaf in group.shared.leaves]
    own = [
        jax.ShapeDtypeStruct((tile, *np.shape(leaf)), jnp.result_type(leaf), sharding=everywhere)
        if kept is None
        else None
        for leaf, kept in zip(group.leaves[0], group.shared.leaves, strict=True)
    ]
    return dataclasses.replace(group.shared, leaves=shared), own


def _train(model: LanguageModel, mesh: Mesh, load: Load) -> list[Part]:
    """One step of AdamW: float32 weights, passes in bfloat16, each block computed again for its gradient.

    Memory is that of the step as it runs, with a loop over all blocks. The compiler counts the inside of a loop once,
    so that all else is counted with the loop written out.
    """
    course = language_model.Course(rows=load.rows, compute="bfloat16")
    rule = language_model.optimiser(course)

    def cost(depth: int, unroll: bool) -> Cost:
        architecture = _first_blocks(model, depth).architecture
        decoder = nnx.eval_shape(
            lambda: scanned.Decoder(architecture, nnx.Rngs(0), jnp.float32, remat=True, unroll=unroll)
        )
        graph, weights = nnx.split(decoder)
        state = {"weights": weights, "optimiser": jax.eval_shape(rule.init, weights)}
        places = training_mesh.shardings(mesh, architecture, state)
        state = jax.tree.map(_shape, state, places)
        batch = (_rows((load.rows, load.seq + 1), jnp.int32, mesh), None, None)
        step = functools.partial(language_model.take_step, graph, rule, course.compute, tuple(jax.tree.leaves(places)))
        return compile_cost(step, state, batch, donate=(0,), what="a training step")

    whole = cost(model.architecture.layers, unroll=False)
    counted = _of_all_blocks(functools.partial(cost, unroll=True), model)
    return [
        Part(
            "training step",
            1,
            dataclasses.replace(whole, **{f: getattr(counted, f) for f in ("flops", "bytes", "sent")}),
        )
    ]


def _of_all_blocks(cost: Callable[[int], Cost], model: LanguageModel) -> Cost:
    layers = model.architecture.layers
    if layers <= _FEW + 1:
        return cost(layers)
    return cost(_FEW + 1).continued(cost(_FEW), layers - _FEW - 1)


def _first_blocks(model: LanguageModel, depth: int) -> LanguageModel:
    """The model with some of its blocks."""
    body, a = cast("Decoder", model.body), model.architecture
    few = dataclasses.replace(a, layers=depth, ropes=a.ropes[:depth], windows=a.windows[:depth])
    return dataclasses.replace(model, body=dataclasses.replace(body, blocks=body.blocks[:depth]), architecture=few)


def _placed(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    shapes = jax.tree_util.tree_map(lambda leaf: _shape(leaf, None), model.body)
    return shard(dataclasses.replace(model, body=shapes), mesh)


def _weights_held(model: LanguageModel, mesh: Mesh) -> int:
    """Bytes of weights on each chip."""
    leaves = jax.tree_util.tree_leaves(_placed(model, mesh).body)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _texts(rows: int, seq: int, mesh: Mesh) -> Texts:
    return Texts(cast("Any", _rows((rows, seq), jnp.int32, mesh)), cast("Any", _rows((rows, seq), jnp.bool_, mesh)))


def _rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array whose first axis is divided over all groups of chips."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(meshes.ROWS)))


def _whole(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Any:
    """An array that is whole on every chip."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _power_of_two(most: int) -> int:
    return 1 << max(0, int(most).bit_length() - 1)


def _at_least(count: int, tile: int) -> int:
    return -(-count // tile) * tile
