"""The vectors of the steering experiment: each model's own, those carried over, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jaxinterp.analysis import concept_vectors, contrasts
from jaxinterp.analysis.composition import read_through
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts, two_choice
from jaxinterp.tasks.concepts import Concept
from jaxinterp.tasks.two_choice import TwoChoice

Behaviour: TypeAlias = Concept | TwoChoice
Arrays: TypeAlias = Mapping[str, Mapping[str, np.ndarray]]

DIRECTIONS = ("source to target", "target to source")
TRANSFERRED = ("least squares", "ridge", "procrustes", "hidden states")
"""Maps that carry a vector over; the last one only where the experiment on hidden states has made it."""
MAIN = ("native", "least squares", "hidden states")
"""Vectors that are tried at every scale."""
REMOVED = ", scored words removed"
"""Ending of the name of a vector without its component in the span of the words that it is judged by."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two models, and its own vectors.

    Attributes:
        model: The model.
        layers: Blocks under test, one for each depth.
        vectors: [behaviour, depth, embedding], not of length one.
        halves: Split-half cosine [behaviour, depth, split].
        stream_norms: Mean norm of the residual stream where vectors were read [behaviour, depth].
    """

    model: LanguageModel
    layers: tuple[int, ...]
    vectors: np.ndarray
    halves: np.ndarray
    stream_norms: np.ndarray

    @property
    def unembedding(self) -> np.ndarray:
        """Rows of tokens as they read the last residual stream, the final norm's gain folded in."""
        weights = self.model.weights()
        table = weights["W_E" if self.model.architecture.tied else "W_U"]
        return np.asarray(read_through(table, weights["ln_final.w"], self.model), np.float32)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A direction that may steer, at every layer under test.

    Attributes:
        behaviour: Index of the behaviour it stands for; `None` for a random one, which is tried on all.
        vector: `native`, one of `TRANSFERRED`, `shuffled`, `random`, or one of these with `REMOVED`.
        draw: Which of several controls.
        units: Vectors of length one (shorter where words were removed) [depth, embedding].
    """

    behaviour: int | None
    vector: str
    draw: int
    units: np.ndarray

    @property
    def control(self) -> bool:
        """Whether it should do nothing."""
        return self.vector in ("shuffled", "random")


def find_behaviours(names: Sequence[str]) -> list[Behaviour]:
    """Concepts and two-choice behaviours by name.

    Raises:
        ValueError: There is none of a name, or one is named twice.
    """
    known: dict[str, Behaviour] = {**concepts.CONCEPTS, **two_choice.BEHAVIOURS}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no concept {name!r}; there are {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each concept can be named once; there are {', '.join(names)}")
    return [known[name] for name in names]


def check_maps(inputs: Arrays, models: Mapping[str, LanguageModel], depths: Sequence[float]) -> None:
    """Looks whether the maps are there and fit the models.

    Args:
        inputs: `alignment`, and `hidden_states` if there are such maps.
        models: `source` and `target`.
        depths: Where vectors are carried over.

    Raises:
        ValueError: Maps are missing, or were made for models of other widths.
    """
    if "alignment" not in inputs:
        raise ValueError("steering needs the arrays of the alignment; pass them as inputs={'alignment': arrays}")
    wanted = [models[name].architecture.embedding for name in ("source", "target")]
    named = {"alignment": [f"source to target/{map_key(name)}" for name in (*TRANSFERRED[:3], "shuffled")]}
    if "hidden_states" in inputs:
        named["hidden_states"] = [f"source to target/{depth}" for depth in depths]
    for source, keys in named.items():
        for key in keys:
            if key not in inputs[source]:
                raise ValueError(f"the arrays of {source} have no {key!r}; make them again with this version")
            shape = list(inputs[source][key].shape[-2:])
            if shape != wanted:
                raise ValueError(
                    f"the maps of {source} lead from {shape[0]} to {shape[1]} dimensions, but the models have {wanted}"
                )


def map_key(name: str) -> str:
    """The name of a map among the alignment's arrays."""
    return name.replace(" ", "_")


