"""What answers to plain questions owe to some heads: zeroed, or taken from a question about another target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments.self_verification import cases, yes_no
from jaxinterp.models.language_model import LanguageModel

Sets = Mapping[str, Sequence[Head]]


def zeroed(
    model: LanguageModel, asked: tuple[list[str], list[str]], sets: Sets, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Answers without some heads, zeroed at all tokens.

    Args:
        model: The model that answers.
        asked: As from `yes_no.ask`.
        sets: As from `ablation.found`.
        draws: Random sets, of as many heads as attend to the target; question `i` of each kind gets set `i % draws`.
        seed: Of these.

    Yields:
        Rows: `measure` as in `yes_no.measure`, and drop of balanced accuracy; `condition`, `heads`, `value`, `low`,
        `high`, `n`, `control`.
    """
    clean = yes_no.answer(model, asked)
    for measure, numbers in yes_no.measure(clean).items():
        yield {"measure": measure, "condition": "none", "control": True} | numbers
    count = len(asked[0])
    for condition, words, by_question, own in _conditions(model, sets, count, draws, seed):
        sites = [[ji.head(*head) for head in some] for some in by_question]
        answers = yes_no.answer(ji.ablate_by_row(model, [*sites, *sites]), asked)
        about = {"condition": condition, "heads": words, "control": own is not None}
        for measure, numbers in yes_no.measure(answers, own).items():
            yield {"measure": measure} | about | numbers
        yield {"measure": "drop of balanced accuracy"} | about | yes_no.drop(clean, answers, own)


def _conditions(
    model: LanguageModel, sets: Sets, count: int, draws: int, seed: int
) -> Iterator[tuple[str, str, list[list[Head]], np.ndarray | None]]:
    """Condition, heads in words, the heads of each question, and the number of the random set of each."""
    fixed = {name: list(sets[name]) for name in ("target", "circuit")}
    fixed["first of the circuit"] = list(sets["circuit"][:1])
    for name, some in fixed.items():
        if some:
            yield name, heads.label(some), [some] * count, None
    own = np.arange(count) % draws
    for name, outside in (("random, all", set[Head]()), ("random, outside", {*sets["target"], *sets["circuit"]})):
        drawn = _draw(model, sets, outside, draws, seed)
        if drawn:
            yield name, f"{draws} random sets of {len(drawn[0])}", [drawn[draw] for draw in own], own


def _draw(model: LanguageModel, sets: Sets, outside: set[Head], draws: int, seed: int) -> list[list[Head]]:
    """Sets of as many heads as attend to the target; none where no heads are left."""
    shape = (model.architecture.layers, model.architecture.heads)
    size = min(max(len(sets["target"]), 1), shape[0] * shape[1] - len(outside))
    return heads.draw_sets(shape, outside, size, draws, seed) if size else []


def patched(
    model: LanguageModel, table: pl.DataFrame, sets: Sets, pairs: int, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Answers where the heads' outputs at the last token come from a question that differs in the target alone.

    Args:
        model: The model that answers.
        table: As from the `verdicts` experiment.
        sets: As from `ablation.found`.
        pairs: Minimal pairs of each kind.
        draws: Random sets outside of all of these, each patched in all questions.
        seed: Of these.

    Yields:
        Rows: `measure` answers that turn, `kind` (wrong to right: a wrong attempt gets what a right one has, and the
        answer becomes Yes; or the other way round), `condition` (none: the answer was the other one before), `heads`,
        `value`, `low`, `high`, `n`, `control`.
    """
    both = [yes_no.ask(model, pair) for pair in cases.load_pairs(model, table, pairs)]
    right, wrong = ([pair[kind][0] for pair in both] for kind in (0, 1))
    drawn = _draw(model, sets, {*sets["target"], *sets["circuit"]}, draws, seed)
    named = {name: list(sets[name]) for name in ("target", "circuit") if sets[name]}
    every = [*named.values(), *drawn]
    for kind, texts, twins, sign in (("wrong to right", wrong, right, 1), ("right to wrong", right, wrong, -1)):
        _, cache = ji.run(model, twins, sites=[ji.z(...)], logits=None)
        cells = [ji.Cell({"set": number}, _patch(some, cache)) for number, some in enumerate(every)]
        swept = ji.sweep(model, texts, cells, ji.logit_diff("Yes", "No"), progress=False)
        turned = sign * swept["value"].to_numpy().reshape(len(cells), len(texts)) > 0
        before = sign * swept["clean"].to_numpy()[: len(texts)] > 0
        about = {"measure": "answers that turn", "kind": kind}
        yield about | {"condition": "none", "control": True} | cases.proportion(before)
        for number, (name, some) in enumerate(named.items()):
            yield about | {"condition": name, "heads": heads.label(some)} | cases.proportion(turned[number])
        if drawn:
            over_sets = cases.mean(turned[len(named) :].mean(axis=1)) | {"n": len(texts)}
            yield about | {"condition": "random, outside", "control": True} | over_sets


def _patch(some: Sequence[Head], cache: ji.Cache) -> Callable[[LanguageModel], LanguageModel]:
    by_layer: dict[int, list[int]] = {}
    for layer, head in some:
        by_layer.setdefault(layer, []).append(head)

    def edit(model: LanguageModel) -> LanguageModel:
        for layer, chosen in sorted(by_layer.items()):
            model = ji.patch(model, ji.head(layer, *chosen), cache, at=ji.last())
        return model

    return edit
