"""A model writes solutions of CountDown problems, up to the end of its answer."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxinterp.activations.generate import generate
from jaxinterp.models.language_model import LanguageModel

_ENDINGS = ("\n\n", "Using the numbers")
_ANSWERED = "</answer>"


def solve(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    key: jax.Array | None = None,
) -> list[str]:
    """Lets a model continue prompts.

    Args:
        model: The model.
        prompts: What it continues.
        max_new_tokens: Cap on a response.
        batch_size: Prompts at a time; the last batch is filled up, so that all of them are one program.
        key: For temperature 1; greedy without it.

    Returns:
        Prompt and response of each, up to the end of the answer if there is one.
    """
    texts = []
    for first in range(0, len(prompts), batch_size):
        some = list(prompts[first : first + batch_size])
        responses = generate(
            model,
            some + some[:1] * (batch_size - len(some)),
            max_new_tokens,
            temperature=0.0 if key is None else 1.0,
            stop=_ENDINGS,
            key=None if key is None else jax.random.fold_in(key, first),
        )
        for prompt, response in zip(some, responses, strict=False):
            answer, closed, _ = response.partition(_ANSWERED)
            texts.append(prompt + answer + closed)
    return texts
