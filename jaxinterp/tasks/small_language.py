"""A small language with a grammar, meanings and two registers, written by a seeded generator.

It is made for models that train in minutes and whose words still have a geometry to be found. Words have a kind, a
frequency that falls with their rank, and a hidden meaning: which verb follows a noun, which noun an adjective stands
before and so on depends on how two meanings agree, so that words of like meaning stand in like places. A text has a
topic, which is some kinds of things, and one register, formal or casual: wherever a word has a twin of the other
register, a formal text takes the formal one. Nothing else depends on the register, so that it is an attribute with a
known truth, which a model can only carry from the words before to the words behind.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np

REGISTERS = ("formal", "casual")
KINDS_OF_TWINS = ("verb", "adjective", "adverb", "person", "opener", "preposition", "determiner")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""Padding, beginning and end of a text, and what is no word; their ids are 0 to 3."""

_MEANING = 6  # dimensions
_AGREEMENT = 2.0  # how far a pair of meanings changes the odds of standing together
_OWN_REGISTER = 0.97
_SENTENCES = (3, 6)
_ON_TOPIC = 0.95
_REGISTER_WORDS = 0.6  # of verbs and adverbs; of adjectives and people half as many
_OPENERS = 0.5


@dataclasses.dataclass(frozen=True)
class Twins:
    """Two words that mean the same in the two registers.

    Attributes:
        formal: The formal one.
        casual: The casual one.
    """

    formal: str
    casual: str

    def word(self, register: str) -> str:
        """The one of a register."""
        return self.formal if register == "formal" else self.casual


Slot = str | Twins
"""A word, or a pair of which the register decides."""


@functools.cache
def _words() -> dict[str, Any]:
    """The word lists: kind -> words, or group -> kind -> words; of `twins` pairs."""
    file = resources.files("jaxinterp") / "data" / "small_language" / "words.json"

    def split(entry: Any) -> Any:
        return {kind: split(part) for kind, part in entry.items()} if isinstance(entry, dict) else tuple(entry.split())

    lists = split(json.loads(file.read_text(encoding="utf-8")))
    lists["twins"] = {kind: tuple(Twins(*pair.split("/")) for pair in pairs) for kind, pairs in lists["twins"].items()}
    return lists


def twins(kind: str) -> tuple[Twins, ...]:
    """The pairs of a kind, one of `KINDS_OF_TWINS`, the commonest first."""
    return _words()["twins"][kind]


def held_out_verbs() -> tuple[Twins, ...]:
    """Every second pair of verbs: those that judge a vector, which are in no sentence that builds one."""
    return twins("verb")[1::2]


