"""What the vectors do in a model that they were carried to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import signed_effects, statistics
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.experiments.family import vectors
from jaxinterp.experiments.family.vectors import Carried, Own
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import small_language

if TYPE_CHECKING:
    from jaxinterp.experiments.within_family import Config

SAMPLED = ("native", "least squares", "shuffled map", "random")
"""Vectors under which texts are written."""


def steer(
    config: Config, first: LanguageModel, second: LanguageModel, giver: Own, taker: Own, judged: np.ndarray
) -> Iterator[dict]:
    """Adds all vectors to the second model and measures what they do.

    Args:
        config: Settings.
        first: The model whose vectors are carried over.
        second: The model that is steered.
        giver: What the first knows of the register.
        taker: What the second does.
        judged: Ids of the pairs that judge, int [pair, 2].

    Yields:
        Rows on maps, effects, direct paths, ratios and texts.
    """
    carried, rows = vectors.carry(config, first, second, giver, taker, judged)
    yield from rows
    cells = [(depth, config.scale) for depth in config.depths]
    cells += [(config.depth, scale) for scale in config.scales if scale != config.scale]
    tried = [
        (vector, depth, scale)
        for vector in carried
        for depth, scale in cells
        if scale == config.scale or not vector.control
    ]
    chosen = {(vector.method, vector.draw): vector for vector in carried}
    shown = [vector for vector in chosen.values() if not vector.control]
    norms = np.linalg.norm(taker.vectors, axis=-1)

    def push(vector: Carried, depth: float, scale: float, at: float | None = None) -> Push:
        layer = vectors.layer_at(depth, second)
        return Push(vectors.layer_at(at or depth, second), vector.units[layer] * (scale * norms[layer]))

    pushes = [push(*entry) for entry in tried] + [push(vector, config.depth, config.scale, 1.0) for vector in shown]
    language = small_language.Language()
    prompts = [language.opening(index) for index in range(config.prompts)]
    effects = signed_effects.signed_effects(second, prompts, pushes, judged)
    means = _means(config, effects)
    here: dict[tuple[str, int], np.ndarray] = {}
    for (vector, depth, scale), effect, mean in zip(tried, effects, means, strict=False):
        best = depth == config.depth and scale == config.scale
        if best:
            here[vector.method, vector.draw] = effect
        labels = {"part": "effect", "measure": "effect", "depth": depth, "scale": scale, "chosen": best}
        yield labels | mean | vector.labels()
    labels = {"depth": config.depth, "scale": config.scale, "chosen": True, "n": len(prompts)}
    for vector, effect, mean in zip(shown, effects[len(tried) :], means[len(tried) :], strict=True):
        found = {"part": "direct path", "measure": "effect", "depth": 1.0}
        yield labels | mean | vector.labels() | found
        share = _ratio(config, effect, here[vector.method, 0])
        yield labels | share | vector.labels() | {"part": "ratio", "measure": "direct path / full"}
    for key, vector in chosen.items():
        if vector.method != "native":
            share = _ratio(config, here[key], here["native", 0])
            yield labels | share | vector.labels() | {"part": "ratio", "measure": "to native"}
    yield from _write(config, second, {name: push(chosen[name, 0], config.depth, 2 * config.scale) for name in SAMPLED})


def _means(config: Config, effects: np.ndarray) -> list[dict]:
    """Mean over prompts of each row of effects [push, prompt], with its interval."""
    lows, highs = statistics.bootstrap_means(effects.T, config.seed, config.resamples)
    return [
        {"value": float(effect.mean()), "low": float(low), "high": float(high), "n": len(effect)}
        for effect, low, high in zip(effects, lows, highs, strict=True)
    ]


def _ratio(config: Config, upper: np.ndarray, lower: np.ndarray) -> dict:
    value, low, high = signed_effects.ratio_of_means(upper, lower, config.seed, config.resamples)
    return {"value": value, "low": low, "high": high}


def _write(config: Config, model: LanguageModel, pushes: Mapping[str, Push]) -> Iterator[dict]:
    """Texts under the vectors, added and subtracted, and which register their words are of."""
    language = small_language.Language()
    prompts = [language.opening(20_000 + index) for index in range(config.sample_prompts)]
    for name, push in pushes.items():
        for sign in (1.0, -1.0):
            steered = ji.steer(model, ji.resid_post(push.layer), (sign * push.vector).astype(np.float32))
            texts = ji.generate(
                steered,
                prompts,
                max_new_tokens=config.sample_tokens,
                temperature=0.8,
                key=jax.random.key(config.seed),
            )
            labels = {"part": "sample", "method": name, "measure": "share of formal words", "scale": sign * 2}
            for prompt, text in zip(prompts, texts, strict=True):
                formal, casual = small_language.count_registers(text)
                share = formal / (formal + casual) if formal + casual else None
                yield labels | {"value": share, "n": formal + casual, "text": f"{prompt}|{text}"}
