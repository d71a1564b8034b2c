"""Does a concept vector made in one model steer another one, carried over by a map between their embeddings?

Every vector, the controls included, picks its layer and scale on one set of neutral prompts and is judged on another.
The measure is the log-odds of held-out words of the concept against other words, as the next word; layers are compared
at equal relative depth and scales in units of the norm of the target's own vectors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import polars as pl
from matplotlib.figure import Figure

import jaxinterp as ji
from jaxinterp.analysis import concept_vectors, statistics
from jaxinterp.analysis.concept_vectors import NextWord, Push
from jaxinterp.experiments import steering_vectors
from jaxinterp.experiments.claims import Claim
from jaxinterp.experiments.steering_vectors import KINDS, Candidate, Side
from jaxinterp.figures import steering_effects
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts

PAPER = "lee2025geometry"

DIRECTIONS = ("source to target", "target to source")
Cell = tuple[int, float]
"""Index of the depth, and scale."""
Pick = tuple[Candidate, int, Cell]
"""A vector, the concept it is tried on, and the layer and scale that it chose."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the steering experiment."""

    concepts: tuple[str, ...] = ("wedding", "ocean", "sentiment")
    """Which concepts; names in jaxinterp.tasks.concepts."""
    depths: tuple[float, ...] = (0.35, 0.5, 0.7, 0.85)
    """Where vectors are added, as a share of the blocks."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Lengths of the added vectors, in units of the mean norm of the target's own vectors at that layer."""
    most_kl: float = 2.0
    """Layers and scales that move the next-token distribution further than this (in nats) are not chosen."""
    selection_prompts: int = 4
    """Prompts on which each vector's layer and scale are chosen."""
    evaluation_prompts: int = 16
    """Other prompts, on which effects are reported."""
    random_vectors: int = 20
    """Random vectors in each model."""
    shuffled_maps: int = 5
    """Maps fitted on wrongly paired tokens, in each direction; at most as many as the alignment made."""
    rows: int = 64
    """Rows in one forward pass."""
    samples: int = 4
    """Texts written under each condition."""
    sample_tokens: int = 24
    """Length of each text, in tokens."""
    temperature: float = 0.8
    """Of the texts."""
    seed: int = 0
    """Of the random vectors, the texts and the bootstrap."""


def run(
    config: Config, models: Mapping[str, LanguageModel], inputs: Mapping[str, Mapping[str, np.ndarray]]
) -> pl.DataFrame:
    """Steer both models with their own and with each other's vectors.

    Args:
        config: Settings.
        models: `{"source": ..., "target": ...}`, as for the alignment.
        inputs: `{"alignment": arrays}`, the maps that the alignment made.

    Returns:
        One row per number. `stage`: vectors (properties of a vector), selection, evaluation, direct path (the chosen
        vector added after the last block instead), ratio, sample. `direction` says which way vectors were carried;
        effects are on the model it leads to. `concept`, `kind`, `vector`, `draw`, `layer`, `depth`, `scale`, `measure`
        (contrast and log mass in nats, KL in nats, cosines, ratios, share of concept words), `value`, `low`, `high`
        (95 % bootstrap over prompts), `n` (prompts), `allowed` (selection: whether the KL is small enough) and `text`
        (samples).

    Raises:
        ValueError: A concept is unknown, the alignment is missing or was made for other models.
    """
    chosen = steering_vectors.find_concepts(config.concepts)
    maps = steering_vectors.check_maps(inputs, models)
    names = ("source", "target")
    vocabularies = [models[name].require_tokenizer() for name in names]
    ids = [concepts.word_ids(concept, *vocabularies) for concept in chosen]
    sides = {
        name: steering_vectors.build_side(
            models[name],
            chosen,
            [entry[place] for entry in ids],
            maps[f"{name} mean"],
            depths=config.depths,
            seed=config.seed,
        )
        for place, name in enumerate(names)
    }
    rows: list[dict] = []
    for direction in DIRECTIONS:
        giver, taker = (sides[name] for name in direction.split(" to "))
        rows += [row | {"direction": direction} for row in _steer(config, direction, giver, taker, chosen, maps)]
    columns = ("stage", "direction", "concept", "kind", "vector", "draw", "layer", "depth", "scale")
    columns += ("measure", "value", "low", "high", "n", "allowed", "text")
    empty: dict = dict.fromkeys(columns)
    table = pl.DataFrame([empty | row for row in rows], infer_schema_length=None).select(columns)
    return table.with_columns(pl.col("value", "low", "high", "scale").cast(pl.Float64))


