"""A tokenizer that knows the words of the concepts, and toy models on it."""

from __future__ import annotations

import json
from pathlib import Path

from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.toy import toy
from jaxinterp.tasks import concepts
from jaxinterp.tasks.tokenizer import Tokenizer


def vocabulary(extra: int = 0) -> list[str]:
    """Byte-level tokens: all bytes, then the concepts' words with a space before them, then `extra` words."""
    alphabet = byte_alphabet()
    words = {word: None for concept in concepts.CONCEPTS.values() for word in concept.words + concept.opposites}
    words |= {word: None for concept in concepts.CONCEPTS.values() for pair in concept.pairs for word in pair}
    return [*alphabet, *(f"Ġ{word}" for word in words), *(f"Ġextra{number}" for number in range(extra))]


def byte_alphabet() -> list[str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]


def tokenizer(folder: Path, *, reverse: bool = False, extra: int = 0) -> Tokenizer:
    """A tokenizer of whole words; with `reverse`, the same tokens under other ids."""
    tokens = vocabulary(extra)
    if reverse:
        tokens = tokens[::-1]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def model(family: str, known: Tokenizer, seed: int, **sizes: int) -> LanguageModel:
    return toy(family, seed=seed, tokenizer=known, vocab_size=known.vocabulary, max_position_embeddings=128, **sizes)
