"""A hand-built model that moves one variable, on two hidden coordinates, from a token to the last one.

A text is filler, a value token, one more filler and a query token. The value token carries a variable `a` (0..3) as a
point on a circle in a plane, the query token a sign `s`. Attention of block 1 copies `a` to the last token, into
another plane; the answer is the token of the pair (a, s). All of it stands in a hidden rotation of the residual
stream, and the tokens differ in directions that mean nothing besides.
"""

from __future__ import annotations

import numpy as np

from jaxinterp.models import language_model
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.models.toy import toy

WIDTH, VALUES, LOOKALIKES = 32, 4, 6
QUERY, FILLER, ANSWER, VOCABULARY = 24, 104, 110, 118
ROTATION = np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, WIDTH)))[0]
AT_VALUE, AT_LAST, SIGN = ROTATION[:, 0:2].T, ROTATION[:, 2:4].T, ROTATION[:, 4:5].T
"""Where the variable lives at the value token, where at the last token from block 1 on, and where the sign lives."""


def random_model() -> LanguageModel:
    """The same architecture with random weights."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 16}
    return toy("llama", seed=3, tie_word_embeddings=False, **sizes)


def planted_model() -> LanguageModel:
    """The model described above."""
    model = random_model()
    rng = np.random.default_rng(0)
    circle = np.array([[np.cos(turn), np.sin(turn)] for turn in np.arange(VALUES) * np.pi / 2])
    table = np.zeros((VOCABULARY, WIDTH))
    table[:, 6:] = rng.normal(size=(VOCABULARY, WIDTH - 6)) / 2
    for token in range(QUERY):
        table[token, :2] = 2 * circle[token // LOOKALIKES]
    for token in range(QUERY, FILLER):
        table[token, 4] = 2 * sign_of(token)
    table[:, 5] = np.sqrt(WIDTH - (table**2).sum(axis=1))  # all rows have the root mean square 1
    answers = np.zeros((VOCABULARY, WIDTH))
    for token in range(ANSWER, VOCABULARY):
        answers[token, 2:4] = 2.5 * circle[(token - ANSWER) // 2]
        answers[token, 4] = 1.5 * (2 * ((token - ANSWER) % 2) - 1)
    weights = {name: np.asarray(array).copy() for name, array in model.weights().items()}
    for name, array in weights.items():
        leaf = name.rsplit(".", maxsplit=1)[-1]
        if leaf in ("W_O", "W_out"):
            array[:] = 0
        elif leaf == "w":
            array[:] = 1
    weights["blocks.1.W_Q"][:] = weights["blocks.1.W_K"][:] = weights["blocks.1.W_V"][:] = 0
    weights["blocks.1.W_V"][0, :2] = AT_VALUE
    weights["blocks.1.W_O"][:, 0, :2] = 4 * AT_LAST.T
    weights["W_E"], weights["W_U"] = (array @ ROTATION.T for array in (table, answers))
    as_float = {name: array.astype(np.float32) for name, array in weights.items()}
    return language_model.with_weights(model, as_float)


def sign_of(token: int) -> int:
    """The sign that a query token carries."""
    return 2 * ((token - QUERY) // 40) - 1


def prompts(count: int, seed: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Random texts of 4 or 5 tokens, the variable and the sign (0 or 1) in each."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        filler = rng.integers(FILLER, ANSWER, size=rng.integers(2, 4)).tolist()
        texts.append([*filler[:-1], int(rng.integers(QUERY)), filler[-1], int(rng.integers(QUERY, FILLER))])
    variable = np.array([text[-3] // LOOKALIKES for text in texts])
    sign = np.array([(text[-1] - QUERY) // 40 for text in texts])
    return texts, variable, sign


def answer(variable: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """The token that says both."""
    return ANSWER + 2 * variable + sign