def _steer(
    config: Config,
    direction: str,
    giver: Side,
    taker: Side,
    chosen: Sequence[concepts.Concept],
    maps: Mapping[str, np.ndarray],
) -> Iterator[dict]:
    candidates = list(
        steering_vectors.candidates(
            giver,
            taker,
            maps[f"{direction}/least_squares"],
            maps[f"{direction}/shuffled"][: config.shuffled_maps],
            random_vectors=config.random_vectors,
            rng=np.random.default_rng([config.seed, DIRECTIONS.index(direction)]),
        )
    )
    yield from _describe(config, taker, candidates, chosen)
    cells = [(slot, scale) for slot in range(len(taker.layers)) for scale in config.scales]
    grid = [candidate.push(taker, *cell) for candidate in candidates for cell in cells]
    prompts = concepts.SELECTION_PROMPTS[: config.selection_prompts]
    tried = _measure(config, taker, prompts, grid, f"choosing layers and scales, {direction}")
    picks: list[Pick] = []
    for index, candidate in enumerate(candidates):
        here = slice(index * len(cells), (index + 1) * len(cells))
        kl = tried.kl[here].mean(axis=1)
        for concept in range(len(chosen)) if candidate.concept is None else [candidate.concept]:
            effects = tried.contrast[here, :, concept].mean(axis=1)
            allowed = kl <= config.most_kl if (kl <= config.most_kl).any() else kl == kl.min()
            for place, cell in enumerate(cells):
                labels = _cell_labels(config, taker, cell) | candidate.labels() | {"n": len(prompts)}
                labels |= {"stage": "selection", "concept": chosen[concept].name, "allowed": bool(allowed[place])}
                yield labels | {"measure": "contrast", "value": effects[place]}
                if candidate.vector in ("native", "transferred"):
                    yield labels | {"measure": "KL", "value": kl[place]}
            picks.append((candidate, concept, cells[int(np.argmax(np.where(allowed, effects, -np.inf)))]))
    yield from _evaluate(config, direction, taker, picks, chosen)
    yield from _write_samples(config, taker, picks, chosen)


def _measure(config: Config, side: Side, prompts: Sequence[str], pushes: list[Push], label: str) -> NextWord:
    return concept_vectors.next_word_effects(side.model, prompts, pushes, side.words, rows=config.rows, progress=label)


def _cell_labels(config: Config, side: Side, cell: Cell) -> dict:
    return {"layer": side.layers[cell[0]], "depth": config.depths[cell[0]], "scale": cell[1]}


def _describe(
    config: Config, taker: Side, candidates: Sequence[Candidate], chosen: Sequence[concepts.Concept]
) -> Iterator[dict]:
    natives = {(c.concept, c.kind): c.units for c in candidates if c.vector == "native"}
    for concept, about in enumerate(chosen):
        for slot in range(len(taker.layers)):
            labels = {"stage": "vectors", "concept": about.name, "layer": taker.layers[slot]}
            labels |= {"depth": config.depths[slot], "n": len(about.sentences)}
            halves = {"kind": "activation", "vector": "native", "measure": "split-half cosine"}
            yield labels | halves | {"value": taker.halves[concept, slot]}
            for candidate in candidates:
                if candidate.concept == concept and candidate.vector in ("transferred", "shuffled"):
                    own = natives[concept, candidate.kind]
                    cosine = float(candidate.units[slot] @ own[slot])
                    yield labels | candidate.labels() | {"measure": "cosine to native", "value": cosine}


