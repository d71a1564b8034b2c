"""Behaviours that are judged on the same texts: a vector is run on them once, and every behaviour reads its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.analysis.contrasts import answer_letters
from jaxinterp.analysis.push_effects import CleanTexts
from jaxinterp.experiments.emb2emb.vectors import Behaviour, Side
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import concepts
from jaxinterp.tasks.concepts import Concept
from jaxinterp.tasks.two_choice import ANSWER, TwoChoice


@dataclasses.dataclass(frozen=True)
class Group:
    """Behaviours with their texts, in one model.

    Attributes:
        name: Of the group.
        members: Indices of the behaviours.
        texts: The unedited run of the texts.
        ids: Tokens that the behaviours look at, int [choice].
        pairs: Behaviour -> places in `ids` of (matching, other), int [text, pair, 2].
        norms: Length of one unit of scale: mean norm of the model's own vectors of these behaviours [depth].
    """

    name: str
    members: tuple[int, ...]
    texts: CleanTexts
    ids: np.ndarray
    pairs: dict[int, np.ndarray]
    norms: np.ndarray

    def changes(self, pushes: Sequence[Push], label: str) -> np.ndarray:
        """Change of the logits of `ids` under each push, [push, text, choice]."""
        return self.texts.logits(pushes, self.ids, progress=label) - self.texts.clean_logits(self.ids)

    def contrast(self, changes: np.ndarray, behaviour: int) -> np.ndarray:
        """Change of log P(matching) - log P(other) in nats, [..., text, pair].

        Args:
            changes: [..., text, choice].
            behaviour: One of `members`.
        """
        places = self.pairs[behaviour]
        text = np.arange(len(places))[:, None]
        return changes[..., text, places[..., 0]] - changes[..., text, places[..., 1]]

    def scored_ids(self, behaviour: int) -> np.ndarray:
        """Ids of all tokens that a behaviour is judged by, int [word]."""
        return self.ids[np.unique(self.pairs[behaviour])]


def build_groups(
    side: Side, behaviours: Sequence[Behaviour], pairs: Sequence[np.ndarray | None], *, texts: int
) -> list[Group]:
    """Groups behaviours by the texts they are judged on and runs the unedited model on these.

    Args:
        side: The model.
        behaviours: All behaviours.
        pairs: For each concept its contrast pairs in this model's vocabulary, int [pair, 2]; `None` for a two-choice
            behaviour.
        texts: Most texts of a group.

    Returns:
        The groups.
    """
    layers = {*side.layers, side.model.architecture.layers - 1}
    own = np.linalg.norm(side.vectors, axis=-1)
    groups = []
    for kind, prompts in concepts.PROMPTS.items():
        members = tuple(
            place for place, entry in enumerate(behaviours) if isinstance(entry, Concept) and entry.followed_by == kind
        )
        if not members:
            continue
        some = prompts[:texts]
        tables = {place: table for place, table in enumerate(pairs) if place in members and table is not None}
        ids = np.unique(np.concatenate([table.ravel() for table in tables.values()]))
        found = {place: np.tile(np.searchsorted(ids, table), (len(some), 1, 1)) for place, table in tables.items()}
        run = CleanTexts(side.model, some, layers)
        groups.append(Group(f"{kind} prompts", members, run, ids, found, own[list(members)].mean(axis=0)))
    for place, entry in enumerate(behaviours):
        if isinstance(entry, TwoChoice):
            groups.append(_two_choice(side.model, entry, place, layers, own[place], texts))
    return groups


def _two_choice(
    model: LanguageModel, behaviour: TwoChoice, place: int, layers: set[int], norms: np.ndarray, texts: int
) -> Group:
    """Questions with the vector added from behind the answers on, so at the tokens that call for the letter."""
    tokenizer = model.require_tokenizer()
    questions = behaviour.held_out[:texts]
    rows = [tokenizer.encode(question.stem + ANSWER) for question in questions]
    stems = [tokenizer.encode(question.stem) for question in questions]
    columns = max(1, min(len(row) - len(stem) for row, stem in zip(rows, stems, strict=True)))
    match = np.array(["AB".index(question.letter) for question in questions])
    pairs = np.stack([match, 1 - match], axis=-1)[:, None]
    run = CleanTexts(model, rows, layers, columns=columns)
    return Group(behaviour.name, (place,), run, answer_letters(model), {place: pairs}, norms)
