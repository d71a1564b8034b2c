"""Generation: a compiled loop over a key-value cache, with edits active in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.decoding import Reading, Text, read_next, read_prompt
from jaxinterp.activations.groups import Leaves, Shared, by_structure
from jaxinterp.activations.plan import of_rows
from jaxinterp.activations.run import Inputs, bucket, compiled_form, pad_rows, prepare
from jaxinterp.activations.sampler import Sampler
from jaxinterp.activations.sweep import Cell
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.parallel.placement import fetch, mesh_of, put_rows, rows_over

_STEPS_BETWEEN_CHECKS = 16
_FEWEST_SLOTS = 128
_FEWEST_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Generation:
    """Generated tokens.

    Attributes:
        tokens: New ids, int32 [batch, new]; the end token and what follows it is the end token.
        lengths: New tokens of each row before an end token, or until it needed no more, int [batch].
        logits: [batch, new, vocabulary] that each new token was drawn from, if asked for.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logits: np.ndarray | None = None


def generate(
    model: LanguageModel,
    prompts: Sequence[str] | str,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
    key: jax.Array | None = None,
) -> list[str]:
    """Continues texts.

    Edits of the model act in the prompt and in every step, at the tokens their positions say: `ji.prompt()`,
    `ji.generated()`, `ji.steps(0, 2)`, `ji.last()` and so on.

    Args:
        model: The model, edited or not.
        prompts: Texts, of any lengths.
        max_new_tokens: Most tokens to add.
        temperature: 0 for greedy decoding.
        top_k: Draw only among so many most probable tokens.
        top_p: Draw only among the most probable tokens that together have this probability.
        stop: Strings at which a text ends; they are cut off.
        key: Typed key, needed unless greedy.

    Returns:
        The new text of each prompt.

    Raises:
        ValueError: A setting is out of range, or sampling lacks a key.
    """
    tokenizer = model.require_tokenizer()
    texts = [prompts] if isinstance(prompts, str) else list(prompts)

    def ended(tokens: np.ndarray) -> np.ndarray:
        return np.array([any(word in tokenizer.decode(row.tolist()) for word in stop) for row in tokens])

    generation = generate_tokens(
        model,
        texts,
        max_new_tokens,
        sampler=Sampler(temperature, top_k, top_p),
        key=key,
        ended=ended if stop else None,
    )
    results = []
    for row, length in zip(generation.tokens, generation.lengths, strict=True):
        text = tokenizer.decode(row[:length].tolist())
        cuts = [text.index(word) for word in stop if word in text]
        results.append(text[: min(cuts)] if cuts else text)
    return results


def generate_tokens(
    model: LanguageModel,
    inputs: Inputs,
    max_new_tokens: int,
    mask: Any = None,
    *,
    sampler: Sampler | None = None,
    key: jax.Array | None = None,
    ended: Any = None,
    keep_logits: bool = False,
) -> Generation:
    """Continues rows of tokens.

    Args:
        model: The model, edited or not.
        inputs: Texts, lists of token ids, or ids [batch, seq] padded on the left.
        max_new_tokens: Most tokens to add.
        mask: With ids [batch, seq]: which of them are tokens.
        sampler: How tokens are drawn; by default greedily.
        key: Typed key, needed unless greedy.
        ended: New ids [row, new] so far of the rows that are still written -> which of them need no more, asked every
            few steps. Decoded greedily, rows that have ended soon take no more time.
        keep_logits: Whether to return the logits.

    Returns:
        The generated tokens.

    Raises:
        ValueError: `max_new_tokens` is not positive, the text would not fit the learned positions, or sampling lacks
            a key.
    """
    (only,) = _generate_all(
        model, [model.body], inputs, max_new_tokens, mask, sampler or Sampler(), key, ended, keep_logits
    )
    return only


