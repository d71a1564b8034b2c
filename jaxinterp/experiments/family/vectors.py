"""Vectors of the register: a model's own, those carried over from another, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.analysis import concept_vectors, signed_effects, statistics, transfer
from jaxinterp.experiments.family.tables import tables
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import small_language, vocabularies

if TYPE_CHECKING:
    from jaxinterp.experiments.within_family import Config

MAPS: dict[str, tuple[str, transfer.Fit]] = {
    "least squares": ("W_U", "least_squares"),
    "orthogonal": ("W_U", "procrustes"),
    "input embeddings": ("W_E", "least_squares"),
}
"""Map -> the tables that it is fitted on, and how; the first is the paper's."""


@dataclasses.dataclass(frozen=True)
class Own:
    """What a model itself knows of the register, after each of its blocks.

    Attributes:
        vectors: Mean difference of the residual stream from casual to formal texts [layer, embedding].
        differences: The differences [layer, pair of texts, embedding].
    """

    vectors: np.ndarray
    differences: np.ndarray


def own_vectors(config: Config, model: LanguageModel) -> Own:
    """Reads a model's own vectors from pairs of texts."""
    language = small_language.Language()
    texts = [language.contrast(index) for index in range(config.contrasts)]
    found = concept_vectors.activation_differences(model, texts, range(model.architecture.layers))
    return Own(found.mean(axis=1), found)


def held_out_pairs(model: LanguageModel) -> np.ndarray:
    """Ids of the verbs that judge a vector.

    Args:
        model: A model that reads the small language.

    Returns:
        Int [pair, 2]: formal, casual.

    Raises:
        ValueError: It does not read it.
    """
    known = vocabularies.token_ids_by_bytes(model.require_tokenizer())
    try:
        return np.array(
            [
                [known[f" {word}".encode()] for word in (pair.formal, pair.casual)]
                for pair in small_language.held_out_verbs()
            ]
        )
    except KeyError as error:
        raise ValueError(
            f"{model.source} has no token {error.args[0].decode()!r}: it does not read the small language; pass models "
            "that `jaxinterp train` made, such as builtin:small-narrow-0"
        ) from None


def describe(config: Config, model: LanguageModel, own: Own, judged: np.ndarray) -> Iterator[dict]:
    """Whether a model has the attribute at all: the halves of its vector, and what formal texts do to the next verb."""
    layer = layer_at(config.depth, model)
    halves = concept_vectors.split_half_cosine(own.differences[[layer]], splits=20, seed=config.seed)
    labels = {"part": "model", "method": "native", "depth": config.depth}
    yield labels | {"measure": "split-half cosine", "value": halves[0], "n": config.contrasts}
    language = small_language.Language()
    contexts = [language.contrast(10_000 + index) for index in range(config.prompts)]
    openings = [language.opening(index) for index in range(config.prompts)]
    after = [
        signed_effects.contrast_after(
            model, [f"{text[side]} {end}" for text, end in zip(contexts, openings, strict=True)], judged
        )
        for side in (0, 1)
    ]
    moved = (after[0] - after[1]) / 2
    low, high = statistics.bootstrap(moved, config.seed, n=config.resamples)
    measured = {"measure": "effect of formal against casual texts", "method": "context"}
    yield {"part": "model", "value": moved.mean(), "low": low, "high": high, "n": len(moved)} | measured


def layer_at(depth: float, model: LanguageModel) -> int:
    """The last block of the first `depth` of the blocks; the first at least."""
    return max(1, round(depth * model.architecture.layers)) - 1


@dataclasses.dataclass(frozen=True)
class Carried:
    """A direction in the model that is steered.

    Attributes:
        method: `native`, one of `MAPS`, `shuffled map` or `random`.
        units: For each block of that model a vector of length one [layer, embedding].
        draw: Which of several controls.
    """

    method: str
    units: np.ndarray
    draw: int = 0

    @property
    def control(self) -> bool:
        """Whether it is a null."""
        return self.method in ("shuffled map", "random")

    def labels(self) -> dict:
        """Columns of the table that say which it is."""
        return {"method": self.method, "draw": self.draw, "control": self.control}


def carry(
    config: Config, first: LanguageModel, second: LanguageModel, giver: Own, taker: Own, judged: np.ndarray
) -> tuple[list[Carried], list[dict]]:
    """Carries a model's vectors to another, and makes the controls.

    Args:
        config: Settings.
        first: The model that gives.
        second: The one that takes.
        giver: What the first knows of the register.
        taker: What the second does.
        judged: Ids of words that no map is fitted on, since they judge the vectors.

    Returns:
        Native, carried and control vectors in the second model; and rows on how good the maps are, judged on tokens
        that they were not fitted on (the vectors are carried by maps fitted on all tokens but those that judge them).
    """
    matched = vocabularies.match_tokens(first.require_tokenizer(), second.require_tokenizer())
    matched = matched.where(~np.isin(matched.target, judged))
    order = np.random.default_rng(config.seed).permutation(len(matched))
    held, train = np.split(order, [round(config.held_out * len(order))])
    blocks = second.architecture.layers
    source = giver.vectors[[layer_at((layer + 1) / blocks, first) for layer in range(blocks)]]
    found, rows = [Carried("native", concept_vectors.unit(taker.vectors))], []
    both = tables(first), tables(second)
    for method, (name, fit) in MAPS.items():
        here, there = both[0][name][matched.source], both[1][name][matched.target]
        found.append(Carried(method, concept_vectors.unit(source @ transfer.fit_map(here, there, fit).matrix)))
        quality = transfer.map_quality(transfer.fit_map(here[train], there[train], fit), here[held], there, held)
        labels = {"part": "map", "table": name, "method": method, "n": len(held)}
        low, high = statistics.wilson(quality.hits(1), len(held))
        rows.append(labels | {"measure": "top-1", "value": quality.hits(1) / len(held), "low": low, "high": high})
        low, high = statistics.bootstrap(quality.cosines, config.seed, n=config.resamples)
        rows.append(labels | {"measure": "cosine", "value": quality.cosines.mean(), "low": low, "high": high})
    here, there = both[0]["W_U"][matched.source], both[1]["W_U"][matched.target]
    wrong = transfer.fit_shuffled(here, there, count=config.shuffled_maps, seed=config.seed)
    found += [
        Carried("shuffled map", concept_vectors.unit(source @ one.matrix), number) for number, one in enumerate(wrong)
    ]
    found += [
        Carried("random", np.repeat(unit[None], blocks, axis=0), number)
        for number, unit in enumerate(
            concept_vectors.unit(
                np.random.default_rng(config.seed + 1).normal(size=(config.random_vectors, taker.vectors.shape[1]))
            )
        )
    ]
    return found, rows
