"""How low-rank terms of canonical weights lie in the modules that a family's checkpoints store.

A stored module has one `A` [rank, inputs] and one `B` [outputs, rank]. Where a family stores queries, keys and values
as one module (GPT-2, GPT-NeoX), their terms are joined into one whose rank is the sum of theirs, and a stored term is
split into one for each of the three with the same `A`; the product is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxinterp.interventions.lora import Factors, sides
from jaxinterp.models.architecture import Architecture
from jaxinterp.models.convert import Rule, expand
from jaxinterp.models.low_rank import MATRICES


def matrix_rules(rules: Sequence[Rule], architecture: Architecture) -> dict[str, Rule]:
    """The rules of a family that hold matrices of blocks.

    Args:
        rules: The family's table.
        architecture: What the model is made of.

    Returns:
        Stored module, the tensor's name without `.weight` -> its rule.
    """
    written = expand(rules, architecture)
    held = [rule for rule in written if all(_leaf(name) in MATRICES for name in rule.weights)]
    return {rule.key.removesuffix(".weight"): rule for rule in held}


def stored_shape(rule: Rule, architecture: Architecture) -> tuple[int, int]:
    """Outputs and inputs of a stored module."""
    counts = [_counts(architecture, name) for name in rule.weights]
    return sum(outs for outs, _ in counts), counts[0][1]


def is_transposed(rule: Rule, architecture: Architecture) -> bool:
    """Whether a module's weight is stored [inputs, outputs]."""
    return _numbered_rows(rule, architecture)[1]


def split_term(rule: Rule, architecture: Architecture, stored: Factors) -> dict[str, Factors]:
    """The terms of the weights that a stored module holds.

    Args:
        rule: Of the module.
        architecture: What the model is made of.
        stored: Its term; `A` [rank, inputs] and `B` [outputs, rank] of the module.

    Returns:
        Weight name -> its term, with the axes of the weight.
    """
    up = stored.up[np.argsort(_row_order(rule, architecture))]
    factors, first = {}, 0
    for name in rule.weights:
        outputs, inputs = sides(architecture, _leaf(name))
        own = up[first : first + math.prod(outputs.values())]
        first += len(own)
        down = stored.down.reshape(-1, *inputs.values())
        factors[name] = Factors(down, own.reshape(*outputs.values(), -1), stored.scale)
    return factors


def join_terms(rule: Rule, architecture: Architecture, terms: Mapping[str, Factors]) -> Factors:
    """The term of a stored module, from those of the weights that it holds.

    Args:
        rule: Of the module.
        architecture: What the model is made of.
        terms: Weight name -> term, for at least one of the module's weights.

    Returns:
        `A` [rank, inputs] and `B` [outputs, rank] of the module. Its rank is that of the terms if all of the module's
        weights have the same `A`, otherwise the sum of their ranks.
    """
    own = {name: terms[name] for name in rule.weights if name in terms}
    scales = {term.scale for term in own.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    downs, blocks = [], []
    for name in rule.weights:
        outs, ins = _counts(architecture, name)
        down = np.reshape(own[name].down, (-1, ins)) if name in own else np.zeros((0, ins))
        up = np.reshape(own[name].up, (outs, -1)) if name in own else np.zeros((outs, 0))
        downs.append(down)
        blocks.append(up * own[name].scale / scale if name in own and own[name].scale != scale else up)
    if all(np.array_equal(down, downs[0]) for down in downs):
        joined, up = downs[0], np.concatenate(blocks)
    else:
        joined, up = np.concatenate(downs), _block_diagonal(blocks)
    up = up[_row_order(rule, architecture)]
    return Factors(np.ascontiguousarray(joined, np.float32), np.ascontiguousarray(up, np.float32), scale)


def _block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    whole = np.zeros((rows[-1], columns[-1]))
    for number, block in enumerate(blocks):
        whole[rows[number] : rows[number + 1], columns[number] : columns[number + 1]] = block
    return whole


def _row_order(rule: Rule, architecture: Architecture) -> np.ndarray:
    """Which row of its weights, one weight after the other, each output of a stored module is."""
    if len(rule.weights) == 1:
        return np.arange(stored_shape(rule, architecture)[0])
    return _numbered_rows(rule, architecture)[0]


def _numbered_rows(rule: Rule, architecture: Architecture) -> tuple[np.ndarray, bool]:
    """Asks the family's table where rows go: it joins weights of which every row holds its number.

    The stream and the MLP are made narrow for it, so the rows of a module with one weight are too few.
    """
    small = dataclasses.replace(architecture, embedding=2, neurons=3)
    parts, first = [], 0
    for name in rule.weights:
        outputs, inputs = (tuple(side.values()) for side in sides(small, _leaf(name)))
        numbers = np.arange(first, first + math.prod(outputs))
        first += len(numbers)
        columns = numbers.reshape(*outputs, *(1 for _ in inputs))
        parts.append(np.broadcast_to(columns, (*outputs, *inputs)))
    sizes = small.block_weights()[_leaf(rule.weights[0])]
    stored = np.asarray(rule.join(sizes, *parts))
    transposed = not (stored == stored[:, :1]).all()
    return (stored[0] if transposed else stored[:, 0]), bool(transposed)


def _counts(architecture: Architecture, name: str) -> tuple[int, int]:
    outputs, inputs = sides(architecture, _leaf(name))
    return math.prod(outputs.values()), math.prod(inputs.values())


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]
