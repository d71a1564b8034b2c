import numpy as np
import pytest

from jaxinterp.training.packing import Batches, pack


def test_every_token_is_predicted_once():
    texts = [[1, *range(10 * number, 10 * number + 7), 2] for number in range(1, 9)]
    rows = pack(texts, 8)
    stream = [token for text in texts for token in text]
    assert rows[:, 1:].ravel().tolist() == stream[1 : 1 + rows.shape[0] * 8]
    assert (rows[1:, 0] == rows[:-1, -1]).all()


def test_batches_are_a_function_of_the_step_and_pass_over_all_rows():
    batches = Batches(np.arange(10), 3, seed=5)
    first = np.concatenate([batches[step] for step in range(3)])
    assert len(set(first.tolist())) == 9
    assert (batches[7] == Batches(np.arange(10), 3, seed=5)[7]).all()
    assert any((batches[step] != batches[step + 3]).any() for step in range(3))
    assert any((batches[step] != Batches(np.arange(10), 3, seed=6)[step]).any() for step in range(3))


def test_too_little_text_is_a_sentence():
    with pytest.raises(ValueError, match="give more texts"):
        pack([[1, 2]], 8)
    with pytest.raises(ValueError, match="lower the batch"):
        Batches(np.arange(2), 3, seed=0)
