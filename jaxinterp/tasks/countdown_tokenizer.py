"""The closed vocabulary of CountDown texts, and the tokenizer that follows from it."""

from __future__ import annotations

from jaxinterp.tasks.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<unk>")
"""What fills a batch, ends a text, and is no word; their ids are 0 to 2."""


def vocabulary() -> tuple[str, ...]:
    """The 76 tokens, by id."""
    raise NotImplementedError


def tokenizer_json() -> str:
    """The content of a `tokenizer.json`."""
    raise NotImplementedError


def tokenizer() -> Tokenizer:
    """The tokenizer; `<eos>` ends a text, nothing begins one."""
    raise NotImplementedError
