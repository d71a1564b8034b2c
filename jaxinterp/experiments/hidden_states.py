"""Does the geometry that two models' embeddings share persist through their hidden states?

The same words are read in both models after every block: alone behind an opening token, and in sentences where both
tokenizers end a word. Layers are matched by relative depth. At each pair: do the pairwise cosines agree, do nearest
neighbours, and how well do maps carry one model's states to the other's: the map that was fitted on the embeddings, one
refitted at that layer, and maps fitted on wrongly paired words. The refitted maps at the depths at which the
steering experiment adds vectors are kept for it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxinterp.analysis import persistence
from jaxinterp.analysis.hidden_states import paired_stages
from jaxinterp.analysis.shared_words import SharedWords, read_alone, read_in_sentences
from jaxinterp.experiments.claims import Claim, from_row
from jaxinterp.figures import hidden_states
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import sentences

PAPER = "lee2025geometry"

_LOG = logging.getLogger(__name__)

DIRECTIONS = ("source to target", "target to source")
PROTOCOLS = ("alone", "in context")
GIVEN = {"embedding map": "least_squares", "embedding map, procrustes": "procrustes"}
"""Maps of the alignment that are tried on hidden states: name here -> name there."""
_NULLS = ("relabelled", "relabelled within rank bins")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the hidden-state experiment."""

    words: int = 3000
    """Words that are read alone: shared tokens of a space and letters, drawn at random."""
    sentences: int = 600
    """Sentences for the words in context; each word counts once, wherever it occurs."""
    held_out: float = 0.3
    """Share of the words that no map is fitted on; they are also what a prediction is looked for among."""
    openings: tuple[str, ...] = ("<|endoftext|>", "<bos>")
    """Special tokens that open a text, the first that a tokenizer has; else the one it begins or ends texts with."""
    neighbours: int = 10
    """Nearest neighbours that are compared."""
    permutations: int = 50
    """Relabellings of the words in each null."""
    null_words: int = 500
    """Words on which the correlation is taken under relabelling; the correlation itself is over all of them."""
    rank_bins: int = 20
    """Bins of token rank within which the rank-matched null relabels; rank stands for frequency."""
    shuffled_maps: int = 5
    """Maps fitted on wrongly paired words, at each layer and of the alignment's."""
    depths: tuple[float, ...] = (0.35, 0.5, 0.7, 0.85)
    """Where the steering experiment adds vectors, as a share of the blocks; maps fitted there are kept."""
    seed: int = 0
    """Of the words, the sentences, the split, the relabellings and the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """The arrays that other experiments take from this one.

    Attributes:
        values: `{direction}/{depth}` -> the map fitted in context at that depth [from_embedding, to_embedding]. It goes
            from `resid_post` of one model to `resid_post` of the other, both of the block with the number
            min(blocks - 1, round(depth * blocks)).
        axes: Name -> names of the array's axes.
    """

    values: dict[str, np.ndarray]
    axes: dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Blocks passed in each model, or `None` behind the final norm, and how the table says so."""

    source: int | None
    target: int | None
    labels: dict


