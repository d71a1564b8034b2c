"""How vocabularies spell the bytes of a text in their tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from typing import Literal

import tokenizers

Spelling = Literal["byte-level", "SentencePiece", "WordPiece", "plain"]

BLANK = "\u2581"
_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
_BRACKETED = re.compile(r"\[.+\]")
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]

# The alphabet of byte-level vocabularies (Radford et al., 2019): printable Latin-1 characters stand for their own
# byte, the 68 other bytes are numbered from U+0100 on.
BYTE_TO_CHARACTER: list[str] = [chr(b) if b in _PRINTABLE else chr(0x100 + _REST.index(b)) for b in range(256)]
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}


def spelled_bytes(token: str) -> bytes | None:
    """The bytes a byte-level token stands for, or `None` if it holds a character outside of the alphabet.

    >>> spelled_bytes("ĠcafÃ©").decode()
    ' café'
    """
    try:
        return bytes(CHARACTER_TO_BYTE[character] for character in token)
    except KeyError:
        return None


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """Tells from a tokenizer's decoder how its tokens spell text.

    Args:
        backend: A tokenizer of the `tokenizers` package.

    Returns:
        `"byte-level"`, `"SentencePiece"` (blanks as U+2581), `"WordPiece"` (`##` before what continues a word) or
        `"plain"` (tokens are text).
    """
    state = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = [state, *state.get("decoders", ())]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return "byte-level"
    if "Metaspace" in kinds or any(step.get("pattern") == {"String": BLANK} for step in steps):
        return "SentencePiece"
    return "WordPiece" if "WordPiece" in kinds else "plain"


def word_piece_bytes(token: str) -> bytes | None:
    """The bytes a WordPiece token stands for: a space and a word, or the continuation of one.

    Text is cut around punctuation with no regard to spaces, so the space before that, and before what follows it, is a
    convention: compare words where it matters.

    Args:
        token: As the vocabulary writes it, with the usual prefix `##`.

    Returns:
        The bytes; `None` for a name in brackets, such as `[unused7]`.

    >>> word_piece_bytes("sea"), word_piece_bytes("##ing"), word_piece_bytes("[unused7]")
    (b' sea', b'ing', None)
    """
    if _BRACKETED.fullmatch(token):
        return None
    continues = token.startswith("##") and len(token) > 2
    return (token.removeprefix("##") if continues else f" {token}").encode()


def byte_table(vocabulary: Mapping[str, int], spelling: Spelling, silent: Container[int]) -> tuple[bytes | None, ...]:
    """Lists what every token adds to a text; no two tokens get the same bytes by way of a byte's own token.

    Args:
        vocabulary: Ids by token.
        spelling: How the tokens spell text.
        silent: Ids that stand for no text.

    Returns:
        Bytes by id. `None` for silent ids, for ids that do not exist, for SentencePiece's `<0x41>` where another
        token spells the same byte as a character, and for WordPieces that are names in brackets.
    """
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    single: dict[int, bytes] = {}
    for token, token_id in vocabulary.items():
        if token_id in silent:
            continue
        if spelling == "byte-level":
            found[token_id] = spelled_bytes(token)
        elif spelling == "WordPiece":
            found[token_id] = word_piece_bytes(token)
        elif spelling == "plain":
            found[token_id] = token.encode()
        elif byte := _FALLBACK.fullmatch(token):
            single[token_id] = bytes.fromhex(byte[1])
        else:
            found[token_id] = token.replace(BLANK, " ").encode()
    spelled_as_characters = set(found)
    for token_id, byte in single.items():
        found[token_id] = None if byte in spelled_as_characters else byte
    return tuple(found)
