"""Which tokens of two tokenizers are the same: those that stand for the same bytes.

Ids say nothing across tokenizers, and neither do the printed forms: one writes a leading space as `Ġ`, another as
`▁`. The bytes that a token adds to a text, its leading space kept, are the one key that both share.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Vocabulary(Protocol):
    """What is needed of a tokenizer; `jaxinterp.tasks.tokenizer.Tokenizer` has it."""

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        ...

    def token_bytes(self, token_id: int, /) -> bytes | None:
        """Bytes that a token adds to a text, `None` for control and unused tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class Matched:
    """Tokens that two vocabularies share, one a row, in the order of the source's ids.

    Attributes:
        source: Ids in the source vocabulary, int [token].
        target: Ids in the target vocabulary, int [token].
        keys: The bytes of each token, its leading space kept.
    """

    source: np.ndarray
    target: np.ndarray
    keys: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, kept: np.ndarray) -> Matched:
        """Some of the tokens.

        Args:
            kept: Boolean [token], or int [kept token].

        Returns:
            The chosen rows.
        """
        rows = np.flatnonzero(kept) if kept.dtype == bool else kept
        return Matched(self.source[rows], self.target[rows], tuple(self.keys[row] for row in rows))

    def words(self, letters: int = 3) -> np.ndarray:
        """Which tokens are a space followed by ASCII letters only.

        Args:
            letters: Fewest letters of a word.

        Returns:
            Boolean [token].
        """
        return are_words(self.keys, letters)


def are_words(keys: Sequence[bytes], letters: int = 3) -> np.ndarray:
    """Which keys are a space followed by ASCII letters only.

    Args:
        keys: Bytes of some tokens.
        letters: Fewest letters of a word.

    Returns:
        Boolean [token].
    """
    return np.array([key[:1] == b" " and len(key) > letters and key[1:].isalpha() and key.isascii() for key in keys])


def token_ids_by_bytes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The ids of a vocabulary by the bytes they stand for.

    Args:
        vocabulary: Tokenizer.

    Returns:
        Bytes -> id. Where two ids stand for the same bytes, as a character and its byte fallback do, the last
        one wins: SentencePiece puts the fallbacks first, and a tokenizer that has the character never emits
        them. Tokens without bytes are left out.
    """
    ids: dict[bytes, int] = {}
    for token_id in range(vocabulary.vocabulary):
        key = vocabulary.token_bytes(token_id)
        if key:
            ids[key] = token_id
    return ids


def match_tokens(source: Vocabulary, target: Vocabulary) -> Matched:
    """Matches the tokens of two tokenizers by byte string.

    Args:
        source: One tokenizer.
        target: The other.

    Returns:
        The shared tokens in the order of the source's ids.

    Raises:
        ValueError: They share no token.
    """
    (here, there), keys = match_all([source, target])
    return Matched(here, there, keys)


def match_all(tokenizers: Sequence[Vocabulary]) -> tuple[np.ndarray, tuple[bytes, ...]]:
    """Matches the tokens of several tokenizers by byte string.

    Args:
        tokenizers: Two or more.

    Returns:
        Ids, int [tokenizer, token], and the bytes of each token, in the order of the first one's ids.

    Raises:
        ValueError: They share no token.
    """
    first, *others = [token_ids_by_bytes(tokenizer) for tokenizer in tokenizers]
    keys = tuple(key for key in first if all(key in ids for ids in others))
    if not keys:
        which = "two" if len(others) == 1 else f"{1 + len(others)}"
        raise ValueError(f"the {which} tokenizers share no token by bytes; give models whose tokenizers overlap")
    return np.array([[ids[key] for key in keys] for ids in (first, *others)]), keys


def trained_rows(table: np.ndarray) -> np.ndarray:
    """Which rows of an embedding table were trained, as far as the table itself tells.

    Tokens that never occurred in training keep the row they started with, and those rows are zero or equal to
    each other. So a zero row and every member of a group of equal rows count as untrained.

    Args:
        table: Embedding table [vocabulary, embedding].

    Returns:
        Boolean [vocabulary].

    Examples:
        >>> trained_rows(np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0], [1.0, 2.0]]))
        array([False, False,  True, False])
    """
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in np.ascontiguousarray(table)]
    times = collections.Counter(digests)
    alone = np.array([times[digest] == 1 for digest in digests])
    return alone & np.any(table != 0, axis=1)
