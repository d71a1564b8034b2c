"""Plain English sentences that use many different words, and the places at which two tokenizers end the same word.

The sentences were written for this project, as frames whose gaps are filled from lists of words. What they say is
nonsense of good grammar; what matters is that thousands of words stand in a context, hardly any of them twice.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Protocol

import numpy as np

FRAMES: tuple[str, ...] = (
    "The {adjective} {noun} {verb} the {noun} near the {noun}.",
    "A {noun} and a {noun} {verb} every {adjective} {noun}.",
    "{name} {verb} the {adjective} {noun} in {place}, far from any {noun}.",
    "When the {noun} {verb} a {noun}, everyone talked about the {noun}.",
    "Her {adjective} {noun} was {adverb} about {noun} and {noun}.",
    "They {adverb} {verb} our {noun} with a {noun} from {place}.",
    "In {place}, the {noun} of a {noun} is worth more than {noun}.",
    "My {noun} {verb} that {adjective} {noun} before the {noun} arrived.",
    "There was a {adjective} {noun} between the {noun} and the {noun}.",
    "Without a {noun}, the {noun} in {place} seemed {adjective} and {adjective}.",
    "It is {adverb} said that {noun} follows {noun}, and {noun} follows {noun}.",
    "We never understood why the {noun} {verb} {name} after the {adjective} {noun}.",
    "Beside the {noun} stood a {adjective} {noun} full of {noun}.",
    "Nobody knew whether the {noun} or the {noun} {verb} the {adjective} {noun}.",
    "{name} wrote about {noun}, about {adjective} {noun}, and about the {noun} that {verb} it.",
    "The {noun} was {adjective}, the {noun} {adjective}, and the {noun} {adverb} {adjective}.",
)
"""Each gap is named after a list of words; a word of it takes the gap's place."""

_GAP = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[A-Za-z]+")


class Splitter(Protocol):
    """What is needed of a tokenizer; `jaxinterp.tasks.tokenizer.Tokenizer` has it."""

    def offsets(self, text: str, /, add_special_tokens: bool = True) -> list[tuple[int, int]]:
        """First character of each token and the one after its last."""
        ...


@functools.cache
def words() -> dict[str, tuple[str, ...]]:
    """The lists of words.

    Returns:
        Kind (`noun`, `verb` in the past tense, `adjective`, `adverb`, `name` of a person, `place`) -> words, in the
        order of the alphabet. No word is in two lists.
    """
    text = resources.files("jaxinterp").joinpath("data/english/words.txt").read_text(encoding="utf-8")
    blocks = re.findall(r"\[(\w+)s\]([^\[]*)", text)
    return {kind: tuple(listed.split()) for kind, listed in blocks}


def write_sentences(count: int, seed: int) -> list[str]:
    """Fills frames with words: every word of a list comes once before any comes again.

    Args:
        count: How many sentences.
        seed: Of the order of frames and words.

    Returns:
        The sentences.

    >>> write_sentences(2, seed=0)[1][-1]
    '.'
    """
    draw = np.random.default_rng(seed)
    order = {kind: itertools.cycle(draw.permutation(listed).tolist()) for kind, listed in words().items()}
    frames = [FRAMES[index] for _ in range(0, count, len(FRAMES)) for index in draw.permutation(len(FRAMES))]
    filled = (_GAP.sub(lambda gap: next(order[gap[1]]), frame) for frame in frames[:count])
    return [re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence) for sentence in filled]


@dataclasses.dataclass(frozen=True)
class WordEnd:
    """A word that ends with a token in two tokenizations of a sentence.

    Attributes:
        word: In small letters.
        sentence: Which sentence.
        source: Index of the source's token that ends the word.
        target: Index of the target's.
    """

    word: str
    sentence: int
    source: int
    target: int


def word_ends(sentences: Sequence[str], source: Splitter, target: Splitter) -> list[WordEnd]:
    """Finds the places at which two tokenizers have read the same text and a word is complete.

    Args:
        sentences: Texts.
        source: One tokenizer.
        target: The other.

    Returns:
        All such places in the order of the text; token indices are those of texts without added special tokens.
    """
    found: list[WordEnd] = []
    for number, sentence in enumerate(sentences):
        here, there = (_token_ends(tokenizer, sentence) for tokenizer in (source, target))
        found += (
            WordEnd(match[0].lower(), number, here[match.end()], there[match.end()])
            for match in _WORD.finditer(sentence)
            if match.end() in here and match.end() in there
        )
    return found


def one_of_each(ends: Sequence[WordEnd], seed: int) -> list[WordEnd]:
    """Keeps one place for each word, drawn at random, so that frequent words count no more than others.

    Args:
        ends: Places.
        seed: Of the draw.

    Returns:
        One of each word, in the order of the words' letters.
    """
    draw = np.random.default_rng(seed)
    chosen = {ends[index].word: ends[index] for index in draw.permutation(len(ends))}
    return [chosen[word] for word in sorted(chosen)]


def _token_ends(tokenizer: Splitter, sentence: str) -> dict[int, int]:
    """Character behind a token's last one -> the token; the last token of those that share a character."""
    spans = tokenizer.offsets(sentence, add_special_tokens=False)
    return {last: index for index, (first, last) in enumerate(spans) if last > first}
