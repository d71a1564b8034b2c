"""Does a vector that steers one model steer another one, carried over by a map between their embeddings?

Vectors are mean differences of activations over contrasts written for it, for concepts and for two-choice behaviours.
What they do is measured on words, prompts and questions that built none of them: half the change of the log-odds from
the vector subtracted to the vector added, at fixed depths, one unit being the norm of the target's own vectors there.
Nothing is chosen by looking at effects. Every vector stands beside random ones, ones carried over by maps fitted on
shuffled pairs, and itself on the direct path: added after the last block, where no block computes with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.emb2emb import effects, texts, vectors
from jaxinterp.experiments.emb2emb.claims import claims
from jaxinterp.experiments.emb2emb.effects import Effects, Row
from jaxinterp.experiments.emb2emb.groups import Group, build_groups
from jaxinterp.experiments.emb2emb.texts import Vocabularies
from jaxinterp.experiments.emb2emb.vectors import DIRECTIONS, Arrays, Behaviour, Candidate, Side
from jaxinterp.figures import steering_panels
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts, two_choice
from jaxinterp.tasks.concepts import Concept

PAPER = "lee2025geometry"

COLUMNS = ("stage", "direction", "concept", "vector", "draw", "layer", "depth", "scale", "measure")
COLUMNS += ("value", "low", "high", "n", "control", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the steering experiment."""

    concepts: tuple[str, ...] = (*concepts.CONCEPTS, *two_choice.BEHAVIOURS)
    """Which concepts and two-choice behaviours; names in jaxinterp.tasks.concepts and jaxinterp.tasks.two_choice."""
    depths: tuple[float, ...] = (0.5, 0.7)
    """Where vectors are added, as a share of the blocks."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Lengths of the added vectors, with both signs, in units of the mean norm of the target's own vectors there."""
    prompts: int = 12
    """Most prompts, or questions of a two-choice behaviour, on which effects are measured."""
    random_vectors: int = 100
    """Random vectors in each model, for each kind of prompts."""
    shuffled_maps: int = 20
    """Maps fitted on wrongly paired tokens, in each direction; at most as many as the alignment made."""
    text_depth: float = 0.7
    """The depth at which texts are written under a vector and plain text is read under it; the nearest one is taken."""
    plain_texts: int = 8
    """Plain sentences on which perplexity is measured."""
    random_texts: int = 3
    """Random vectors under which texts are written and plain text is read."""
    samples: int = 4
    """Texts written under each vector."""
    sample_tokens: int = 24
    """Length of each text, in tokens."""
    sample_scale: float = 2.0
    """Length of the vectors under which texts are written, in the same units."""
    temperature: float = 0.8
    """Of the texts."""
    seed: int = 0
    """Of the random vectors, the texts and the bootstrap."""


def run(config: Config, models: Mapping[str, LanguageModel], inputs: Arrays) -> pl.DataFrame:
    """Steer both models with their own and with each other's vectors.

    Args:
        config: Settings.
        models: `{"source": ..., "target": ...}`, as for the alignment.
        inputs: `{"alignment": arrays}`, the maps that the alignment made; `"hidden_states"`, if there are any, maps
            between the models' hidden states named by direction and depth.

    Returns:
        One row per number. `stage`: vectors (properties), dose (change of the log-odds at a signed scale), effect (half
        the change from minus to plus one unit), direct path (the same, added after the last block), gate, ratio,
        readout (in the vocabulary), cost (on plain text), generation, sample. `direction` says which way vectors were
        carried; effects are on the model it leads to. `concept`, `vector`, `draw`, `layer`, `depth`, `scale`,
        `measure`, `value`, `low`, `high` (95 %: over prompts and word pairs; nulls: middle 95 % of the draws), `n`,
        `control` (whether the row is a null) and `text`.

    Raises:
        ValueError: A concept is unknown, there are no controls, or maps are missing or were made for other models.
    """
    if min(config.random_vectors, config.shuffled_maps) < 1:
        raise ValueError("every effect stands beside nulls; set random_vectors and shuffled_maps to at least 1")
    behaviours = vectors.find_behaviours(config.concepts)
    vectors.check_maps(inputs, models, config.depths)
    names = ("source", "target")
    tokenizers = [models[name].require_tokenizer() for name in names]
    pairs = [concepts.word_ids(entry, *tokenizers) if isinstance(entry, Concept) else None for entry in behaviours]
    sides = {
        name: vectors.build_side(models[name], behaviours, depths=config.depths, seed=config.seed) for name in names
    }
    vocabularies = Vocabularies(models, sides)
    rows: list[Row] = []
    for direction in DIRECTIONS:
        taker = sides[direction.split(" to ")[1]]
        own = [None if entry is None else entry[names.index(direction.split(" to ")[1])].pairs for entry in pairs]
        groups = build_groups(taker, behaviours, own, texts=config.prompts)
        found = _steer(config, direction, sides, groups, behaviours, inputs, vocabularies)
        rows += [_labelled(row, direction, config, taker, behaviours) for row in found]
    table = pl.DataFrame(rows, infer_schema_length=None).select(COLUMNS)
    return table.with_columns(pl.col("value", "low", "high", "scale", "depth").cast(pl.Float64))


