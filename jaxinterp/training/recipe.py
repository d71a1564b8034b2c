"""From nothing to a model folder: a corpus, a decoder, a course, and what they became.

While a model is trained, its checkpoints are in a folder beside the one it will be in, with the recipe they follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import polars as pl
from flax import nnx

from jaxinterp.config import as_dict, read_settings
from jaxinterp.models import decoder as tree
from jaxinterp.models import families
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.nnx import Decoder, to_weights
from jaxinterp.parallel.mesh import Mesh
from jaxinterp.parallel.placement import first_process
from jaxinterp.parallel.stacked import lay_out
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training import card, corpora, language_model, model_folder
from jaxinterp.training.checkpoints import Checkpoints
from jaxinterp.training.language_model import Course

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a trained model is."""

    stage: Literal["supervised"] = "supervised"
    """What kind of training this is."""
    name: str = "small-language"
    """Of the model."""
    corpus: corpora.Name = "small language"
    """What it reads: the language of jaxinterp.tasks.small_language, or documents of CountDown."""
    documents: CorpusSettings = dataclasses.field(default_factory=CorpusSettings)
    """What the documents of CountDown are made of."""
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
    kv_heads: int | None = None
    """Heads of keys and values, which divide the attention heads; by default as many."""
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
    """Of the saved weights; in training they are float32."""
    devices: Mesh = dataclasses.field(default_factory=Mesh)
    """On how many devices it is trained."""


def read(recipe: str) -> dict[str, Any]:
    """Reads a recipe given on a command line.

    Args:
        recipe: Settings as JSON, the path of a file, or the name of a shipped recipe.

    Returns:
        The settings.

    Raises:
        ValueError: It is none of them.

    >>> read("countdown-smoke")["corpus"]
    'countdown'
    """
    shipped = importlib.resources.files("jaxinterp").joinpath("data/recipes")
    names = sorted(file.name.removesuffix(".json") for file in shipped.iterdir() if file.name.endswith(".json"))
    if recipe in names and not Path(recipe).is_file():
        return json.loads(shipped.joinpath(f"{recipe}.json").read_text(encoding="utf-8"))
    if not recipe.lstrip().startswith("{") and not Path(recipe).is_file():
        raise ValueError(f"{recipe} is neither JSON, nor a file, nor a shipped recipe; these are: {', '.join(names)}")
    return read_settings(recipe)


def configuration(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """The Hugging Face config of a recipe's model.

    Args:
        recipe: Settings.
        tokenizer: The corpus's tokenizer.

    Returns:
        A config of the Llama family, or, for CountDown, of Qwen 2, whose queries, keys and values have biases.

    Raises:
        ValueError: The heads do not divide the width into an even number of dimensions, or the key-value heads do not
            divide the heads.
    """
    kv_heads = recipe.heads if recipe.kv_heads is None else recipe.kv_heads
    if min(recipe.heads, kv_heads) < 1 or recipe.heads % kv_heads:
        raise ValueError(
            f"{recipe.name}: {kv_heads} key-value heads do not divide {recipe.heads} heads; take a divisor of the heads"
        )
    if recipe.embedding % (2 * recipe.heads):
        raise ValueError(
            f"{recipe.name}: {recipe.heads} heads do not divide the width {recipe.embedding} into heads of even width; "
            f"take a width that is a multiple of {2 * recipe.heads}"
        )
    shared = {
        "vocab_size": tokenizer.vocabulary,
        "hidden_size": recipe.embedding,
        "intermediate_size": recipe.neurons,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": kv_heads,
        "head_dim": recipe.embedding // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": recipe.tied,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }
    if recipe.corpus == "countdown":
        kind = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    else:
        kind = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
        }
    return kind | shared


def initial_decoder(recipe: Recipe, config: dict[str, Any]) -> tuple[Decoder, Architecture]:
    """A decoder with random weights and what it is made of."""
    _, architecture = families.read_architecture(config, recipe.name)
    return Decoder(architecture, nnx.Rngs(recipe.seed)), architecture


def train(recipe: Recipe, folder: str | Path, checkpoints: str | Path | None = None) -> pl.DataFrame:
    """Trains a model and writes it as a Hugging Face folder.

    Beside weights, config and tokenizer the folder holds `recipe.json`, from which the model can be trained again,
    `training_log.parquet`, and a model card that is written from the log. A run that was ended goes on from its last
    checkpoint when it is asked for again; of its settings those of the course may then be others.

    Args:
        recipe: Settings.
        folder: Where to; it appears whole or not at all.
        checkpoints: Where the checkpoints are while the model is trained, if the course says that there are any; by
            default beside the folder, with "-checkpoints" after its name. They are removed in the end.

    Returns:
        The log, see `jaxinterp.training.language_model.train`.

    Raises:
        ValueError: The settings do not fit together, training failed, the checkpoints are of another recipe, or the
            folder holds something else.
    """
    folder = Path(folder)
    model_folder.refuse_other_content(folder)
    tokenizer = corpora.tokenizer(recipe.corpus)
    config = configuration(recipe, tokenizer)
    decoder, architecture = initial_decoder(recipe, config)
    lay_out(recipe.devices, architecture, recipe.course.rows)
    place, settings = model_folder.checkpoints_beside(folder, checkpoints), as_dict(recipe)
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Checkpoints(place)) if recipe.course.save_every else None
        history = [(0, settings)]
        if kept:
            history = model_folder.follow(kept, settings, ("course", "devices"), ("course.rows", "course.seed"))
        _LOG.info("writing %d texts", recipe.texts)
        corpus = corpora.make(
            recipe.corpus, recipe.documents, recipe.texts, recipe.held_out_texts, recipe.corpus_seed, recipe.context
        )
        decoder, log = language_model.train(
            decoder,
            corpus.rows,
            recipe.course,
            corpus.held_out,
            checkpoints=kept,
            devices=recipe.devices,
            measure=corpus.measure,
        )
    weights = {name: jnp.asarray(array, recipe.dtype) for name, array in to_weights(decoder).items()}
    model = LanguageModel(
        body=tree.build(architecture, weights),
        architecture=architecture,
        config=json.dumps(config),
        tokenizer=tokenizer,
        source=recipe.name,
    )
    if not first_process():
        return log
    told = card.write(recipe, architecture, log, history)
    model_folder.write(folder, model, settings, {"training_log": log}, told)
    if kept:
        shutil.rmtree(kept.folder)
    return log
