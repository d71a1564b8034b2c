"""What is taken out of a model while it gives a verdict: heads and units, and random ones in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxinterp as ji
from jaxinterp.activations.switching import Reads
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.analysis.units import Unit, draw_units
from jaxinterp.analysis.units import label as unit_label
from jaxinterp.models.language_model import LanguageModel

NOTHING = "none"
TARGET, PAPER_SET, FIRST = "attends to target", "paper's definition", "largest effects"
VALID, BOTH = "valid units", "units of both polarities"
ANY_HEADS, OTHER_HEADS = "random heads, all", "random heads, outside the circuit"
OTHER_UNITS = "random units"


@dataclasses.dataclass(frozen=True)
class Missing:
    """What is taken out at some texts.

    Attributes:
        condition: Its name in the table.
        removed: What, in words.
        count: How many heads or units; 0 for an empty set.
        sites: For each text.
        reads: Whether they are missing throughout the text, or where the verdict opens alone.
        draws: For each text the number of its random set.
    """

    condition: str
    removed: str
    count: int
    sites: Sequence[Sequence[ji.Site]]
    reads: Reads = "text"
    draws: np.ndarray | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """Its columns in the table."""
        control = self.draws is not None or self.condition == NOTHING
        about = {"condition": self.condition, "reads": self.reads, "removed": self.removed, "count": self.count}
        return about | {"control": control}


def plan(
    model: LanguageModel,
    of_heads: Mapping[str, Sequence[Head]],
    of_units: Mapping[str, Sequence[Unit]],
    texts: int,
    *,
    curve: int,
    random: int,
    draws: int,
    seed: int,
) -> list[Missing]:
    """All conditions, the one with nothing missing first.

    Args:
        model: The model.
        of_heads: As from `ablation.found`.
        of_units: As from `units.found`.
        texts: How many there are.
        curve: Longest prefix of the circuit.
        random: How many of the texts get random sets.
        draws: Random sets of each kind; text `i` gets set `i % draws`.
        seed: Of the random sets.

    Returns:
        The conditions.
    """
    both = list(dict.fromkeys([*of_units["valid"], *of_units["invalid"]]))
    circuit = list(of_heads["circuit"])
    conditions = [
        Missing(NOTHING, "", 0, [[]] * texts, "token"),
        _units(VALID, of_units["valid"], texts),
        _units(BOTH, both, texts),
        _random_units(model, both, min(texts, random), draws, seed),
        _heads(TARGET, of_heads["target"], texts),
        _heads(TARGET, of_heads["target"], texts, "token"),
        _heads(PAPER_SET, of_heads["paper"], texts),
    ]
    conditions += [_heads(FIRST, circuit[:size], texts) for size in range(1, min(curve, len(circuit)) + 1)]
    found = {*of_heads["target"], *circuit}
    size = max(len(of_heads["target"]), 1)
    for name, outside in ((ANY_HEADS, set[Head]()), (OTHER_HEADS, found)):
        conditions += _random_heads(model, name, outside, size, min(texts, random), draws, seed)
    return conditions


def _heads(condition: str, some: Sequence[Head], texts: int, reads: Reads = "text") -> Missing:
    return Missing(condition, heads.label(some), len(some), [_head_sites(some)] * texts, reads)


def _head_sites(some: Sequence[Head]) -> list[ji.Site]:
    return [ji.head(layer, head) for layer, head in some]


def _units(condition: str, some: Sequence[Unit], texts: int) -> Missing:
    return Missing(
        condition, " ".join(unit_label(unit) for unit in some), len(some), [_unit_sites(some)] * texts, "token"
    )


def _unit_sites(some: Sequence[Unit]) -> list[ji.Site]:
    return [ji.unit(layer, unit) for layer, unit in some]


def _random_heads(
    model: LanguageModel, condition: str, outside: set[Head], size: int, texts: int, draws: int, seed: int
) -> list[Missing]:
    """One condition, or none where no heads are left to draw."""
    shape = (model.architecture.layers, model.architecture.heads)
    size = min(size, shape[0] * shape[1] - len(outside))
    if not size:
        return []
    sets = [_head_sites(some) for some in heads.draw_sets(shape, outside, size, draws, seed)]
    return [_of_sets(condition, size, sets, texts, "text")]


def _random_units(model: LanguageModel, chosen: Sequence[Unit], texts: int, draws: int, seed: int) -> Missing:
    """As many units of each layer, none of them chosen."""
    rng = np.random.default_rng(seed)
    in_layer = {layer: sum(own == layer for own, _ in chosen) for layer, _ in chosen}
    neurons = model.architecture.neurons
    sets = [
        _unit_sites(
            [unit for layer, size in in_layer.items() for unit in draw_units(neurons, [layer], size, chosen, rng)]
        )
        for _ in range(draws)
    ]
    return _of_sets(OTHER_UNITS, len(chosen), sets, texts, "token")


def _of_sets(condition: str, size: int, sets: Sequence[Sequence[ji.Site]], texts: int, reads: Reads) -> Missing:
    own = np.arange(texts) % len(sets)
    return Missing(condition, f"{len(sets)} random sets", size, [sets[draw] for draw in own.tolist()], reads, own)
