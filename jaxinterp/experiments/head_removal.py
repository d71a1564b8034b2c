"""Reading the verdicts of a CountDown model with some of its attention heads taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments import countdown_traces as traces
from jaxinterp.experiments.countdown_traces import Batch, Place, Written
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import verification

PLACES: tuple[Place, ...] = ("verdict", "result")
_DIGITS = 3  # a target has at most three


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Chosen verdicts of some traces.

    Attributes:
        batches: All of them, ready to be read.
        valid: Whether each verdict is to accept, [n].
    """

    batches: list[Batch]
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Removal:
    """What is taken out, and why.

    Attributes:
        condition: Name of the set in the table.
        heads: The set.
        method: Zeros, or the mean over tokens of selection traces, in place of the heads.
        position: At which tokens.
        draw: Number of a random set.
    """

    condition: str
    heads: Sequence[Head]
    method: Literal["zero", "mean"] = "zero"
    position: Place | Literal["all tokens"] = "all tokens"
    draw: int | None = None


def accepted_of(written: Sequence[Written], batch_size: int) -> Verdicts:
    """The accepted attempt of each trace.

    Args:
        written: Traces with one.
        batch_size: Most traces per batch.

    Returns:
        As many verdicts as traces.
    """
    chosen = [
        (index, next(place for place, verdict in enumerate(trace.verdicts) if verdict.valid))
        for index, trace in enumerate(written)
    ]
    return Verdicts(traces.batch_verdicts(written, chosen, batch_size), np.ones(len(chosen), bool))


def both_kinds_of(
    solved: Sequence[Written], unsolved: Sequence[Written], batch_size: int, rng: np.random.Generator
) -> Verdicts:
    """The accepted attempt of each solved trace, and as many rejected ones.

    Args:
        solved: Traces with an accepted attempt.
        unsolved: Traces without one; they give rejected attempts where those of the solved ones do not last.
        batch_size: Most traces per batch.
        rng: Draws among the rejected attempts of the solved traces.

    Returns:
        The accepted attempts, then the rejected ones.
    """
    written = [*solved, *unsolved]
    places = [
        (index, place, verdict) for index, trace in enumerate(written) for place, verdict in enumerate(trace.verdicts)
    ]
    accepted = [(index, place) for index, place, verdict in places if verdict.valid]
    rejected = [(index, place) for index, place, verdict in places if not verdict.valid]
    same = [choice for choice in rejected if choice[0] < len(solved)]
    kept = [same[index] for index in rng.permutation(len(same))] + rejected[len(same) :]
    chosen = [*accepted, *kept[: len(accepted)]]
    return Verdicts(traces.batch_verdicts(written, chosen, batch_size), np.arange(len(chosen)) < len(accepted))


def attention_to_target(model: LanguageModel, verdicts: Verdicts) -> dict[Place, np.ndarray]:
    """How much each head looks at the target.

    From the verdict's opening: attention to each digit of the target, all its mentions together; the digit with more
    of it counts. From the result's last digit: to the last digit of the mentions in prompt and preamble, which is the
    paper's score.

    Args:
        model: The model.
        verdicts: Where to look from.

    Returns:
        Place -> attention mass in [0, 1], averaged over verdicts, [layer, head].
    """
    totals: dict[Place, np.ndarray] = {
        place: np.zeros((model.architecture.layers, model.architecture.heads, _DIGITS)) for place in PLACES
    }
    for batch in verdicts.batches:
        groups = _targets(batch)
        _, cache = ji.run(model, batch.ids, batch.mask, sites=[ji.pattern(...)], logits=None, batch_size=16)
        for layer in range(model.architecture.layers):
            pattern = cache["pattern", layer][None, batch.rows]
            for place in PLACES:
                mass = heads.attention_to(pattern, batch.slots(place), groups[place])
                totals[place][layer] += mass.sum(axis=(0, 1))
    return {place: (total / len(verdicts.valid)).max(axis=-1) for place, total in totals.items()}


def _targets(batch: Batch) -> dict[Place, np.ndarray]:
    """The slots that count as the target from each place, [n, digit, seq]; digits from the last one."""
    shape = (len(batch.rows), _DIGITS, batch.ids.shape[1])
    groups: dict[Place, np.ndarray] = {place: np.zeros(shape, bool) for place in PLACES}
    for index, (verdict, pad) in enumerate(zip(batch.verdicts, batch.pads, strict=True)):
        for mention in verdict.mentions:
            for digit, token in enumerate(reversed(mention)):
                groups["verdict"][index, digit, token + pad] = True
        groups["result"][index, 0, np.array(verdict.stated_last_digits, int) + pad] = True
    return groups


def read_values(model: LanguageModel, verdicts: Verdicts) -> ji.Cache:
    """Values of all heads on one batch, for their means over tokens.

    Args:
        model: The model.
        verdicts: Their last batch is read, that of the longest traces.

    Returns:
        The cache, which holds the site `z` of all layers.
    """
    batch = verdicts.batches[-1]
    filled = np.unique(batch.rows)
    return ji.run(model, batch.ids[filled], batch.mask[filled], sites=[ji.z(...)], logits=None)[1]


def read_rejections(
    model: LanguageModel, verdicts: Verdicts, removal: Removal, cache: ji.Cache | None = None
) -> np.ndarray:
    """Lets a model judge with some heads taken out; other heads compile nothing new.

    Args:
        model: A CountDown model.
        verdicts: What it shall judge.
        removal: The heads.
        cache: For a mean removal: values of the heads, as from `read_values`.

    Returns:
        Whether its most probable next token rejects, boolean [n].
    """
    _, rejecting = verification.verdict_tokens(model.require_tokenizer())
    by_layer: dict[int, list[int]] = {}
    for layer, head in removal.heads:
        by_layer.setdefault(layer, []).append(head)
    sites = [ji.head(layer, *chosen) for layer, chosen in by_layer.items()]
    rejected = np.zeros(len(verdicts.valid), bool)
    everywhere = ji.ablate(model, *sites, method=removal.method, cache=cache) if sites else model
    for batch in verdicts.batches:
        edited = everywhere
        if sites and removal.position != "all tokens":
            at = ji.mask(batch.tokens_at(removal.position))
            edited = ji.ablate(model, *sites, method=removal.method, cache=cache, at=at)
        logits, _ = ji.run(edited, batch.ids, batch.mask)
        assert logits is not None
        rejected[batch.order] = np.isin(logits[batch.rows, batch.slots("verdict")].argmax(-1), rejecting)
    return rejected
