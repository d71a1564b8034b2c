"""Checkpoint tensors to canonical weights and back, by strict tables.

A family lists one `Rule` for each tensor of its checkpoints. Converting reports every missing, unexpected and
misshapen tensor at once; nothing is skipped in silence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.models.architecture import Architecture
from jaxinterp.models.checkpoint import Checkpoint

Array = Any
Split = Callable[[Architecture, Array], tuple[Array, ...]]
Join = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one stored tensor relates to canonical weights.

    Attributes:
        key: Name in the checkpoint; `{layer}` stands for the block index.
        weights: Canonical names it holds, with the same placeholder.
        split: (architecture, stored tensor) -> the canonical arrays, in the order of `weights`.
        join: (architecture, *canonical arrays) -> the stored tensor.
    """

    key: str
    weights: tuple[str, ...]
    split: Split
    join: Join

    def at(self, layer: int) -> Rule:
        """The rule of one block."""
        weights = tuple(name.replace("{layer}", str(layer)) for name in self.weights)
        return dataclasses.replace(self, key=self.key.replace("{layer}", str(layer)), weights=weights)


def plain(key: str, weight: str) -> Rule:
    """A tensor stored as it is used."""
    return Rule(key, (weight,), lambda _, stored: (stored,), lambda _, used: used)


def by_heads(key: str, weight: str, kv: bool = False) -> Rule:
    """A query, key or value projection [heads * projection, ...], or its bias, split into heads."""

    def split(architecture: Architecture, stored: Array) -> tuple[Array, ...]:
        heads = architecture.kv_heads if kv else architecture.heads
        return (stored.reshape(heads, architecture.projection, *stored.shape[1:]),)

    return Rule(key, (weight,), split, lambda _, used: used.reshape(-1, *used.shape[2:]))


def from_heads(key: str, weight: str) -> Rule:
    """An output projection [embedding, heads * projection], split into heads."""

    def split(architecture: Architecture, stored: Array) -> tuple[Array, ...]:
        return (stored.reshape(-1, architecture.heads, architecture.projection),)

    return Rule(key, (weight,), split, lambda _, used: used.reshape(used.shape[0], -1))


def transposed(key: str, weight: str) -> Rule:
    """A matrix stored [inputs, outputs]."""
    return Rule(key, (weight,), lambda _, stored: (stored.T,), lambda _, used: used.T)


def expand(rules: Sequence[Rule], architecture: Architecture) -> list[Rule]:
    """Writes the rules of every block out, leaving out those whose weights the architecture does not have."""
    wanted = architecture.weights()
    expanded = []
    for rule in rules:
        layers = range(architecture.layers) if "{layer}" in rule.key else (0,)
        candidates = [rule.at(layer) for layer in layers]
        expanded += [candidate for candidate in candidates if all(name in wanted for name in candidate.weights)]
    return expanded


def to_canonical(
    checkpoint: Checkpoint,
    architecture: Architecture,
    rules: Sequence[Rule],
    dtype: Any,
    rename: Callable[[str], str | None] = lambda key: key,
) -> dict[str, jax.Array]:
    """Reads all weights of a checkpoint.

    Args:
        checkpoint: The stored tensors.
        architecture: What the model is made of.
        rules: The family's table.
        dtype: Dtype of the result.
        rename: Stored key -> key in the table, or `None` for a tensor known to carry no weight (old attention-mask
            buffers and the like).

    Returns:
        Canonical weights, largest tensors converted first so that the peak of host memory stays low.

    Raises:
        ValueError: Tensors are missing, unexpected or misshapen; the sentence names all of them.
    """
    expanded = expand(rules, architecture)
    shapes = architecture.weights()
    stored = {name: key for key in list(checkpoint.keys()) if (name := rename(key)) is not None}
    unknown = sorted(stored[name] for name in stored.keys() - {rule.key for rule in expanded})
    missing = [rule.key for rule in expanded if rule.key not in stored]
    problems = []
    if missing:
        problems.append(f"missing {_listed(missing)}")
    if unknown:
        problems.append(f"unexpected {_listed(unknown)}")
    for rule in expanded:
        expected = _stored_shape(rule, architecture, shapes)
        if rule.key in stored and (shape := tuple(checkpoint.shape(stored[rule.key]))) != expected:
            problems.append(f"{stored[rule.key]} has shape {shape} instead of {expected}")
    if problems:
        raise ValueError(
            f"{checkpoint.path}: the tensors do not fit config.json as a {architecture.family} model: "
            f"{'; '.join(problems)}; check that the weights and the config belong together"
        )
    weights: dict[str, jax.Array] = {}
    for rule in sorted(expanded, key=lambda rule: -math.prod(checkpoint.shape(stored[rule.key]))):
        parts = rule.split(architecture, checkpoint.read(stored[rule.key]))
        for name, part in zip(rule.weights, parts, strict=True):
            weights[name] = _own(part, dtype)
        del parts, part
    return {name: weights[name] for name in shapes}


def from_canonical(
    weights: Mapping[str, jax.Array], architecture: Architecture, rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """Writes canonical weights as checkpoint tensors.

    Args:
        weights: Canonical weights.
        architecture: What the model is made of.
        rules: The family's table.

    Returns:
        Checkpoint key -> tensor.
    """
    return {
        rule.key: np.ascontiguousarray(rule.join(architecture, *(np.asarray(weights[name]) for name in rule.weights)))
        for rule in expand(rules, architecture)
    }


def _own(array: np.ndarray, dtype: Any) -> jax.Array:
    """Moves an array that nobody else will write to onto the device."""
    return jax.device_put(np.ascontiguousarray(array, dtype=dtype))


def _stored_shape(rule: Rule, architecture: Architecture, shapes: Mapping[str, Mapping[str, int]]) -> tuple[int, ...]:
    specs = [jax.ShapeDtypeStruct(tuple(shapes[name].values()), jnp.float32) for name in rule.weights]
    return jax.eval_shape(lambda *arrays: rule.join(architecture, *arrays), *specs).shape


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
