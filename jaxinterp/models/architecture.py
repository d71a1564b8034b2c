"""What a decoder is made of, said once for the tree, the NNX decoder and the converters."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxinterp import axes

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions of one block.

    Attributes:
        theta: Base of the frequencies.
        rotary: How many of the head's dimensions are rotated (the first ones); the rest pass unchanged.
        scaling: `None`, `"linear"` or `"llama3"`.
        factor: Divisor of the frequencies under either scaling.
        low_frequency_factor: Llama 3 only.
        high_frequency_factor: Llama 3 only.
        original_context: Context length before scaling, in tokens; Llama 3 only.
    """

    theta: float
    rotary: int
    scaling: Literal["linear", "llama3"] | None = None
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder-only transformer, as data.

    Attributes:
        family: Name of the family in `jaxinterp.models.families`.
        vocabulary: Rows of the embedding table.
        embedding: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads per block.
        kv_heads: Key and value heads per block; divides `heads`.
        projection: Width of one head.
        neurons: Width of the MLP.
        context: Longest sequence the model is meant for, in tokens.
        norm: `"rms"` or `"layer"`.
        norm_eps: Added to the variance.
        norm_offset: Added to a norm's weight before it is used (1 for Gemma, otherwise 0).
        activation: Nonlinearity of the MLP.
        gated: Whether the MLP has a gate branch.
        parallel: Whether attention and MLP read the same residual (GPT-NeoX).
        post_norms: Whether attention and MLP outputs are normalised before they are added (Gemma).
        qk_norm: Whether queries and keys are RMS-normalised per head.
        qkv_bias: Whether W_Q, W_K and W_V have biases.
        output_bias: Whether W_O has a bias.
        mlp_bias: Whether the MLP's matrices have biases.
        tied: Whether the unembedding is the embedding table.
        embedding_scale: Factor on the embedding output.
        attention_scale: Factor on query-key products.
        attention_softcap: Scores become `cap * tanh(scores / cap)`.
        logit_softcap: Logits become `cap * tanh(logits / cap)`.
        ropes: Rotary positions per block; empty for learned positions.
        windows: Sliding-window size per block, `None` for full attention: a query sees itself and the
            `window - 1` tokens before it.
        bos: Id of the token that starts a text, if any.
        eos: Ids of the tokens that end a text.
    """

    family: str
    vocabulary: int
    embedding: int
    layers: int
    heads: int
    kv_heads: int
    projection: int
    neurons: int
    context: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    activation: Activation = "silu"
    gated: bool = True
    parallel: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    ropes: tuple[Rope, ...] = ()
    windows: tuple[int | None, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} key-value heads do not divide {self.heads} query heads")
        for name, per_layer in (("ropes", self.ropes), ("windows", self.windows)):
            if per_layer and len(per_layer) != self.layers:
                raise ValueError(f"{name} has {len(per_layer)} entries for {self.layers} layers")

    @property
    def learned_positions(self) -> bool:
        """Whether positions are a table (`W_pos`) rather than rotary."""
        return not self.ropes

    def axis_sizes(self) -> dict[str, int]:
        """Sizes of the axes that do not depend on the text."""
        return {
            axes.EMBEDDING: self.embedding,
            axes.HEAD: self.heads,
            axes.KV_HEAD: self.kv_heads,
            axes.PROJECTION: self.projection,
            axes.NEURONS: self.neurons,
            axes.VOCABULARY: self.vocabulary,
        }

    def block_weights(self) -> dict[str, dict[str, int]]:
        """Axes and sizes of one block's canonical weights.

        Returns:
            Weight name -> {axis: size}, axes in storage order. `W_*` act on the last axis (the input), except
            W_O, whose inputs are the last two.
        """
        embed = {axes.EMBEDDING: self.embedding}
        heads = {axes.HEAD: self.heads, axes.PROJECTION: self.projection}
        kv_heads = {axes.KV_HEAD: self.kv_heads, axes.PROJECTION: self.projection}
        units = {axes.NEURONS: self.neurons}
        weights = {"W_Q": heads | embed, "W_K": kv_heads | embed, "W_V": kv_heads | embed, "W_O": embed | heads}
        weights |= {"W_in": units | embed, "W_out": embed | units}
        norms = ["ln_attn", "ln_mlp"]
        if self.post_norms:
            norms += ["ln_attn_post", "ln_mlp_post"]
        for norm in norms:
            weights |= self._norm(norm)
        if self.gated:
            weights["W_gate"] = units | embed
        if self.qkv_bias:
            weights |= {"b_Q": heads, "b_K": kv_heads, "b_V": kv_heads}
        if self.output_bias:
            weights["b_O"] = embed
        if self.mlp_bias:
            weights |= {"b_in": units, "b_out": embed}
            if self.gated:
                weights["b_gate"] = units
        if self.qk_norm:
            weights |= {"q_norm.w": {axes.PROJECTION: self.projection}, "k_norm.w": {axes.PROJECTION: self.projection}}
        return weights

    def weights(self) -> dict[str, dict[str, int]]:
        """Axes and sizes of every canonical weight.

        Returns:
            Weight name -> {axis: size}; a block's weights are prefixed `blocks.{layer}.`.
        """
        table = {axes.VOCABULARY: self.vocabulary, axes.EMBEDDING: self.embedding}
        weights: dict[str, dict[str, int]] = {"W_E": table}
        if self.learned_positions:
            weights["W_pos"] = {axes.CONTEXT: self.context, axes.EMBEDDING: self.embedding}
        for layer in range(self.layers):
            weights |= {f"blocks.{layer}.{name}": sizes for name, sizes in self.block_weights().items()}
        weights |= self._norm("ln_final")
        if not self.tied:
            weights["W_U"] = table
        return weights

    def _norm(self, name: str) -> dict[str, dict[str, int]]:
        sizes = {axes.EMBEDDING: self.embedding}
        return {f"{name}.w": sizes} | ({f"{name}.b": sizes} if self.norm == "layer" else {})
