import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.analysis import hidden_states, shared_words
from jaxinterp.analysis.neighbours import nearest_neighbours
from jaxinterp.models.toy import toy
from jaxinterp.tasks import vocabularies
from tests.experiments import sentence_pair


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_states_are_those_that_run_reads(family):
    model = toy(family, seed=0)
    texts = [[5, 6, 7, 8], [9, 3], [4, 4, 4]] * 3
    places = [(7, 1), (0, 2), (0, 3), (8, 0), (2, 2)]
    found = hidden_states.read_states(model, texts, places, tile=16)
    _, cache = ji.run(model, texts, sites=[ji.resid_pre(0), ji.resid_post(...), ji.ln_final()], logits="last")
    reads = [cache["resid_pre", 0], *cache.stack("resid_post"), cache["ln_final"]]
    width = cache.tokens.shape[1]
    for read, got in zip(reads, [*found.stages, found.final], strict=True):
        expected = [read[text, width - len(texts[text]) + token] for text, token in places]
        np.testing.assert_allclose(got, expected, atol=2e-5)
    assert found.blocks == model.architecture.layers
    np.testing.assert_array_equal(found.after(None), found.final)


@pytest.mark.parametrize("places", [[(0, 2)], [(1, 0)], [(0, -1)], []])
def test_places_outside_of_the_texts_are_refused(places):
    with pytest.raises(ValueError, match="index of a token in it"):
        hidden_states.read_states(toy("llama", seed=0), [[1, 2]], places)


def test_layers_are_paired_by_relative_depth():
    pairs = {target: source for source, target in hidden_states.paired_stages(30, 18)}
    expected = {0: 0, 2: 3, 4: 7, 8: 13, 10: 17, 14: 23, 16: 27, 18: 30}
    assert len(pairs) == 19 and {target: pairs[target] for target in expected} == expected


def test_shared_neighbours_are_counted_and_chance_is_what_it_is():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 8))
    near, other = (nearest_neighbours(table, 10)[0] for table in (rows, rng.normal(size=(300, 5))))
    expected = [len(set(one) & set(two)) / 10 for one, two in zip(near, other, strict=True)]
    np.testing.assert_allclose(hidden_states.agreeing_neighbours(near, other), expected)
    assert np.mean(expected) == pytest.approx(10 / 299, abs=0.01)
    order = rng.permutation(300)
    moved = nearest_neighbours(rows[order], 10)[0]
    np.testing.assert_array_equal(hidden_states.relabel(near, order), moved)
    with pytest.raises(ValueError, match="shapes"):
        hidden_states.agreeing_neighbours(near, other[1:])


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    return sentence_pair.related_pair(tmp_path_factory.mktemp("related"))


def test_words_are_the_same_in_both_models(related):
    source, target = related.values()
    ids = [vocabularies.token_ids_by_bytes(model.require_tokenizer()) for model in related.values()]
    texts = ["The river and the lake.", "A lake, of course"]
    alone = shared_words.read_alone(source, target, 20, seed=0)
    inside = shared_words.read_in_sentences(source, target, texts, seed=0)
    assert len(alone) == 20 and set(inside.words) == {"a", "and", "course", "lake", "of", "river", "the"}
    for found, chosen in ((alone, alone.words), (inside, ("river", "lake", "course"))):
        for word in chosen:
            place = found.words.index(word)
            for model, known, states in zip((source, target), ids, (found.source, found.target), strict=True):
                row = np.asarray(model.weights()["W_E"])[known[f" {word}".encode()]]
                np.testing.assert_allclose(states.after(0)[place], row, atol=1e-5)
            assert found.ranks[place] == ids[0][f" {word}".encode()]


def test_the_opening_is_the_first_special_token_that_there_is(related):
    tokenizer = related["source"].require_tokenizer()
    assert shared_words.opening(tokenizer, ["<bos>", " river"]) == tokenizer.encode("\n")


def test_models_without_common_words_are_refused(related, tmp_path):
    source = related["source"]
    short = sentence_pair.tokenizer(tmp_path, sentence_pair.tokens()[:256])
    target = toy("llama", seed=1, tokenizer=short, vocab_size=256)
    with pytest.raises(ValueError, match="share no trained token of a space and letters"):
        shared_words.read_alone(source, target, 20, seed=0)
    with pytest.raises(ValueError, match="no word that both"):
        shared_words.read_in_sentences(source, target, ["12, 34."], seed=0)
