"""Concepts as data: what builds a concept's vector, and the held-out words that judge it.

Nothing that judges a vector was seen when it was built: the words of `pairs` occur neither in `sentences` nor in
`words` or `opposites`, and texts that were written under a vector are judged by `words` and `opposites`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxinterp.tasks.vocabularies import Vocabulary, token_ids_by_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept.

    Attributes:
        name: Short name.
        sentences: Pairs (about the concept, in the same frame about something else).
        words: Words that show the concept in a text.
        opposites: Words that show its opposite; empty for a topic.
        pairs: Held-out contrast pairs (word of the concept, equally plain word of something else).
        followed_by: What the prompts leave open, on which the next word is judged.
    """

    name: str
    sentences: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    opposites: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...]
    followed_by: Literal["thing", "action"] = "thing"


@dataclasses.dataclass(frozen=True)
class WordIds:
    """Ids of a concept's words in one vocabulary; only words that are one token, with their leading space.

    Attributes:
        words: Int [word].
        opposites: Int [word]; empty for a topic.
        pairs: Int [pair, 2]: the concept's word and the other one.
    """

    words: np.ndarray
    opposites: np.ndarray
    pairs: np.ndarray


def word_ids(concept: Concept, *vocabularies: Vocabulary) -> list[WordIds]:
    """Looks a concept's words up in several vocabularies, keeping those that are one token in all of them.

    Args:
        concept: The concept.
        *vocabularies: Tokenizers.

    Returns:
        For each vocabulary the ids, the same words in the same order.

    Raises:
        ValueError: No word, or no pair, is one token in all vocabularies.
    """
    tables = [token_ids_by_bytes(vocabulary) for vocabulary in vocabularies]

    def known(word: str) -> bool:
        return all(f" {word}".encode() in table for table in tables)

    words = [word for word in concept.words if known(word)]
    opposites = [word for word in concept.opposites if known(word)]
    pairs = [pair for pair in concept.pairs if all(map(known, pair))]
    if not words or not pairs or (concept.opposites and not opposites):
        raise ValueError(
            f"concept {concept.name!r} has no words that are single tokens in all {len(tables)} vocabularies; "
            "add plainer words to its lists"
        )

    def look_up(table: dict[bytes, int], chosen: list[str]) -> np.ndarray:
        return np.array([table[f" {word}".encode()] for word in chosen], np.int64)

    return [
        WordIds(
            look_up(table, words),
            look_up(table, opposites),
            look_up(table, [word for pair in pairs for word in pair]).reshape(-1, 2),
        )
        for table in tables
    ]
