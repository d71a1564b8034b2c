"""The decoder in Flax NNX: layers stacked and scanned, for training and for fast unedited passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.attention import bounded
from jaxinterp.models.masks import begins, causal_mask, positions_in_text
from jaxinterp.models.nnx_blocks import attend, block, layer_constants, norm

_BLOCK = "blocks.{layer}.{name}"
_STACKED = "blocks.*."


class Decoder(nnx.Module):
    """A decoder-only transformer whose blocks are one scanned block with stacked weights.

    Attributes:
        architecture: What the decoder is made of.
        table: Weights that stand once (`W_E`, `W_pos`, `ln_final.w`, `ln_final.b`, `W_U`), canonical names.
        blocks: Weights of the blocks, canonical names without the `blocks.{layer}.` prefix, each
            `[layer, ...canonical axes]`.
        remat: Whether a gradient recomputes each block instead of keeping its activations.
        unroll: Whether the loop over blocks is written out, so that a compiler counts each of them.

    Examples:
        >>> sizes = dict(vocabulary=11, embedding=8, layers=2, heads=2, kv_heads=1, projection=4, neurons=16)
        >>> architecture = Architecture(family="gpt2", context=32, **sizes)
        >>> decoder = Decoder(architecture, nnx.Rngs(0))
        >>> decoder(jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)
    """

    def __init__(
        self,
        architecture: Architecture,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
        unroll: bool = False,
    ) -> None:
        """Draws random weights.

        Args:
            architecture: What the decoder is made of.
            rngs: Source of the weights' key (stream `params`).
            dtype: Of every weight, and of the computation except norms, softmax and logits, which are float32.
            remat: Whether a gradient recomputes each block instead of keeping its activations.
            unroll: Whether the loop over blocks is written out.
        """
        self.architecture = architecture
        self.remat, self.unroll = remat, unroll
        weights = initial_weights(architecture, rngs.params(), dtype)
        self.table = nnx.Dict({name: nnx.Param(w) for name, w in weights.items() if not name.startswith(_STACKED)})
        blocks = {name.removeprefix(_STACKED): w for name, w in weights.items() if name.startswith(_STACKED)}
        self.blocks = nnx.Dict({name: nnx.Param(w) for name, w in blocks.items()})

    @classmethod
    def from_weights(
        cls,
        architecture: Architecture,
        weights: Mapping[str, jax.Array | np.ndarray],
        dtype: jax.typing.DTypeLike = jnp.float32,
        remat: bool = False,
    ) -> Decoder:
        """Makes a decoder of given weights.

        Args:
            architecture: What the decoder is made of.
            weights: Canonical weights, named and shaped as `architecture.weights()` says.
            dtype: Of every weight and of the computation.
            remat: Whether a gradient recomputes each block instead of keeping its activations.

        Returns:
            The decoder; its weights are copies.

        Raises:
            ValueError: If weights are missing, not known, or of another shape; all are listed.
        """
        _check(architecture, weights)
        decoder = nnx.eval_shape(lambda: cls(architecture, nnx.Rngs(0), dtype, remat))
        for name, parameter in decoder.table.items():
            parameter.set_value(jnp.array(weights[name], dtype))
        for name, parameter in decoder.blocks.items():
            layers = [weights[_BLOCK.format(layer=layer, name=name)] for layer in range(architecture.layers)]
            parameter.set_value(jnp.stack(layers).astype(dtype))
        return decoder

    def __call__(
        self, tokens: jax.Array, mask: jax.Array | None = None, documents: jax.Array | None = None
    ) -> jax.Array:
        """Next-token logits at every position.

        Args:
            tokens: Token ids, int `[batch, seq]`; an id outside the vocabulary gives NaN.
            mask: Whether a slot holds a token rather than padding, bool `[batch, seq]`; `None` for no padding. Texts
                padded on the left get the logits they get alone.
            documents: Which of several texts in a row a token belongs to, int `[batch, seq]`; each text stands in one
                piece and gets the logits it gets alone. `None` for one text a row.

        Returns:
            Logits after any soft cap, float32 `[batch, seq, vocabulary]`.
        """
        return self.unembed(self.hidden(tokens, mask, documents))

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits after any soft cap, float32 `[..., vocabulary]`, of outputs of the final norm `[..., embedding]`."""
        table = self.table["W_E" if self.architecture.tied else "W_U"][...]
        logits = jnp.einsum("...e,ve->...v", hidden, table, preferred_element_type=jnp.float32)
        return bounded(logits, self.architecture.logit_softcap)

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """The residual stream in front of the first block.

        Args:
            tokens: Token ids, int `[batch, seq]`.
            positions: Position of each token in its text, `[batch, seq]`.

        Returns:
            Array `[batch, seq, embedding]`.
        """
        x = jnp.take(self.table["W_E"][...], tokens, axis=0)
        x = x * jnp.asarray(self.architecture.embedding_scale, x.dtype)
        if self.architecture.learned_positions:
            x = x + jnp.take(self.table["W_pos"][...], positions, axis=0)
        return x

    def final_norm(self, x: jax.Array) -> jax.Array:
        """Output of the final norm from the residual stream behind the last block."""
        return norm(self.architecture, {name: weight[...] for name, weight in self.table.items()}, "ln_final", x)

    def layers(self) -> dict[str, jax.Array]:
        """Weights and constants of the blocks, each `[layer, ...]`."""
        weights = {name: weight[...] for name, weight in self.blocks.items()}
        return weights | {name: jnp.asarray(array) for name, array in layer_constants(self.architecture).items()}

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None, documents: jax.Array | None = None) -> jax.Array:
        """Output of the final norm, the site `ln_final`.

        Args:
            tokens: Token ids, int `[batch, seq]`.
            mask: Whether a slot holds a token rather than padding, bool `[batch, seq]`; `None` for no padding.
            documents: Which of several texts in a row a token belongs to, int `[batch, seq]`; `None` for one.

        Returns:
            Array `[batch, seq, embedding]` in the weights' dtype.

        Raises:
            ValueError: If the positions are learned and `seq` exceeds their number.
        """
        architecture = self.architecture
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        positions = positions_in_text(mask)
        if documents is not None:
            positions = positions - jax.lax.cummax(jnp.where(begins(documents), positions, 0), axis=1)
        if architecture.learned_positions and tokens.shape[1] > architecture.context:
            raise ValueError(
                f"{tokens.shape[1]} tokens exceed the {architecture.context} learned positions; shorten the text"
            )
        slots = jnp.arange(tokens.shape[1])
        visible = causal_mask(slots, slots, mask)
        if documents is not None:
            visible &= documents[:, :, None] == documents[:, None, :]
        distance = slots[:, None] - slots[None, :]

        def step(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, None]:
            seen = visible & (distance < layer["window"]) if "window" in layer else visible
            return block(architecture, layer, x, positions, lambda q, k, v: (attend(architecture, q, k, v, seen), None))

        scanned = jax.checkpoint(step) if self.remat else step
        x, _ = jax.lax.scan(scanned, self.embed(tokens, positions), self.layers(), unroll=self.unroll)
        return self.final_norm(x)


