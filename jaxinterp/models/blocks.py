"""The layers a decoder tree is made of: norms, rotary positions, attention, MLP, embedding and unembedding.

Every intermediate that has a name in `jaxinterp.axes.SITES` passes through a tap. Side inputs of the forward
pass, made by `jaxinterp.models.decoder.side_inputs`:

* `positions`: index of each token in its row, [batch, seq], -1 on padding;
* `kv_positions`: the same for the keys, [batch, kv_seq];
* `tokens`, `prompt_length`: what position selectors look at besides;
* `attend`: whether a query may see a key, boolean [batch, seq, kv_seq];
* `distance`: how many slots a key lies behind a query, [seq, kv_seq].
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.models import attention, rotary
from jaxinterp.models.architecture import Activation, Rope
from jaxinterp.models.low_rank import Weight, contract
from jaxinterp.sites.taps import Tap

NamedArray: TypeAlias = pz.nx.NamedArray

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def _static(**keywords: Any) -> Any:
    return dataclasses.field(metadata={"pytree_node": False}, **keywords)


@pz.pytree_dataclass
class Norm(pz.nn.Layer):
    """Layer norm or RMS norm over one axis, in float32.

    Computes `x / scale * (offset + weight) + bias`, where `scale` is the root of the mean square (after
    subtracting the mean, if `centred`) plus `eps`.

    Attributes:
        weight: Gain, over `axis`.
        bias: Shift, over `axis`, or `None`.
        scale: Tap that the denominator passes, or `None`.
        axis: Axis to normalise over.
        eps: Added to the mean square.
        offset: Added to the gain.
        centred: Whether the mean is subtracted (layer norm).
    """

    weight: pz.ParameterValue
    bias: pz.ParameterValue | None  # pyright: ignore[reportGeneralTypeIssues]  # a class decorator hides the class
    scale: Tap | None
    axis: str = _static()
    eps: float = _static()
    offset: float = _static()
    centred: bool = _static()

    def __call__(self, x: NamedArray, /, **side_inputs: Any) -> NamedArray:
        """Normalises `x` over the axis."""
        dtype = x.dtype
        x = x.astype(jnp.float32)
        if self.centred:
            x = x - pz.nx.nmap(jnp.mean)(x.untag(self.axis))
        scale = pz.nx.nmap(lambda row: jnp.sqrt(jnp.mean(jnp.square(row)) + self.eps))(x.untag(self.axis))
        if self.scale is not None:
            scale = self.scale(scale, **side_inputs)
        gain = self.weight.value.astype(jnp.float32) + self.offset if self.offset else self.weight.value
        x = x / scale * gain.astype(jnp.float32)
        if self.bias is not None:
            x = x + self.bias.value.astype(jnp.float32)
        return x.astype(dtype)


@pz.pytree_dataclass
class Rotary(pz.nn.Layer):
    """Rotary position embedding.

    Attributes:
        rope: What frequencies, and on how many dimensions.
    """

    rope: Rope = _static()

    def __call__(self, x: NamedArray, /, *, positions: NamedArray, **_: Any) -> NamedArray:
        """Rotates [..., projection] by the tokens' positions."""
        frequencies = rotary.frequencies(self.rope)
        turned = pz.nx.nmap(lambda row, position: rotary.rotate(row, jnp.maximum(position, 0), frequencies))(
            x.untag(axes.PROJECTION), positions
        )
        return turned.tag(axes.PROJECTION)


@pz.pytree_dataclass
class AddPositions(pz.nn.Layer):
    """Adds a learned vector for each position.

    Attributes:
        table: W_pos, [context, embedding].
    """

    table: pz.ParameterValue

    def __call__(self, x: NamedArray, /, *, positions: NamedArray, **_: Any) -> NamedArray:
        """Adds rows of the table to [batch, seq, embedding]."""
        rows = pz.nx.nmap(lambda row: jnp.maximum(row, 0))(positions)
        return x + self.table.value.untag(axes.CONTEXT)[rows]


