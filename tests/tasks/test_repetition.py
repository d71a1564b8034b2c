import random
import string

import pytest

from jaxinterp.tasks import repetition


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0), ([7], 0), ([7, 8], 0), ("abcd", 0), ([5] * 11, 0.9), ("ababab", 0.6), (["a", "b", "a", "b"], 1 / 3)],
)
def test_bigrams_that_come_again_are_counted(tokens, share):
    assert repetition.bigram_repetition(tokens) == pytest.approx(share)


def test_the_order_of_tokens_counts():
    assert repetition.bigram_repetition("abab") > repetition.bigram_repetition("abba")


def test_a_loop_compresses_and_noise_does_not():
    noise = "".join(random.Random(0).choices(string.printable, k=400))
    loop = "Yes! It works! " * 27
    assert repetition.compression_ratio(loop) < 0.15
    assert repetition.compression_ratio(noise) > 0.8
    assert repetition.compression_ratio("a") > 1
    assert repetition.compression_ratio("") == 1


def test_the_more_often_a_text_repeats_itself_the_smaller_the_ratio():
    ratios = [
        repetition.compression_ratio("- 31 + 12 - 71 = 43 - 71 = -28 (not 28)\n" * count) for count in (1, 2, 4, 8)
    ]
    assert ratios == sorted(ratios, reverse=True)
