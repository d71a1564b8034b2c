import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.analysis.contrasts import without_span
from jaxinterp.analysis.push_effects import CleanTexts
from jaxinterp.models.toy import toy

TEXTS = [[5, 3, 9, 1], [7, 2, 8, 4, 6, 1], [2, 2, 5]]
IDS = np.array([3, 11, 4])


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request):
    return toy(request.param, seed=0)


@pytest.fixture(scope="module")
def pushes(model):
    rng = np.random.default_rng(0)
    width, last = model.architecture.embedding, model.architecture.layers - 1
    return [Push(layer, rng.normal(size=width)) for layer in (0, last, 0, last, 0)]


def steered(model, push, **options):
    return ji.steer(model, ji.resid_post(push.layer), push.vector.astype(np.float32), **options)


def test_pushed_logits_are_those_of_steered_forward_passes(model, pushes):
    texts = CleanTexts(model, TEXTS, {push.layer for push in pushes})
    found = texts.logits(pushes, IDS)
    for push, values in zip(pushes, found, strict=True):
        expected, _ = ji.run(steered(model, push), TEXTS, logits="last")
        np.testing.assert_allclose(values, expected[:, IDS], atol=2e-5)
    clean, _ = ji.run(model, TEXTS, logits="last")
    np.testing.assert_allclose(texts.clean_logits(IDS), clean[:, IDS], atol=2e-5)
    nothing = Push(0, np.zeros(model.architecture.embedding))
    np.testing.assert_allclose(texts.logits([nothing], IDS)[0], clean[:, IDS], atol=2e-5)


def test_vectors_may_be_added_at_the_last_tokens_alone(model, pushes):
    texts = CleanTexts(model, TEXTS, {push.layer for push in pushes}, columns=1)
    for push, values in zip(pushes, texts.logits(pushes, IDS), strict=True):
        expected, _ = ji.run(steered(model, push, at=ji.last()), TEXTS, logits="last")
        np.testing.assert_allclose(values, expected[:, IDS], atol=2e-5)


def test_the_mass_of_tokens_and_the_losses_of_texts_are_those_of_the_logits(model, pushes):
    texts = CleanTexts(model, TEXTS, {push.layer for push in pushes})
    logits, _ = ji.run(steered(model, pushes[0]), TEXTS)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    mass = np.log(np.exp(log_probs[:, -1][:, IDS]).sum(axis=-1))
    np.testing.assert_allclose(texts.log_mass(pushes[:1], IDS)[0], mass, atol=2e-5)
    expected = []
    for row, tokens in enumerate(TEXTS):
        own = log_probs[row, -len(tokens) :]
        expected += [-own[place, token] for place, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(texts.token_losses(pushes[0]), expected, atol=5e-5)
    assert texts.token_losses().shape == (len(expected),)


def test_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(ValueError, match="vectors can be added after blocks 0 to"):
        CleanTexts(model, TEXTS, [99])


def test_what_is_left_is_orthogonal_to_what_was_removed():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(3, 8)), np.zeros((1, 8))])
    left = without_span(rng.normal(size=(2, 8)), rows)
    np.testing.assert_allclose(left @ rows.T, 0, atol=1e-9)
    inside = rows[:2].sum(axis=0)
    np.testing.assert_allclose(without_span(inside, rows), 0, atol=1e-9)
