"""One forward pass, block by block, and what passes the taps on the way.

Every kind of block is compiled once, whatever its depth in the model, and an edited block once more; so a model of
eighty blocks compiles as fast as one of two, and the pass ends behind the last block that is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.plan import Base
from jaxinterp.activations.stages import STREAM, Texts
from jaxinterp.activations.state import capture
from jaxinterp.models.blocks import Decoder
from jaxinterp.sites.selectors import Site
from jaxinterp.sites.taps import Address

NamedArray = pz.nx.NamedArray
Readout = Literal["all", "last"] | None
Reads = tuple[Site, ...]

_BEHIND = ("ln_final", "logits")
"""Sites behind the last block."""


def read_pass(
    base: Base, texts: Texts, sites: Mapping[Address, Site], logits: Readout
) -> tuple[jax.Array | None, dict[Address, jax.Array]]:
    """Runs a model and reads what passes its taps.

    Args:
        base: The model, in stages.
        texts: The texts.
        sites: Address -> which heads or units there are read.
        logits: As in `jaxinterp.run`.

    Returns:
        Logits [batch, seq, vocabulary], [batch, vocabulary] or `None`, and the reads.
    """
    saved: dict[Address, jax.Array] = {}
    *_, (_, x) = ((None, None), *pass_blocks(base, texts, sites, saved, to_the_end=_needs_end(sites, logits)))
    if not _needs_end(sites, logits):
        return None, saved
    behind = tuple(_nameless(sites[name, None]) for name in _BEHIND if (name, None) in sites)
    values, found = _read_out(base.ends, x, texts, sites=behind, last=logits == "last" and not behind)
    saved |= {(name, None): array for name, array in found.items()}
    if logits is None:
        return None, saved
    return (values[:, -1] if logits == "last" and behind else values), saved


def pass_blocks(
    base: Base, texts: Texts, sites: Mapping[Address, Site], saved: dict[Address, jax.Array], *, to_the_end: bool
) -> Iterator[tuple[int, jax.Array]]:
    """Goes through the blocks, as far as is needed.

    Args:
        base: The model, in stages.
        texts: The texts.
        sites: Address -> which heads or units there are read.
        saved: Where reads are put.
        to_the_end: Whether what leaves the last block is needed.

    Yields:
        Stage and the residual stream entering it, [batch, seq, embedding]; the last stage lies behind all blocks.
    """
    layers = [layer for _, layer in sites if layer is not None]
    depth = base.depth if to_the_end else 1 + max(layers, default=-1)
    x, found = _begin(base.ends, texts, sites=_at(sites, None, ("embed",)))
    saved |= {(name, None): array for name, array in found.items()}
    yield 0, x
    for layer in range(depth):
        x, found = _read_block(base.blocks[layer], x, texts, sites=_at(sites, layer, None))
        saved |= {(name, layer): array for name, array in found.items()}
        yield layer + 1, x


def _needs_end(sites: Mapping[Address, Site], logits: Readout) -> bool:
    return logits is not None or any(name in _BEHIND for name, _ in sites)


def _at(sites: Mapping[Address, Site], layer: int | None, names: Sequence[str] | None) -> Reads:
    """What is read in one stage, without saying which."""
    return tuple(
        _nameless(site) for (name, at), site in sites.items() if at == layer and (names is None or name in names)
    )


def _nameless(site: Site) -> Site:
    return Site(site.name, None, site.axis, site.indices)


@pz.pytree_dataclass
class _Front(pz.nn.Layer):
    """What lies in front of the blocks."""

    ends: Decoder

    def __call__(self, tokens: NamedArray, /, **side_inputs: Any) -> NamedArray:
        """Maps token ids to the residual stream entering the first block."""
        return self.ends.start(self.ends.embedding(tokens, **side_inputs), **side_inputs)


@pz.pytree_dataclass
class _Back(pz.nn.Layer):
    """What lies behind them."""

    ends: Decoder

    def __call__(self, x: NamedArray, /, **side_inputs: Any) -> NamedArray:
        """Maps the residual stream leaving the last block to logits."""
        return self.ends.read_out(x, **side_inputs)


def _call(
    tree: pz.nn.Layer, x: NamedArray, inputs: Mapping[str, Any], sites: Reads
) -> tuple[NamedArray, dict[str, jax.Array]]:
    reading, variables = pz.unbind_state_vars(capture(tree, sites))
    frozen = [variable.freeze() for variable in variables]
    out, states = reading.stateless_call(frozen, x, **inputs)
    return out, {state.label[0]: state.value.unwrap(*axes.SITES[state.label[0]][0]) for state in states}


@functools.partial(jax.jit, static_argnames="sites")
def _begin(ends: Decoder, texts: Texts, *, sites: Reads) -> tuple[jax.Array, dict[str, jax.Array]]:
    inputs = texts.side_inputs(0)
    out, saved = _call(_Front(ends), inputs["tokens"], inputs, sites)
    return out.unwrap(*STREAM), saved


@functools.partial(jax.jit, static_argnames="sites")
def _read_block(
    block: pz.nn.Layer, x: jax.Array, texts: Texts, *, sites: Reads
) -> tuple[jax.Array, dict[str, jax.Array]]:
    out, saved = _call(block, pz.nx.wrap(x, *STREAM), texts.side_inputs(0), sites)
    return out.unwrap(*STREAM), saved


@functools.partial(jax.jit, static_argnames=("sites", "last"))
def _read_out(
    ends: Decoder, x: jax.Array, texts: Texts, *, sites: Reads, last: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    inputs = texts.side_inputs(0)
    if last:
        inputs["read"] = pz.nx.wrap(jnp.full(len(x), x.shape[1] - 1), axes.BATCH)
    out, saved = _call(_Back(ends), pz.nx.wrap(x, *STREAM), inputs, sites)
    names = (axes.BATCH, axes.VOCABULARY) if last else (axes.BATCH, axes.SEQ, axes.VOCABULARY)
    return out.unwrap(*names), saved


def programs() -> int:
    """How many programs forward passes have compiled in this process."""
    return sum(getattr(program, "_cache_size")() for program in (_begin, _read_block, _read_out))  # noqa: B009