class Language:
    """Meanings, and the odds that follow from them.

    Attributes:
        seed: Of the meanings; models that shall share a language share it.
    """

    def __init__(self, seed: int = 0) -> None:
        """Draws the meanings from a `seed`."""
        self.seed = seed
        draw = np.random.default_rng(seed)
        lists = _words()
        self._nouns = tuple(lists["nouns"])
        self._kinds: dict[str, tuple[Slot, ...]] = {**lists["nouns"]}
        self._kinds["adjective"] = tuple(itertools.chain.from_iterable(lists["adjectives"].values()))
        self._kinds |= {kind: lists[kind] for kind in ("place", "name", "person", "verb", "adverb", "time")}
        self._kinds |= {kind: lists[kind] for kind in ("preposition", "determiner")}
        self._kinds |= {f"{kind} of a register": pairs for kind, pairs in lists["twins"].items()}
        kinds = {
            word: kind for group in ("nouns", "adjectives") for kind in lists[group] for word in lists[group][kind]
        }
        centres = {kind: draw.normal(size=_MEANING) for kind in sorted(set(kinds.values()))}
        self._meanings: dict[Slot, np.ndarray] = {}
        for word in (slot for kind in self._kinds.values() for slot in kind):
            meaning = draw.normal(size=_MEANING)
            if isinstance(word, str) and word in kinds:
                meaning = 0.7 * centres[kinds[word]] + 0.7 * meaning
            self._meanings[word] = meaning / np.linalg.norm(meaning)
        self._turns = {kind: np.linalg.qr(draw.normal(size=(_MEANING, _MEANING)))[0] for kind in self._kinds}
        self._topics = list(itertools.combinations(self._nouns, 2))
        self._odds: dict[tuple[str, Slot | None], list[float]] = {}

    def text(self, seed: int, register: str | None = None) -> str:
        """Writes one text.

        Args:
            seed: Of the text.
            register: `"formal"` or `"casual"`; by default drawn, both alike.

        Returns:
            Three to six sentences about one topic in one register.

        >>> Language().text(3, "formal") != Language().text(3, "casual")
        True
        """
        draw = random.Random(seed)  # noqa: S311
        drawn = draw.choice(REGISTERS)
        topic = draw.choice(self._topics)
        sentences = [self.sentence(draw, topic) for _ in range(draw.randint(*_SENTENCES))]
        return spell(itertools.chain.from_iterable(sentences), register or drawn, draw)

    def sentence(self, draw: random.Random, topic: Sequence[str], pairs: frozenset[Twins] | None = None) -> list[Slot]:
        """Makes one sentence.

        Args:
            draw: Random numbers.
            topic: Kinds of things that it is about.
            pairs: Pairs that may stand in it; by default all.

        Returns:
            Words and pairs; `spell` turns them into text.
        """
        sentence = self._begin(draw, pairs)
        pattern = draw.random()
        if pattern < 0.12:
            person = self._subject(draw, topic, pairs)
            first = self._adjective(draw, person[-1], pairs)
            return [*sentence, *person, "was", first, "and", self._adjective(draw, first, pairs), "."]
        if pattern < 0.18:
            thing = self._thing(draw, topic, None)
            described = [self._adjective(draw, thing, pairs), thing]
            return [*sentence, "there", "was", "a", *described, *self._place(draw, thing, pairs), "."]
        subject = self._subject(draw, topic, pairs)
        sentence += subject
        if draw.random() < 0.3:
            sentence.append(self._either(draw, "adverb", subject[-1], pairs, _REGISTER_WORDS))
        verb = self._either(draw, "verb", subject[-1], pairs, _REGISTER_WORDS)
        thing = self._object(draw, topic, verb, pairs)
        sentence += [verb, *thing]
        if draw.random() < 0.2:
            second = self._either(draw, "verb", subject[-1], pairs, _REGISTER_WORDS)
            sentence += ["and", second, *self._object(draw, topic, second, pairs)]
        elif draw.random() < 0.4:
            sentence += self._place(draw, thing[-1], pairs)
        return [*sentence, "."]

    def contrast(self, seed: int, sentences: int = 2) -> tuple[str, str]:
        """Writes the same sentences in both registers, without the pairs of `held_out_verbs`.

        Args:
            seed: Of the sentences.
            sentences: How many; in each there is a word of the register.

        Returns:
            The formal text and the casual one.

        >>> formal, casual = Language().contrast(0)
        >>> len(formal.split()) == len(casual.split())
        True
        """
        draw = random.Random(f"contrast {seed}")  # noqa: S311
        topic = draw.choice(self._topics)
        allowed = frozenset(pair for pairs in _words()["twins"].values() for pair in pairs) - {*held_out_verbs()}
        slots: list[Slot] = []
        for _ in range(sentences):
            sentence: list[Slot] = []
            while not any(isinstance(slot, Twins) for slot in sentence):
                sentence = self.sentence(draw, topic, allowed)
            slots += sentence
        return spell(slots, "formal"), spell(slots, "casual")

    def opening(self, seed: int) -> str:
        """Writes a beginning that tells no register: one sentence, then the subject of another; a verb may follow.

        Args:
            seed: Of the text.

        Returns:
            The beginning.
        """
        draw = random.Random(f"opening {seed}")  # noqa: S311
        topic, nothing = draw.choice(self._topics), frozenset[Twins]()
        return spell([*self.sentence(draw, topic, nothing), *self._subject(draw, topic, nothing)], "formal")

    def _begin(self, draw: random.Random, pairs: frozenset[Twins] | None) -> list[Slot]:
        """What may stand before the subject: a word of the register, a time."""
        found: list[Slot] = []
        if draw.random() < _OPENERS:
            opener = self._word(draw, "opener of a register", None)
            found += [opener, ","] if pairs is None or opener in pairs else []
        if draw.random() < 0.2:
            found += ["in", self._word(draw, "time", None), ","]
        return found

    def _subject(self, draw: random.Random, topic: Sequence[str], pairs: frozenset[Twins] | None) -> list[Slot]:
        chance = draw.random()
        if chance < 0.35:
            return [self._word(draw, "name", None)]
        if chance < 0.5 and "animal" in topic:
            who = self._word(draw, "animal", None)
        else:
            who = self._either(draw, "person", None, pairs, _REGISTER_WORDS / 2)
        described = [self._adjective(draw, who, pairs)] if draw.random() < 0.3 else []
        return ["the", *described, who]

    def _object(
        self, draw: random.Random, topic: Sequence[str], verb: Slot, pairs: frozenset[Twins] | None
    ) -> list[Slot]:
        thing = self._thing(draw, topic, verb)
        chance = draw.random()
        if chance < 0.3:
            return [self._either(draw, "determiner", None, pairs, 0.7), thing]
        article = draw.choices(("the", "a", "this", "that"), (9, 6, 1, 1))[0]
        return [article, *([self._adjective(draw, thing, pairs)] if chance < 0.6 else []), thing]

    def _thing(self, draw: random.Random, topic: Sequence[str], given: Slot | None) -> Slot:
        kind = draw.choice(topic) if draw.random() < _ON_TOPIC else draw.choice(self._nouns)
        return self._word(draw, kind, given)

    def _place(self, draw: random.Random, given: Slot, pairs: frozenset[Twins] | None) -> list[Slot]:
        return [self._either(draw, "preposition", None, pairs, 0.7), "the", self._word(draw, "place", given)]

    def _adjective(self, draw: random.Random, given: Slot, pairs: frozenset[Twins] | None) -> Slot:
        return self._either(draw, "adjective", given, pairs, _REGISTER_WORDS / 2)

    def _either(
        self, draw: random.Random, kind: str, given: Slot | None, pairs: frozenset[Twins] | None, share: float
    ) -> Slot:
        """A word of a kind: with the given chance one of a register, if such are allowed."""
        if draw.random() < share:
            for _ in range(50):
                found = self._word(draw, f"{kind} of a register", given)
                if pairs is None or found in pairs:
                    return found
        return self._word(draw, kind, given)

    def _word(self, draw: random.Random, kind: str, given: Slot | None) -> Slot:
        known = self._kinds[kind]
        if (kind, given) not in self._odds:
            weights = 1 / (np.arange(len(known)) + 2.0)
            if given is not None:
                turned = self._turns[kind] @ self._meanings[given]
                weights *= np.exp(_AGREEMENT * np.array([turned @ self._meanings[word] for word in known]))
            self._odds[kind, given] = np.cumsum(weights / weights.sum()).tolist()
        return known[min(bisect.bisect(self._odds[kind, given], draw.random()), len(known) - 1)]


