"""The edges of a model: which component reads what which other component wrote.

Senders write to the residual stream: the embedding (with learned positions), every attention head, every MLP.
Receivers read it: the query of every head, the key and the value of every key-value head, every MLP, the logits.
Under grouped queries several heads share a key-value head, which is one receiver. An edge joins a sender to a
receiver that comes after it; in a parallel block attention and MLP read the same stream, and no edge joins them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.selectors import head_name


@dataclasses.dataclass(frozen=True)
class EdgeGraph:
    """Senders and receivers, both in the order of the forward pass, so that each receiver sees the first few senders.

    Attributes:
        layers: Number of blocks.
        heads: Query heads per block.
        kv_heads: Key-value heads per block.
        parallel: Whether attention and MLP read the same stream.
    """

    layers: int
    heads: int
    kv_heads: int
    parallel: bool

    @classmethod
    def of(cls, architecture: Architecture) -> EdgeGraph:
        """The graph of an architecture."""
        return cls(architecture.layers, architecture.heads, architecture.kv_heads, architecture.parallel)

    @property
    def senders(self) -> int:
        """Number of senders: the embedding, then each layer's heads and MLP."""
        return 1 + self.layers * (self.heads + 1)

    @property
    def readers(self) -> int:
        """Receivers in the attention of one layer: queries, keys, values."""
        return self.heads + 2 * self.kv_heads

    @property
    def receivers(self) -> int:
        """Number of receivers: each layer's queries, keys, values and MLP, then the logits."""
        return self.layers * (self.readers + 1) + 1

    def before(self, layer: int) -> int:
        """How many senders the attention of a layer sees."""
        return 1 + layer * (self.heads + 1)

    def before_mlp(self, layer: int) -> int:
        """How many senders the MLP of a layer sees."""
        return self.before(layer) + (0 if self.parallel else self.heads)

    def rows(self, layer: int) -> slice:
        """Which receivers are the queries, keys and values of a layer; its MLP follows."""
        first = layer * (self.readers + 1)
        return slice(first, first + self.readers)

    def is_edge(self) -> np.ndarray:
        """Which receiver sees which sender, boolean [receiver, sender]; edges are numbered row by row."""
        reach = [
            count
            for layer in range(self.layers)
            for count in [self.before(layer)] * self.readers + [self.before_mlp(layer)]
        ]
        return np.arange(self.senders) < np.array([*reach, self.senders])[:, None]

    def sender_names(self) -> list[str]:
        """`embed`, `L0.H0`, ..., `L0.mlp`, `L1.H0`, ..."""
        blocks = [
            [*(head_name(layer, index) for index in range(self.heads)), f"L{layer}.mlp"] for layer in range(self.layers)
        ]
        return ["embed", *(name for block in blocks for name in block)]

    def receiver_names(self) -> list[str]:
        """`L0.H0.q`, ..., `L0.KV0.k`, ..., `L0.KV0.v`, ..., `L0.mlp`, ..., `logits`."""
        names = []
        for layer in range(self.layers):
            names += [f"{head_name(layer, index)}.q" for index in range(self.heads)]
            names += [f"L{layer}.KV{index}.{part}" for part in ("k", "v") for index in range(self.kv_heads)]
            names.append(f"L{layer}.mlp")
        return [*names, "logits"]


def list_edges(model: LanguageModel) -> pl.DataFrame:
    """All edges of a model, in the order in which masks and scores count them.

    Args:
        model: The model.

    Returns:
        One row for each edge: `edge` (its number), `sender`, `receiver` (names such as `L3.H1` and `L5.KV0.k`),
        `sender_layer` (null for the embedding) and `receiver_layer` (null for the logits).

    Examples:
        >>> from jaxinterp.models.toy import toy
        >>> edges = list_edges(toy(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1))
        >>> [f"{sender}>{receiver}" for sender, receiver in edges.select("sender", "receiver").rows()][3:7]
        ['embed>L0.KV0.v', 'embed>L0.mlp', 'L0.H0>L0.mlp', 'L0.H1>L0.mlp']
    """
    graph = EdgeGraph.of(model.architecture)
    receiver, sender = np.nonzero(graph.is_edge())
    sender_names, receiver_names = np.array(graph.sender_names()), np.array(graph.receiver_names())
    table = pl.DataFrame(
        {
            "edge": np.arange(len(sender)),
            "sender": sender_names[sender],
            "receiver": receiver_names[receiver],
            "sender_layer": (sender - 1) // (graph.heads + 1),
            "receiver_layer": receiver // (graph.readers + 1),
        }
    )
    return table.with_columns(
        sender_layer=pl.when(pl.col("sender_layer") >= 0).then(pl.col("sender_layer")),
        receiver_layer=pl.when(pl.col("receiver_layer") < graph.layers).then(pl.col("receiver_layer")),
    )
