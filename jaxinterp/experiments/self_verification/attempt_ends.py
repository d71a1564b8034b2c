"""The ends of attempts: whether a model stops there or tries again, and what it writes when it is pushed.

An attempt ends with the `")"` of its verdict. Next comes the line that gives the answer, or another attempt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

import jaxinterp as ji
from jaxinterp.activations.generate import generate_grid
from jaxinterp.experiments.self_verification import cases
from jaxinterp.experiments.self_verification.cases import Case
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import repetition
from jaxinterp.tasks.tokenizer import Tokenizer

PLACES = ("result", "verdict", "end")
"""The last digit of the result, the token that opens the verdict, and the one that closes it."""

_READ_AT_ONCE = 32
_GOES_ON, _FINISHES = "\n- ", ("\nSo ", "\nThe ")


@dataclasses.dataclass(frozen=True)
class Streams:
    """What a model has at the places of completed cases.

    Attributes:
        stream: Place -> residual stream behind each block, [layer, case, embedding].
        tokens: The most probable token behind the attempt, [case].
    """

    stream: Mapping[str, np.ndarray]
    tokens: np.ndarray

    def norms(self, place: str) -> np.ndarray:
        """Mean norm of the stream behind each block, [layer]."""
        return np.linalg.norm(self.stream[place], axis=-1).mean(axis=1)

    def difference(self, place: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Mean over some cases minus mean over others (boolean [case]), [layer, embedding]."""
        stream = self.stream[place]
        return stream[:, first].mean(axis=1) - stream[:, second].mean(axis=1)


def ways_on(tokenizer: Tokenizer) -> tuple[int, int]:
    """First tokens in which the two ways to go on behind an attempt differ.

    Args:
        tokenizer: That of a CountDown model.

    Returns:
        The token that begins the line with the answer, and the one that begins another attempt.
    """
    _, finish, again = _close(tokenizer, "this works)")
    return finish, again


def _close(tokenizer: Tokenizer, verdict: str) -> tuple[list[int], int, int]:
    """The tokens of a verdict, and the next one either way; a line end that is joined to the verdict belongs to it."""
    finish, again = (tokenizer.encode(verdict + text, add_special_tokens=False) for text in (_FINISHES[0], _GOES_ON))
    common = next(place for place, pair in enumerate(zip(finish, again, strict=False)) if len(set(pair)) > 1)
    return finish[:common], finish[common], again[common]


def complete(model: LanguageModel, case: Case) -> Case:
    """A case with its verdict written out, up to the token behind which traces that end and those that go on part.

    Args:
        model: Its tokenizer is used.
        case: A case, which ends with `" ("`.

    Returns:
        The same case with more tokens: "this works)", or "not T)" with the target T of its prompt.
    """
    tokenizer = model.require_tokenizer()
    target = tokenizer.decode([case.ids[index] for index in case.verdict.mentions[0]])
    closing, _, _ = _close(tokenizer, "this works)" if case.valid else f"not {target})")
    return dataclasses.replace(case, ids=(*case.ids, *closing))


def read(model: LanguageModel, ends: Sequence[Case]) -> Streams:
    """What a model has at every place of every text, and what it would say next, in one forward pass.

    Args:
        model: The model.
        ends: Completed cases.

    Returns:
        The streams.
    """
    shape = (model.architecture.layers, len(ends), model.architecture.embedding)
    stream = {place: np.zeros(shape, np.float32) for place in PLACES}
    tokens = np.zeros(len(ends), int)
    for group in cases.grouped(ends, _READ_AT_ONCE):
        logits, cache = ji.run(model, group.ids, group.mask, sites=ji.resid_post(...), logits="last")
        rows = np.arange(len(group.cases))
        last = np.full(len(rows), group.ids.shape[1] - 1)
        columns = {"result": group.columns("result"), "verdict": group.columns("verdict"), "end": last}
        for layer in range(model.architecture.layers):
            for place in PLACES:
                stream[place][layer, group.order] = cache["resid_post", layer][rows, columns[place]]
        tokens[group.order] = logits.argmax(-1)
    return Streams(stream, tokens)


def way(text: str) -> str:
    r"""Which way a text goes on behind an attempt.

    >>> way("\n- 71 - 31 - 12 = 40 - 12 = 28 (this works)"), way("\nSo the equation that equals 28 is"), way(" = 3")
    ('go on', 'finish', 'neither')
    """
    return "finish" if text.startswith(_FINISHES) else "go on" if text.startswith(_GOES_ON) else "neither"


def write(
    model: LanguageModel, texts: Sequence[Case], edits: Sequence[ji.Cell], max_new_tokens: int
) -> list[list[np.ndarray]]:
    """Continues every text greedily under every edit.

    Args:
        model: The unedited model.
        texts: Texts; only their tokens are used.
        edits: Edits that hold numbers for every text, or for all alike.
        max_new_tokens: Most tokens to add.

    Returns:
        New tokens before the end of the text, [edit][text][new].
    """
    found = generate_grid(model, [list(text.ids) for text in texts], edits, max_new_tokens)
    return [[row[:length] for row, length in zip(one.tokens, one.lengths, strict=True)] for one in found]


def show(model: LanguageModel, text: Case, written: np.ndarray) -> str:
    """The last line of a text and what was written behind it, with a bar between them."""
    tokenizer = model.require_tokenizer()
    line = tokenizer.decode(text.ids).rsplit("\n", 1)[-1]
    return f"{line}|{tokenizer.decode(written.tolist())}"


def degeneration(tokenizer: Tokenizer, written: np.ndarray, unsteered: np.ndarray) -> dict[str, float]:
    """How much a steered text repeats itself, by itself and beyond the unsteered one.

    Args:
        tokenizer: That of the model.
        written: New tokens of the steered text.
        unsteered: New tokens that the model adds to the same text unsteered.

    Returns:
        Measure -> number. The differences are taken over as many tokens as both texts have.
    """
    same = min(len(written), len(unsteered))

    def ratio(tokens: np.ndarray) -> float:
        return repetition.compression_ratio(tokenizer.decode(tokens.tolist()))

    return {
        "new tokens": float(len(written)),
        "bigram repetition": repetition.bigram_repetition(written.tolist()),
        "compression ratio": ratio(written),
        "excess bigram repetition": repetition.bigram_repetition(written[:same].tolist())
        - repetition.bigram_repetition(unsteered[:same].tolist()),
        "excess compression ratio": ratio(written[:same]) - ratio(unsteered[:same]),
    }
