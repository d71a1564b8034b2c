import numpy as np
import pytest

from jaxinterp.analysis.coherence import semantic_coherence
from jaxinterp.tasks import wordnet


def test_related_neighbours_are_counted_and_forms_of_the_word_are_not():
    net = wordnet.load()
    near = [["October", "verge", "Junes", "june", "Tuesday"], ["Belgium", "Sweden", "qqq", "sag"], ["dogs"], ["June"]]
    shares = semantic_coherence(["June", "Thailand", "dog", "qqq"], near, net)
    assert shares[0] == pytest.approx(1 / 3) or shares[0] == pytest.approx(2 / 3)
    assert np.isnan(shares[2:]).all()


def test_random_words_are_rarely_related():
    net = wordnet.load()
    rng = np.random.default_rng(0)
    words = rng.choice(sorted(net.senses["n"]), size=(200, 20))
    assert np.nanmean(semantic_coherence(words[:, 0].tolist(), words[:, 1:].tolist(), net)) < 0.01


def test_each_word_needs_its_neighbours():
    with pytest.raises(ValueError, match="2 words have 1 lists"):
        semantic_coherence(["a", "b"], [["c"]], wordnet.load())
