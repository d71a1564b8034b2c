"""Pairs of texts, a clean one and a corrupted one, aligned token by token and run side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.run import Inputs, bucket, pad_rows, prepare
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class AlignedPairs:
    """Clean and corrupted texts in one layout: token `p` of both stands in the same column.

    Attributes:
        clean: Token ids, int [pair, seq], padded on the left.
        corrupted: The same of the other texts.
        valid: Which slots hold tokens, boolean [pair, seq]; the same for both.
    """

    clean: np.ndarray
    corrupted: np.ndarray
    valid: np.ndarray

    def __len__(self) -> int:
        return len(self.clean)

    def batches(self, rows: int, length: int) -> Iterator[tuple[AlignedPairs, np.ndarray]]:
        """Batches of one shape, so that one program serves all.

        Args:
            rows: Pairs in a batch; the last batch is filled with copies of the last pair.
            length: Padded length.

        Yields:
            A batch, and the number of each of its pairs, int [rows]; copies carry the number of what they copy.
        """
        for first in range(0, len(self), rows):
            numbers = np.minimum(np.arange(first, first + rows), len(self) - 1)
            clean, valid = pad_rows(self.clean[numbers], self.valid[numbers], rows, length)
            corrupted, _ = pad_rows(self.corrupted[numbers], self.valid[numbers], rows, length)
            yield AlignedPairs(clean, corrupted, valid), numbers


def align_pairs(model: LanguageModel, clean: Inputs, corrupted: Inputs, mask: Any = None) -> AlignedPairs:
    """Turns two lists of texts or token ids into pairs.

    Args:
        model: The model whose tokenizer and vocabulary count.
        clean: Texts, lists of token ids, or ids [pair, seq].
        corrupted: The same, as many and each as long in tokens as its partner.
        mask: With ids [pair, seq]: which of them are tokens rather than padding on the left, for both.

    Returns:
        The pairs.

    Raises:
        ValueError: There are not as many corrupted texts as clean ones, or a pair differs in length.
    """
    tokens, valid = prepare(model, clean, mask)
    others, others_valid = prepare(model, corrupted, mask)
    if len(tokens) != len(others):
        raise ValueError(f"there are {len(tokens)} clean and {len(others)} corrupted texts; give one for each")
    lengths, others_lengths = valid.sum(axis=1), others_valid.sum(axis=1)
    unequal = np.flatnonzero(lengths != others_lengths)
    if len(unequal):
        first = int(unequal[0])
        raise ValueError(
            f"pair {first} has {lengths[first]} clean and {others_lengths[first]} corrupted tokens; "
            "activations are exchanged position by position, so make both texts equally long"
        )
    return AlignedPairs(tokens, others, valid)


def padded_length(model: LanguageModel, pairs: AlignedPairs) -> int:
    """The length that pairs are padded to, a bucket that programs are compiled for."""
    limit = model.architecture.context if model.architecture.learned_positions else None
    return bucket(pairs.clean.shape[1], limit)


def read_last(tokens: jax.Array, valid: jax.Array) -> dict[str, Any]:
    """The side inputs of a forward pass that only needs the last token's logits."""
    return side_inputs(tokens, valid) | {"read": pz.nx.wrap(jnp.full(len(tokens), tokens.shape[1] - 1), axes.BATCH)}
