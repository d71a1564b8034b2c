"""How much of a sweep is run at a time, so that it stays within some memory."""

from __future__ import annotations

import dataclasses

import jax

from jaxinterp.models.architecture import Architecture

_CPU_TILE = 512
"""Tokens that a CPU takes through a block at a time; more is no faster."""

ACCELERATOR_TILE = 1 << 15
"""The same for accelerators, if they fit."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is run at a time.

    Attributes:
        rows: Texts per buffer and clean pass.
        cells: Most cells in a buffer of full length.
        tile: Most tokens taken through a block at once.
        logits: Rows unembedded at once.
    """

    rows: int
    cells: int
    tile: int
    logits: int


def choose_sizes(
    architecture: Architecture, texts: tuple[int, int], memory: int, itemsize: int = 4, best: int | None = None
) -> Sizes:
    r"""Chooses sizes that keep a sweep within some memory.

    For `B` texts of `T` tokens at a time, `L` blocks, width `d`, `K` numbers in a token's keys, `F` MLP units and
    `H` heads, all in numbers of `itemsize` bytes: the unedited run keeps $B T (L (d + 2 K) + d)$, each cell in the
    buffer $2 B T d$, and a tile of `t` tokens in flight $t (8 d + 4 F + 3 H T + 2 K)$. Each may take a quarter of
    the memory, and the rest is for the edits' own numbers and the logits.

    Args:
        architecture: Of the model.
        texts: Number of texts, and tokens in each.
        memory: Bytes.
        itemsize: Bytes of a number.
        best: Tokens that are best taken through a block at a time; by default what suits the device.

    Returns:
        The sizes.

    Raises:
        ValueError: One text does not fit.
    """
    count, length = texts
    keys = architecture.kv_heads * architecture.projection
    width = architecture.embedding
    quarter = memory // (4 * itemsize)
    per_row = length * (architecture.layers * (width + 2 * keys) + width)
    per_token = 8 * width + 4 * architecture.neurons + 3 * architecture.heads * length + 2 * keys
    if quarter < max(per_row, per_token * length, 2 * length * width):
        needed = 4 * itemsize * max(per_row, per_token * length, 2 * length * width)
        raise ValueError(
            f"a sweep over texts of {length} tokens needs {needed / 2**20:.3g} MiB besides the model, and has "
            f"{memory / 2**20:.3g} MiB; use shorter texts, or give it more with memory="
        )
    tile = max(length, min(best or _best_tile(), quarter // per_token))
    rows = rows_at_once(count, length, quarter // per_row, tile)
    cells = max(1, quarter // (2 * rows * length * width))
    return Sizes(rows, cells, tile, max(1, quarter // (3 * architecture.vocabulary)))


def rows_at_once(count: int, length: int, most: int, tile: int | None = None) -> int:
    """How many texts go through a block at a time.

    Reading and sweeping take the same number, so that they round alike.

    Args:
        count: Number of texts.
        length: Tokens in each.
        most: How many the memory holds.
        tile: Most tokens at a time; by default what the device does best with.

    Returns:
        The number, at least 1: all, or else such that the last part is about as full as the others, but a power of
        two if as many fit, so that fewer programs are compiled for texts of one length.

    Examples:
        >>> [rows_at_once(count, 64, 100, tile=512) for count in (7, 10, 20)], rows_at_once(20, 64, 7, tile=512)
        ([7, 8, 8], 7)
    """
    fits = max(1, min(count, most, (_best_tile() if tile is None else tile) // length))
    parts = -(-count // fits)
    rows = -(-count // parts)
    return rows if parts == 1 else min(fits, 1 << (rows - 1).bit_length())


def _best_tile() -> int:
    return _CPU_TILE if jax.default_backend() == "cpu" else ACCELERATOR_TILE
