"""What models are trained on: a tokenizer, rows of tokens, and what a log tells of a model that reads them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks import countdown_tokenizer, small_language
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training import countdown_rows
from jaxinterp.training.evaluation import predictions
from jaxinterp.training.packing import Rows, pack

Name = Literal["small language", "countdown"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Rows to learn from, and rows to look at.

    Attributes:
        rows: To learn from.
        held_out: Others.
        measure: What else a log tells of a decoder, by column.
    """

    rows: np.ndarray | Rows
    held_out: np.ndarray | Rows
    measure: Callable[[Decoder], Mapping[str, float | None]] | None = None


def tokenizer(name: Name) -> Tokenizer:
    """The tokenizer of a corpus."""
    return countdown_tokenizer.tokenizer() if name == "countdown" else small_language_tokenizer()


def make(name: Name, settings: CorpusSettings, texts: int, held_out: int, seed: int, length: int) -> Corpus:
    """Writes a corpus.

    Args:
        name: Which.
        settings: Of a corpus of CountDown.
        texts: Texts to learn from.
        held_out: Texts to look at; those of CountDown are of the split for validation.
        seed: Of the texts; the others have the next seed.
        length: Predictions in a row.

    Returns:
        The corpus.

    Raises:
        ValueError: The texts do not fit the rows.
    """
    if name == "small language":
        reader = small_language_tokenizer()
        learned = small_language_rows(reader, texts, seed, length)
        return Corpus(learned, small_language_rows(reader, held_out, seed + 1, length))
    reader = countdown_tokenizer.tokenizer()
    learned = countdown_rows.rows(settings, texts, seed, length)
    others = countdown_rows.rows(settings, held_out, seed + 1, length, "validation")

    def measure(decoder: Decoder) -> dict[str, float | None]:
        return countdown_rows.accuracies(others, predictions(decoder, others), reader)

    return Corpus(learned, others, measure)


def small_language_tokenizer() -> Tokenizer:
    """The tokenizer of the small language."""
    roles = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), small_language.SPECIAL, strict=True))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "tokenizer.json").write_text(small_language.tokenizer_json(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
        return Tokenizer.from_folder(folder)


def small_language_rows(reader: Tokenizer, texts: int, seed: int, length: int) -> np.ndarray:
    """Packed texts of the small language.

    Args:
        reader: Its tokenizer.
        texts: How many texts.
        seed: Of the corpus.
        length: Predictions in a row.

    Returns:
        Int32 [row, length + 1].
    """
    assert reader.eos is not None
    return pack(([*reader.encode(text), reader.eos] for text in small_language.texts(texts, seed)), length)