def _evaluate(
    config: Config,
    direction: str,
    taker: Side,
    picks: Sequence[Pick],
    chosen: Sequence[concepts.Concept],
) -> Iterator[dict]:
    prompts = concepts.EVALUATION_PROMPTS[: config.evaluation_prompts]
    last = taker.model.architecture.layers - 1
    pushes = [candidate.push(taker, *cell) for candidate, _, cell in picks]
    direct = [index for index, (candidate, _, _) in enumerate(picks) if candidate.vector in ("native", "transferred")]
    pushes += [picks[index][0].push(taker, *picks[index][2], layer=last) for index in direct]
    found = _measure(config, taker, prompts, pushes, f"held-out prompts, {direction}")
    kept: dict[tuple[int, str, str], np.ndarray] = {}
    for index, (candidate, concept, cell) in enumerate(picks):
        labels = _cell_labels(config, taker, cell) | candidate.labels()
        labels |= {"stage": "evaluation", "concept": chosen[concept].name, "n": len(prompts)}
        kept.setdefault((concept, candidate.kind, candidate.vector), found.contrast[index, :, concept])
        for measure, values in (
            ("contrast", found.contrast[index, :, concept]),
            ("log mass", found.log_mass[index, :, concept]),
            ("KL", found.kl[index]),
        ):
            low, high = statistics.bootstrap(values, config.seed)
            yield labels | {"measure": measure, "value": values.mean(), "low": low, "high": high}
    for place, index in enumerate(direct, start=len(picks)):
        candidate, concept, cell = picks[index]
        labels = {"concept": chosen[concept].name, "n": len(prompts)} | candidate.labels() | {"layer": last}
        labels |= {"depth": 1.0, "scale": cell[1]}
        part = found.contrast[place, :, concept]
        low, high = statistics.bootstrap(part, config.seed)
        effect = {"stage": "direct path", "measure": "contrast", "value": part.mean(), "low": low, "high": high}
        yield labels | effect
        whole = kept[concept, candidate.kind, candidate.vector]
        yield labels | {"stage": "ratio", "measure": "direct path / full"} | _ratio(part, whole, config.seed)
        if candidate.vector == "transferred":
            native = kept[concept, candidate.kind, "native"]
            yield labels | {"stage": "ratio", "measure": "transferred / native"} | _ratio(whole, native, config.seed)


def _ratio(upper: np.ndarray, lower: np.ndarray, seed: int) -> dict:
    """Ratio of means, both over the same prompts, with a paired bootstrap interval."""
    low, high = statistics.bootstrap(
        np.stack([upper, lower], axis=1), seed, lambda drawn: drawn[:, 0].mean() / drawn[:, 1].mean()
    )
    return {"value": upper.mean() / lower.mean(), "low": low, "high": high}


def _write_samples(
    config: Config,
    taker: Side,
    picks: Sequence[Pick],
    chosen: Sequence[concepts.Concept],
) -> Iterator[dict]:
    """Texts under no vector, the native and transferred ones, and the first random one."""
    prompts = [concepts.SAMPLE_PROMPTS[index % len(concepts.SAMPLE_PROMPTS)] for index in range(config.samples)]
    wanted = [
        (candidate, concept, cell)
        for candidate, concept, cell in picks
        if candidate.draw == 0
        and (candidate.vector == "transferred" or (candidate.vector, candidate.kind) == ("native", "activation"))
    ]
    wanted += [pick for pick in picks if pick[0].vector == "random" and pick[0].draw == 0 and pick[1] == 0]
    width = taker.model.architecture.embedding
    pushes: list[tuple[Pick | None, Push]] = [(None, Push(taker.layers[0], np.zeros(width, np.float32)))]
    pushes += [(pick, pick[0].push(taker, *pick[2])) for pick in wanted]
    for pick, push in pushes:
        steered = ji.steer(taker.model, ji.resid_post(push.layer), push.vector.astype(np.float32))
        texts = ji.generate(
            steered,
            prompts,
            max_new_tokens=config.sample_tokens,
            temperature=config.temperature,
            key=jax.random.key(config.seed),
        )
        labels: dict = {"stage": "sample", "vector": "none", "kind": "none"}
        about = range(len(chosen))
        if pick is not None:
            labels = {"stage": "sample"} | pick[0].labels() | _cell_labels(config, taker, pick[2])
            about = range(len(chosen)) if pick[0].concept is None else [pick[1]]
        for concept in about:
            for prompt, text in zip(prompts, texts, strict=True):
                share = concept_share(text, chosen[concept])
                row = {"concept": chosen[concept].name, "measure": "share of concept words", "value": share}
                yield labels | row | {"n": config.samples, "text": f"{prompt}|{text}"}


