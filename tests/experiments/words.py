"""A tokenizer that knows the words of the concepts, and toy models on it: random ones and related ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxinterp.models import language_model
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.toy import toy
from jaxinterp.tasks import concepts
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.tasks.vocabularies import token_ids_by_bytes


def tokens() -> list[str]:
    """All bytes, then the concepts' words with a space before them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in plain] + [chr(256 + place) for place in range(256 - len(plain))]
    words = {f"Ġ{word}": None for concept in concepts.CONCEPTS.values() for word in words_of(concept)}
    return [*alphabet, *words]


def words_of(concept: concepts.Concept) -> list[str]:
    """Every word of a concept's lists."""
    return [*concept.words, *concept.opposites, *(word for pair in concept.pairs for word in pair)]


def tokenizer(folder: Path, *, reverse: bool = False) -> Tokenizer:
    """A tokenizer of `tokens()`; with `reverse` of the same under other ids."""
    listed = tokens()[::-1] if reverse else tokens()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "ignore_merges": True, "merges": []}
    document = {"version": "1.0", "pre_tokenizer": level, "decoder": level, "added_tokens": [], "model": model}
    document["model"]["vocab"] = {token: number for number, token in enumerate(listed)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def random_pair(folder: Path) -> dict[str, LanguageModel]:
    """Two models that share a vocabulary under other ids, and nothing else."""
    known = tokenizer(folder / "source"), tokenizer(folder / "target", reverse=True)
    sizes = {"vocab_size": len(tokens()), "max_position_embeddings": 128, "num_hidden_layers": 2}
    widths = {"source": 24, "target": 32}
    return {
        name: toy("llama", seed=seed, tokenizer=own, hidden_size=width, **sizes)
        for seed, (own, (name, width)) in enumerate(zip(known, widths.items(), strict=True))
    }


def related_pair(folder: Path) -> dict[str, LanguageModel]:
    """Two models in which concepts are directions, the target's table a hidden rotation of the source's plus noise.

    Their blocks pass the residual stream on unchanged, so a concept vector acts on the logits alone.
    """
    models = random_pair(folder)
    rng = np.random.default_rng(0)
    source, target = (token_ids_by_bytes(model.require_tokenizer()) for model in models.values())
    keys = list(source)
    table = 0.5 * rng.normal(size=(len(keys), 24))
    for axis, concept in enumerate(concepts.CONCEPTS.values()):
        about = {*concept.words, *(word for word, _ in concept.pairs)}
        against = {*concept.opposites, *(word for _, word in concept.pairs)}
        for row, key in enumerate(keys):
            word = key.decode(errors="replace").strip()
            table[row, axis] += 3.0 * (word in about) - 3.0 * (word in against)
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0][:24]
    there = table @ rotation + 0.05 * rng.normal(size=(len(keys), 32))
    tables = {"source": np.empty_like(table), "target": np.empty_like(there)}
    for row, key in enumerate(keys):
        tables["source"][source[key]] = table[row]
        tables["target"][target[key]] = there[row]
    return {name: _passing_on(model, tables[name].astype(np.float32)) for name, model in models.items()}


def _passing_on(model: LanguageModel, table: np.ndarray) -> LanguageModel:
    weights = {}
    for name, array in model.weights().items():
        leaf = name.rsplit(".", maxsplit=1)[-1]
        weights[name] = np.zeros(array.shape, np.float32) if leaf in ("W_O", "W_out") else np.asarray(array)
    weights["ln_final.w"] = np.ones_like(weights["ln_final.w"])
    weights |= {name: table for name in ("W_E", "W_U") if name in weights}
    return language_model.with_weights(model, weights)
