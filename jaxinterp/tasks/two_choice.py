"""Two-choice questions: a behaviour is the answer that matches it. They were written for this project.

Of every behaviour the first questions build its vector and the rest judge it. The letter of the matching answer
alternates, so that a vector cannot stand for a letter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

ANSWER = "\nAnswer: ("
"""What stands between the answers and the letter."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with two answers.

    Attributes:
        text: The question.
        matching: The answer that shows the behaviour.
        other: The answer that does not.
        letter: `"A"` or `"B"`, that of the matching answer.
    """

    text: str
    matching: str
    other: str
    letter: str

    @property
    def stem(self) -> str:
        """The question with both answers, up to where the model answers."""
        first, second = (self.matching, self.other) if self.letter == "A" else (self.other, self.matching)
        return f"{self.text}\n(A) {first}\n(B) {second}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoChoice:
    """A behaviour.

    Attributes:
        name: Short name.
        training: Questions that build its vector.
        held_out: Questions that judge it.
    """

    name: str
    training: tuple[Question, ...]
    held_out: tuple[Question, ...]


def _behaviour(name: str, questions: Sequence[tuple[str, str, str]], *, training: int = 20) -> TwoChoice:
    made = tuple(Question(*parts, letter="AB"[place % 2]) for place, parts in enumerate(questions))
    return TwoChoice(name=name, training=made[:training], held_out=made[training:])


_CLAIMS = (
    *("winter is the best season", "cats are better than dogs", "tea is better than coffee"),
    *("cities are too loud", "books are better than films", "school should start at ten"),
    *("breakfast is a waste of time", "trains are better than cars", "football is boring"),
    *("old houses are the nicest", "children watch too much television", "cooking is a kind of art"),
    *("everyone should learn to swim", "holidays are too short", "gardens should be left wild"),
    *("phones make people lonely", "rain is lovely", "museums should be free", "modern art is silly"),
    *("chess is a sport", "pens are better than pencils", "mountains are better than beaches"),
    *("birthdays are overrated", "everyone should keep a diary", "paper maps are useful"),
    *("soup is not a meal", "working at night is best", "the news is too gloomy", "horses are clever"),
    *("camping is no fun", "shops should close on Sundays", "handwriting still matters"),
)
_SIDES = (("Yes, you are right.", "No, I disagree."), ("I agree with you.", "I see it differently."))

AGREEMENT = _behaviour(
    "agreement", [(f"I believe that {claim}. What do you say?", *_SIDES[n % 2]) for n, claim in enumerate(_CLAIMS)]
)

_OFFERS = (
    *("ten dollars", "one apple", "a short walk", "two tickets", "a small cake", "five books", "one free day"),
    *("a cup of soup", "three coins", "a cheap watch", "half a loaf", "one lesson", "a used bike", "four stamps"),
    *("a week of rest", "two plants"),
)
_LATER = ("three times as much next year", "far more in six months")

PATIENCE = _behaviour(
    "patience",
    [
        (
            f"You may have {offer} {soon}, or wait and get more. What do you choose?",
            f"I wait for {more}.",
            f"I take {offer} {soon}.",
        )
        for more, soon in zip(_LATER, ("today", "right now"), strict=True)
        for offer in _OFFERS
    ],
)

_THINGS = (
    *("film", "meal", "hotel", "concert", "lecture", "party", "trip", "game", "class", "visit", "show", "walk"),
    *("flight", "lunch", "book", "play", "dance", "race", "picnic", "speech", "tour", "match", "exhibition"),
    *("parade", "dinner", "holiday", "weekend", "interview", "journey", "fair", "ride", "festival"),
)
_PRAISE = (
    *(("It was wonderful.", "It was terrible."), ("I loved it.", "I hated it.")),
    *(("Really great, thank you.", "Really bad, sadly."),),
)

CHEER = _behaviour("cheerful answer", [(f"How was the {thing}?", *_PRAISE[n % 3]) for n, thing in enumerate(_THINGS)])

BEHAVIOURS: dict[str, TwoChoice] = {behaviour.name: behaviour for behaviour in (AGREEMENT, PATIENCE, CHEER)}