def _labelled(
    row: Row, direction: str, config: Config, taker: Side, behaviours: Sequence[Behaviour]
) -> dict[str, object]:
    """A row of the table, its indices written out."""
    empty: dict[str, object] = dict.fromkeys(COLUMNS) | {"control": False, "direction": direction}
    found = empty | {name: value for name, value in row.items() if name not in ("slot", "place")}
    if row.get("place") is not None:
        found["concept"] = behaviours[row["place"]].name
    if row.get("slot") is not None:
        found |= {"depth": config.depths[row["slot"]], "layer": taker.layers[row["slot"]]}
    return found


def _steer(
    config: Config,
    direction: str,
    sides: Mapping[str, Side],
    groups: Sequence[Group],
    behaviours: Sequence[Behaviour],
    inputs: Arrays,
    vocabularies: Vocabularies,
) -> Iterator[Row]:
    giver, taker = (sides[name] for name in direction.split(" to "))
    rng = np.random.default_rng([config.seed, DIRECTIONS.index(direction)])
    unembedding = taker.unembedding
    measured: dict[int, Effects] = {}
    tried: dict[str, list[Candidate]] = {}
    for group in groups:
        tried[group.name] = list(
            vectors.candidates(
                direction,
                giver,
                taker,
                group.members,
                inputs,
                depths=config.depths,
                scored={place: unembedding[group.scored_ids(place)] for place in group.members},
                shuffled_maps=config.shuffled_maps,
                random_vectors=config.random_vectors,
                rng=rng,
            )
        )
        label = f"{direction}, {group.name}"
        measured |= effects.measure(group, taker, tried[group.name], config.scales, label)
    for group in groups:
        randoms = texts.random_units(tried[group.name])
        for place in group.members:
            found = [
                *_describe(taker, tried[group.name], place),
                *effects.dose_rows(measured[place], config.seed),
                *effects.effect_rows(measured[place], config.seed),
                *effects.gate_rows(measured[place], taker.halves[place], config.seed),
                *effects.ratio_rows(measured[place], config.seed),
                *texts.readout_rows(
                    vocabularies,
                    direction,
                    sides,
                    place,
                    inputs,
                    config.depths,
                    shuffled_maps=config.shuffled_maps,
                    randoms=randoms,
                ),
            ]
            yield from ({"place": place} | row for row in found)
    yield from _texts(config, taker, groups, tried, behaviours)


def _describe(taker: Side, tried: Sequence[Candidate], place: int) -> Iterator[Row]:
    """Length of the model's own vector, and how near carried ones come to its direction."""
    norms = np.linalg.norm(taker.vectors[place], axis=-1)
    own = [candidate for candidate in tried if candidate.behaviour == place]
    native = next(candidate.units for candidate in own if candidate.vector == "native")
    for slot, norm in enumerate(norms):
        row = {"stage": "vectors", "slot": slot, "n": 1}
        share = norm / taker.stream_norms[place, slot]
        yield row | {"vector": "native", "measure": "norm / norm of the stream", "value": share}
        for candidate in own:
            if candidate.vector in (*vectors.TRANSFERRED, "shuffled"):
                labels = {"vector": candidate.vector, "draw": candidate.draw, "control": candidate.control}
                cosine = float(candidate.units[slot] @ native[slot])
                yield row | labels | {"measure": "cosine to native", "value": cosine}


def _texts(
    config: Config,
    taker: Side,
    groups: Sequence[Group],
    tried: Mapping[str, Sequence[Candidate]],
    behaviours: Sequence[Behaviour],
) -> Iterator[Row]:
    """Costs on plain text, and texts written under the native, the carried and some random vectors."""
    slot = int(np.argmin([abs(depth - config.text_depth) for depth in config.depths]))
    main = [(entry, group) for group in groups for entry in tried[group.name] if entry.vector in vectors.MAIN]
    first = groups[0]
    some = [entry for entry in tried[first.name] if entry.vector == "random"][: config.random_texts]
    controls = [(entry, first) for entry in some]
    yield from texts.cost_rows(taker, [*main, *controls], slot, texts=config.plain_texts, seed=config.seed)
    judged = [(place, entry) for place, entry in enumerate(behaviours) if isinstance(entry, Concept)]
    for group in groups:
        (place, *_) = group.members
        if not isinstance(behaviours[place], Concept):
            own = [entry for entry, its in main if its is group]
            yield from ({"place": place} | row for row in texts.letter_rows(taker, group, own, slot, config.seed))
    if judged and config.samples:
        yield from texts.sample_rows(
            taker,
            [pick for pick in main if isinstance(behaviours[pick[0].behaviour or 0], Concept)] + controls,
            judged,
            slot,
            config.sample_scale,
            samples=config.samples,
            tokens=config.sample_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )


def figure(table: pl.DataFrame) -> Figure:
    """Effects with their nulls, effects over depths and scales, what vectors say in the vocabularies.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return steering_panels.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before any effect was measured.

    Args:
        table: As from `run`.

    Returns:
        The claims; see `jaxinterp.experiments.emb2emb.claims`.
    """
    return claims(table)