def run(
    config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[pl.DataFrame, Maps]:
    """Read both models, compare their geometries and judge the maps.

    Args:
        config: Settings.
        models: `{"source": ..., "target": ...}`, as for the alignment.
        inputs: `{"alignment": arrays}`, the maps that the alignment made.

    Returns:
        The table, and the refitted maps. Table: `protocol` (alone, in context), `part` (geometry, map, kept map),
        `place` (embedding, block, final norm), `source_layer`, `target_layer` (-1 for the embedding, null behind the
        final norm), `depth` (share of the target's blocks that were passed), `direction` and `method` (of maps),
        `measure`, `value`, `low`, `high`, `n`, `control`; measures and intervals are those of
        `jaxinterp.analysis.persistence`.

    Raises:
        ValueError: The alignment is missing or was made for other models, or there are too few words to fit a map.
    """
    given = _given_maps(models, inputs)
    source, target = models["source"], models["target"]
    rows: list[dict] = []
    _LOG.info("words alone")
    words = read_alone(source, target, config.words, openings=config.openings, seed=config.seed)
    rows += [row | {"protocol": PROTOCOLS[0]} for row in _compare(config, words, given)]
    _LOG.info("words in context")
    texts = sentences.write_sentences(config.sentences, config.seed)
    words = read_in_sentences(source, target, texts, openings=config.openings, seed=config.seed)
    rows += [row | {"protocol": PROTOCOLS[1]} for row in _compare(config, words, given)]
    values: dict[str, np.ndarray] = {}
    for name, found, judged in _keep_maps(config, words):
        values[name] = found
        rows += [row | {"protocol": PROTOCOLS[1]} for row in judged]
    columns = ("protocol", "part", "place", "source_layer", "target_layer", "depth", "direction", "method", "measure")
    columns += ("value", "low", "high", "n", "control")
    empty = dict.fromkeys(columns) | {"control": False}
    table = pl.DataFrame([empty | row for row in rows], infer_schema_length=None).select(columns)
    table = table.with_columns(pl.col("depth", "value", "low", "high").cast(pl.Float64))
    return table, Maps(values, dict.fromkeys(values, ("from_embedding", "to_embedding")))


_Given = Mapping[str, tuple[dict[str, np.ndarray], list[np.ndarray]]]
"""Direction -> the alignment's maps by their names here, and those it fitted on shuffled pairs."""


def _given_maps(models: Mapping[str, LanguageModel], inputs: Mapping[str, Mapping[str, np.ndarray]]) -> _Given:
    if "alignment" not in inputs:
        raise ValueError("hidden_states needs the arrays of the alignment; pass them as inputs={'alignment': arrays}")
    maps = inputs["alignment"]
    widths = tuple(models[name].architecture.embedding for name in ("source", "target"))
    shape = maps[f"{DIRECTIONS[0]}/least_squares"].shape
    if shape != widths:
        raise ValueError(
            f"the alignment maps {shape[0]} to {shape[1]} dimensions, but the models have {widths[0]} and {widths[1]}; "
            "make it for these models"
        )
    return {
        way: ({here: maps[f"{way}/{there}"] for here, there in GIVEN.items()}, list(maps[f"{way}/shuffled"]))
        for way in DIRECTIONS
    }


def _compare(config: Config, words: SharedWords, given: _Given) -> Iterator[dict]:
    """All rows of one protocol but its name."""
    train, held = _split(config, words)
    edges = np.quantile(words.ranks, np.linspace(0, 1, config.rank_bins + 1)[1:-1])
    for place in _places(words.source.blocks, words.target.blocks):
        _LOG.info("%s, %.0f %% of the depth", place.labels["place"], 100 * place.labels["depth"])
        here, there = words.source.after(place.source), words.target.after(place.target)
        measured = persistence.compare_geometries(
            here,
            there,
            np.digitize(words.ranks, edges),
            k=config.neighbours,
            permutations=config.permutations,
            sample=config.null_words,
            seed=config.seed,
        )
        yield from (row | place.labels | {"part": "geometry"} for row in measured)
        for direction, (one, other) in zip(DIRECTIONS, ((here, there), (there, here)), strict=True):
            right, wrong = given[direction]
            judged, _ = persistence.compare_maps(
                one,
                other,
                train,
                held,
                given=right,
                wrong=wrong[: config.shuffled_maps],
                shuffled=config.shuffled_maps,
                seed=config.seed,
            )
            yield from (row | place.labels | {"part": "map", "direction": direction} for row in judged)


def _keep_maps(config: Config, words: SharedWords) -> Iterator[tuple[str, np.ndarray, list[dict]]]:
    """For each depth of the steering experiment and each direction the map's name, its matrix and its rows."""
    train, held = _split(config, words)
    for depth in config.depths:
        layers = [min(states.blocks - 1, round(depth * states.blocks)) for states in (words.source, words.target)]
        here, there = words.source.after(layers[0] + 1), words.target.after(layers[1] + 1)
        labels = {"part": "kept map", "place": "block", "depth": depth}
        labels |= {"source_layer": layers[0], "target_layer": layers[1]}
        for direction, (one, other) in zip(DIRECTIONS, ((here, there), (there, here)), strict=True):
            judged, found = persistence.compare_maps(
                one, other, train, held, given={}, wrong=(), shuffled=0, seed=config.seed
            )
            yield f"{direction}/{depth}", found.matrix, [row | labels | {"direction": direction} for row in judged]


def _split(config: Config, words: SharedWords) -> tuple[np.ndarray, np.ndarray]:
    """Words that maps are fitted on, and those they are judged on."""
    held = round(config.held_out * len(words))
    widest = max(states.final.shape[1] for states in (words.source, words.target))
    if held < 2 or len(words) - held <= widest:
        raise ValueError(
            f"{len(words)} words were read in both models, and {held} of them are held out; a map from {widest} "
            "dimensions needs more than that to be fitted on: raise words and sentences, or lower held_out"
        )
    order = np.random.default_rng([config.seed, 1]).permutation(len(words))
    return order[held:], order[:held]


def _places(source: int, target: int) -> Iterator[_Place]:
    for passed_source, passed in paired_stages(source, target):
        labels = {"source_layer": passed_source - 1, "target_layer": passed - 1, "depth": passed / target}
        yield _Place(passed_source, passed, labels | {"place": "block" if passed else "embedding"})
    yield _Place(None, None, {"source_layer": None, "target_layer": None, "depth": 1.0, "place": "final norm"})


def figure(table: pl.DataFrame) -> Figure:
    """Agreement of the geometries, and what the maps retrieve, over the depth of the network.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return hidden_states.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before this code was run on a real model.

    Args:
        table: As from `run`.

    Returns:
        Four claims for each protocol.
    """
    claims: list[Claim] = []
    for protocol in PROTOCOLS:
        here = table.filter(pl.col("protocol") == protocol)
        claims += _geometry_claims(protocol, here.filter(pl.col("part") == "geometry"))
        claims += _map_claims(protocol, here.filter(pl.col("part") == "map", pl.col("place") == "block"))
    return claims


def _geometry_claims(protocol: str, table: pl.DataFrame) -> Iterator[Claim]:
    blocks = table.filter(pl.col("place") == "block")
    behind = table.filter(pl.col("place") == "final norm", pl.col("measure") == "r").row(0, named=True)
    for depth, least, where in ((0.0, 0.2, "every block"), (0.75, 0.5, "every block in the last quarter of the depth")):
        part = blocks.filter(pl.col("depth") >= depth)
        row = part.filter(pl.col("measure") == "r").sort("value").row(0, named=True)
        nulls = part.filter(pl.col("target_layer") == row["target_layer"], pl.col("control"))
        null = {name: nulls.filter(pl.col("measure") == f"r, {name}").row(0, named=True) for name in _NULLS}
        yield Claim(
            criterion=f"Words {protocol}: r of all pairwise cosines (centred) is at least {least} after {where}; the "
            "lowest is shown",
            paper="alignment persists through the hidden states; no number known",
            **from_row(row),
            control=f"layer {row['source_layer']}/{row['target_layer']}; "
            + "; ".join(f"{name}: up to {null[name]['high']:.3f}" for name in _NULLS)
            + f"; for comparison, behind the final norm r is {behind['value']:.3f}",
            met=row["value"] >= least,
        )


def _map_claims(protocol: str, table: pl.DataFrame) -> Iterator[Claim]:
    top1 = table.filter(pl.col("measure") == "top-1")
    first = next(iter(GIVEN))
    row = top1.filter(pl.col("method") == first).sort("value").row(0, named=True)
    worst = top1.filter(pl.col("method") == "given, shuffled")["value"].to_numpy().max()
    yield Claim(
        criterion=f"Words {protocol}: the map fitted on embeddings finds more of the held-out words than chance after "
        "every block, in both directions (the interval of top-1 lies above 1 / n; the lowest is shown)",
        paper="not known",
        **from_row(row),
        control=f"chance {1 / row['n']:.4f}; the same maps from shuffled tokens: up to {worst:.4f}; "
        f"{row['direction']}, layer {row['source_layer']}/{row['target_layer']}",
        met=row["low"] > 1 / row["n"],
    )
    gains = table.filter(pl.col("measure") == "top-1 gained by refitting").sort("value")
    gained = gains.filter(pl.col("method") == first).row(0, named=True)
    other = gains.filter(pl.col("method") != first).row(0, named=True)
    worst = top1.filter(pl.col("method") == "refitted, shuffled")["value"].to_numpy().max()
    yield Claim(
        criterion=f"Words {protocol}: a map refitted at the layer finds more of the held-out words than the map fitted "
        "on embeddings after every block, both least squares, in both directions (the smallest gain in top-1 is shown)",
        paper="not known",
        **from_row(gained),
        control=f"{gained['direction']}, layer {gained['source_layer']}/{gained['target_layer']}; refitted on shuffled "
        f"words: top-1 up to {worst:.4f}; smallest gain over the {other['method']}: {other['value']:.3f} "
        f"[{other['low']:.3f}, {other['high']:.3f}] at layer {other['source_layer']}/{other['target_layer']}",
        met=gained["low"] > 0,
    )
