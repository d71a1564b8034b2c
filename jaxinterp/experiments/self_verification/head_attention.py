"""How much attention heads pay to the target's digits, and to every token of one trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.analysis.heads import Head
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import PLACES, Case, Group, Place
from jaxinterp.models.language_model import LanguageModel

_DIGITS = 3  # a target has at most three


def to_target(model: LanguageModel, some: Sequence[Case]) -> dict[Place, np.ndarray]:
    """How much each head looks at the target.

    From the verdict's opening: attention to each digit of the target, all its mentions together; the digit with more
    of it counts. From the result's last digit: to the last digit of the mentions in prompt and preamble, which is the
    paper's score.

    Args:
        model: The model.
        some: Cases.

    Returns:
        Place -> attention mass in [0, 1], averaged over cases, [layer, head].
    """
    shape = (model.architecture.layers, model.architecture.heads, _DIGITS)
    totals: dict[Place, np.ndarray] = {place: np.zeros(shape) for place in PLACES}
    for group in cases.grouped(some, cases.READ_AT_ONCE):
        targets = _targets(group)
        _, cache = ji.run(model, group.ids, group.mask, sites=[ji.pattern(...)], logits=None, batch_size=cases.ROWS)
        for layer in range(shape[0]):
            pattern = cache["pattern", layer][None]
            for place in PLACES:
                mass = heads.attention_to(pattern, group.columns(place), targets[place])
                totals[place][layer] += mass.sum(axis=(0, 1))
    return {place: (total / len(some)).max(axis=-1) for place, total in totals.items()}


def _targets(group: Group) -> dict[Place, np.ndarray]:
    """The columns that count as the target from each place, [batch, digit, seq]; digits from the last one."""
    shape = (len(group.cases), _DIGITS, group.ids.shape[1])
    targets: dict[Place, np.ndarray] = {place: np.zeros(shape, bool) for place in PLACES}
    for row, (case, pad) in enumerate(zip(group.cases, group.pads, strict=True)):
        for mention in case.verdict.mentions:
            for digit, token in enumerate(reversed(mention)):
                targets["verdict"][row, digit, token + pad] = True
        targets["result"][row, 0, np.array(case.verdict.stated_last_digits, int) + pad] = True
    return targets


def over(model: LanguageModel, case: Case, some: Sequence[Head]) -> dict[Place, np.ndarray]:
    """Attention of heads to every token of one case.

    Args:
        model: The model.
        case: The case.
        some: The heads.

    Returns:
        Place it is paid from -> [head, token].
    """
    layers, columns = ([head[axis] for head in some] for axis in (0, 1))
    tokens = {place: [case.token(place)] for place in PLACES}
    read = cases.read_at(model, [case], [ji.pattern(...)], tokens)
    return {place: read[place]["pattern"][layers, 0, columns, -len(case.ids) :] for place in PLACES}