def build_side(model: LanguageModel, behaviours: Sequence[Behaviour], *, depths: Sequence[float], seed: int) -> Side:
    """Builds a model's own vectors.

    Args:
        model: The model.
        behaviours: What for.
        depths: Where vectors will be added, as shares of the blocks.
        seed: Of the halvings.

    Returns:
        The model and its vectors.
    """
    blocks = model.architecture.layers
    layers = tuple(min(blocks - 1, round(depth * blocks)) for depth in depths)
    unique = sorted(set(layers))
    places = [unique.index(layer) for layer in layers]
    read = [
        contrasts.sentence_contrast(model, entry.sentences, unique)
        if isinstance(entry, Concept)
        else contrasts.answer_contrast(model, entry.training, unique)
        for entry in behaviours
    ]
    halves = [concept_vectors.split_half_cosines(found.differences[places], splits=20, seed=seed) for found in read]
    return Side(
        model=model,
        layers=layers,
        vectors=np.stack([found.vectors[places] for found in read]),
        halves=np.stack(halves).swapaxes(1, 2),
        stream_norms=np.stack([found.stream_norms[places] for found in read]),
    )


def carried(
    direction: str, vectors: np.ndarray, inputs: Arrays, depths: Sequence[float], most: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """A vector of one model in the other's space.

    Args:
        direction: One of `DIRECTIONS`.
        vectors: [depth, embedding].
        inputs: The maps.
        depths: Depths that the maps of hidden states are named by.
        most: Most maps fitted on shuffled pairs.

    Yields:
        Name of the map, which of several, and vectors of length one [depth, embedding].
    """
    maps = inputs["alignment"]
    for name in TRANSFERRED[:3]:
        yield name, 0, concept_vectors.unit(vectors @ maps[f"{direction}/{map_key(name)}"])
    if "hidden_states" in inputs:
        own = np.stack([inputs["hidden_states"][f"{direction}/{depth}"] for depth in depths])
        yield TRANSFERRED[3], 0, concept_vectors.unit(np.einsum("le,lef->lf", vectors, own))
    for draw, matrix in enumerate(maps[f"{direction}/shuffled"][:most]):
        yield "shuffled", draw, concept_vectors.unit(vectors @ matrix)


def candidates(
    direction: str,
    giver: Side,
    taker: Side,
    members: Sequence[int],
    inputs: Arrays,
    *,
    depths: Sequence[float],
    scored: Mapping[int, np.ndarray],
    shuffled_maps: int,
    random_vectors: int,
    rng: np.random.Generator,
) -> Iterator[Candidate]:
    """All vectors that are tried on a model for some behaviours.

    Args:
        direction: One of `DIRECTIONS`.
        giver: The model whose vectors are carried over.
        taker: The model they are tried on.
        members: Indices of the behaviours.
        inputs: The maps.
        depths: As shares of the blocks.
        scored: Behaviour -> rows of the unembedding of the words it is judged by [word, taker embedding].
        shuffled_maps: Most maps fitted on shuffled pairs.
        random_vectors: How many random vectors.
        rng: Random numbers for them.

    Yields:
        By behaviour the native vector and those carried over, then the random ones.
    """
    for place in members:
        native = concept_vectors.unit(taker.vectors[place])
        yield Candidate(place, "native", 0, native)
        yield Candidate(place, f"native{REMOVED}", 0, contrasts.without_span(native, scored[place]))
        for name, draw, units in carried(direction, giver.vectors[place], inputs, depths, shuffled_maps):
            yield Candidate(place, name, draw, units)
            if name == "least squares":
                yield Candidate(place, f"{name}{REMOVED}", draw, contrasts.without_span(units, scored[place]))
    for draw in range(random_vectors):
        vector = concept_vectors.unit(rng.normal(size=taker.model.architecture.embedding))
        yield Candidate(None, "random", draw, np.repeat(vector[None], len(taker.layers), axis=0))


def make_push(side: Side, candidate: Candidate, slot: int, length: float, *, direct: bool = False) -> Push:
    """A vector as it is added.

    Args:
        side: The model that it is added to.
        candidate: The vector.
        slot: Index of the depth.
        length: Length, negative to subtract it.
        direct: Whether it is added after the last block in place of the one at that depth.
    """
    layer = side.model.architecture.layers - 1 if direct else side.layers[slot]
    return Push(layer, candidate.units[slot] * length)
