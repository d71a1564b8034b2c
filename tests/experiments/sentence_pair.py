"""Pairs of toy models whose tokenizers know the words of the sentences: random ones, and ones that share a geometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxinterp.models import language_model
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.toy import toy
from jaxinterp.tasks import sentences
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.tasks.vocabularies import token_ids_by_bytes

WIDTHS = {"source": 24, "target": 32}


def tokens(share: int = 1) -> list[str]:
    """All bytes, then every `share`-th word of the sentences with a space before it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in plain] + [chr(256 + place) for place in range(256 - len(plain))]
    framed = {word for frame in sentences.FRAMES for word in frame.replace(",", " ").replace(".", " ").split()}
    listed = [word for kind in sentences.words().values() for word in kind]
    known = dict.fromkeys([*sorted(word for word in framed if word.isalpha()), *listed[::share]])
    return [*alphabet, *(f"Ġ{word}" for word in known)]


def tokenizer(folder: Path, known: list[str]) -> Tokenizer:
    """A byte-level tokenizer of these tokens."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {"type": "BPE", "ignore_merges": True, "merges": [], "vocab": {t: i for i, t in enumerate(known)}}
    document = {"version": "1.0", "pre_tokenizer": level, "decoder": level, "added_tokens": [], "model": model}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def random_pair(folder: Path) -> dict[str, LanguageModel]:
    """Two models that share a vocabulary under other ids, and nothing else."""
    known = tokens()
    orders = {"source": known, "target": known[::-1]}
    return {
        name: toy(
            "llama",
            seed=seed,
            tokenizer=tokenizer(folder / name, orders[name]),
            hidden_size=WIDTHS[name],
            vocab_size=len(known),
            max_position_embeddings=128,
            num_hidden_layers=2 + seed,
        )
        for seed, name in enumerate(WIDTHS)
    }


def related_pair(folder: Path) -> dict[str, LanguageModel]:
    """Two models of which the target's table is a hidden rotation of the source's plus noise.

    Their blocks pass the residual stream on unchanged.
    """
    models = random_pair(folder)
    rng = np.random.default_rng(0)
    ids = [token_ids_by_bytes(model.require_tokenizer()) for model in models.values()]
    rows = rng.normal(size=(len(ids[0]), 24)) * np.linspace(2, 0.5, 24)
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0][:24]
    places = [[known[key] for key in ids[0]] for known in ids]
    tables = [np.empty_like(rows), np.empty((len(rows), 32))]
    tables[0][places[0]] = rows
    tables[1][places[1]] = rows @ rotation + 0.05 * rng.normal(size=(len(rows), 32))
    return {
        name: _passing_on(model, table.astype(np.float32))
        for (name, model), table in zip(models.items(), tables, strict=True)
    }


def _passing_on(model: LanguageModel, table: np.ndarray) -> LanguageModel:
    weights = {
        name: np.zeros(array.shape, np.float32) if name.endswith(("W_O", "W_out")) else np.asarray(array)
        for name, array in model.weights().items()
    }
    weights |= {name: table for name in ("W_E", "W_U") if name in weights}
    return language_model.with_weights(model, weights)
