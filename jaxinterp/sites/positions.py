"""Positions: at which tokens of a text an edit acts.

A selector is data in the tree. In the forward pass it looks at the tokens and says which of them it means, so
the same edit works on padded batches and in cached generation. Positions count tokens of a row from 0, padding
aside; "the prompt" is all of the text in `run` and the text given at the start in `generate`.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes


class Positions(pz.Struct, abc.ABC):
    """Which tokens are meant; combine with `&`, `|` and `~`."""

    @abc.abstractmethod
    def choose(
        self, *, tokens: pz.nx.NamedArray, positions: pz.nx.NamedArray, prompt_length: pz.nx.NamedArray
    ) -> pz.nx.NamedArray:
        """Says of each token whether it is meant.

        Args:
            tokens: Token ids, int [batch, seq].
            positions: Index of each token in its own row, int [batch, seq]; negative on padding.
            prompt_length: Tokens of each row's prompt, int [batch].

        Returns:
            Boolean array that broadcasts to [batch, seq].
        """

    def __and__(self, other: Positions) -> Positions:
        return Both(self, other)

    def __or__(self, other: Positions) -> Positions:
        return Either(self, other)

    def __invert__(self) -> Positions:
        return Other(self)


@pz.pytree_dataclass
class Everywhere(Positions):
    """All tokens."""

    def choose(self, **context: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return context["positions"] >= 0


@pz.pytree_dataclass
class At(Positions):
    """Tokens by index in their row, negative ones from the end of the prompt.

    Attributes:
        indices: Int [choice], or [batch, choice] for other indices in each row.
    """

    indices: pz.nx.NamedArray

    def choose(self, *, positions: Any, prompt_length: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        wanted = pz.nx.nmap(jnp.where)(self.indices < 0, self.indices + prompt_length, self.indices)
        return pz.nx.nmap(jnp.any)((wanted == positions).untag("choice"))


@pz.pytree_dataclass
class Last(Positions):
    """The token that predicts the next one: the prompt's last, and in generation each later one in its turn."""

    def choose(self, *, positions: Any, prompt_length: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return positions >= prompt_length - 1


@pz.pytree_dataclass
class WhereToken(Positions):
    """Every occurrence of some tokens.

    Attributes:
        ids: Int [choice].
    """

    ids: pz.nx.NamedArray

    def choose(self, *, tokens: Any, positions: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return pz.nx.nmap(jnp.any)((self.ids == tokens).untag("choice")) & (positions >= 0)


@pz.pytree_dataclass
class Prompt(Positions):
    """The tokens of the prompt."""

    def choose(self, *, positions: Any, prompt_length: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return (positions >= 0) & (positions < prompt_length)


@pz.pytree_dataclass
class Steps(Positions):
    """The tokens whose forward pass predicts chosen new tokens; step 0 reads the prompt's last token.

    Attributes:
        steps: Int [choice].
    """

    steps: pz.nx.NamedArray

    def choose(self, *, positions: Any, prompt_length: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return pz.nx.nmap(jnp.any)((positions - prompt_length + 1 == self.steps).untag("choice"))


@pz.pytree_dataclass
class Mask(Positions):
    """Tokens chosen one by one.

    Attributes:
        chosen: Boolean [batch, position], by index in the row.
    """

    chosen: pz.nx.NamedArray

    def choose(self, *, positions: Any, **_: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""

        def look_up(chosen: jax.Array, position: jax.Array) -> jax.Array:
            inside = (position >= 0) & (position < chosen.shape[0])
            return inside & chosen[jnp.clip(position, 0, chosen.shape[0] - 1)]

        return pz.nx.nmap(look_up)(self.chosen.untag("position"), positions)


@pz.pytree_dataclass
class Both(Positions):
    """Tokens that two selectors mean."""

    left: Positions
    right: Positions

    def choose(self, **context: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return self.left.choose(**context) & self.right.choose(**context)


@pz.pytree_dataclass
class Either(Positions):
    """Tokens that one of two selectors means."""

    left: Positions
    right: Positions

    def choose(self, **context: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return self.left.choose(**context) | self.right.choose(**context)


@pz.pytree_dataclass
class Other(Positions):
    """Tokens that a selector does not mean, padding aside."""

    inner: Positions

    def choose(self, **context: Any) -> pz.nx.NamedArray:
        """See `Positions.choose`."""
        return ~self.inner.choose(**context) & (context["positions"] >= 0)


def everywhere() -> Positions:
    """All tokens, prompt and generated."""
    return Everywhere()


def last() -> Positions:
    """The token that predicts the next one: in `run` the last; in `generate` every one, each in its turn."""
    return Last()


def prompt() -> Positions:
    """The tokens of the prompt only."""
    return Prompt()


def generated() -> Positions:
    """The generated tokens only."""
    return ~Prompt()


def at(*indices: int) -> Positions:
    """Tokens by index in their text.

    Args:
        *indices: From 0; negative ones count from the prompt's end.
    """
    return At(_integers("at()", indices))


def rows_at(indices: np.ndarray) -> Positions:
    """Tokens by index, other ones in each row.

    Args:
        indices: Int [batch, choice] (or [batch]) token indices; negative ones count from the prompt's end.
    """
    table = np.asarray(indices, np.int32)
    return At(pz.nx.wrap(jnp.asarray(table.reshape(len(table), -1)), axes.BATCH, "choice"))


def where_token(*ids: int) -> Positions:
    """Every occurrence of some tokens.

    Args:
        *ids: Token ids; `tokenizer.id(" (")` gives the one of a string.
    """
    return WhereToken(_integers("where_token()", ids))


def steps(*numbers: int) -> Positions:
    """Forward passes of a generation: step `n` predicts the new token `n`; step 0 reads the prompt's last token.

    Args:
        *numbers: Step numbers from 0.
    """
    return Steps(_integers("steps()", numbers))


def mask(chosen: np.ndarray) -> Positions:
    """Tokens chosen one by one.

    Args:
        chosen: Boolean [batch, position], True where the token of that index in its row is meant.
    """
    return Mask(pz.nx.wrap(jnp.asarray(np.asarray(chosen, bool)), axes.BATCH, "position"))


def _integers(what: str, values: tuple[int, ...]) -> pz.nx.NamedArray:
    if not values:
        raise ValueError(f"{what} needs at least one number")
    return pz.nx.wrap(jnp.asarray(values, jnp.int32), "choice")
