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
Layout = Callable[[tuple[str, ...]], tuple[tuple[str, ...], ...]]
Part = tuple[tuple[int, int], ...]
"""First index and the one behind the last, for each axis of a canonical weight."""

PART = "part"
"""In a layout, the axis that counts the weights that one tensor holds."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one stored tensor relates to canonical weights.

    Attributes:
        key: Name in the checkpoint; `{layer}` stands for the block index.
        weights: Canonical names it holds, with the same placeholder; all have the same axes.
        layout: The axes of one of the weights -> for each dimension of the stored tensor, the axes that it runs over,
            the slowest first. If there are several weights, one of them is `PART`.
    """

    key: str
    weights: tuple[str, ...]
    layout: Layout

    def at(self, layer: int) -> Rule:
        """The rule of one block."""
        weights = tuple(name.replace("{layer}", str(layer)) for name in self.weights)
        return dataclasses.replace(self, key=self.key.replace("{layer}", str(layer)), weights=weights)

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the stored tensor, given the axes of a weight and their sizes."""
        counts = self._counts(sizes)
        return tuple(math.prod(counts[name] for name in group) for group in self.layout(tuple(sizes)))

    def split(self, sizes: Mapping[str, int], stored: Array) -> tuple[Array, ...]:
        """The canonical weights of a stored tensor, in the order of `weights`."""
        counts, groups = self._counts(sizes), self.layout(tuple(sizes))
        return self._by_part(stored.reshape([counts[name] for group in groups for name in group]), sizes)

    def join(self, sizes: Mapping[str, int], *parts: Array) -> Array:
        """The stored tensor of canonical weights, the inverse of `split`."""
        flat = [name for group in self.layout(tuple(sizes)) for name in group]
        names = (*([PART] if PART in flat else []), *sizes)
        whole = jnp.stack([jnp.asarray(part) for part in parts]) if PART in flat else parts[0]
        return whole.transpose([names.index(name) for name in flat]).reshape(self.stored_shape(sizes))

    def cut(
        self, sizes: Mapping[str, int], number: int, part: Part
    ) -> tuple[tuple[slice, ...], Callable[[Array], Array]]:
        """Where a part of one of the weights is stored.

        Args:
            sizes: Axes of the weight and their sizes.
            number: Which of the weights it is.
            part: What of it is wanted.

        Returns:
            The smallest block of the stored tensor that holds the part, one slice for each dimension; and a function
            from that block to the part, in the order of the weight's axes.
        """
        counts = self._counts(sizes)
        wanted = dict(zip(sizes, part, strict=True)) | {PART: (number, number + 1)}
        slices, shape, inside = [], [], []
        for group in self.layout(tuple(sizes)):
            start, length, leading = 0, math.prod(counts[name] for name in group), True
            for name in group:
                first, end = wanted[name]
                if leading:
                    inner = length // counts[name]
                    start, length, leading = start + first * inner, (end - first) * inner, end - first == 1
                    shape.append(end - first)
                    inside.append(slice(None))
                else:
                    shape.append(counts[name])
                    inside.append(slice(first, end))
            slices.append(slice(start, start + length))
        return tuple(slices), lambda block: self._by_part(block.reshape(shape)[tuple(inside)], sizes)[0]

    def _counts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {**sizes, PART: len(self.weights)}

    def _by_part(self, array: Array, sizes: Mapping[str, int]) -> tuple[Array, ...]:
        """Weights in canonical order from an array with one dimension for each axis of the layout."""
        flat = [name for group in self.layout(tuple(sizes)) for name in group]
        if PART not in flat:
            return (array.transpose([flat.index(name) for name in sizes]),)
        return tuple(array.transpose([flat.index(name) for name in (PART, *sizes)]))


def plain(key: str, weight: str) -> Rule:
    """A tensor stored as it is used."""
    return Rule(key, (weight,), lambda names: tuple((name,) for name in names))


def by_heads(key: str, weight: str) -> Rule:
    """A query, key or value projection [heads * projection, ...], or its bias; heads come first in the weight."""
    return Rule(key, (weight,), lambda names: (names[:2], *((name,) for name in names[2:])))


def from_heads(key: str, weight: str) -> Rule:
    """An output projection [embedding, heads * projection]."""
    return Rule(key, (weight,), lambda names: (names[:1], names[1:]))


def transposed(key: str, weight: str) -> Rule:
    """A matrix stored [inputs, outputs]."""
    return Rule(key, (weight,), lambda names: tuple((name,) for name in reversed(names)))


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
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> dict[str, jax.Array]:
    """Reads all weights of a checkpoint.

    Args:
        checkpoint: The stored tensors.
        architecture: What the model is made of.
        rules: The family's table.
        dtype: Dtype of the result.
        rename: Stored key -> key in the table, or `None` for a tensor known to carry no weight (old attention-mask
            buffers and the like).
        shardings: Weight name -> where its parts go. Then each part is read by itself, straight to its devices, and
            parts on devices of other processes are not read. By default everything goes to the default device.

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
        expected = rule.stored_shape(shapes[rule.weights[0]])
        if rule.key in stored and (shape := tuple(checkpoint.shape(stored[rule.key]))) != expected:
            problems.append(f"{stored[rule.key]} has shape {shape} instead of {expected}")
    if problems:
        raise ValueError(
            f"{checkpoint.path}: the tensors do not fit config.json as a {architecture.family} model: "
            f"{'; '.join(problems)}; check that the weights and the config belong together"
        )
    weights: dict[str, jax.Array] = {}
    for rule in sorted(expanded, key=lambda rule: -math.prod(checkpoint.shape(stored[rule.key]))):
        key, sizes = stored[rule.key], shapes[rule.weights[0]]
        if shardings is not None:
            weights |= _read_parts(checkpoint, key, rule, sizes, dtype, shardings)
            continue
        parts = rule.split(sizes, checkpoint.read(key))
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
    shapes = architecture.weights()

    def stored(rule: Rule) -> np.ndarray:
        parts = [np.asarray(weights[name]) for name in rule.weights]
        return np.ascontiguousarray(rule.join(shapes[rule.weights[0]], *parts))

    return {rule.key: stored(rule) for rule in expand(rules, architecture)}


def _own(array: np.ndarray, dtype: Any) -> jax.Array:
    """Moves an array that nobody else will write to onto the device."""
    return jax.device_put(np.ascontiguousarray(array, dtype=dtype))


def _read_parts(
    checkpoint: Checkpoint,
    key: str,
    rule: Rule,
    sizes: Mapping[str, int],
    dtype: Any,
    shardings: Mapping[str, jax.sharding.Sharding],
) -> dict[str, jax.Array]:
    """The weights of one stored tensor, each part that belongs on a device of this process read once."""
    shape, found = tuple(sizes.values()), {}
    for number, name in enumerate(rule.weights):
        owners: dict[Part, list[Any]] = {}
        for device, index in shardings[name].addressable_devices_indices_map(shape).items():
            part = tuple(cut.indices(count)[:2] for cut, count in zip(index or (), shape, strict=True))
            owners.setdefault(part, []).append(device)
        arrays = []
        for part, devices in owners.items():
            slices, finish = rule.cut(sizes, number, part)
            block = np.ascontiguousarray(finish(checkpoint.read_part(key, slices, dtype)))
            arrays += [jax.device_put(block, device) for device in devices]
        found[name] = jax.make_array_from_single_device_arrays(shape, shardings[name], arrays)
    return found


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