def concept_share(text: str, concept: concepts.Concept) -> float:
    """Share of a text's words that are in a concept's lists, the held-out ones included."""
    known = {word.lower() for word in (*concept.words, *(word for word, _ in concept.pairs))}
    found = re.findall(r"[a-z]+", text.lower())
    return sum(word in known for word in found) / max(len(found), 1)


def figure(table: pl.DataFrame) -> Figure:
    """Effects on held-out prompts with their controls, and effects over depths.

    Args:
        table: As from `run`.

    Returns:
        The figure.
    """
    return steering_effects.draw(table)


def check(table: pl.DataFrame) -> list[Claim]:
    """Hold the table against the criteria, which were fixed before any effect was measured.

    Args:
        table: As from `run`.

    Returns:
        One claim for each direction, concept and kind of vector about the native vector, one about the transferred.
    """
    claims = []
    evaluated = table.filter(pl.col("stage") == "evaluation", pl.col("measure") == "contrast")
    for direction in DIRECTIONS:
        for concept in table["concept"].drop_nulls().unique(maintain_order=True).to_list():
            here = evaluated.filter(pl.col("direction") == direction, pl.col("concept") == concept)
            random = here.filter(pl.col("vector") == "random")["value"].to_numpy()
            for kind in KINDS:
                parts = {
                    name: here.filter(pl.col("kind") == kind, pl.col("vector") == name)
                    for name in ("native", "transferred", "shuffled")
                }
                ratios = table.filter(
                    *(pl.col(name) == value for name, value in (("stage", "ratio"), ("direction", direction))),
                    pl.col("concept") == concept,
                    pl.col("kind") == kind,
                )
                claims += _claims(direction, concept, kind, parts, random, ratios)
    return claims


def _claims(
    direction: str, concept: str, kind: str, parts: dict[str, pl.DataFrame], random: np.ndarray, ratios: pl.DataFrame
) -> Iterator[Claim]:
    giver, taker = direction.split(" to ")
    by_chance = f"{len(random)} random vectors: mean {random.mean():.2f}, max {random.max():.2f}"
    native, carried = (parts[name].row(0, named=True) for name in ("native", "transferred"))
    yield Claim(
        criterion=f"{concept}, {kind} vector of the {taker} model: its effect on that model exceeds every random "
        "vector's",
        paper="native vectors steer; figures only",
        ours=native["value"],
        low=native["low"],
        high=native["high"],
        n=native["n"],
        control=by_chance,
        met=bool(native["value"] > random.max()),
    )
    wrong, bound = float(parts["shuffled"]["value"].to_numpy().max()), float(np.quantile(random, 0.975))
    shares = {
        (row["measure"], row["vector"]): f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for row in ratios.iter_rows(named=True)
    }
    yield Claim(
        criterion=f"{concept}, {kind} vector of the {giver} model carried to the {taker} model: its effect exceeds the "
        "97.5th percentile of random vectors and every shuffled map's",
        paper="transferred vectors steer; figures only",
        ours=carried["value"],
        low=carried["low"],
        high=carried["high"],
        n=carried["n"],
        control=f"random 97.5 %: {bound:.2f}; max of {len(parts['shuffled'])} shuffled maps: {wrong:.2f}; "
        f"ratio to native {shares['transferred / native', 'transferred']}; "
        f"direct path {shares['direct path / full', 'transferred']} of it, "
        f"of native {shares['direct path / full', 'native']}",
        met=bool(carried["value"] > max(bound, wrong)),
    )
