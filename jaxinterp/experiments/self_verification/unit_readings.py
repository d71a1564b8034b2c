"""What units write and when: lists of units as rows of a table, beside random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import jaxinterp as ji
from jaxinterp.analysis.units import Unit, cosines, pooled_ranking, top_tokens, value_vectors
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

POLARITIES = ("invalid", "valid")
"""As the rows of a probe: row 0 says "not", row 1 "this"."""

TOKENS_READ = 8
"""How many tokens of a readout are looked at."""
WORDS_NEEDED = 3
"""How many of them have to be verdict words of the right polarity."""
UNITS_READ = 20
"""How many units of the pooled ranking are read."""

_READ_AT_ONCE = 32
_READOUTS = ("v", "-v", "v, with gain", "-v, with gain")

Lists = dict[tuple[str, str], list[Unit]]
"""(how they were chosen, polarity) -> units, the first chosen first."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of every unit.

    Attributes:
        vectors: What it writes, [layer, unit, embedding].
        own: Cosine with the probe of its own layer, [polarity, layer, unit].
        largest: Largest cosine with the probe of its own or a later layer of the upper half, [polarity, layer, unit].
        activations: Activation at the verdict's opening, [case, layer, unit].
        valid: Whether the verdict of the case is to accept, [case].
        scores: (mean activation at verdicts of the polarity - mean over all tokens) times the product of what it
            writes with the probe, [polarity, layer, unit].
        rankings: Units ranked by the largest cosine, over all layers together, of each polarity.
    """

    vectors: np.ndarray
    own: np.ndarray
    largest: np.ndarray
    activations: np.ndarray
    valid: np.ndarray
    scores: np.ndarray
    rankings: tuple[list[Unit], list[Unit]]


def find_facts(model: LanguageModel, directions: np.ndarray, selection: Sequence[Case], count: int, most: int) -> Facts:
    """Compares what units write with the probes, and reads when they are active.

    Args:
        model: The model.
        directions: Probe behind each block, [layer, 2, embedding].
        selection: Cases of both verdicts.
        count: How many units each pair of a probe's layer and a unit's layer contributes to the pooled ranking.
        most: How many units it keeps.

    Returns:
        What is known of every unit.
    """
    vectors = value_vectors(model)
    every = cosines(vectors, directions.swapaxes(0, 1))  # [polarity, probe's layer, unit's layer, unit]
    layers, first = np.arange(len(vectors)), len(vectors) // 2
    activations, overall = _activations(model, selection)
    valid = np.array([case.valid for case in selection])
    means = np.stack([activations[valid == bool(row)].mean(axis=0) for row in range(2)])
    products = np.stack([np.matmul(vectors, directions[:, row, :, None])[..., 0] for row in range(2)])
    return Facts(
        vectors=vectors,
        own=every[:, layers, layers],
        largest=np.stack([every[:, max(first, layer) :, layer].max(axis=1) for layer in layers], axis=1),
        activations=activations,
        valid=valid,
        scores=(means - overall) * products,
        rankings=(pooled_ranking(every[0], count, most, first), pooled_ranking(every[1], count, most, first)),
    )


def _activations(model: LanguageModel, chosen: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """At the verdict's opening [case, layer, unit], and the mean over all tokens [layer, unit]."""
    layers = range(model.architecture.layers)
    at_verdict = np.zeros((len(chosen), len(layers), model.architecture.neurons), np.float32)
    total, tokens = np.zeros(at_verdict.shape[1:]), 0
    for group in cases.grouped(chosen, _READ_AT_ONCE):
        _, cache = ji.run(model, group.ids, group.mask, sites=[ji.mlp_post(...)], logits=None)
        for layer in layers:
            array = cache["mlp_post", layer]
            at_verdict[group.order, layer] = array[:, -1]
            total[layer] += array[group.mask].sum(axis=0)
        tokens += int(group.mask.sum())
    return at_verdict, total / tokens


