import numpy as np
import pytest

from jaxinterp.analysis import signed_effects
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.tasks.vocabularies import token_ids_by_bytes
from tests.experiments import words

PAIRS = (("waves", "lights"), ("fish", "dogs"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose blocks do nothing: a vector acts on the logits alone."""
    return words.related_pair(tmp_path_factory.mktemp("related"))["source"]


@pytest.fixture(scope="module")
def ids(source):
    known = token_ids_by_bytes(source.require_tokenizer())
    return np.array([[known[f" {word}".encode()] for word in pair] for pair in PAIRS])


def test_effects_are_those_of_the_logits_written_out(source, ids):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 24)).astype(np.float32)
    prompts = ["ab", "the sea"]
    found = signed_effects.signed_effects(source, prompts, [Push(0, vector) for vector in vectors], ids)
    table = np.asarray(source.weights().get("W_U", source.weights()["W_E"]))
    embedded = np.asarray(source.weights()["W_E"])
    for row, prompt in enumerate(prompts):
        stream = embedded[source.require_tokenizer().encode(prompt)[-1]]

        def contrast(x):
            logits = table @ (x / np.sqrt(np.mean(x**2) + source.architecture.norm_eps))
            return np.mean(logits[ids[:, 0]] - logits[ids[:, 1]])

        for push, vector in enumerate(vectors):
            expected = (contrast(stream + vector) - contrast(stream - vector)) / 2
            assert found[push, row] == pytest.approx(expected, abs=1e-4)
        clean = signed_effects.contrast_after(source, prompts, ids)
        assert clean[row] == pytest.approx(contrast(stream), abs=1e-4)


def test_no_vector_has_no_effect_and_the_opposite_vector_the_opposite(source, ids):
    vector = np.random.default_rng(1).normal(size=24).astype(np.float32)
    pushes = [Push(1, 0 * vector), Push(1, vector), Push(1, -vector)]
    none, one, other = signed_effects.signed_effects(source, ["ab", "cd", "ef"], pushes, ids)
    assert (none == 0).all()
    np.testing.assert_allclose(one, -other, atol=1e-6)


def test_a_ratio_is_drawn_over_the_same_examples():
    rng = np.random.default_rng(2)
    lower = rng.normal(3, 2, size=200)
    value, low, high = signed_effects.ratio_of_means(0.7 * lower + rng.normal(0, 0.01, size=200), lower, seed=0)
    assert low < value < high and value == pytest.approx(0.7, abs=0.01) and high - low < 0.02
    with pytest.raises(ValueError, match="same examples"):
        signed_effects.ratio_of_means(lower, lower[1:], seed=0)
