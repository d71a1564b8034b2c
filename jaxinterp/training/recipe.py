"""From nothing to a model folder: a corpus, a decoder, a course, and what they became."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from jaxinterp import artefacts
from jaxinterp.models import decoder as tree
from jaxinterp.models import families
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel, save
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.tasks import small_language
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training import language_model
from jaxinterp.training.language_model import Course
from jaxinterp.training.packing import pack

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a trained model is."""

    name: str = "small-language"
    """Of the model."""
    corpus: Literal["small language"] = "small language"
    """What it reads: the generated language of jaxinterp.tasks.small_language."""
    texts: int = 24000
    """Texts that it is trained on."""
    corpus_seed: int = 1
    """Of the texts; models of one family share it."""
    held_out_texts: int = 120
    """Other texts, on which the log tells the loss."""
    embedding: int = 64
    """Width of the residual stream."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads of each block; they divide the width."""
    neurons: int = 176
    """Width of each MLP."""
    tied: bool = True
    """Whether the unembedding is the embedding table."""
    context: int = 64
    """Tokens in a row of training, and the longest text."""
    seed: int = 0
    """Of the initial weights."""
    course: Course = dataclasses.field(default_factory=Course)
    """How it is trained."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of the saved weights; training is in float32."""


def configuration(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """The Hugging Face config of a recipe's model.

    Args:
        recipe: Settings.
        tokenizer: The corpus's tokenizer.

    Returns:
        A config of the Llama family.

    Raises:
        ValueError: The heads do not divide the width into an even number of dimensions.
    """
    if recipe.embedding % (2 * recipe.heads):
        raise ValueError(
            f"{recipe.name}: {recipe.heads} heads do not divide the width {recipe.embedding} into heads of even width; "
            f"take a width that is a multiple of {2 * recipe.heads}"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocabulary,
        "hidden_size": recipe.embedding,
        "intermediate_size": recipe.neurons,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "head_dim": recipe.embedding // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": recipe.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }


def corpus_tokenizer() -> Tokenizer:
    """The tokenizer of the small language."""
    roles = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), small_language.SPECIAL, strict=True))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "tokenizer.json").write_text(small_language.tokenizer_json(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
        return Tokenizer.from_folder(folder)


def corpus_rows(tokenizer: Tokenizer, texts: int, seed: int, length: int) -> np.ndarray:
    """Packed texts of the small language.

    Args:
        tokenizer: Its tokenizer.
        texts: How many texts.
        seed: Of the corpus.
        length: Predictions in a row.

    Returns:
        Int32 [row, length + 1].
    """
    assert tokenizer.eos is not None
    return pack(([*tokenizer.encode(text), tokenizer.eos] for text in small_language.texts(texts, seed)), length)


def initial_decoder(recipe: Recipe, config: dict[str, Any]) -> tuple[Decoder, Architecture]:
    """A decoder with random weights and what it is made of."""
    _, architecture = families.read_architecture(config, recipe.name)
    return Decoder(architecture, nnx.Rngs(recipe.seed)), architecture


def train(recipe: Recipe, folder: str | Path) -> pl.DataFrame:
    """Trains a model and writes it as a Hugging Face folder.

    Beside weights, config and tokenizer the folder holds `recipe.json`, from which the model can be trained again,
    `training_log.parquet`, and a model card that is written from the log.

    Args:
        recipe: Settings.
        folder: Where to; it appears whole or not at all.

    Returns:
        The log, see `jaxinterp.training.language_model.train`.

    Raises:
        ValueError: The settings do not fit together, training failed, or the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not empty and holds no model; choose another folder")
    tokenizer = corpus_tokenizer()
    config = configuration(recipe, tokenizer)
    decoder, architecture = initial_decoder(recipe, config)
    _LOG.info("writing %d texts", recipe.texts)
    rows = corpus_rows(tokenizer, recipe.texts, recipe.corpus_seed, recipe.context)
    held_out = corpus_rows(tokenizer, recipe.held_out_texts, recipe.corpus_seed + 1, recipe.context)
    decoder, log = language_model.train(decoder, rows, recipe.course, held_out)
    weights = {name: jnp.asarray(array, recipe.dtype) for name, array in to_weights(decoder).items()}
    model = LanguageModel(
        body=tree.build(architecture, weights),
        architecture=architecture,
        config=json.dumps(config),
        tokenizer=tokenizer,
        source=recipe.name,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        whole = Path(place) / folder.name
        save(model, whole)
        settings = dataclasses.asdict(recipe)
        artefacts.write_json(settings, whole / "recipe.json")
        artefacts.write_table(log, whole / "training_log.parquet", artefacts.provenance(settings), csv=False)
        artefacts.write_text(card(recipe, architecture, log), whole / "README.md")
        if folder.exists():
            shutil.rmtree(folder)
        whole.replace(folder)
    return log


def card(recipe: Recipe, architecture: Architecture, log: pl.DataFrame) -> str:
    """A model card.

    Args:
        recipe: How the model was made.
        architecture: What it is made of.
        log: Of its training.

    Returns:
        Markdown with the front matter of the hub.
    """
    shapes = jax.tree.leaves({name: int(np.prod([*axes.values()])) for name, axes in architecture.weights().items()})
    last = log.row(-1, named=True)
    tied = "tied" if recipe.tied else "untied"
    return f"""---
license: apache-2.0
---
# {recipe.name}

A Llama-architecture decoder of {sum(shapes):,} parameters ({recipe.layers} layers, width {recipe.embedding}, {tied}
embeddings, {architecture.vocabulary} tokens, {recipe.dtype}) that writes the small language: a generated language of
simple sentences whose texts are formal or casual. It was trained from random weights (seed {recipe.seed}) on
{recipe.texts:,} texts (seed {recipe.corpus_seed}), {last["tokens"]:,} tokens in {last["step"]} steps and
{last["seconds"]:.0f} seconds; its loss on other texts is {last["held_out"]:.3f} nats per token.

`training_log.parquet` says how the training went. `recipe.json` is all that decided it:
`jaxinterp train recipe.json --output FOLDER` trains the model again.

The language, the weights and the tokenizer are the work of the jaxinterp authors, Apache License 2.0.
"""