def _read(model: LanguageModel, vectors: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Readout -> token ids and products, each [vector, place]."""
    return {
        name: top_tokens(model, -vectors if name.startswith("-") else vectors, TOKENS_READ, gain=name.endswith("gain"))
        for name in _READOUTS
    }


def _count_words(model: LanguageModel, read: Mapping[str, tuple[np.ndarray, np.ndarray]], row: int) -> dict[str, Any]:
    """Words of the right polarity in each readout, and of the opposite one in that of -v, each int [vector]."""
    accepting, rejecting = verification.verdict_tokens(model.require_tokenizer())
    words = (rejecting, accepting)
    counts = {f"right words in {name}": np.isin(ids, words[row]).sum(axis=1) for name, (ids, _) in read.items()}
    return counts | {"opposite words in -v": np.isin(read["-v"][0], words[1 - row]).sum(axis=1)}


def _readable(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whether each unit reads as words of the right polarity, in one readout and in either."""
    flags = {name: count >= WORDS_NEEDED for name, count in counts.items()}
    for ending in ("", ", with gain"):
        either = flags[f"right words in v{ending}"] | flags[f"right words in -v{ending}"]
        flags[f"right words in v or -v{ending}"] = either
    return flags


def list_rows(model: LanguageModel, facts: Facts, lists: Lists) -> Iterator[dict[str, Any]]:
    """Rows of the parts `unit`, `readout` and `list` of the experiment's table.

    Args:
        model: The model.
        facts: What is known of every unit.
        lists: Units, as they were chosen.

    Yields:
        Rows.
    """
    for (name, polarity), chosen in lists.items():
        row = POLARITIES.index(polarity)
        layer, unit = (np.array(index) for index in zip(*chosen, strict=True))
        read = _read(model, facts.vectors[layer, unit])
        counts = _count_words(model, read, row)
        numbers = {
            "cosine": facts.own[row, layer, unit],
            "largest cosine": facts.largest[row, layer, unit],
            "score of activation and product": facts.scores[row, layer, unit],
            **counts,
        }
        here = facts.activations[:, layer, unit]
        measured = _activation_rows(here, facts.valid)
        for rank, place in enumerate(chosen):
            about = {"list": name, "polarity": polarity, "layer": place[0], "unit": place[1], "rank": rank}
            single = {**about, "control": False, "part": "unit", "n": 1}
            yield from ({**single, "measure": key, "value": float(array[rank])} for key, array in numbers.items())
            yield from ({**single, "measure": key, **some[rank]} for key, some in measured.items())
            yield from _token_rows(
                model, {key: (ids[rank], values[rank]) for key, (ids, values) in read.items()}, about
            )
        first = slice(UNITS_READ if name == "ranking" else None)
        whole = {"part": "list", "list": name, "polarity": polarity, "control": False}
        flags = _readable(counts) | _signs(here, facts.valid, row)
        yield from ({**whole, "measure": key, **cases.proportion(flag[first])} for key, flag in flags.items())


def random_rows(
    model: LanguageModel, facts: Facts, lists: Lists, count: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Units of any layer that are in no list, read as if they had been chosen for either polarity.

    Args:
        model: The model.
        facts: What is known of every unit.
        lists: Units that are not drawn.
        count: How many are.
        rng: Source of randomness.

    Yields:
        Rows of the part `list`.
    """
    chosen = {unit for some in lists.values() for unit in some}
    pool = np.array([unit for unit in np.ndindex(*facts.own.shape[1:]) if unit not in chosen])
    layer, unit = pool[rng.choice(len(pool), min(count, len(pool)), replace=False)].T
    read, here = _read(model, facts.vectors[layer, unit]), facts.activations[:, layer, unit]
    for row, polarity in enumerate(POLARITIES):
        flags = _readable(_count_words(model, read, row)) | _signs(here, facts.valid, row)
        whole = {"part": "list", "list": "random", "polarity": polarity, "control": True}
        yield from ({**whole, "measure": key, **cases.proportion(flag)} for key, flag in flags.items())


def _signs(here: np.ndarray, valid: np.ndarray, row: int) -> dict[str, np.ndarray]:
    """What the activations [case, unit] of each unit are like, as booleans [unit]."""
    at_invalid, at_valid = here[~valid].mean(axis=0), here[valid].mean(axis=0)
    return {
        "negative at valid verdicts": at_valid < 0,
        "negative at invalid verdicts": at_invalid < 0,
        "larger at its own verdict": (at_valid > at_invalid) == bool(row),
    }


def _activation_rows(here: np.ndarray, valid: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Measure -> numbers of each unit; `here` is [case, unit]."""
    measured = {}
    for kind, where in (("valid", valid), ("invalid", ~valid)):
        measured[f"activation at {kind} verdicts"] = cases.means(here[where])
        measured[f"positive at {kind} verdicts"] = [cases.proportion(column > 0) for column in here[where].T]
    return measured


def _token_rows(
    model: LanguageModel, read: Mapping[str, tuple[np.ndarray, np.ndarray]], about: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    tokenizer = model.require_tokenizer()
    accepting, rejecting = verification.verdict_tokens(tokenizer)
    for name in _READOUTS[:2]:
        for place, (token, value) in enumerate(zip(*read[name], strict=True)):
            word = "accepts" if token in accepting else "rejects" if token in rejecting else None
            shown = {"place": place, "token": tokenizer.token(int(token)), "word": word, "n": 1, "control": False}
            yield {**about, "part": "readout", "measure": name, "value": float(value), **shown}
