"""Whether the neighbours of a word mean something near it: the share of them that WordNet relates to it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxinterp.tasks.wordnet import WordNet


def semantic_coherence(words: Sequence[str], neighbours: Sequence[Sequence[str]], net: WordNet) -> np.ndarray:
    """The share of each word's neighbours that WordNet relates to it.

    A neighbour is related if one of its synsets is at most two pointers away from one of the word's. Neighbours that
    share a lemma with the word, as its other forms do, count neither for nor against: a table that puts them together
    knows about spelling. Neighbours that WordNet does not have are unrelated.

    Args:
        words: Words, capitals or not.
        neighbours: The neighbours of each.
        net: WordNet.

    Returns:
        Share in [0, 1], float64 [word]; NaN for a word that WordNet does not have, or all of whose neighbours are forms
        of it.

    Raises:
        ValueError: There are not as many lists of neighbours as words.

    >>> from jaxinterp.tasks import wordnet
    >>> semantic_coherence(["June"], [["October", "verge", "june"]], wordnet.load()).tolist()
    [0.5]
    """
    if len(words) != len(neighbours):
        raise ValueError(f"{len(words)} words have {len(neighbours)} lists of neighbours; pass one list for each word")
    synsets = functools.cache(net.synsets)
    forms = functools.cache(lambda word: net.lemmas(word) | {word.lower()})
    shares = np.full(len(words), np.nan)
    for place, (word, near) in enumerate(zip(words, neighbours, strict=True)):
        others = [other for other in near if forms(word).isdisjoint(forms(other))]
        if others and synsets(word):
            around = net.expand(synsets(word))
            shares[place] = np.mean([not around.isdisjoint(synsets(other)) for other in others])
    return shares