def generate_grid(
    model: LanguageModel,
    inputs: Inputs,
    edits: Sequence[Cell],
    max_new_tokens: int,
    mask: Any = None,
    *,
    sampler: Sampler | None = None,
    key: jax.Array | None = None,
    keep_logits: bool = False,
) -> list[Generation]:
    """Continues rows of tokens under every edit of a grid, all of them in one batch.

    Decoding one row is bound by reading the weights; a batch of edits reads them once for all.

    Args:
        model: The unedited model.
        inputs: Texts, lists of token ids, or ids [batch, seq] padded on the left.
        edits: Cells, such as `ji.grid` makes: layers, scales, vectors.
        max_new_tokens: Most tokens to add.
        mask: With ids [batch, seq]: which of them are tokens.
        sampler: How tokens are drawn; by default greedily.
        key: Typed key, needed unless greedy; every cell draws with the same numbers.
        keep_logits: Whether to return the logits.

    Returns:
        What `generate_tokens` gives for each edit, in their order.

    Raises:
        ValueError: There are no edits, one does not fit the model or the inputs, or as in `generate_tokens`.
    """
    if not edits:
        raise ValueError("there are no edits to generate with; make some with ji.grid")
    bodies = [compiled_form(cell.edit(model).body) for cell in edits]
    results: list[Generation | None] = [None] * len(bodies)
    for group in by_structure(bodies, common=lambda _: True):
        some = [bodies[member] for member in group.members]
        found = _generate_all(model, some, inputs, max_new_tokens, mask, sampler or Sampler(), key, None, keep_logits)
        for member, generation in zip(group.members, found, strict=True):
            results[member] = generation
    return [generation for generation in results if generation is not None]


