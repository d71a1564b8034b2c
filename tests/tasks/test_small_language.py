import collections
import math

import pytest

from jaxinterp.tasks import small_language
from jaxinterp.tasks.small_language import Language
from jaxinterp.training import corpora


@pytest.fixture(scope="module")
def corpus():
    return list(small_language.texts(4000, seed=1))


def words(text):
    return text.replace(".", " .").replace(",", " ,").split()


def test_texts_depend_on_their_seed_alone(corpus):
    again = Language()
    assert list(small_language.texts(5, seed=1, language=again)) == corpus[:5]
    assert not set(small_language.texts(200, seed=2)) & set(corpus)


def test_every_word_occurs_once_in_the_lists_and_often_in_the_corpus(corpus):
    known = small_language.vocabulary()
    assert len(set(known)) == len(known)
    counted = collections.Counter(word for text in corpus for word in words(text))
    assert set(counted) == set(known) and min(counted.values()) >= 5


def test_frequency_falls_with_rank_as_in_natural_text(corpus):
    counted = collections.Counter(word for text in corpus for word in words(text))
    ranked = sorted(counted.values(), reverse=True)
    slope = math.log(ranked[9] / ranked[399]) / math.log(400 / 10)
    assert 0.7 < slope < 1.5


def test_a_text_keeps_to_one_register_but_for_a_few_words(corpus):
    shares = []
    for text in corpus[:500]:
        formal, casual = small_language.count_registers(text)
        if formal + casual >= 4:
            shares.append(formal / (formal + casual))
    assert sum(0.3 < share < 0.7 for share in shares) < 0.05 * len(shares)
    assert 0.4 < sum(share > 0.5 for share in shares) / len(shares) < 0.6


def test_contrasts_differ_only_in_the_register_and_hold_no_judged_verb():
    language = Language()
    judged = {word for pair in small_language.held_out_verbs() for word in (pair.formal, pair.casual)}
    for seed in range(100):
        formal, casual = (words(text) for text in language.contrast(seed))
        different = [(a, b) for a, b in zip(formal, casual, strict=True) if a != b]
        assert different and not judged & {*formal, *casual}
        assert all(small_language.count_registers(f"{a} {b}") == (1, 1) for a, b in different)


def test_openings_tell_no_register():
    language = Language()
    twins = {
        w for kind in small_language.KINDS_OF_TWINS for p in small_language.twins(kind) for w in (p.formal, p.casual)
    }
    for seed in range(100):
        assert not twins & set(words(language.opening(seed)))


def test_the_tokenizer_spells_every_text_and_ranks_words_by_frequency(corpus):
    tokenizer = corpora.small_language_tokenizer()
    for text in corpus[:100]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.unk not in ids and ids[0] == tokenizer.bos
        assert len(ids) == 1 + len(words(text))
    assert tokenizer.vocabulary == len(small_language.SPECIAL) + len(small_language.vocabulary())
    assert tokenizer.token_bytes(tokenizer.id(" dog")) == b" dog"
    counted = collections.Counter(token for text in corpus for token in tokenizer.encode(text))
    assert sum(counted[token] for token in range(4, 104)) > 3 * sum(counted[token] for token in range(404, 504))
