"""CountDown documents as rows of tokens, written by as many processes as there are cores; jax is not needed."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os

import numpy as np
import tokenizers

from jaxinterp.tasks import countdown_corpus, countdown_tokenizer
from jaxinterp.tasks.countdown import POSITIVE, Split
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.countdown_grammar import REJECTIONS
from jaxinterp.tasks.plain_verification import NO, YES
from jaxinterp.tasks.tokenizer import Tokenizer
from jaxinterp.training.packing import Rows, pack_documents

_CHUNK = 2500
_FEW = 8 * _CHUNK


def rows(settings: CorpusSettings, texts: int, seed: int, length: int, split: Split = "train") -> Rows:
    """Packed documents; those of a chunk of 2,500 share rows, however many processes write them.

    Args:
        settings: What the corpus is made of.
        texts: How many documents.
        seed: Of the corpus.
        length: Predictions in a row.
        split: Part of the hash split in which their problems lie.

    Returns:
        The rows. Of a response its end is learned too.

    Raises:
        ValueError: A document is longer than a row, or no problem fits the settings.
    """
    chunks = [range(first, min(first + _CHUNK, texts)) for first in range(0, texts, _CHUNK)]
    write = functools.partial(_write, settings=settings, seed=seed, length=length, split=split)
    if texts <= _FEW:
        return Rows.joined([write(chunk) for chunk in chunks])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        return Rows.joined(list(pool.map(write, chunks)))


def _write(chunk: range, settings: CorpusSettings, seed: int, length: int, split: Split) -> Rows:
    documents = list(countdown_corpus.documents(len(chunk), seed, settings, split, chunk.start))
    encode = tokenizers.Tokenizer.from_str(countdown_tokenizer.tokenizer_json()).encode_batch_fast
    end = countdown_tokenizer.SPECIAL.index("<eos>")
    prompts, responses = (
        [encoding.ids for encoding in encode([document[part] for document in documents])] for part in range(2)
    )
    pairs = ((prompt, [*response, end]) for prompt, response in zip(prompts, responses, strict=True))
    return pack_documents(pairs, length)


def accuracies(held_out: Rows, predicted: np.ndarray, tokenizer: Tokenizer) -> dict[str, float | None]:
    """How often the likeliest token is right, kind by kind, when everything in front of it is right.

    Args:
        held_out: Documents.
        predicted: The likeliest token at every place, int [row, length].
        tokenizer: The corpus's tokenizer.

    Returns:
        `verdict`: whether a verdict in parentheses accepts or rejects as it should, in whatever words; the mean of the
        shares among those that accept and those that reject, so that 0.5 is what saying always the same gives.
        `digits`: of responses. `yes_no`: of questions. `None` for a kind that does not occur.
    """
    before, wanted = held_out.tokens[:, :-1], held_out.tokens[:, 1:]
    accepting = [tokenizer.encode(f" ({word})")[1] for word in POSITIVE]
    rejecting = [tokenizer.encode(f" ({word} 1)" if word == "not" else f" ({word})")[1] for word in REJECTIONS.values()]
    judged = held_out.counted & (before == tokenizer.id(" ("))
    verdicts = [
        np.mean(np.isin(predicted[judged & np.isin(wanted, words)], words))
        for words in (accepting, rejecting)
        if (judged & np.isin(wanted, words)).any()
    ]
    kinds = {"digits": "0123456789", "yes_no": (YES, NO)}
    found = {"verdict": float(np.mean(verdicts)) if verdicts else None}
    for kind, texts in kinds.items():
        asked = held_out.counted & np.isin(wanted, [tokenizer.id(text) for text in texts])
        found[kind] = float(np.mean(predicted[asked] == wanted[asked])) if asked.any() else None
    return found