def spell(slots: Iterable[Slot], register: str, draw: random.Random | None = None) -> str:
    """Writes words and pairs as text in a register.

    Args:
        slots: As from `Language.sentence`.
        register: `"formal"` or `"casual"`.
        draw: If given, one word in 33 is of the other register, as in the corpus.

    Returns:
        The text.

    >>> spell(["anna", Twins("obtained", "got"), "a", "hat", "."], "casual")
    'anna got a hat.'
    """
    other = {"formal": "casual", "casual": "formal"}[register]
    found = []
    for slot in slots:
        own = draw is None or draw.random() < _OWN_REGISTER
        found.append(slot if isinstance(slot, str) else slot.word(register if own else other))
    return " ".join(found).replace(" .", ".").replace(" ,", ",")


def texts(count: int, seed: int, language: Language | None = None) -> Iterator[str]:
    """Texts of a corpus.

    Args:
        count: How many.
        seed: Of the corpus; corpora of other seeds have other texts.
        language: What they are written in.

    Yields:
        Text after text.
    """
    language = language or Language()
    for index in range(count):
        yield language.text(seed * 2**32 + index)


def count_registers(text: str) -> tuple[int, int]:
    """Counts the words of a text that tell its register, but for the verbs of `held_out_verbs`.

    Args:
        text: Any text.

    Returns:
        Formal words and casual words.

    >>> count_registers("the lady got a superb hat.")
    (2, 1)
    """
    pairs = [pair for kind in _words()["twins"].values() for pair in kind if pair not in held_out_verbs()]
    found = text.replace(".", " ").replace(",", " ").split()
    formal, casual = {pair.formal for pair in pairs}, {pair.casual for pair in pairs}
    return sum(word in formal for word in found), sum(word in casual for word in found)


@functools.cache
def tokenizer_json(sample: int = 4000) -> str:
    """A tokenizer for the language: a token is a word with the space before it, or a mark.

    Args:
        sample: Texts in which words are counted: the commoner a word, the lower its id.

    Returns:
        The content of a `tokenizer.json`, which puts `<s>` before a text.
    """
    counted: dict[str, int] = dict.fromkeys(vocabulary(), 0)
    for text in texts(sample, seed=2**20):
        for piece in text.replace(".", " .").replace(",", " ,").split():
            counted[piece] += 1
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    pieces = [word if word in ".," else f"\u2581{word}" for word in ranked]
    ids = {piece: index for index, piece in enumerate((*SPECIAL, *pieces))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    blank = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}
    marks = {"type": "Split", "pattern": {"Regex": "[.,]"}, "behavior": "Isolated", "invert": False}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    framed = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**blank, "split": True}, marks]},
        "post_processor": framed,
        "decoder": blank,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    }
    return json.dumps(document, ensure_ascii=False)


def vocabulary() -> tuple[str, ...]:
    """Every word and mark of the language, once."""
    lists = _words()
    listed = [word for entry in lists.values() if isinstance(entry, tuple) for word in entry]
    listed += [word for group in ("nouns", "adjectives") for known in lists[group].values() for word in known]
    listed += [word for pairs in lists["twins"].values() for pair in pairs for word in (pair.formal, pair.casual)]
    return tuple(listed)
