"""The same words read in two models with different tokenizers: alone, or where both end them in a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinterp.analysis.hidden_states import States, read_states
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.tasks import sentences, vocabularies
from jaxinterp.tasks.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SharedWords:
    """Words in both models.

    Attributes:
        words: The words.
        source: Their states in one model.
        target: Their states in the other.
        ranks: The source's id of the token that ends each, int [word]; in most vocabularies frequent tokens come first.
    """

    words: tuple[str, ...]
    source: States
    target: States
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.words)


def read_alone(
    source: LanguageModel, target: LanguageModel, count: int, *, openings: Sequence[str] = (), seed: int
) -> SharedWords:
    """Reads words as the only token behind an opening one.

    Args:
        source: One model.
        target: The other.
        count: How many words, drawn from the trained tokens of a space and letters that both have; or all of them.
        openings: As for `opening`.
        seed: Of the draw.

    Returns:
        The words in random order.

    Raises:
        ValueError: The tokenizers share no such token.
    """
    models = source, target
    matched = vocabularies.match_tokens(source.require_tokenizer(), target.require_tokenizer())
    trained = [vocabularies.trained_rows(np.asarray(model.weights()["W_E"])) for model in models]
    kept = np.flatnonzero(trained[0][matched.source] & trained[1][matched.target] & matched.words())
    if not len(kept):
        raise ValueError("the two tokenizers share no trained token of a space and letters; read words in sentences")
    matched = matched.where(np.random.default_rng(seed).permutation(kept)[:count])
    states = []
    for model, ids in zip(models, (matched.source, matched.target), strict=True):
        start = opening(model.require_tokenizer(), openings)
        texts = [[*start, int(token)] for token in ids]
        states.append(read_states(model, texts, [(row, len(start)) for row in range(len(texts))]))
    words = tuple(key.decode().strip() for key in matched.keys)
    return SharedWords(words, states[0], states[1], matched.source)


def read_in_sentences(
    source: LanguageModel, target: LanguageModel, texts: Sequence[str], *, openings: Sequence[str] = (), seed: int
) -> SharedWords:
    """Reads each word of some sentences once, at one of the places where both tokenizers end it.

    Args:
        source: One model.
        target: The other.
        texts: Sentences.
        openings: As for `opening`.
        seed: Of the draw among a word's places.

    Returns:
        The words in random order.

    Raises:
        ValueError: The tokenizers end no word at the same place.
    """
    models = source, target
    ends = sentences.word_ends(texts, *(model.require_tokenizer() for model in models))
    if not ends:
        raise ValueError("there is no word that both tokenizers end at the same place; give other sentences")
    ends = sentences.one_of_each(ends, seed)
    ends = [ends[index] for index in np.random.default_rng(seed).permutation(len(ends))]
    states, last = [], []
    for model, places in zip(models, ([end.source for end in ends], [end.target for end in ends]), strict=True):
        tokenizer = model.require_tokenizer()
        start = opening(tokenizer, openings)
        tokens = [[*start, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
        chosen = [(end.sentence, len(start) + place) for end, place in zip(ends, places, strict=True)]
        last.append(np.array([tokens[text][place] for text, place in chosen]))
        states.append(read_states(model, tokens, chosen))
    return SharedWords(tuple(end.word for end in ends), states[0], states[1], last[0])


def opening(tokenizer: Tokenizer, wanted: Sequence[str] = ()) -> list[int]:
    """What to put in front of a text, since the first token of all is a place of its own in these models.

    Args:
        tokenizer: Tokenizer.
        wanted: Special tokens by name, the first that it has is taken.

    Returns:
        Ids: one of those wanted, or the token with which texts begin, or end, or a line break.
    """
    for text in wanted:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and tokenizer.token_bytes(ids[0]) is None:
            return ids
    special = [token for token in (tokenizer.bos, tokenizer.eos) if token is not None]
    return special[:1] or tokenizer.encode("\n", add_special_tokens=False)
