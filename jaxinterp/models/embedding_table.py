"""Models of which only the token embeddings are read: encoders such as MiniLM, whose blocks are no decoder's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.checkpoint import Checkpoint

ENCODERS = ("bert",)
"""Values of `model_type` that are read here."""

_KEY = "embeddings.word_embeddings.weight"


@pz.pytree_dataclass
class TableBody(pz.nn.Layer):
    """A table of token embeddings that stands where a model's tree stands; what else a decoder has, it refuses.

    Attributes:
        table: W_E, [vocabulary, embedding].
        source: Where it is from.
    """

    table: pz.ParameterValue
    source: str = dataclasses.field(metadata={"pytree_node": False})

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"of {self.source} only the token embeddings are read: it cannot be run, read at sites or edited; "
            "load a decoder for that"
        )

    def __call__(self, _: Any, /, **__: Any) -> NoReturn:
        """Refuses: a table has no forward pass.

        Raises:
            ValueError: Always.
        """
        self._refuse()

    embedding = start = blocks = final = unembedding = logits = property(_refuse)


class TableWeights(dict[str, jax.Array]):
    """The one weight of a token table; another one is refused in a sentence."""

    def __init__(self, weights: Mapping[str, jax.Array], source: str) -> None:
        super().__init__(weights)
        self._source = source

    def __missing__(self, name: str) -> NoReturn:
        raise ValueError(f"{self._source} has no {name}: of an encoder only the token embeddings, W_E, are read")


def read_table(stored: Checkpoint, source: str, dtype: Any) -> tuple[TableBody, Architecture]:
    """Reads the token embeddings of an encoder's checkpoint, and nothing else of it.

    Args:
        stored: Weights and config, whose `model_type` is one of `ENCODERS`.
        source: Where it is from.
        dtype: Dtype of the table.

    Returns:
        The table, and an architecture without blocks.

    Raises:
        ValueError: There is no such tensor, or it does not have the rows that the config says.
    """
    keys = [key for key in stored.keys() if key == _KEY or key.endswith(f".{_KEY}")]  # noqa: SIM118
    if len(keys) != 1:
        raise ValueError(f"{stored.path}: {len(keys)} tensors are named {_KEY}; an encoder has one, fetch it again")
    vocabulary, embedding = stored.shape(keys[0])
    stated = stored.config.get("vocab_size"), stored.config.get("hidden_size")
    if stated != (vocabulary, embedding):
        raise ValueError(
            f"{stored.path}: {keys[0]} is [{vocabulary}, {embedding}], but config.json says vocab_size {stated[0]} and "
            f"hidden_size {stated[1]}; check that the weights and the config belong together"
        )
    architecture = Architecture(
        family=stored.config["model_type"],
        vocabulary=vocabulary,
        embedding=embedding,
        layers=0,
        heads=1,
        kv_heads=1,
        projection=embedding,
        neurons=0,
        context=stored.config.get("max_position_embeddings", 512),
        tied=False,
    )
    rows = pz.nx.wrap(jnp.asarray(stored.read(keys[0]), dtype), axes.VOCABULARY, axes.EMBEDDING)
    return TableBody(pz.ParameterValue(label="W_E", value=rows, metadata={}), source), architecture
