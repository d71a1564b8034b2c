"""Generation in which an edited model writes the token after a chosen one."""

import dataclasses

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import switching
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

PROBLEMS = [countdown.Problem((31, 12, 71), 28), countdown.Problem((7, 19, 64, 7), 59)]
TRACES = [
    countdown.write(PROBLEMS[0], ["31 + 12 - 71", "71 - 31 - 12"]),
    countdown.write(PROBLEMS[0], ["71 - 31 - 12"]),
    countdown.write(PROBLEMS[1], ["64 - 19 + 7 + 7"]),
]
STEPS = 20
EVERY_HEAD = [ji.head(layer, *range(8)) for layer in range(8)]
PREFIXES = [trace[: trace.index(" (this works)")] for trace in TRACES]


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def blind(model):
    return ji.ablate(model, ji.head(4, 5))


def by_hand(model, edited, prompt, steps):
    """The protocol in its plainest form: every step reads all of the text."""
    tokenizer = model.require_tokenizer()
    text = tokenizer.encode(prompt)
    start = len(text)
    for _ in range(steps):
        writer = edited if text[-1] == tokenizer.id(" (") else model
        token = int(ji.run(writer, [text], logits="last")[0][0].argmax())
        if token in model.architecture.eos:
            break
        text.append(token)
    return tokenizer.decode(text[start:])


def test_the_edited_model_writes_the_verdict_and_the_other_one_the_rest(model, blind):
    switched = ji.generate_switching(model, blind, PREFIXES, STEPS, after=" (")
    assert all(text.startswith(" (not ") for text in switched)
    assert switched[0] == by_hand(model, blind, PREFIXES[0], STEPS)
    unedited = ji.ablate(model, ji.head(4, 5), at=ji.at(999))
    clean = ji.generate_switching(model, model, PREFIXES, STEPS, after=" (")
    assert clean == ji.generate_switching(model, unedited, PREFIXES, STEPS, after=" (", cache=False)
    assert all(text.startswith(" (this works)") for text in clean)


def test_the_edit_is_not_there_where_other_tokens_are_written(model):
    switched = ji.generate_switching(model, ji.ablate(model, *EVERY_HEAD), PREFIXES, 1, after=" (")
    assert switched == [" ("] * 3


@pytest.mark.parametrize("reads", ["text", "token"])
def test_it_is_the_same_without_a_key_value_cache(model, reads):
    edited = ji.ablate(model, ji.head(4, 0), ji.head(3, 4))
    texts = [
        ji.generate_switching(model, edited, PREFIXES, STEPS, after=" (", reads=reads, cache=c) for c in (True, False)
    ]
    assert texts[0] == texts[1]


def test_reading_the_token_alone_is_editing_it_alone(model):
    """Head 3.4 moves digits before the verdict opens: missing there alone it changes nothing."""
    edited = ji.ablate(model, ji.head(3, 4), ji.head(4, 7))
    last = ji.ablate(model, ji.head(3, 4), ji.head(4, 7), at=ji.last())
    alone = ji.generate_switching(model, edited, PREFIXES, STEPS, after=" (", reads="token")
    assert alone[0] == by_hand(model, last, PREFIXES[0], STEPS)
    mover = ji.ablate(model, ji.head(3, 4))
    kept = ji.generate_switching(model, mover, PREFIXES, 4, after=" (", reads="token")
    assert all("(this works)" in text for text in kept)


@pytest.mark.parametrize("reads", ["text", "token"])
def test_a_prompt_that_ends_with_the_token_is_judged_at_once(model, blind, reads):
    opened = [prefix + " (" for prefix in PREFIXES]
    assert ji.generate_switching(model, blind, opened, 1, after=" (", reads=reads) == ["not "] * 3


def test_batches_and_rows_of_edits_stay_in_order(model):
    edited = ji.ablate_by_row(model, [[ji.head(4, 5)], [], [ji.head(4, 5)]])
    texts = ji.generate_switching(model, edited, PREFIXES, 3, after=" (", batch_size=2)
    assert [text.startswith(" (this") for text in texts] == [False, True, False]
    assert texts == ji.generate_switching(model, edited, PREFIXES, 3, after=" (", cache=False)


@pytest.mark.parametrize("reads", ["text", "token"])
@pytest.mark.parametrize("cache", [True, False])
def test_several_edits_at_once_are_each_alone(model, blind, reads, cache):
    edits = [blind, model, ji.ablate(model, ji.head(3, 4))]
    together = ji.generate_switching_each(model, edits, PREFIXES, 4, after=" (", reads=reads, cache=cache, batch_size=2)
    alone = [ji.generate_switching(model, each, PREFIXES, 4, after=" (", reads=reads) for each in edits]
    assert together == alone
    assert len({tuple(texts) for texts in together}) > 1


def test_each_edit_may_read_as_it_will(model, blind):
    ways: list[switching.Reads] = ["token", "text"]
    together = ji.generate_switching_each(model, [blind, blind], PREFIXES, 4, after=" (", reads=ways)
    assert together == [ji.generate_switching(model, blind, PREFIXES, 4, after=" (", reads=way) for way in ways]
    with pytest.raises(ValueError, match="2 words for 1 edits"):
        ji.generate_switching_each(model, [blind], PREFIXES, 4, after=" (", reads=ways)


def test_texts_end_where_the_model_ends_them(model, blind):
    texts = ji.generate_switching(model, blind, PREFIXES, STEPS, after="<think>", reads="token")
    whole = ji.generate_switching(model, blind, PREFIXES, 3 * STEPS, after="<think>", reads="token")
    assert all(long.startswith(short) and long.endswith("</answer>") for long, short in zip(whole, texts, strict=True))


def test_token_ids_will_do(model, blind):
    tokenizer = model.require_tokenizer()
    ids = [tokenizer.encode(prefix) for prefix in PREFIXES]
    texts = ji.generate_switching(model, blind, ids, 5, after=tokenizer.id(" ("))
    assert texts == ji.generate_switching(model, blind, PREFIXES, 5, after=" (")


@pytest.mark.parametrize(("family", "reads"), [("gpt2", "text"), ("gemma2", "token")])
def test_learned_positions_and_other_families_work_too(model, family, reads):
    sizes = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 2}
    small = toy(family, tokenizer=model.require_tokenizer(), vocab_size=76, **sizes)
    small = dataclasses.replace(small, architecture=dataclasses.replace(small.architecture, eos=()))
    first = int(ji.run(small, [[3, 1, 4]], logits="last")[0].argmax())
    edited = ji.steer(small, ji.resid_post(0), np.full(small.architecture.embedding, 2.0, np.float32))
    texts = [
        ji.generate_switching(small, edited, [[3, 1, 4], [5, 9]], 4, after=first, reads=reads, cache=c)
        for c in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"after": "(this"}, "not one token"),
        ({"after": " (", "max_new_tokens": 0}, "at least 1"),
        ({"after": " (", "reads": "prompt"}, "'text' or 'token'"),
    ],
)
def test_wrong_settings_are_one_sentence(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ji.generate_switching(model, model, PREFIXES, **settings)


def test_edits_for_other_texts_are_refused(model):
    edited = ji.ablate_by_row(model, [[ji.head(4, 5)], []])
    with pytest.raises(ValueError, match="numbers for 2 texts, but there are 3"):
        ji.generate_switching(model, edited, PREFIXES, 2, after=" (")
