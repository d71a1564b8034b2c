"""The concepts there are, and the neutral prompts on which their vectors are judged."""

from __future__ import annotations

from jaxinterp.tasks.contrasts import Concept, WordIds, word_ids
from jaxinterp.tasks.styles import FORMALITY, FRENCH, SENTIMENT, TENSE
from jaxinterp.tasks.topics import MUSIC, OCEAN, WEDDING

__all__ = ["CONCEPTS", "PLAIN_TEXTS", "PROMPTS", "SAMPLE_PROMPTS", "Concept", "WordIds", "word_ids"]

CONCEPTS: dict[str, Concept] = {
    concept.name: concept for concept in (SENTIMENT, WEDDING, OCEAN, MUSIC, FORMALITY, TENSE, FRENCH)
}

PROMPTS: dict[str, tuple[str, ...]] = {
    "thing": (
        "Everyone talked about the",
        "He wrote about the",
        "In my dream I saw a",
        "The old man pointed to the",
        "I took a picture of the",
        "She kept thinking of the",
        "They stared at the",
        "My favourite book describes the",
        "We stayed because of the",
        "The girls drew a",
        "I really liked the",
        "The story begins with a",
    ),
    "action": (
        "The old man",
        "My sister",
        "Our teacher",
        "The little dog",
        "The woman next door",
        "His old friend",
        "The tall boy",
        "Her uncle",
        "The new neighbour",
        "The girl in the shop",
        "The captain of the team",
        "Somebody in the office",
    ),
}
"""Short neutral prompts by what may follow: a noun or an adjective, or a verb."""

SAMPLE_PROMPTS: tuple[str, ...] = (
    "I think that the",
    "Last week my friend and I",
    "The most important thing in life is",
    "When the door opened, she saw",
)
"""Beginnings of the texts that are written under a vector."""

PLAIN_TEXTS: tuple[str, ...] = (
    "The bus stops at the corner of the main road every ten minutes.",
    "Water boils at a lower temperature in the mountains.",
    "The library is open from nine to five on weekdays.",
    "Most of the roofs in the village are made of slate.",
    "A triangle has three sides and three angles.",
    "The engine needs a new filter before the winter.",
    "Farmers in the valley grow wheat, barley and potatoes.",
    "The report lists the number of visitors for each month.",
    "Copper is a good conductor of heat and electricity.",
    "Her office is on the second floor, next to the stairs.",
    "The bridge was closed for two weeks because of repairs.",
    "Put the flour in a bowl and add two eggs.",
    "The map shows every path between the two towns.",
    "Bats find their way in the dark by listening to echoes.",
    "The company moved its factory to another county.",
    "Some of the windows had not been cleaned for years.",
)
"""Sentences about nothing that any of the concepts is about, on which perplexity is measured."""