def to_weights(decoder: Decoder) -> dict[str, jax.Array]:
    """Canonical weights of a decoder, the inverse of `Decoder.from_weights`.

    Args:
        decoder: Any decoder.

    Returns:
        Weights named and shaped as `decoder.architecture.weights()` says, in its order and the decoder's dtype.
    """
    weights = {name: weight[...] for name, weight in decoder.table.items()}
    for name, stacked in decoder.blocks.items():
        for layer, weight in enumerate(stacked[...]):
            weights[_BLOCK.format(layer=layer, name=name)] = weight
    return {name: weights[name] for name in decoder.architecture.weights()}


@functools.partial(jax.jit, static_argnames=("architecture", "dtype"))
def initial_weights(
    architecture: Architecture, key: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32
) -> dict[str, jax.Array]:
    """Random weights that give activations of order one at any depth and near-uniform predictions.

    Matrices are normal with standard deviation `1 / sqrt(inputs)`, those that write into the residual stream a further
    `sqrt(2 * layers)` smaller; embeddings have 0.02, or `1 / embedding_scale` if that is smaller. Norms start as the
    identity, biases at zero.

    Args:
        architecture: What the decoder is made of.
        key: A typed key.
        dtype: Of every weight.

    Returns:
        Canonical weights, those of the blocks stacked over layers under `blocks.*.{name}`.
    """
    shapes = {name: tuple(s.values()) for name, s in architecture.weights().items() if not name.startswith("blocks.")}
    for name, sizes in architecture.block_weights().items():
        shapes[_STACKED + name] = (architecture.layers, *sizes.values())
    tables = min(0.02, 1.0 / architecture.embedding_scale)
    deviations = {"W_E": tables, "W_pos": 0.02, "W_U": 0.02}
    into_stream = math.sqrt(2 * architecture.layers)
    deviations["W_O"] = 1 / math.sqrt(architecture.heads * architecture.projection) / into_stream
    deviations["W_out"] = 1 / math.sqrt(architecture.neurons) / into_stream
    weights = {}
    for subkey, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        short = name.removeprefix(_STACKED)
        if short.endswith(".w"):
            weights[name] = jnp.full(shape, 1.0 - architecture.norm_offset, dtype)
        elif short.startswith("W_"):
            deviation = deviations.get(short, 1 / math.sqrt(architecture.embedding))
            weights[name] = (deviation * jax.random.normal(subkey, shape)).astype(dtype)
        else:
            weights[name] = jnp.zeros(shape, dtype)
    return weights


def _check(architecture: Architecture, weights: Mapping[str, jax.Array | np.ndarray]) -> None:
    expected = {name: tuple(sizes.values()) for name, sizes in architecture.weights().items()}
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is not a weight of this architecture" for name in weights if name not in expected]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)} where {shape} is due"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if faults:
        raise ValueError(f"These weights do not make a {architecture.family} decoder: " + "; ".join(faults))
