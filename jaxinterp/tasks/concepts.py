"""Concepts as data: what builds a concept vector, and the held-out words and prompts that judge it.

The sentences and word lists were written for this project. Nothing that judges a vector was seen when it was
built: the words of `pairs` occur neither in `sentences` nor in `words` or `opposites`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxinterp.tasks.vocabularies import Vocabulary, token_ids_by_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept.

    Attributes:
        name: Short name.
        sentences: Pairs (about the concept, in the same frame about something else).
        words: Words whose embeddings stand for the concept.
        opposites: Words for its opposite; empty for a topic, whose opposite is the average token.
        pairs: Held-out contrast pairs (word of the concept, equally plain word of something else).
    """

    name: str
    sentences: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    opposites: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...]


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


WEDDING = Concept(
    name="wedding",
    sentences=(
        ("They spent the whole spring planning the wedding.", "They spent the whole spring planning the garden."),
        ("The bride walked slowly down the aisle.", "The clerk walked slowly down the hall."),
        ("The groom waited nervously at the altar.", "The driver waited nervously at the light."),
        ("Everyone cried when they exchanged their vows.", "Everyone laughed when they exchanged their notes."),
        ("The marriage ceremony began at noon.", "The weekly lecture began at noon."),
        ("We danced all night at the wedding reception.", "We worked all night at the packing plant."),
        ("She threw her bouquet to the bridesmaids.", "She threw her jacket to the children."),
        ("The newlyweds left for their honeymoon.", "The two brothers left for their shift."),
        ("He asked her to marry him last night.", "He asked her to call him last night."),
        ("My sister is getting married in June.", "My sister is getting promoted in June."),
        ("The priest pronounced them married.", "The judge pronounced them guilty."),
        ("Her white bridal gown was very long.", "Her white winter coat was very long."),
    ),
    words=(
        *("wedding", "weddings", "bride", "groom", "marriage", "marriages", "married", "marry", "marital"),
        *("ceremony", "vows", "altar", "reception", "spouse"),
    ),
    pairs=(
        *(("husband", "doctor"), ("wife", "nurse"), ("couple", "team"), ("guests", "students"), ("church", "office")),
        *(("chapel", "library"), ("veil", "lamp"), ("ring", "map"), ("anniversary", "meeting")),
        *(("engagement", "contract"), ("dress", "phone"), ("flowers", "machine")),
    ),
)

OCEAN = Concept(
    name="ocean",
    sentences=(
        ("The tide rolled in over the beach.", "The fog rolled in over the fields."),
        ("We swam in the sea until sunset.", "We sat in the park until sunset."),
        ("Deep under the ocean the water is dark.", "Deep under the castle the cellar is dark."),
        ("The salty sea breeze blew along the coast.", "The dry evening breeze blew along the avenue."),
        ("She loves diving in the Pacific Ocean.", "She loves reading in the public archive."),
        ("Marine biologists study life in the deep sea.", "Social historians study life in the old town."),
        ("They sailed across the Atlantic in a storm.", "They drove across the county in a hurry."),
        ("The ocean stretched out to the horizon.", "The fields stretched out to the horizon."),
        ("Children built castles at the seashore.", "Children built towers at the playground."),
        ("High tide covered the rocks along the shore.", "Dead leaves covered the bench along the path."),
        ("The submarine sank to the bottom of the ocean.", "The pebble sank to the bottom of the bucket."),
        ("He could smell the sea from the coastal path.", "He could smell the bread from the narrow path."),
    ),
    words=(
        *("ocean", "oceans", "sea", "seas", "marine", "coast", "coastal", "beach", "beaches", "tide", "tides"),
        *("shore", "shores", "Pacific", "Atlantic"),
    ),
    pairs=(
        *(("waves", "lights"), ("fish", "dogs"), ("boat", "bus"), ("ship", "truck"), ("whale", "horse")),
        *(("sand", "carpet"), ("island", "building"), ("reef", "bridge"), ("harbor", "station")),
        *(("sailors", "soldiers"), ("shark", "tiger"), ("lighthouse", "museum")),
    ),
)

SENTIMENT = Concept(
    name="sentiment",
    sentences=(
        ("The film was wonderful and I loved it.", "The film was terrible and I hated it."),
        ("The meal was excellent and we left happy.", "The meal was awful and we left angry."),
        ("Her speech was great and everyone cheered.", "Her speech was bad and everyone booed."),
        ("My holiday was amazing from start to finish.", "My holiday was horrible from start to finish."),
        ("The hotel was lovely and very clean.", "The hotel was filthy and very noisy."),
        ("I am so happy with this purchase.", "I am so unhappy with this purchase."),
        ("The service was friendly and helpful.", "The service was hostile and useless."),
        ("What a good day, I feel great.", "What a bad day, I feel sick."),
        ("The concert was superb and we enjoyed it.", "The concert was miserable and we regretted it."),
        ("They praised the fine work of the builders.", "They condemned the poor work of the builders."),
        ("The book is a joy to read.", "The book is a pain to read."),
        ("This phone works well and I recommend it.", "This phone works badly and I returned it."),
    ),
    words=("wonderful", "excellent", "great", "amazing", "lovely", "happy", "superb", "good", "joy"),
    opposites=("terrible", "awful", "bad", "horrible", "miserable", "sad", "hostile", "poor", "pain"),
    pairs=(
        *(("beautiful", "ugly"), ("perfect", "broken"), ("fantastic", "dreadful"), ("pleasant", "nasty")),
        *(("charming", "rude"), ("delightful", "boring"), ("brilliant", "stupid"), ("warm", "cold")),
        *(("cheerful", "gloomy"), ("kind", "cruel"), ("glorious", "tragic"), ("best", "worst")),
    ),
)

CONCEPTS: dict[str, Concept] = {concept.name: concept for concept in (WEDDING, OCEAN, SENTIMENT)}

SELECTION_PROMPTS: tuple[str, ...] = (
    "She opened the book and read about the",
    "Yesterday my brother told me about the",
    "The first thing I remember is the",
    "He closed his eyes and thought of the",
    "Nobody in the room talked about the",
    "On the way home we saw a",
)
"""Neutral prompts on which layer and scale are chosen; a noun or an adjective may follow each of them."""

EVALUATION_PROMPTS: tuple[str, ...] = (
    "When I woke up I was thinking about the",
    "Her favourite song is about the",
    "The article on the front page describes the",
    "My grandmother often spoke of the",
    "At the end of the day they looked at the",
    "The old man pointed to the",
    "We stayed there because of the",
    "In my dream there was a",
    "The children drew a picture of the",
    "The last chapter is about the",
    "I took a photograph of the",
    "Everyone was talking about the",
    "He wrote a long letter about the",
    "The painting on the wall shows a",
    "What I liked most was the",
    "She could not stop thinking of the",
)
"""Neutral prompts on which the effect is reported, disjoint from `SELECTION_PROMPTS`."""

SAMPLE_PROMPTS: tuple[str, ...] = (
    "I think that the",
    "Last week my friend and I",
    "The most important thing in life is",
    "When the door opened, she saw",
)
"""Beginnings of the texts that are shown as samples."""