@pz.pytree_dataclass
class Attention(pz.nn.Layer):
    """Causal self-attention with grouped key-value heads.

    Attributes:
        query: Normalised residual -> queries [seq, head, projection], with taps.
        key: Normalised residual -> keys [seq, kv_head, projection], with taps.
        value: Normalised residual -> values [seq, kv_head, projection], with taps.
        scores: Tap of the scaled scores.
        pattern: Tap of the probabilities.
        z: Tap of the heads' weighted values.
        head_out: Tap of the heads' separate outputs; they are computed only when it holds an edit.
        output: W_O.
        bias: b_O, or `None`.
        scale: Factor on query-key products.
        softcap: Bound of the scores, or `None`.
        window: Sliding-window size, or `None`.
    """

    query: pz.nn.Layer
    key: pz.nn.Layer
    value: pz.nn.Layer
    scores: Tap
    pattern: Tap
    z: Tap
    head_out: Tap
    output: Weight
    bias: pz.ParameterValue | None  # pyright: ignore[reportGeneralTypeIssues]  # a class decorator hides the class
    scale: float = _static()
    softcap: float | None = _static()
    window: int | None = _static()

    def __call__(self, x: NamedArray, /, *, attend: Any, distance: Any, **side_inputs: Any) -> NamedArray:
        """Maps the normalised residual [batch, seq, embedding] to what attention writes."""
        side_inputs |= {"attend": attend, "distance": distance}
        q, k, v = (part(x, **side_inputs) for part in (self.query, self.key, self.value))
        seen = attend if self.window is None else attend & (distance < self.window)
        whole = self.scores.edits or self.pattern.edits
        z = self._read_whole(q, k, v, seen, **side_inputs) if whole else self._read(q, k, v, seen)
        z = self.z(z, **side_inputs)
        if self.head_out.edits:
            parts = contract(axes.PROJECTION, z, self.output)
            parts = self.head_out(parts, **side_inputs)
            out = pz.nx.nmap(jnp.sum)(parts.untag(axes.HEAD))
        else:
            out = contract((axes.HEAD, axes.PROJECTION), z, self.output)
        return out if self.bias is None else out + self.bias.value

    def _read(self, q: NamedArray, k: NamedArray, v: NamedArray, seen: NamedArray) -> NamedArray:
        """What heads read, [batch, seq, head, projection]."""
        read = pz.nx.nmap(functools.partial(attention.attend, scale=self.scale, softcap=self.softcap))
        names = (axes.BATCH, axes.SEQ, axes.HEAD, axes.PROJECTION)
        of_keys = [vectors.untag(axes.BATCH, axes.SEQ, axes.KV_HEAD, axes.PROJECTION) for vectors in (k, v)]
        return read(q.untag(*names), *of_keys, seen.untag(axes.BATCH, axes.SEQ, axes.KV_SEQ)).tag(*names)

    def _read_whole(
        self, q: NamedArray, k: NamedArray, v: NamedArray, seen: NamedArray, /, **side_inputs: Any
    ) -> NamedArray:
        """The same, with scores and patterns as arrays that pass their taps."""
        rows = q.untag(axes.SEQ, axes.HEAD, axes.PROJECTION)
        keys, values = (vectors.untag(axes.SEQ, axes.KV_HEAD, axes.PROJECTION) for vectors in (k, v))
        scores = pz.nx.nmap(_scores)(rows, keys, self.scale, self.softcap).tag(axes.HEAD, axes.SEQ, axes.KV_SEQ)
        scores = self.scores(scores, **side_inputs)
        scores = pz.nx.nmap(jnp.where)(seen, scores, jnp.finfo(scores.dtype).min)
        pattern = pz.nx.nmap(jax.nn.softmax)(scores.untag(axes.KV_SEQ)).tag(axes.KV_SEQ).astype(v.dtype)
        pattern = self.pattern(pattern, **side_inputs)
        z = pz.nx.nmap(_weigh)(pattern.untag(axes.HEAD, axes.SEQ, axes.KV_SEQ), values)
        return z.tag(axes.SEQ, axes.HEAD, axes.PROJECTION)


