import re

import numpy as np
import pytest

from jaxinterp.tasks import concepts


class Listed:
    """A vocabulary that is a list of words with a space before them."""

    def __init__(self, *words: str):
        self.words = words
        self.vocabulary = len(words)

    def token_bytes(self, token_id: int) -> bytes:
        return f" {self.words[token_id]}".encode()


def words_in(texts) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


@pytest.mark.parametrize("concept", concepts.CONCEPTS.values(), ids=lambda concept: concept.name)
def test_what_judges_a_vector_did_not_build_it(concept):
    held_out = {word for pair in concept.pairs for word in pair}
    assert len(held_out) == 2 * len(concept.pairs) >= 24
    built_from = words_in(text for pair in concept.sentences for text in pair) | set(concept.words + concept.opposites)
    assert not held_out & built_from
    assert len(concept.sentences) >= 12
    assert not words_in(concepts.PROMPTS[concept.followed_by]) & (held_out | set(concept.words + concept.opposites))


@pytest.mark.parametrize("concept", concepts.CONCEPTS.values(), ids=lambda concept: concept.name)
def test_counterparts_have_about_as_many_words(concept):
    for about, other in concept.sentences:
        assert about != other
        assert abs(len(about.split()) - len(other.split())) <= (4 if concept.name in ("formality", "French") else 1)


def test_prompts_are_many_and_different():
    for prompts in concepts.PROMPTS.values():
        assert len(set(prompts)) == len(prompts) >= 12


def test_only_words_that_are_one_token_in_all_vocabularies_are_kept():
    concept = concepts.Concept(
        name="tea", sentences=(("a", "b"),), words=("tea", "kettle"), pairs=(("cup", "hat"), ("pot", "shoe"))
    )
    first, second = Listed("hat", "cup", "tea", "pot", "shoe", "kettle"), Listed("tea", "cup", "shoe", "hat")
    one, two = concepts.word_ids(concept, first, second)
    np.testing.assert_array_equal(one.words, [2])
    np.testing.assert_array_equal(two.words, [0])
    np.testing.assert_array_equal(one.pairs, [[1, 0]])
    np.testing.assert_array_equal(two.pairs, [[1, 3]])
    assert len(one.opposites) == 0


def test_a_concept_unknown_to_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="'wedding' has no words"):
        concepts.word_ids(concepts.WEDDING, Listed("the", "of"))
