"""Pairs of prompts between which activations are exchanged, and what the exchange should make the model say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.activations.metrics import LogProb, Token, log_prob
from jaxinterp.activations.run import Inputs, prepare, run
from jaxinterp.interventions.interchange import PositionPairs, position_table, resolve_positions
from jaxinterp.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Clean prompts, counterfactual prompts, and the answer that a causal model gives under the interchange.

    Attributes:
        clean: Token ids of the prompts that are edited, left-padded, int [pair, seq].
        clean_mask: Which of them are tokens, boolean [pair, seq].
        counterfactual: Token ids of the prompts that activations come from, int [pair, other seq].
        counterfactual_mask: Which of them are tokens.
        expected: The token that the edited clean run should give next, int [pair].
        positions: Group of tokens -> (position in the clean prompt, position in the counterfactual one), from their
            starts, int [pair, choice, 2].
        counts: How many pairs were `made`, in how many the model was right on `clean`, on `counterfactual`, and on
            `both`; only `made` where no answers were given to judge by.
    """

    clean: np.ndarray
    clean_mask: np.ndarray
    counterfactual: np.ndarray
    counterfactual_mask: np.ndarray
    expected: np.ndarray
    positions: Mapping[str, np.ndarray]
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """Some of the pairs, possibly repeated."""
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            clean=self.clean[rows],
            clean_mask=self.clean_mask[rows],
            counterfactual=self.counterfactual[rows],
            counterfactual_mask=self.counterfactual_mask[rows],
            expected=self.expected[rows],
            positions={name: table[rows] for name, table in self.positions.items()},
        )

    def split(self, seed: int = 0, fraction: float = 0.5) -> tuple[Pairs, Pairs]:
        """Random disjoint parts, the first with `fraction` of the pairs.

        Raises:
            ValueError: One of them would be empty.
        """
        first = round(fraction * len(self))
        if not 0 < first < len(self):
            raise ValueError(f"{len(self)} pairs cannot be split into {fraction} and the rest; make more pairs")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:first])), self.take(np.sort(order[first:]))

    def with_other_sources(self, seed: int = 0) -> Pairs:
        """The same clean prompts and expectations, each with the counterfactual prompt of a random other pair.

        Raises:
            ValueError: There is no other pair.
        """
        if len(self) < 2:
            raise ValueError("one pair has no other pair to take a source from; make at least two")
        order = np.random.default_rng(seed).permutation(len(self))
        other = np.empty(len(self), np.int64)
        other[order] = np.roll(order, 1)
        moved = {
            name: np.stack([table[..., 0], table[other][..., 1]], axis=-1) for name, table in self.positions.items()
        }
        return dataclasses.replace(
            self,
            counterfactual=self.counterfactual[other],
            counterfactual_mask=self.counterfactual_mask[other],
            positions=moved,
        )

    def group(self, name: str | None) -> str:
        """The name of a group of tokens; the only one, if none is said.

        Raises:
            ValueError: There is no such group, or several and none is said.
        """
        if name is None and len(self.positions) == 1:
            return next(iter(self.positions))
        if name is None or name not in self.positions:
            known = ", ".join(map(repr, self.positions))
            raise ValueError(f"there is no group of positions {name!r}; these pairs have {known}")
        return name


def make_pairs(
    model: LanguageModel,
    clean: Inputs,
    counterfactual: Inputs,
    expected: Token,
    positions: Mapping[str, PositionPairs] | None = None,
    answers: tuple[Token, Token] | None = None,
    *,
    clean_mask: Any = None,
    counterfactual_mask: Any = None,
    batch_size: int | None = None,
) -> Pairs:
    """Makes pairs ready for interchange interventions, and keeps those on which the model is right.

    Args:
        model: The unedited model.
        clean: Prompts to edit: texts, lists of token ids, or ids [pair, seq].
        counterfactual: Prompts that activations come from, as many.
        expected: The token that a causal model predicts for the edited run, or one for each pair: text or id.
        positions: Group of tokens -> (position in the clean prompt, position in the counterfactual one) pairs, or int
            [pair, choice, 2]; negative ones count from the end. By default `last`, the last token of both.
        answers: Right next tokens of the clean and of the counterfactual prompts. Only pairs both of whose prompts the
            model answers right are kept: an interchange of what is not understood says nothing. By default all are.
        clean_mask: With ids [pair, seq]: which of them are tokens rather than padding on the left.
        counterfactual_mask: The same for the counterfactual prompts.
        batch_size: Prompts per forward pass; by default all at once.

    Returns:
        The pairs kept, with counts.

    Raises:
        ValueError: The numbers of prompts, answers or positions differ, a position lies outside its prompt, a token is
            none of the model's, or the model is right on no pair.
    """
    tokens, valid = prepare(model, clean, clean_mask)
    other, other_valid = prepare(model, counterfactual, counterfactual_mask)
    rows = len(tokens)
    if len(other) != rows:
        raise ValueError(f"there are {rows} clean prompts and {len(other)} counterfactual ones; pair them one to one")
    named = {"last": [(-1, -1)]} if positions is None else positions
    if not named:
        raise ValueError("no group of positions was given; pass one such as {'last': [(-1, -1)]}")
    tables = {}
    for name, pairs in named.items():
        table = position_table(pairs, rows)
        ends = (valid.sum(axis=1), other_valid.sum(axis=1))
        tables[name] = np.stack([resolve_positions(table[..., side], ends[side]) for side in (0, 1)], axis=-1)
    ids = token_ids(model, expected, rows)
    everything = Pairs(tokens, valid, other, other_valid, ids, tables, {"made": rows})
    if answers is None:
        return everything
    right = []
    wanted = [token_ids(model, answer, rows) for answer in answers]
    for (prompts, mask), answer in zip(((tokens, valid), (other, other_valid)), wanted, strict=True):
        logits, _ = run(model, prompts, mask, logits="last", batch_size=batch_size)
        right.append(logits.argmax(axis=1) == answer)
    both = right[0] & right[1]
    if not both.any():
        raise ValueError(
            f"of {rows} pairs the model answers {right[0].sum()} clean and {right[1].sum()} counterfactual prompts "
            "right, but no pair's both; an interchange would say nothing"
        )
    counts = {
        "made": rows,
        "clean": int(right[0].sum()),
        "counterfactual": int(right[1].sum()),
        "both": int(both.sum()),
    }
    return dataclasses.replace(everything.take(np.flatnonzero(both)), counts=counts)


def token_ids(model: LanguageModel, tokens: Token, rows: int) -> np.ndarray:
    """Ids of one token, or of one for each row.

    Raises:
        ValueError: There are not as many as rows, or one is none of the model's.
    """
    measure = log_prob(tokens).bind(model, rows)
    assert isinstance(measure, LogProb)
    return np.asarray(measure.answer)
