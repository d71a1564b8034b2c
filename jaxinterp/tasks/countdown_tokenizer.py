"""The closed vocabulary of CountDown texts, and the tokenizer that follows from it.

Each digit is a token, so that a number is read and written digit by digit; `" ("`, behind which a verdict follows, is
one, different from every other parenthesis. A word takes the space behind it along, and the space before it where that
follows a number, so that no token is a bare space. The words are those of the grammar's own sentences.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from pathlib import Path

from jaxinterp.tasks import countdown, countdown_grammar, plain_verification
from jaxinterp.tasks.countdown import Attempt, Problem
from jaxinterp.tasks.countdown_grammar import PROSE
from jaxinterp.tasks.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<unk>")
"""What fills a batch, ends a text, and is no word; their ids are 0 to 2."""

_SIGNS = (*"0123456789", *(f" {symbol} " for symbol in "+-*/="), "-")
_MARKS = (", ", "[", "], ", ". ", ".\n", ".", "\n", "\n- ", " (", ")")
_WORD = re.compile(r"(?:(?<=\d) )?(?:</?\w+>|[A-Za-z][a-z']*[:?]?) ?")
_ESCAPED = str.maketrans({"\n": r"\n"} | {mark: rf"\{mark}" for mark in "-+*/.?()[]"})


def vocabulary() -> tuple[str, ...]:
    """The 76 tokens, by id.

    >>> vocabulary()[27], len(vocabulary())
    (' (', 76)
    """
    words = dict.fromkeys(word for text in _sentences() for word in _WORD.findall(text))
    return (*SPECIAL, *_SIGNS, *_MARKS, *_verdicts(), *words)


def _verdicts() -> tuple[str, ...]:
    accepting, *others = countdown_grammar.REJECTIONS.items()
    first, _, second = accepting[0].partition(" ")
    return (f"{accepting[1]} ", first, f" {second}", *itertools.chain.from_iterable(others))


def _sentences() -> tuple[str, ...]:
    """Everything the grammar writes around numbers and verdicts, about a problem whose numbers are all 1."""
    problem = Problem((1, 1), 1)
    attempt = Attempt(expression="1", steps=("1",), result=1, valid=True, result_span=(0, 0), open=0)
    tags = countdown_grammar.ending(problem, "1", solved=True).partition("\n")[2]
    return (
        problem.prompt,
        tags,
        countdown.preamble(problem),
        *(countdown_grammar.ending(problem, "1", solved).partition("\n")[0] for solved in (True, False)),
        *(countdown_grammar.prose(problem, "1", (result,), PROSE) for result in ("0", "1")),
        plain_verification.question(problem, attempt),
        *(plain_verification.YES, plain_verification.NO),
    )


def tokenizer_json() -> str:
    """Writes the tokenizer down.

    A text is cut at the longest token that fits, from left to right; what is left between tokens becomes `<unk>`.

    Returns:
        The content of a `tokenizer.json`.
    """
    tokens = vocabulary()
    longest_first = sorted(tokens[len(SPECIAL) :], key=len, reverse=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pattern = "|".join(token.translate(_ESCAPED) for token in longest_first)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "unk_token": SPECIAL[2],
        },
    }
    return json.dumps(document, indent=1)


def tokenizer() -> Tokenizer:
    """The tokenizer; `<eos>` ends a text, and nothing begins one.

    >>> tokenizer().encode("12 (this works)")
    [4, 5, 27, 30, 31, 28]
    """
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
        return Tokenizer.from_folder(folder)
