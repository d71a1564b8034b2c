"""Generation in which an edited model takes over after one kind of token, and for one token only.

What the edited model does where a decision is made is then all that differs: everything else, also what follows from
the decision, is written by the unedited model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.decoding import Reading, Text, read_next, read_prompt
from jaxinterp.activations.plan import check_rows, of_rows
from jaxinterp.activations.run import Inputs, compiled_form, pad_rows, prepare, run
from jaxinterp.interventions.edit import Edit
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import last
from jaxinterp.sites.taps import find_taps, replace_edits

Reads = Literal["text", "token"]

_STEPS_AT_ONCE = 20
"""Between two looks at which texts have ended; always as many, so that another cap compiles nothing new."""
_SLOTS = 64
"""Prompts, and the slots for them and what follows, come in multiples of this: more would be read in vain at every
step, fewer compile more programs."""


def generate_switching(
    model: LanguageModel,
    edited: LanguageModel,
    prompts: Inputs,
    max_new_tokens: int = 64,
    *,
    after: str | int,
    reads: Reads = "text",
    cache: bool = True,
    batch_size: int = 64,
) -> list[str]:
    """Continues texts greedily with a model, except for each token that follows a chosen one.

    Where the last token so far is `after`, the next one is the edited model's; every other is the model's own, which
    never sees anything but the text. Both keep keys and values of what they have read, each its own.

    Args:
        model: The model that writes.
        edited: An edit of it, which writes the token behind each `after`. What its edits hold for single rows goes with
            the rows of `prompts`.
        prompts: Texts or token ids, of any lengths.
        max_new_tokens: Most tokens to add.
        after: A token, by its text or id.
        reads: `"text"`: the edited model has read the whole text with its edits; `"token"`: it reads `after` alone,
            edited, and finds the unedited keys and values of all that came before.
        cache: Whether to keep keys and values. Without, every step reads the whole text anew: slow, and the same.
        batch_size: Texts at a time.

    Returns:
        The new text of each prompt, up to the token that ends a text.

    Raises:
        ValueError: `after` is not one token, a setting is out of range, the text would not fit the learned positions,
            or an edit holds numbers for another number of texts.
    """
    (texts,) = generate_switching_each(
        model, [edited], prompts, max_new_tokens, after=after, reads=reads, cache=cache, batch_size=batch_size
    )
    return texts


def generate_switching_each(
    model: LanguageModel,
    edits: Sequence[LanguageModel],
    prompts: Inputs,
    max_new_tokens: int = 64,
    *,
    after: str | int,
    reads: Reads | Sequence[Reads] = "text",
    cache: bool = True,
    batch_size: int = 64,
) -> list[list[str]]:
    """`generate_switching` under each of several edits; the unedited model reads the prompts once for all of them.

    Args:
        model: The model that writes.
        edits: Edits of it.
        prompts: See `generate_switching`, as for the other arguments.
        max_new_tokens: Most tokens to add.
        after: A token, by its text or id.
        reads: What the edited models have read: one word for all, or one for each.
        cache: Whether to keep keys and values.
        batch_size: Texts at a time.

    Returns:
        For each edit the new text of each prompt.

    Raises:
        ValueError: See `generate_switching`.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be at least 1")
    each_reads: list[Reads] = [reads] * len(edits) if isinstance(reads, str) else list(reads)
    unknown = [one for one in each_reads if one not in ("text", "token")]
    if unknown:
        raise ValueError(f"reads must be 'text' or 'token', not {unknown[0]!r}")
    if len(each_reads) != len(edits):
        raise ValueError(f"reads has {len(each_reads)} words for {len(edits)} edits; pass one for all, or one for each")
    tokenizer = model.require_tokenizer()
    trigger = tokenizer.id(after) if isinstance(after, str) else after
    tokens, valid = prepare(model, prompts)
    limit = model.architecture.context if model.architecture.learned_positions else None
    if limit is not None and tokens.shape[1] + max_new_tokens > limit:
        raise ValueError(f"{tokens.shape[1]} + {max_new_tokens} tokens exceed the {limit} learned positions")
    check_rows((model.body, *(edited.body for edited in edits)), len(tokens))
    write = _write if cache else _write_anew
    found = write(model, edits, tokens, valid, trigger, max_new_tokens, each_reads, batch_size)
    return [[tokenizer.decode(row) for row in rows] for rows in found]


