"""How the next token is drawn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is drawn from logits.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: Only so many most probable tokens.
        top_p: Only the most probable tokens that together have this probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} is negative")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} leaves no token; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} lies outside (0, 1]")

    def draw(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Draws one token for each row.

        Args:
            logits: [batch, vocabulary].
            key: A typed key.

        Returns:
            Token ids, int32 [batch].
        """
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None:
            descending = -jnp.sort(-logits, axis=-1)
            before = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
            least = jnp.min(jnp.where(before < self.top_p, descending, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32)
