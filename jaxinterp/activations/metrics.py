"""Metrics: what a sweep, an attribution or a patch measures at the last token of every text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp.models.language_model import LanguageModel

Token = str | int | Sequence[int] | Sequence[str] | np.ndarray


class Measure(Protocol):
    """A number for each text."""

    @property
    def tokens(self) -> jax.Array | None:
        """The only token ids whose logits count, int [batch, choice]; `None` for the whole vocabulary."""
        ...

    def __call__(self, logits: jax.Array, /) -> jax.Array:
        """Measures last-token logits [batch, vocabulary], or [batch, choice] if it names its tokens, as [batch]."""
        ...

    def take(self, rows: jax.Array, /) -> Measure:
        """The same measure of some rows, possibly repeated, int [rows]."""
        ...


@pz.pytree_dataclass
class LogitDiff(pz.Struct):
    """Logit of one token minus logit of another.

    Attributes:
        tokens: The two token ids of each row, int [batch, 2].
    """

    tokens: jax.Array

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Logits [batch, 2] -> nats [batch]."""
        return logits[:, 0] - logits[:, 1]

    def take(self, rows: jax.Array) -> LogitDiff:
        """See `Measure.take`."""
        return LogitDiff(self.tokens[rows])


@pz.pytree_dataclass
class LogProb(pz.Struct):
    """Log-probability of a token.

    Attributes:
        answer: Token id of each row, int [batch].
    """

    answer: jax.Array

    @property
    def tokens(self) -> None:
        """The whole vocabulary counts."""
        return

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Logits [batch, vocabulary] -> nats [batch]."""
        return jax.nn.log_softmax(logits)[jnp.arange(len(logits)), self.answer]

    def take(self, rows: jax.Array) -> LogProb:
        """See `Measure.take`."""
        return LogProb(self.answer[rows])


@pz.pytree_dataclass
class Divergence(pz.Struct):
    """Kullback-Leibler divergence from fixed distributions.

    Attributes:
        reference: Log-probabilities, [batch, vocabulary].
    """

    reference: jax.Array

    @property
    def tokens(self) -> None:
        """The whole vocabulary counts."""
        return

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Logits [batch, vocabulary] -> KL(reference | logits) in nats [batch]."""
        return jnp.sum(jnp.exp(self.reference) * (self.reference - jax.nn.log_softmax(logits)), axis=-1)

    def take(self, rows: jax.Array) -> Divergence:
        """See `Measure.take`."""
        return Divergence(self.reference[rows])


@pz.pytree_dataclass
class OfLogits(pz.Struct):
    """A user's own function of last-token logits.

    Attributes:
        function: Logits [batch, vocabulary] -> numbers [batch]; row by row, without knowing which row is which.
    """

    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"pytree_node": False})

    @property
    def tokens(self) -> None:
        """The whole vocabulary counts."""
        return

    def __call__(self, logits: jax.Array) -> jax.Array:
        """See `Measure`."""
        return self.function(logits)

    def take(self, _: jax.Array) -> OfLogits:
        """See `Measure.take`."""
        return self


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure whose tokens are not looked up yet.

    Attributes:
        bind: (model, number of texts) -> measure.
    """

    bind: Callable[[LanguageModel, int], Measure]


def bind_metric(metric: Metric | Callable[[jax.Array], jax.Array], model: LanguageModel, rows: int) -> Measure:
    """Makes a metric ready for some texts.

    Args:
        metric: `logit_diff(...)`, `log_prob(...)`, `kl(...)`, or a function from last-token logits
            [batch, vocabulary] to a number for each row [batch] that treats every row alike.
        model: Whose tokenizer and vocabulary count.
        rows: Number of texts.

    Returns:
        The measure.

    Raises:
        ValueError: A token is none of the model's, or there are not as many answers as texts.
    """
    return metric.bind(model, rows) if isinstance(metric, Metric) else OfLogits(metric)


def apply_measure(measure: Measure, logits: jax.Array) -> jax.Array:
    """Measures last-token logits [batch, vocabulary] as [batch]."""
    return measure(logits if measure.tokens is None else jnp.take_along_axis(logits, measure.tokens, axis=1))


def normalise(effect: pl.Expr) -> pl.Expr:
    """An effect as a fraction of corrupted minus clean, columns of its table.

    Null where the two metrics differ by less than 1e-5 of their size, which two programs in float32 do anyway.
    """
    whole, size = pl.col("corrupted") - pl.col("clean"), pl.col("corrupted").abs() + pl.col("clean").abs()
    return pl.when(whole.abs() > 1e-5 * size).then(effect / whole)


def logit_diff(right: Token, wrong: Token) -> Metric:
    """Logit of one token minus logit of another, at the last token, in nats.

    Args:
        right: A token's text or id, or one for each row.
        wrong: The same for the other token.

    Returns:
        A metric.
    """

    def bind(model: LanguageModel, rows: int) -> Measure:
        pair = [_ids(model, token, rows, what) for token, what in ((right, "right"), (wrong, "wrong"))]
        return LogitDiff(jnp.stack(pair, axis=1))

    return Metric(bind)


def log_prob(token: Token) -> Metric:
    """Log-probability of a token after the last one, in nats.

    Args:
        token: Its text or id, or one for each row.

    Returns:
        A metric.
    """
    return Metric(lambda model, rows: LogProb(_ids(model, token, rows, "answer")))


def kl(reference: np.ndarray) -> Metric:
    """Divergence of the next-token distribution from a fixed one, KL(reference | edited), in nats.

    Args:
        reference: Last-token logits of the run to compare with, [batch, vocabulary].

    Returns:
        A metric.
    """

    def bind(model: LanguageModel, rows: int) -> Measure:
        wanted = (rows, model.architecture.vocabulary)
        if np.shape(reference) != wanted:
            raise ValueError(f"the reference logits have shape {list(np.shape(reference))}; kl needs {list(wanted)}")
        return Divergence(jax.nn.log_softmax(jnp.asarray(reference, jnp.float32)))

    return Metric(bind)


def _ids(model: LanguageModel, token: Any, rows: int, what: str) -> jax.Array:
    single = isinstance(token, str | int | np.integer)
    given = [token] * rows if single else list(token)
    if len(given) != rows:
        raise ValueError(f"there are {len(given)} {what} tokens for {rows} texts; give one, or one for each text")
    ids = [model.require_tokenizer().id(part) if isinstance(part, str) else int(part) for part in given]
    outside = [number for number in ids if not 0 <= number < model.architecture.vocabulary]
    if outside:
        raise ValueError(f"{what} token id {outside[0]} lies outside the vocabulary of {model.architecture.vocabulary}")
    return jnp.asarray(ids, jnp.int32)
