"""An encoder as a model that only its token table is read of, with words of another model's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxinterp.models import language_model
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks.vocabularies import token_ids_by_bytes


def related_encoder(folder: Path, model: LanguageModel, noise: float = 0.3, width: int = 20) -> LanguageModel:
    """A table of a model's words, its rows a hidden projection of the model's plus noise."""
    known = token_ids_by_bytes(model.require_tokenizer())
    ids = {key: place for key, place in known.items() if key[:1] == b" " and len(key) > 1}
    words = [key.decode()[1:] for key in ids]
    rng = np.random.default_rng(5)
    table = np.asarray(model.token_table())[list(ids.values())]
    turn = np.linalg.qr(rng.normal(size=(table.shape[1], table.shape[1])))[0][:, :width]
    rows = np.concatenate([rng.normal(size=(2, width)), table @ turn + noise * rng.normal(size=(len(words), width))])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings.word_embeddings.weight": rows.astype(np.float32)}, folder / "model.safetensors")
    config = {"model_type": "bert", "vocab_size": len(rows), "hidden_size": width}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = {piece: place for place, piece in enumerate(["[PAD]", "[UNK]", *words])}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocabulary},
    }
    document["model"]["max_input_chars_per_word"] = 100
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return language_model.load(folder)