def _write(
    model: LanguageModel,
    edits: Sequence[LanguageModel],
    tokens: np.ndarray,
    valid: np.ndarray,
    trigger: int,
    most: int,
    reads: Sequence[Reads],
    batch_size: int,
) -> list[list[list[int]]]:
    """New ids of each row under each edit; rows of similar length together."""
    keep_compiled_programs()
    lengths = valid.sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    count = min(batch_size, len(order))
    chunks = -(-most // _STEPS_AT_ONCE)
    stops = jnp.asarray(model.architecture.eos or (-1,), jnp.int32)
    found: list[list[list[int]]] = [[[] for _ in order] for _ in edits]
    for first in range(0, len(order), count):
        own = order[first : first + count]
        some = np.pad(own, (0, count - len(own)), mode="edge")
        longest = int(lengths[own].max())
        width = _round_up(longest)
        padded = pad_rows(tokens[some, -longest:], valid[some, -longest:], count, width)
        ids, mask = (jnp.asarray(array) for array in padded)
        slots = _round_up(width + chunks * _STEPS_AT_ONCE)
        sizes = {"slots": slots, "kv_heads": model.architecture.kv_heads, "projection": model.architecture.projection}
        body = compiled_form(of_rows(model.body, some))
        clean = _read(body, ids, mask, **sizes)
        for texts, each, own_reads in zip(found, edits, reads, strict=True):
            edited = compiled_form(of_rows(each.body, some))
            text, token = Text.of(mask, slots), ids[:, -1]
            other = _read(edited, ids, mask, **sizes) if own_reads == "text" else _look(edited, clean, token, text)
            # A copy, because the state gives its memory to the step that follows.
            state = _State(text, token, jax.tree.map(jnp.copy, clean), other, jnp.zeros(len(ids), bool))
            parts = []
            for _ in range(chunks):
                state, new = _continue(body, edited, state, jnp.asarray(trigger), stops, reads=own_reads)
                parts.append(np.asarray(new))
                if np.asarray(state.done).all():
                    break
            written = np.concatenate(parts, axis=1)[:, :most]
            for row, new in zip(own, written, strict=False):
                texts[row] = _up_to_end(new.tolist(), model.architecture.eos)
    return found


def _round_up(tokens: int) -> int:
    return -(-tokens // _SLOTS) * _SLOTS


def _up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["text", "token", "clean", "edited", "done"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class _State:
    """Between two steps: the text so far, its last token, what both models keep of it, and which rows have ended."""

    text: Text
    token: jax.Array
    clean: Reading
    edited: Reading
    done: jax.Array


_read = jax.jit(read_prompt, static_argnames=("slots", "kv_heads", "projection"))


@jax.jit
def _look(edited: pz.nn.Layer, clean: Reading, token: jax.Array, text: Text) -> Reading:
    """What an edited model makes of the last token where it finds the unedited keys and values; it keeps nothing."""
    return Reading((), read_next(edited, clean.memory, token, text).logits)


@functools.partial(jax.jit, static_argnames=("reads",), donate_argnames=("state",))
def _continue(
    body: pz.nn.Layer,
    edited: pz.nn.Layer,
    state: _State,
    trigger: jax.Array,
    stops: jax.Array,
    *,
    reads: Reads,
) -> tuple[_State, jax.Array]:
    """Some steps: the state and tokens [batch, step]."""

    def step(state: _State, _: None) -> tuple[_State, jax.Array]:
        decides = (state.token == trigger)[:, None]
        logits = jnp.where(decides, state.edited.logits, state.clean.logits)
        token = jnp.where(state.done, stops[0], jnp.argmax(logits, axis=-1).astype(jnp.int32))
        text = state.text.extended()
        clean = read_next(body, state.clean.memory, token, text)
        if reads == "text":
            other = read_next(edited, state.edited.memory, token, text)
        else:
            other = jax.lax.cond(
                (token == trigger).any(), lambda: _look(edited, clean, token, text), lambda: Reading((), clean.logits)
            )
        return _State(text, token, clean, other, state.done | jnp.isin(token, stops)), token

    state, tokens = jax.lax.scan(step, state, None, length=_STEPS_AT_ONCE)
    return state, tokens.T


def _write_anew(
    model: LanguageModel,
    edits: Sequence[LanguageModel],
    tokens: np.ndarray,
    valid: np.ndarray,
    trigger: int,
    most: int,
    reads: Sequence[Reads],
    _: int,
) -> list[list[list[int]]]:
    """The same without keys and values, one row at a time."""
    return [
        _rows_anew(model, edited, tokens, valid, trigger, most, own_reads)
        for edited, own_reads in zip(edits, reads, strict=True)
    ]


def _rows_anew(
    model: LanguageModel,
    edited: LanguageModel,
    tokens: np.ndarray,
    valid: np.ndarray,
    trigger: int,
    most: int,
    reads: Reads,
) -> list[list[int]]:
    judge = edited if reads == "text" else _at_last_token(model, edited)
    found = []
    for row, (ids, mask) in enumerate(zip(tokens, valid, strict=True)):
        writers = [each.with_body(of_rows(each.body, np.array([row]))) for each in (model, judge)]
        text = ids[mask].tolist()
        start = len(text)
        while len(text) < start + most:
            logits, _cache = run(writers[text[-1] == trigger], [text], logits="last")
            token = int(logits[0].argmax())
            if token in model.architecture.eos:
                break
            text.append(token)
        found.append(text[start:])
    return found


def _at_last_token(model: LanguageModel, edited: LanguageModel) -> LanguageModel:
    """The edited model with what it has beyond the model confined to the last token."""
    before = find_taps(model.body)
    changed: dict[Any, tuple[pz.nn.Layer, ...]] = {}
    for address, tap in find_taps(edited.body).items():
        kept = len(before[address].edits)
        new = tap.edits[kept:]
        if not all(isinstance(edit, Edit) for edit in new):
            raise ValueError(f"the layers at {address[0]} of layer {address[1]} act on all tokens; pass reads='text'")
        if new:
            narrow = [dataclasses.replace(edit, at=edit.at & last()) for edit in new if isinstance(edit, Edit)]
            changed[address] = (*tap.edits[:kept], *narrow)
    return edited.with_body(replace_edits(edited.body, changed))