def _generate_all(
    model: LanguageModel,
    bodies: Sequence[pz.nn.Layer],
    inputs: Inputs,
    max_new_tokens: int,
    mask: Any,
    sampler: Sampler,
    key: jax.Array | None,
    ended: Any,
    keep_logits: bool,
) -> list[Generation]:
    """Generation with trees of one structure, each on all rows."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if sampler.temperature and key is None:
        raise ValueError("sampling needs a key, such as jax.random.key(0)")
    tokens, valid = prepare(model, inputs, mask)
    architecture = model.architecture
    limit = architecture.context if architecture.learned_positions else None
    if limit is not None and tokens.shape[1] + max_new_tokens > limit:
        raise ValueError(f"{tokens.shape[1]} + {max_new_tokens} tokens exceed the {limit} learned positions")
    keep_compiled_programs()
    mesh, count = mesh_of(list(bodies)), len(tokens)
    rows = -(-count // rows_over(mesh)) * rows_over(mesh)
    if rows != count:
        bodies = [of_rows(body, np.minimum(np.arange(rows), count - 1)) for body in bodies]
    tokens, valid = put_rows(pad_rows(tokens, valid, rows, bucket(tokens.shape[1])), mesh)
    chunk = max_new_tokens if ended is None else min(_STEPS_BETWEEN_CHECKS, max_new_tokens)
    steps = -(-max_new_tokens // chunk) * chunk
    # Rows that share their random numbers, their logits or a mesh stay together.
    narrows = len(bodies) == 1 and mesh is None and not sampler.temperature and not keep_logits
    most = tokens.shape[1] + steps
    bodies = [compiled_form(body) for body in bodies]
    (group,) = by_structure(bodies, common=lambda _: True)
    own = group.stack(range(len(bodies)))
    state = _read_prompt(
        group.shared,
        own,
        tokens,
        valid,
        jax.random.key(0) if key is None else key,
        cells=len(bodies),
        slots=_room(tokens.shape[1] + chunk, most) if narrows else most,
        kv_heads=architecture.kv_heads,
        projection=architecture.projection,
    )
    stops = jnp.asarray(architecture.eos or (-1,), jnp.int32)
    ids = np.full((len(bodies), rows, steps), (architecture.eos or (0,))[0], np.int32)
    lengths = np.zeros((len(bodies), rows), int)
    live, kept = np.arange(rows), []
    for first in range(0, steps, chunk):
        state, new, values = _continue(
            group.shared, own, state, stops, steps=chunk, sampler=sampler, keep_logits=keep_logits
        )
        ids[:, live, first : first + chunk] = fetch(new)
        lengths[:, live] = first + chunk
        kept.append(values)
        done = fetch(state.done) | (live >= count)
        if ended is not None:
            done = done | np.stack([ended(row[live, : first + chunk]) for row in ids])
        if done.all():
            break
        if narrows and first + chunk < steps:
            chosen = _still_open(done[0])
            slots = _room(tokens.shape[1] + first + 2 * chunk, most)
            if len(chosen) < len(live):
                live = live[chosen]
                (group,) = by_structure([of_rows(body, live) for body in bodies], common=lambda _: True)
                own = group.stack([0])
            if len(chosen) < len(done[0]) or slots > state.text.mask.shape[-1]:
                state = _of_rows(state, jnp.asarray(chosen), slots=slots)
    written = min(first + chunk, max_new_tokens)
    ids, lengths = ids[:, :count, :written], np.minimum(lengths[:, :count], written)
    is_end = np.isin(ids, np.asarray(stops))
    lengths = np.where(is_end.any(axis=2), np.minimum(is_end.argmax(axis=2), lengths), lengths)
    logits = [fetch(part)[:, :count] for part in kept if part is not None]
    values = np.concatenate(logits, axis=2)[:, :, :max_new_tokens] if keep_logits else None
    return [
        Generation(ids[cell], lengths[cell], None if values is None else values[cell]) for cell in range(len(bodies))
    ]


def _room(needed: int, most: int) -> int:
    """Slots for a text that still grows: few, since all are read at every step, and of few sizes.

    >>> [_room(needed, 450) for needed in (48, 129, 300)]
    [128, 256, 450]
    """
    slots = _FEWEST_SLOTS
    while slots < needed:
        slots *= 2
    return min(slots, most)


def _still_open(done: np.ndarray) -> np.ndarray:
    """The rows to go on with: all of them, or half, a quarter, ... if no more are open, filled up with repeats.

    >>> _still_open(np.arange(32) % 8 != 0)
    array([ 0,  8, 16, 24,  0,  0,  0,  0])
    """
    left, size = np.flatnonzero(~done), len(done)
    while size % 2 == 0 and size > _FEWEST_ROWS and len(left) <= size // 2:
        size //= 2
    return np.arange(len(done)) if size == len(done) else np.pad(left, (0, size - len(left)), constant_values=left[0])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["text", "reading", "done", "key"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _State:
    """Between two steps: the text so far, what the model keeps of it, which rows have ended, and the next key."""

    text: Text
    reading: Reading
    done: jax.Array
    key: jax.Array


@functools.partial(jax.jit, static_argnames=("cells", "slots", "kv_heads", "projection"))
def _read_prompt(
    shared: Shared,
    own: Leaves,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    cells: int,
    slots: int,
    kv_heads: int,
    projection: int,
) -> _State:
    """The state of every cell after the prompt, each array with a cell axis in front."""

    def one(leaves: Leaves) -> _State:
        reading = read_prompt(
            shared.joined(leaves), tokens, mask, slots=slots, kv_heads=kv_heads, projection=projection
        )
        return _State(Text.of(mask, slots), reading, jnp.zeros(len(tokens), bool), key)

    return _in_each_cell(one, cells, own)


@functools.partial(jax.jit, static_argnames="slots")
def _of_rows(state: _State, rows: jax.Array, *, slots: int) -> _State:
    """The state of some rows of the only cell, with so many slots."""

    def one(state: _State) -> _State:
        return _State(state.text.of_rows(rows, slots), state.reading.of_rows(rows, slots), state.done[rows], state.key)

    return _in_each_cell(one, 1, state)


@functools.partial(jax.jit, static_argnames=("steps", "sampler", "keep_logits"), donate_argnames=("state",))
def _continue(
    shared: Shared,
    own: Leaves,
    state: _State,
    stops: jax.Array,
    *,
    steps: int,
    sampler: Sampler,
    keep_logits: bool,
) -> tuple[_State, jax.Array, jax.Array | None]:
    """Some steps of every cell: the state, tokens [cell, batch, step] and logits [cell, batch, step, vocabulary]."""

    def one(leaves: Leaves, state: _State) -> tuple[_State, jax.Array, jax.Array | None]:
        return _continue_once(shared.joined(leaves), state, stops, steps, sampler, keep_logits)

    return _in_each_cell(one, len(state.done), own, state)


def _in_each_cell(function: Callable[..., Any], cells: int, *arguments: Any) -> Any:
    """A function mapped over the cell axis in front of every array; one cell runs as it would without the axis.

    Mapped over an axis of one, XLA copies the keys and values at every step.
    """
    if cells > 1:
        return jax.vmap(function, axis_size=cells)(*arguments)
    found = function(*jax.tree.map(lambda array: array[0], arguments))
    return jax.tree.map(lambda array: array[None], found)


def _continue_once(
    body: pz.nn.Layer, state: _State, stops: jax.Array, steps: int, sampler: Sampler, keep_logits: bool
) -> tuple[_State, jax.Array, jax.Array | None]:
    def step(state: _State, _: None) -> tuple[_State, tuple[jax.Array, jax.Array | None]]:
        key, draw = jax.random.split(state.key)
        logits = state.reading.logits
        token = jnp.where(state.done, stops[0], sampler.draw(logits, draw))
        text = state.text.extended()
        reading = read_next(body, state.reading.memory, token, text)
        done = state.done | jnp.isin(token, stops)
        return _State(text, reading, done, key), (token, logits if keep_logits else None)

    state, (tokens, logits) = jax.lax.scan(step, state, None, length=steps)
    return state, tokens.T, None if logits is None else logits.swapaxes(0, 1)
