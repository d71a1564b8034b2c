"""Canonical weights to the Penzai tree and back, and what a forward pass needs besides tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from penzai import pz

from jaxinterp import axes
from jaxinterp.models import blocks, masks
from jaxinterp.models.architecture import Architecture
from jaxinterp.sites.taps import Tap

NamedArray = pz.nx.NamedArray


def build(architecture: Architecture, weights: Mapping[str, Any]) -> blocks.Decoder:
    """Builds the tree of a model.

    Args:
        architecture: What the model is made of.
        weights: Canonical weights by the names of `architecture.weights()`.

    Returns:
        A frozen tree with a tap at every site the family has; the weights' arrays are used as they are.
    """
    shapes = architecture.weights()

    def weight(name: str) -> pz.ParameterValue:
        return pz.ParameterValue(label=name, value=pz.nx.wrap(jnp.asarray(weights[name]), *shapes[name]), metadata={})

    def norm(name: str, scale: Tap | None = None, axis: str = axes.EMBEDDING) -> blocks.Norm:
        layered = architecture.norm == "layer" and axis == axes.EMBEDDING
        return blocks.Norm(
            weight=weight(f"{name}.w"),
            bias=weight(f"{name}.b") if f"{name}.b" in shapes else None,
            scale=scale,
            axis=axis,
            eps=architecture.norm_eps,
            offset=architecture.norm_offset,
            centred=layered,
        )

    def linear(prefix: str, name: str, inputs: tuple[str, ...]) -> list[pz.nn.Layer]:
        outputs = tuple(axis for axis in shapes[f"{prefix}W_{name}"] if axis not in inputs)
        layers: list[pz.nn.Layer] = [pz.nn.Linear(weight(f"{prefix}W_{name}"), inputs, outputs)]
        bias = f"{prefix}b_{name}"
        if bias in shapes:
            layers.append(pz.nn.AddBias(weight(bias), new_axis_names=()))
        return layers

    def attention(layer: int) -> blocks.Attention:
        prefix = f"blocks.{layer}."
        rotary = [blocks.Rotary(architecture.ropes[layer])] if architecture.ropes else []

        def project(name: str, site: str) -> pz.nn.Sequential:
            layers = linear(prefix, name, (axes.EMBEDDING,))
            if site in ("q", "k"):
                if architecture.qk_norm:
                    layers.append(norm(f"{prefix}{site}_norm", axis=axes.PROJECTION))
                layers.extend(rotary)
            return pz.nn.Sequential([*layers, Tap(site, layer)])

        return blocks.Attention(
            query=project("Q", "q"),
            key=project("K", "k"),
            value=project("V", "v"),
            scores=Tap("attn_scores", layer),
            pattern=Tap("pattern", layer),
            z=Tap("z", layer),
            head_out=Tap("head_out", layer),
            output=weight(f"{prefix}W_O"),
            bias=weight(f"{prefix}b_O") if architecture.output_bias else None,
            scale=architecture.attention_scale,
            softcap=architecture.attention_softcap,
            window=architecture.windows[layer] if architecture.windows else None,
        )

    def mlp(layer: int) -> blocks.MLP:
        prefix = f"blocks.{layer}."
        into, out_of = (axes.EMBEDDING,), (axes.NEURONS,)
        gate = pz.nn.Sequential([*linear(prefix, "gate", into), Tap("mlp_gate", layer)]) if architecture.gated else None
        return blocks.MLP(
            gate=gate,
            pre=pz.nn.Sequential([*linear(prefix, "in", into), Tap("mlp_pre", layer)]),
            post=Tap("mlp_post", layer),
            output=pz.nn.Sequential(linear(prefix, "out", out_of)),
            activation=architecture.activation,
        )

    def block(layer: int) -> pz.nn.Sequential:
        prefix = f"blocks.{layer}."
        post = architecture.post_norms
        attend = pz.nn.Sequential(
            [
                norm(f"{prefix}ln_attn", Tap("ln_scale", layer)),
                attention(layer),
                *([norm(f"{prefix}ln_attn_post")] if post else []),
                Tap("attn_out", layer),
            ]
        )
        feed = pz.nn.Sequential(
            [
                norm(f"{prefix}ln_mlp", Tap("ln_scale_mlp", layer)),
                mlp(layer),
                *([norm(f"{prefix}ln_mlp_post")] if post else []),
                Tap("mlp_out", layer),
            ]
        )
        entry, leave = Tap("resid_pre", layer), Tap("resid_post", layer)
        if architecture.parallel:
            return pz.nn.Sequential([entry, pz.nn.BranchAndAddTogether([pz.nn.Identity(), attend, feed]), leave])
        middle = Tap("resid_mid", layer)
        return pz.nn.Sequential([entry, pz.nn.Residual(attend), middle, pz.nn.Residual(feed), leave])

    learned = [blocks.AddPositions(weight("W_pos"))] if architecture.learned_positions else []
    return blocks.Decoder(
        embedding=blocks.Embedding(weight("W_E"), architecture.embedding_scale),
        start=pz.nn.Sequential([Tap("embed"), *learned]),
        blocks=[block(layer) for layer in range(architecture.layers)],
        final=pz.nn.Sequential([norm("ln_final"), Tap("ln_final")]),
        unembedding=blocks.Unembedding(None if architecture.tied else weight("W_U"), architecture.logit_softcap),
        logits=Tap("logits"),
    )


def read_weights(body: pz.nn.Layer) -> dict[str, jax.Array]:
    """The canonical weights of a tree, edits aside.

    Args:
        body: Model tree.

    Returns:
        Weight name -> array, axes as in `Architecture.weights()`.
    """
    found = pz.select(body).at_instances_of(pz.ParameterValue).get_sequence()
    return {weight.label: weight.value.data_array for weight in found}


def side_inputs(
    tokens: jax.Array,
    mask: jax.Array,
    prompt_length: jax.Array | None = None,
    start: int | jax.Array = 0,
) -> dict[str, NamedArray]:
    """What a forward pass needs besides tokens.

    Args:
        tokens: Token ids of the queries, int [batch, seq].
        mask: Which slots hold tokens, boolean [batch, kv_seq]; all slots of the keys.
        prompt_length: Tokens of each row's prompt, int [batch]; by default all of them.
        start: Slot of the first query among the keys.

    Returns:
        The side inputs that `jaxinterp.models.blocks` describes.
    """
    query_slots = start + jnp.arange(tokens.shape[1])
    key_slots = jnp.arange(mask.shape[1])
    numbers = jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, -1)
    if prompt_length is None:
        prompt_length = mask.sum(axis=1, dtype=jnp.int32)
    return {
        "tokens": pz.nx.wrap(tokens, axes.BATCH, axes.SEQ),
        "positions": pz.nx.wrap(numbers[:, query_slots], axes.BATCH, axes.SEQ),
        "kv_positions": pz.nx.wrap(numbers, axes.BATCH, axes.KV_SEQ),
        "prompt_length": pz.nx.wrap(prompt_length, axes.BATCH),
        "attend": pz.nx.wrap(masks.causal_mask(query_slots, key_slots, mask), axes.BATCH, axes.SEQ, axes.KV_SEQ),
        "distance": pz.nx.wrap(query_slots[:, None] - key_slots[None, :], axes.SEQ, axes.KV_SEQ),
    }


def check_dtype(dtype: Any) -> np.dtype:
    """The dtype that a user asked for.

    Raises:
        ValueError: It is not a floating-point type that models are kept in.
    """
    allowed = ("float32", "bfloat16", "float16", "float64")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in allowed:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(allowed)}")
    return jnp.dtype(name)
