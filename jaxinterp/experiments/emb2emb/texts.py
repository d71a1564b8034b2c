"""What vectors of the steering experiment say in the vocabulary, write in free text, and cost on plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import concept_vectors, statistics, vocabulary_readout
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.analysis.push_effects import CleanTexts
from jaxinterp.analysis.vocabulary_readout import Readout
from jaxinterp.experiments.emb2emb.effects import Row
from jaxinterp.experiments.emb2emb.groups import Group
from jaxinterp.experiments.emb2emb.vectors import MAIN, Arrays, Candidate, Side, carried, make_push
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts, vocabularies
from jaxinterp.tasks.concepts import Concept

TOP = 50
"""How many tokens of a readout are compared."""
SHOWN = 8
"""How many of them are written out."""
_ROWS = 64
"""Texts that are written at once."""


class Vocabularies:
    """The words that two models share, with their rows of each unembedding.

    Args:
        models: `source` and `target`.
        sides: The same, with their vectors.
    """

    def __init__(self, models: Mapping[str, LanguageModel], sides: Mapping[str, Side]) -> None:
        matched = vocabularies.match_tokens(*(models[name].require_tokenizer() for name in ("source", "target")))
        words = matched.words()
        matched = matched.where(words) if words.sum() > TOP else matched
        ids = {"source": matched.source, "target": matched.target}
        self.names = [key.decode(errors="replace").strip() for key in matched.keys]
        self.readouts = {name: Readout(sides[name].unembedding[ids[name]]) for name in ids}


def readout_rows(
    shared: Vocabularies,
    direction: str,
    sides: Mapping[str, Side],
    place: int,
    inputs: Arrays,
    depths: Sequence[float],
    *,
    shuffled_maps: int,
    randoms: np.ndarray,
) -> Iterator[Row]:
    """Compares what a vector says in its own vocabulary with what it says in the other, carried over.

    Args:
        shared: The words.
        direction: From which model to which.
        sides: Their vectors.
        place: Index of the behaviour.
        inputs: The maps.
        depths: As shares of the blocks.
        shuffled_maps: Most maps fitted on shuffled pairs.
        randoms: Random vectors in the taker's space [vector, embedding].

    Yields:
        For each depth and map the overlap of the best words and the correlation of all ranks, with nulls.
    """
    giver, taker = direction.split(" to ")
    here, there = sides[giver].vectors[place], sides[taker].vectors[place]
    vectors = [("native", 0, there), *carried(direction, here, inputs, depths, shuffled_maps)]
    chance = shared.readouts[taker].scores(randoms)
    chance_ranks = vocabulary_readout.centred_ranks(chance)
    for slot in range(len(depths)):
        own = shared.readouts[giver].scores(here[slot])
        ranks = vocabulary_readout.centred_ranks(own)
        null: dict[str, list[tuple[float, float]]] = {"shuffled": [], "random": []}
        for scores, other in zip(chance, chance_ranks, strict=True):
            null["random"].append((vocabulary_readout.top_overlap(own, scores, TOP), float(ranks @ other)))
        for name, _, units in vectors:
            scores = shared.readouts[taker].scores(units[slot])
            overlap = vocabulary_readout.top_overlap(own, scores, TOP)
            r = float(ranks @ vocabulary_readout.centred_ranks(scores))
            if name == "shuffled":
                null[name].append((overlap, r))
                continue
            row = {"stage": "readout", "vector": name, "draw": 0, "slot": slot}
            text = f"{_best(shared, own)} | {_best(shared, scores)}" if name in MAIN[1:] else None
            low, high = statistics.wilson(round(overlap * TOP), TOP)
            measured = {"measure": f"top-{TOP} overlap", "value": overlap, "low": low, "high": high, "n": TOP}
            yield row | measured | {"text": text}
            low, high = vocabulary_readout.correlation_interval(r, len(own))
            yield row | {"measure": "rank correlation", "value": r, "low": low, "high": high, "n": len(own)}
        for name, found in null.items():
            for column, measure in enumerate((f"top-{TOP} overlap", "rank correlation")):
                values = np.array(found)[:, column]
                low, high = np.quantile(values, [0.025, 0.975])
                row = {"stage": "readout", "vector": name, "slot": slot, "measure": measure, "control": True}
                yield row | {"value": values.mean(), "low": low, "high": high, "n": len(values)}


def _best(shared: Vocabularies, scores: np.ndarray) -> str:
    return ", ".join(shared.names[index] for index in vocabulary_readout.top(scores, SHOWN))


def cost_rows(
    taker: Side, chosen: Sequence[tuple[Candidate, Group]], slot: int, *, texts: int, seed: int
) -> Iterator[Row]:
    """What vectors cost on plain text: perplexity under one unit, as a multiple of that without.

    Args:
        taker: The model.
        chosen: Vectors, each with the group whose norm is its unit.
        slot: Index of the depth.
        texts: How many plain sentences.
        seed: Of the bootstrap over their tokens.

    Yields:
        One row for each vector, and the perplexity without any.
    """
    clean = CleanTexts(taker.model, concepts.PLAIN_TEXTS[:texts], [taker.layers[slot]])
    before = clean.token_losses()
    low, high = statistics.bootstrap(before, seed, n=500)
    row = {"stage": "cost", "measure": "perplexity", "vector": "none", "n": len(before)}
    yield row | {"value": np.exp(before.mean()), "low": np.exp(low), "high": np.exp(high)}
    for candidate, group in chosen:
        more = clean.token_losses(make_push(taker, candidate, slot, group.norms[slot])) - before
        low, high = statistics.bootstrap(more, seed, n=500)
        row = {"stage": "cost", "measure": "perplexity ratio", "slot": slot, "scale": 1.0, "n": len(more)}
        row |= {"place": candidate.behaviour, "vector": candidate.vector, "draw": candidate.draw}
        values = {"value": np.exp(more.mean()), "low": np.exp(low), "high": np.exp(high)}
        yield row | values | {"control": candidate.control}


def letter_rows(taker: Side, group: Group, tried: Sequence[Candidate], slot: int, seed: int) -> Iterator[Row]:
    """Probability that a two-choice question is answered by a letter at all, under one unit of a vector."""
    nothing = Push(taker.layers[slot], np.zeros(taker.model.architecture.embedding))
    pushes = [nothing, *(make_push(taker, candidate, slot, group.norms[slot]) for candidate in tried)]
    mass = np.exp(group.texts.log_mass(pushes, group.ids))
    for vector, values in zip(["none", *(candidate.vector for candidate in tried)], mass, strict=True):
        low, high = statistics.bootstrap(values, seed, n=500)
        row = {"stage": "cost", "measure": "P(A) + P(B)", "vector": vector, "draw": 0, "slot": slot, "scale": 1.0}
        yield row | {"value": values.mean(), "low": low, "high": high, "n": len(values)}


def sample_rows(
    taker: Side,
    chosen: Sequence[tuple[Candidate, Group]],
    judged: Sequence[tuple[int, Concept]],
    slot: int,
    scale: float,
    *,
    samples: int,
    tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[Row]:
    """Texts written under vectors, and how often they use words of the concept that score no vector otherwise.

    Args:
        taker: The model.
        chosen: Vectors, each with the group whose norm is its unit; a random one is judged for every concept.
        judged: (index, concept) pairs.
        slot: Index of the depth.
        scale: Length in these units.
        samples: Texts for each vector.
        tokens: Length of each.
        temperature: Of the drawing.
        seed: Of the drawing.

    Yields:
        One row for each text and one for each vector's mean; vectors of the control are pooled.
    """
    width = taker.model.architecture.embedding
    conditions: list[Candidate | None] = [None, *(candidate for candidate, _ in chosen)]
    vectors = [np.zeros(width)]
    vectors += [make_push(taker, candidate, slot, scale * group.norms[slot]).vector for candidate, group in chosen]
    prompts = [concepts.SAMPLE_PROMPTS[index % len(concepts.SAMPLE_PROMPTS)] for index in range(samples)]
    texts = _write(taker, slot, prompts, np.stack(vectors), tokens=tokens, temperature=temperature, seed=seed)
    scores: dict[tuple[int, str], list[float]] = {}
    for candidate, written in zip(conditions, texts, strict=True):
        vector, draw = ("none", 0) if candidate is None else (candidate.vector, candidate.draw)
        row = {"slot": slot, "scale": scale, "vector": vector, "draw": draw, "control": vector == "random"}
        for place, concept in judged:
            if candidate is not None and candidate.behaviour not in (None, place):
                continue
            for prompt, text in zip(prompts, written, strict=True):
                score = judge_words(text, concept)
                scores.setdefault((place, vector), []).append(score)
                sample = {"stage": "sample", "place": place, "measure": "judge words per 100 words", "value": score}
                shown = vector not in ("none", "random") or (draw, place) == (0, judged[0][0])
                yield row | sample | {"n": 1, "text": f"{prompt}|{text}" if shown else None}
    for (place, vector), values in scores.items():
        low, high = statistics.bootstrap(np.array(values), seed, n=1000)
        row = {"stage": "generation", "place": place, "vector": vector, "slot": slot, "scale": scale}
        row |= {"measure": "judge words per 100 words", "control": vector == "random", "n": len(values)}
        yield row | {"value": np.mean(values), "low": low, "high": high}


def _write(
    taker: Side,
    slot: int,
    prompts: Sequence[str],
    vectors: np.ndarray,
    *,
    tokens: int,
    temperature: float,
    seed: int,
) -> list[list[str]]:
    """Texts [vector][prompt], many vectors at once."""
    step = max(1, _ROWS // len(prompts))
    written: list[list[str]] = []
    for first in range(0, len(vectors), step):
        some = vectors[first : first + step]
        filled = np.pad(some, ((0, step - len(some)), (0, 0))).astype(np.float32)
        steered = ji.steer(taker.model, ji.resid_post(taker.layers[slot]), np.repeat(filled, len(prompts), axis=0))
        key = jax.random.key(seed)
        rows = [prompt for _ in filled for prompt in prompts]
        texts = ji.generate(steered, rows, max_new_tokens=tokens, temperature=temperature, key=key)
        written += [texts[index * len(prompts) : (index + 1) * len(prompts)] for index in range(len(some))]
    return written


def judge_words(text: str, concept: Concept) -> float:
    """Words of a concept less words of its opposite, per 100 words; none of them scores a vector otherwise.

    Args:
        text: Written by a model.
        concept: With its lists of words.

    Returns:
        In [-100, 100].
    """
    found = re.findall(r"[^\W\d_]+", text.lower())
    known, against = ({word.lower() for word in words} for words in (concept.words, concept.opposites))
    return 100 * sum((word in known) - (word in against) for word in found) / max(len(found), 1)


def random_units(candidates: Sequence[Candidate]) -> np.ndarray:
    """The random vectors among some, [vector, embedding]."""
    return concept_vectors.unit(np.stack([entry.units[0] for entry in candidates if entry.vector == "random"]))
