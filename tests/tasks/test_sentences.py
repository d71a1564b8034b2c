import itertools
import re

import pytest

from jaxinterp.tasks import sentences
from tests.experiments import sentence_pair


def test_no_word_is_in_two_lists_and_every_gap_has_a_list():
    known = sentences.words()
    listed = [word.lower() for words in known.values() for word in words]
    assert len(listed) == len(set(listed)) > 3000
    assert all(word.isalpha() for word in listed)
    gaps = {gap for frame in sentences.FRAMES for gap in re.findall(r"\{(\w+)\}", frame)}
    assert gaps == set(known)


def test_words_come_once_before_any_comes_again():
    texts = sentences.write_sentences(400, seed=1)
    assert texts == sentences.write_sentences(400, seed=1) != sentences.write_sentences(400, seed=2)
    assert len(set(texts)) == 400 and not any("{" in text for text in texts)
    nouns = set(sentences.words()["noun"])
    used = [word for text in texts for word in re.findall("[a-z]+", text) if word in nouns - {"more"}]
    assert len(set(used)) > 0.95 * min(len(nouns), len(used))
    assert not any(re.search(r"\b[Aa] [aeiou]", text) for text in texts)


def test_word_ends_are_where_both_tokenizers_end_a_word(tmp_path):
    known = sentence_pair.tokens()
    source = sentence_pair.tokenizer(tmp_path / "words", known)
    target = sentence_pair.tokenizer(tmp_path / "bytes", known[:256])
    texts = ["The river and the lake.", "A lake, of course"]
    found = sentences.word_ends(texts, source, target)
    assert [end.word for end in found] == ["the", "river", "and", "the", "lake", "a", "lake", "of", "course"]
    for end in found:
        for tokenizer, index in ((source, end.source), (target, end.target)):
            ids = tokenizer.encode(texts[end.sentence], add_special_tokens=False)
            assert tokenizer.decode(ids[: index + 1]).lower().endswith(end.word)
    once = sentences.one_of_each(found, seed=0)
    assert [end.word for end in once] == ["a", "and", "course", "lake", "of", "river", "the"]
    places = {sentences.one_of_each(found, seed)[3].sentence for seed in range(20)}
    assert places == {0, 1}


class Cutting:
    """A tokenizer that cuts a text at some characters."""

    def __init__(self, *cuts):
        self.cuts = cuts

    def offsets(self, text, add_special_tokens=True):
        return list(itertools.pairwise(self.cuts))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [((0, 3, 7), (0, 3, 7), ["sea", "sun"]), ((0, 3, 7), (0, 4, 7), ["sun"]), ((0, 2, 7), (0, 1, 7), ["sun"])],
)
def test_a_word_that_one_tokenizer_joins_with_what_follows_is_left_out(first, second, words):
    assert [end.word for end in sentences.word_ends(["sea sun"], Cutting(*first), Cutting(*second))] == words
