"""The vectors of the steering experiment: each model's own, those carried over, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxinterp.analysis import concept_vectors
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts

KINDS = ("activation", "embedding")
"""Mean difference of activations over contrast sentences; mean embedding of the concept's words."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two models, and what is known of its concepts.

    Attributes:
        model: The model.
        layers: Blocks under test, one for each depth.
        words: For each concept the ids of its words.
        directions: Kind -> [concept, depth, embedding], not yet of length one.
        norms: Mean norm of the activation differences over concepts [depth].
        halves: Split-half cosine of the activation differences [concept, depth].
    """

    model: LanguageModel
    layers: tuple[int, ...]
    words: list[concepts.WordIds]
    directions: dict[str, np.ndarray]
    norms: np.ndarray
    halves: np.ndarray


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A direction that may steer, at every layer under test.

    Attributes:
        concept: Index of the concept it stands for; `None` for a random one, which is tried on all.
        kind: One of `KINDS`, or `"random"`.
        vector: `native`, `transferred`, `shuffled` or `random`.
        draw: Which of several controls.
        units: Vectors of length one [depth, embedding].
    """

    concept: int | None
    kind: str
    vector: str
    draw: int
    units: np.ndarray

    def labels(self) -> dict:
        """Columns of the table that say which it is."""
        return {"kind": self.kind, "vector": self.vector, "draw": self.draw}

    def push(self, side: Side, slot: int, scale: float, layer: int | None = None) -> Push:
        """The vector as it is added.

        Args:
            side: The model that it is added to.
            slot: Index of the depth.
            scale: Length, in units of the side's norm at that depth.
            layer: Block after which it is added, if not the one at that depth.
        """
        return Push(side.layers[slot] if layer is None else layer, self.units[slot] * (scale * side.norms[slot]))


def find_concepts(names: Sequence[str]) -> list[concepts.Concept]:
    """Concepts by name.

    Raises:
        ValueError: There is none of a name.
    """
    for name in names:
        if name not in concepts.CONCEPTS:
            raise ValueError(f"there is no concept {name!r}; there are {', '.join(concepts.CONCEPTS)}")
    return [concepts.CONCEPTS[name] for name in names]


def check_maps(
    inputs: Mapping[str, Mapping[str, np.ndarray]], models: Mapping[str, LanguageModel]
) -> Mapping[str, np.ndarray]:
    """The alignment's arrays, if they are there and fit the models.

    Raises:
        ValueError: They are missing, or were made for models of other widths.
    """
    if "alignment" not in inputs:
        raise ValueError("steering needs the arrays of the alignment; pass them as inputs={'alignment': arrays}")
    maps = inputs["alignment"]
    wanted = [models[name].architecture.embedding for name in ("source", "target")]
    shape = list(maps["source to target/least_squares"].shape)
    if shape != wanted:
        raise ValueError(f"the alignment maps {shape[0]} to {shape[1]} dimensions, but the models have {wanted}")
    return maps


def build_side(
    model: LanguageModel,
    chosen: Sequence[concepts.Concept],
    words: list[concepts.WordIds],
    average: np.ndarray,
    *,
    depths: Sequence[float],
    seed: int,
) -> Side:
    """Builds a model's own concept vectors.

    Args:
        model: The model.
        chosen: Concepts.
        words: For each the ids of its words in this model's vocabulary.
        average: Mean embedding of the matched tokens.
        depths: Where vectors will be added, as shares of the blocks.
        seed: Of the halvings.

    Returns:
        The model and its vectors.
    """
    blocks = model.architecture.layers
    layers = tuple(min(blocks - 1, round(depth * blocks)) for depth in depths)
    unique = sorted(set(layers))
    places = [unique.index(layer) for layer in layers]
    read = [concept_vectors.activation_differences(model, concept.sentences, unique)[places] for concept in chosen]
    table = np.asarray(model.weights()["W_E"], np.float32)
    embedded = np.stack([concept_vectors.embedding_direction(table, entry, average) for entry in words])
    activation = np.stack([differences.mean(axis=1) for differences in read])
    return Side(
        model=model,
        layers=layers,
        words=words,
        directions={"activation": activation, "embedding": np.repeat(embedded[:, None], len(layers), axis=1)},
        norms=np.linalg.norm(activation, axis=-1).mean(axis=0),
        halves=np.stack([concept_vectors.split_half_cosine(part, splits=20, seed=seed) for part in read]),
    )


def candidates(
    giver: Side, taker: Side, right: np.ndarray, wrong: np.ndarray, *, random_vectors: int, rng: np.random.Generator
) -> Iterator[Candidate]:
    """All vectors that are tried on a model.

    Args:
        giver: The model whose vectors are carried over.
        taker: The model they are tried on.
        right: The map between them [giver embedding, taker embedding].
        wrong: Maps fitted on shuffled pairs [map, giver embedding, taker embedding].
        random_vectors: How many random vectors.
        rng: Random numbers for them.

    Yields:
        Native, transferred and shuffled ones by kind and concept, then the random ones.
    """
    for kind in KINDS:
        for concept, (own, other) in enumerate(zip(taker.directions[kind], giver.directions[kind], strict=True)):
            yield Candidate(concept, kind, "native", 0, concept_vectors.unit(own))
            yield Candidate(concept, kind, "transferred", 0, concept_vectors.unit(other @ right))
            for draw, matrix in enumerate(wrong):
                yield Candidate(concept, kind, "shuffled", draw, concept_vectors.unit(other @ matrix))
    for draw in range(random_vectors):
        vector = concept_vectors.unit(rng.normal(size=taker.model.architecture.embedding))
        yield Candidate(None, "random", "random", draw, np.repeat(vector[None], len(taker.layers), axis=0))
