"""Which keys a query may see."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal_mask(
    query_slots: jax.Array, key_slots: jax.Array, key_valid: jax.Array, window: int | jax.Array | None = None
) -> jax.Array:
    """Lets each query see the valid keys up to itself, at most `window` of the latest slots.

    The query in slot `i` sees the key in slot `j` when `i - window < j <= i` and the key is valid. Slots count from
    the left of the padded batch; with left padding their differences are those of the positions in the text. Queries
    in padding see nothing.

    Args:
        query_slots: Slot of each query, `[seq]`.
        key_slots: Slot of each key, `[kv_seq]`.
        key_valid: Whether a key is a token of the text (not padding, not an empty cache slot), `[batch, kv_seq]`.
        window: How many slots a query sees, itself included; `None` for all.

    Returns:
        Booleans `[batch, seq, kv_seq]`.

    Examples:
        >>> causal_mask(jnp.arange(3), jnp.arange(3), jnp.ones((1, 3), bool), 2)[0].astype(int).tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    distance = query_slots[:, None] - key_slots[None, :]
    near = distance >= 0
    if window is not None:
        near &= distance < window
    return near & key_valid[:, None, :]


def positions_in_text(mask: jax.Array) -> jax.Array:
    """Numbers the tokens of each text from 0, skipping padding.

    Args:
        mask: Whether a slot holds a token, `[..., seq]`.

    Returns:
        int32 positions `[..., seq]`; padding on the left is at 0.

    Examples:
        >>> positions_in_text(jnp.array([False, False, True, True])).tolist()
        [0, 0, 0, 1]
    """
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def begins(documents: jax.Array) -> jax.Array:
    """Where each text of a row begins.

    Args:
        documents: Which text a token belongs to, int `[..., seq]`; each text stands in one piece.

    Returns:
        Booleans `[..., seq]`.

    Examples:
        >>> begins(jnp.array([1, 1, 2, 2, 2, 0])).astype(int).tolist()
        [1, 0, 1, 0, 0, 1]
    """
    first = jnp.ones_like(documents[..., :1], dtype=bool)
    return jnp.concatenate([first, documents[..., 1:] != documents[..., :-1]], axis=-1)
