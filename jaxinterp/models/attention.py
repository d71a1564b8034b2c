"""What heads read: values weighted by the softmax of query-key products, for the tree and for the stacked decoder.

Scores and patterns, arrays as large as the square of a text, are made a part at a time here. A tree makes them whole
only where an edit or a read stands at them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

_PART = 64
"""Fewest queries that are worth to be read on their own."""
_Vectors = tuple[jax.Array, jax.Array, jax.Array]


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, *, scale: float, softcap: float | None = None
) -> jax.Array:
    """What heads read in a text.

    Args:
        q: Queries, `[batch, seq, head, projection]`.
        k: Keys, `[batch, kv_seq, kv_head, projection]`.
        v: Values, the same.
        seen: Which keys a query sees, bool `[batch, seq, kv_seq]`; never a later one where `seq` is `kv_seq`.
        scale: Factor on query-key products.
        softcap: Bound of the scores, or `None`.

    Returns:
        Values weighted by attention, `[batch, seq, head, projection]`.
    """
    texts, seq, _, projection = q.shape
    queries = q.reshape(texts, seq, k.shape[2], -1, projection).transpose(0, 2, 3, 1, 4)
    keys, values = (vectors.transpose(0, 2, 1, 3) for vectors in (k, v))

    def read(queries: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
        flat = queries.reshape(-1, projection)
        products = jnp.einsum("np,tp->nt", flat, keys, preferred_element_type=jnp.float32)
        pattern = attention_pattern(products.reshape(-1, *seen.shape), seen, scale, softcap).astype(values.dtype)
        return jnp.einsum("nt,tp->np", pattern.reshape(products.shape), values).reshape(queries.shape)

    at_once = jax.vmap(jax.vmap(read, in_axes=(0, 0, 0, None)))
    if seq < _PART:
        z = at_once(queries, keys, values, seen)
    else:
        z = jax.lax.platform_dependent(queries, keys, values, seen, cpu=_in_turn(read), default=at_once)
    return z.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _in_turn(read: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Heads that share keys, one text after the other, so that scores stay in a processor's cache.

    Where the queries are all of the text, none sees a later key: the first quarter of the queries is shown the first
    quarter of the keys, and so on. A gradient computes scores again rather than fetch them from memory.
    """

    def text(given: tuple[jax.Array, ...]) -> jax.Array:
        *vectors, seen = given
        seq, slots = seen.shape
        size = max(_PART, -(-seq // 4))
        starts = range(0, seq, size)
        ends = [(start, min(start + size, seq)) for start in starts]
        shown = [end if seq == slots else slots for _, end in ends]

        @not_kept
        def again(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
            parts = [
                read(queries[:, start:end], keys[:most], values[:most], seen[start:end, :most])
                for (start, end), most in zip(ends, shown, strict=True)
            ]
            return jnp.concatenate(parts, axis=1)

        return jax.lax.map(lambda group: again(*group), tuple(vectors))

    return lambda *given: jax.lax.map(text, given)


def attention_pattern(products: jax.Array, seen: jax.Array, scale: float, softcap: float | None) -> jax.Array:
    """Attention of queries to keys, the last axis, from their products; `seen` broadcasts against them."""
    scores = bounded(products * scale, softcap)
    # A finite floor, so that a padded query, which sees nothing, has no NaN to leak through gradients.
    return jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=-1)


def bounded(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, or `x` where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def not_kept(cheap: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function, whose intermediate values a gradient computes again: fetching them would take longer."""
    return jax.checkpoint(cheap, prevent_cse=False)
