"""Words drawn among the tokens that all of several models share, and what is looked up for each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxinterp.experiments.embedding_geometry.shared_tokens import SharedTokens, TokenTable, read_table, share
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import vocabularies


@dataclasses.dataclass(frozen=True)
class DrawnWords:
    """Some words among the shared tokens.

    Attributes:
        tables: Role -> the model's whole table.
        shared: The shared tokens.
        words: Which of these are words, a space and three or more ASCII letters, int [word].
        queries: Which of these were drawn, in random order, int [query].
    """

    tables: Mapping[str, TokenTable]
    shared: SharedTokens
    words: np.ndarray
    queries: np.ndarray

    def text(self, token: int) -> str:
        """A shared token as it is read, without its space."""
        return self.shared.keys[token].decode("utf-8", errors="replace").strip()

    def rank_and_norm(self, role: str) -> np.ndarray:
        """What may explain a number of a query without any geometry: log rank and row norm, [query, 2]."""
        norms = np.linalg.norm(self.shared.rows[role][self.queries], axis=1)
        return np.column_stack([np.log1p(self.shared.ids[role][self.queries]), norms])

    def among_all(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """All trained rows of a model's table, and which of them the queries are."""
        table = self.tables[role]
        places = np.cumsum(table.trained)[self.shared.ids[role][self.queries]] - 1
        return table.rows[table.trained], places


def draw_words(models: Mapping[str, LanguageModel], count: int, seed: int) -> DrawnWords:
    """Finds the trained tokens that all models have, and draws words among them.

    Args:
        models: One or more models with tokenizers; of their weights only the embedding is read.
        count: How many words to draw.
        seed: Of the draw.

    Returns:
        The words.

    Raises:
        ValueError: There is no model, they share no token, or fewer words.
    """
    if not models:
        raise ValueError("there is no model to look at; pass --model ROLE=MODEL once or more")
    tables = {role: read_table(model) for role, model in models.items()}
    shared = share(tables)
    words = np.flatnonzero(vocabularies.are_words(shared.keys))
    if len(words) < max(count, 1):
        raise ValueError(
            f"{' and '.join(table.source for table in tables.values())} share {len(shared)} trained tokens, "
            f"{len(words)} of them words, but {count} words are to be looked at; lower that number or take models that "
            "share more"
        )
    return DrawnWords(tables, shared, words, np.random.default_rng(seed).permutation(words)[:count])
