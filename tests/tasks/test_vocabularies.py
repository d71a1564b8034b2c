import numpy as np
import pytest

from jaxinterp.tasks import vocabularies


class Listed:
    """A vocabulary that is a list of byte strings."""

    def __init__(self, *tokens: bytes | None):
        self.tokens = tokens
        self.vocabulary = len(tokens)

    def token_bytes(self, token_id: int) -> bytes | None:
        return self.tokens[token_id]


def test_tokens_match_by_bytes_and_not_by_id():
    source = Listed(None, b" the", b"the", b"\xe2\x80", b"only here")
    target = Listed(b"the", b"\xe2\x80", b"only there", None, b" the")
    matched = vocabularies.match_tokens(source, target)
    assert matched.keys == (b" the", b"the", b"\xe2\x80")
    assert matched.source.tolist() == [1, 2, 3]
    assert matched.target.tolist() == [4, 0, 1]


def test_a_character_wins_over_its_byte_fallback():
    assert vocabularies.token_ids_by_bytes(Listed(b"A", b"B", b"A")) == {b"A": 2, b"B": 1}


def test_empty_tokens_never_match():
    with pytest.raises(ValueError, match="share no token"):
        vocabularies.match_tokens(Listed(b"", b"a"), Listed(b"", b"b"))


def test_words_are_a_space_and_ascii_letters():
    matched = vocabularies.Matched(
        np.arange(6), np.arange(6), (b" sea", b"sea", b" to", b" sea7", " été".encode(), b" Sea")
    )
    assert matched.words().tolist() == [True, False, False, False, False, True]
    kept = matched.where(matched.words())
    assert kept.keys == (b" sea", b" Sea") and kept.source.tolist() == [0, 5] and len(kept) == 2


def test_untrained_rows_are_zero_or_repeated():
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    table[2] = 0
    table[5] = table[1]
    assert vocabularies.trained_rows(table).tolist() == [True, False, False, True, True, False]


def test_three_vocabularies_match_on_what_all_of_them_have():
    vocabulary = Listed(b"a", b"b", b"c"), Listed(b"c", None, b"a"), Listed(b"x", b"c", b"b", b"a")
    ids, keys = vocabularies.match_all(vocabulary)
    assert keys == (b"a", b"c")
    assert ids.tolist() == [[0, 2], [2, 0], [3, 1]]
    with pytest.raises(ValueError, match="the 3 tokenizers share no token"):
        vocabularies.match_all([*vocabulary[:2], Listed(b"b")])
