"""What vectors that are added to the residual stream do to the next token, many of them at a cost of few blocks each.

The unedited run is made once. A pushed one starts from its stream behind the block where the vector is added, so a
push at the last block costs the unembedding alone; and where only the last columns are pushed, the keys and values of
the others are taken over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz
from rich.console import Console
from rich.progress import track

from jaxinterp import axes
from jaxinterp.activations.compilation import keep_compiled_programs
from jaxinterp.activations.plan import Base
from jaxinterp.activations.reading import pass_blocks
from jaxinterp.activations.run import Inputs, prepare
from jaxinterp.activations.stages import STREAM, KeysAndValues, Texts, advance_unedited
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.models.blocks import Decoder
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address

_TOKENS = 1024
"""Tokens that go through a block at a time."""


class CleanTexts:
    """The unedited run of some texts, from which pushed runs go on.

    Args:
        model: The model.
        inputs: Texts or token ids, as for `jaxinterp.run`.
        layers: Blocks behind which vectors will be added.
        columns: How many of the last tokens they are added at; `None` for all.

    Raises:
        ValueError: A layer does not exist.
    """

    def __init__(
        self, model: LanguageModel, inputs: Inputs, layers: Iterable[int], *, columns: int | None = None
    ) -> None:
        tokens, mask = prepare(model, inputs)
        self._base = Base.of(cast("Decoder", model.body))
        self._texts = Texts(jnp.asarray(tokens), jnp.asarray(mask))
        self._columns = tokens.shape[1] if columns is None else min(columns, tokens.shape[1])
        self._counted = mask[:, 1:] & mask[:, :-1]
        wanted = {layer + 1 for layer in layers}
        if not wanted or not all(1 <= stage <= self._base.depth for stage in wanted):
            raise ValueError(
                f"vectors can be added after blocks 0 to {self._base.depth - 1} of {model.source}, not after "
                f"{sorted(stage - 1 for stage in wanted)}"
            )
        keep = self._columns < tokens.shape[1]
        sites: dict[Address, Site] = {
            (name, layer): Site(name) for name in ("k", "v") for layer in range(self._base.depth) if keep
        }
        saved: dict[Address, jax.Array] = {}
        keep_compiled_programs()
        self._streams = {
            stage: x[:, x.shape[1] - self._columns :]
            for stage, x in pass_blocks(self._base, self._texts, sites, saved, to_the_end=True)
            if stage in wanted or stage == self._base.depth
        }
        self._keys: list[KeysAndValues | None] = [
            (saved["k", layer], saved["v", layer]) if keep else None for layer in range(self._base.depth)
        ]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts.tokens)

    def logits(self, pushes: Sequence[Push], ids: np.ndarray, *, progress: str | None = None) -> np.ndarray:
        """Next-token logits of some tokens under each push.

        Args:
            pushes: What is added where.
            ids: Int [choice].
            progress: Label of a progress bar on stderr; `None` for none.

        Returns:
            Float32 [push, text, choice].
        """
        out = np.empty((len(pushes), len(self), len(ids)), np.float32)
        chosen = jnp.asarray(ids)
        for members, x in self._runs(pushes, progress):
            values = _choice_logits(self._base.ends, x.reshape(-1, x.shape[-1]), chosen)
            out[members] = np.asarray(values).reshape(len(x), len(self), -1)[: len(members)]
        return out

    def clean_logits(self, ids: np.ndarray) -> np.ndarray:
        """Next-token logits of some tokens without a push, float32 [text, choice]."""
        x = self._streams[self._base.depth][:, -1]
        return np.asarray(_choice_logits(self._base.ends, x, jnp.asarray(ids)))

    def log_mass(self, pushes: Sequence[Push], ids: np.ndarray) -> np.ndarray:
        """Log-probability that the next token is one of some, under each push.

        Args:
            pushes: What is added where.
            ids: Int [choice].

        Returns:
            Nats, float32 [push, text].
        """
        out = np.empty((len(pushes), len(self)), np.float32)
        for members, x in self._runs(pushes, None):
            found = [np.asarray(_log_mass(self._base.ends, row, jnp.asarray(ids))) for row in x[: len(members)]]
            out[members] = np.stack(found)
        return out

    def token_losses(self, push: Push | None = None) -> np.ndarray:
        """How surprised the model is by each token of the texts but the first ones.

        Args:
            push: What is added at all tokens; `None` for nothing.

        Returns:
            Nats, float32 [token], text by text.
        """
        if push is None:
            x = self._streams[self._base.depth][None]
        else:
            (_, x), *_ = self._advance([push], cells=1, to_last=False)
        rows = zip(x[0], self._texts.tokens, self._counted, strict=True)
        losses = [np.asarray(_losses(self._base.ends, stream, tokens))[counted] for stream, tokens, counted in rows]
        return np.concatenate(losses)

    def _runs(self, pushes: Sequence[Push], progress: str | None) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """(Which pushes, stream leaving the last block at the last token [push, text, embedding]) pairs."""
        cells = max(1, _TOKENS // (len(self) * self._columns))
        for members, x in _show(self._advance(pushes, cells=cells), math.ceil(len(pushes) / cells), progress):
            yield members, x[:, :, -1]

    def _advance(
        self, pushes: Sequence[Push], *, cells: int, to_last: bool = True
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        everything = np.arange(cells, dtype=np.int32)
        for layer in sorted({push.layer for push in pushes}):
            here = np.array([index for index, push in enumerate(pushes) if push.layer == layer])
            for first in range(0, len(here), cells):
                members = here[first : first + cells]
                vectors = np.stack([pushes[index].vector for index in members]).astype(np.float32)
                vectors = np.pad(vectors, ((0, cells - len(members)), (0, 0)))
                x = _start(self._streams[layer + 1], jnp.asarray(vectors))
                for stage in range(layer + 1, self._base.depth):
                    last = to_last and stage == self._base.depth - 1
                    block, keys = self._base.blocks[stage], self._keys[stage]
                    x = advance_unedited(x, everything, block, keys, self._texts, last=last)
                yield members, x


@jax.jit
def _start(stream: jax.Array, vectors: jax.Array) -> jax.Array:
    """[text, seq, embedding] and [push, embedding] -> [push, text, seq, embedding]."""
    return stream[None] + vectors[:, None, None].astype(stream.dtype)


def _read_out(ends: Decoder, x: jax.Array, ids: jax.Array | None) -> jax.Array:
    """Logits [row, choice] of streams [row, embedding]; of all tokens if there are no ids."""
    named = pz.nx.wrap(x[:, None], *STREAM)
    name = axes.VOCABULARY if ids is None else "choice"
    chosen = {} if ids is None else {"choose": pz.nx.wrap(ids, "choice")}
    return ends.read_out(named, **chosen).untag(axes.SEQ)[0].unwrap(axes.BATCH, name)


@jax.jit
def _choice_logits(ends: Decoder, x: jax.Array, ids: jax.Array) -> jax.Array:
    return _read_out(ends, x, ids)


@jax.jit
def _log_mass(ends: Decoder, x: jax.Array, ids: jax.Array) -> jax.Array:
    logits = _read_out(ends, x, None)
    return jax.nn.logsumexp(logits[:, ids], axis=-1) - jax.nn.logsumexp(logits, axis=-1)


@jax.jit
def _losses(ends: Decoder, x: jax.Array, tokens: jax.Array) -> jax.Array:
    logits = _read_out(ends, x[:-1], None)
    return jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(len(logits)), tokens[1:]]


def _show(batches: Iterator, total: int, label: str | None) -> Iterator:
    console = Console(stderr=True)
    if label is not None and not console.is_terminal:
        console.print(f"{label}: about {total} batches")
    shown = label is not None and console.is_terminal
    yield from track(batches, label or "", total=total, console=console, transient=True, disable=not shown)