def _scores(q: jax.Array, k: jax.Array, scale: float, softcap: float | None) -> jax.Array:
    """Scaled scores [head, seq, kv_seq], in float32, of q [seq, head, projection], k [kv_seq, kv_head, projection]."""
    seq, heads, projection = q.shape
    groups = k.shape[1]
    grouped = q.reshape(seq, groups, heads // groups, projection).transpose(1, 2, 0, 3)
    scores = jnp.einsum("giqp,tgp->giqt", grouped, k, preferred_element_type=jnp.float32) * scale
    return attention.bounded(scores, softcap).reshape(heads, seq, k.shape[0])


def _weigh(pattern: jax.Array, v: jax.Array) -> jax.Array:
    """Weighted values [seq, head, projection] of pattern [head, seq, kv_seq], v [kv_seq, kv_head, projection]."""
    heads, seq, kv_seq = pattern.shape
    groups = v.shape[1]
    z = jnp.einsum("giqt,tgp->giqp", pattern.reshape(groups, heads // groups, seq, kv_seq), v)
    return z.transpose(2, 0, 1, 3).reshape(seq, heads, v.shape[2])


@pz.pytree_dataclass
class MLP(pz.nn.Layer):
    """Plain or gated feed-forward network.

    Attributes:
        gate: Normalised residual -> gate pre-activations, with tap; `None` for a plain MLP.
        pre: Normalised residual -> linear branch, or pre-activations of a plain MLP, with tap.
        post: Tap of the activations.
        output: Activations -> residual stream.
        activation: Name of the nonlinearity.
    """

    gate: pz.nn.Layer | None
    pre: pz.nn.Layer
    post: Tap
    output: pz.nn.Layer
    activation: Activation = _static()

    def __call__(self, x: NamedArray, /, **side_inputs: Any) -> NamedArray:
        """Maps the normalised residual [batch, seq, embedding] to what the MLP writes."""
        bend = pz.nx.nmap(ACTIVATIONS[self.activation])
        pre = self.pre(x, **side_inputs)
        post = bend(pre) if self.gate is None else bend(self.gate(x, **side_inputs)) * pre
        return self.output(self.post(post, **side_inputs), **side_inputs)


@pz.pytree_dataclass
class Embedding(pz.nn.Layer):
    """Token embedding.

    Attributes:
        table: W_E, [vocabulary, embedding].
        scale: Factor on the rows, rounded to their dtype.
    """

    table: pz.ParameterValue
    scale: float = _static()

    def __call__(self, tokens: NamedArray, /, **_: Any) -> NamedArray:
        """Maps token ids [batch, seq] to [batch, seq, embedding]."""
        rows = self.table.value.untag(axes.VOCABULARY)[tokens]
        return rows if self.scale == 1.0 else rows * jnp.asarray(self.scale, rows.dtype)


@pz.pytree_dataclass
class Unembedding(pz.nn.Layer):
    """Residual stream to logits.

    Attributes:
        table: W_U, [vocabulary, embedding]; `None` if tied, then the embedding's table comes as `tied_table`.
        softcap: Bound of the logits, or `None`.
    """

    table: pz.ParameterValue | None  # pyright: ignore[reportGeneralTypeIssues]  # as above
    softcap: float | None = _static()

    def __call__(
        self, x: NamedArray, /, *, tied_table: NamedArray, choose: NamedArray | None = None, **_: Any
    ) -> NamedArray:
        """Maps the normalised residual to logits, in float32.

        Args:
            x: [batch, seq, embedding].
            tied_table: W_E, [vocabulary, embedding].
            choose: Int [batch, choice], the only token ids whose logits are wanted; `None` for all.
            **_: Other side inputs.

        Returns:
            [batch, seq, vocabulary], or [batch, seq, choice].
        """
        table: Any = tied_table if self.table is None else self.table.value
        if choose is not None:
            table = table.untag(axes.VOCABULARY)[choose]
        logits = pz.nn.contract(axes.EMBEDDING, x, table).astype(jnp.float32)
        if self.softcap is not None:
            logits = pz.nx.nmap(jnp.tanh)(logits / self.softcap) * self.softcap
        return logits


@pz.pytree_dataclass
class Decoder(pz.nn.Layer):
    """A decoder-only transformer.

    Attributes:
        embedding: Token embedding.
        start: Its tap, and learned positions if the family has them.
        blocks: The blocks, in order.
        final: Final norm, with tap.
        unembedding: Residual stream -> logits.
        logits: Tap of the logits.
    """

    embedding: Embedding
    start: pz.nn.Sequential
    blocks: list[pz.nn.Layer]
    final: pz.nn.Sequential
    unembedding: Unembedding
    logits: Tap

    def __call__(self, tokens: NamedArray, /, *, read: NamedArray | None = None, **side_inputs: Any) -> NamedArray:
        """Maps token ids [batch, seq] to logits.

        Args:
            tokens: Int [batch, seq].
            read: Int [batch], the slot whose logits are wanted; `None` for all.
            **side_inputs: See the module.

        Returns:
            Logits [batch, seq, vocabulary], or [batch, vocabulary] with `read`.
        """
        x = self.start(self.embedding(tokens, **side_inputs), **side_inputs)
        for block in self.blocks:
            x = block(x, **side_inputs)
        return self.read_out(x, read, **side_inputs)

    def read_out(self, x: Any, read: NamedArray | None = None, **side_inputs: Any) -> NamedArray:
        """Maps the residual stream leaving the last block, [batch, seq, embedding], to logits; see `__call__`."""
        if read is not None:
            x = x.untag(axes.SEQ)[read]
            seen = {name: side_inputs[name].untag(axes.SEQ)[read] for name in ("tokens", "positions")}
            side_inputs = {**side_inputs, **seen}
        x = self.final(x, **side_inputs)
        return self.logits(self.unembedding(x, tied_table=self.embedding.table.value, **side_inputs), **side_inputs)
