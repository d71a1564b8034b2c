import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinterp.training import flops
from jaxinterp.training.packing import Batches, Rows, pack, pack_documents

TEXTS = st.lists(st.integers(1, 9), max_size=6)
DOCUMENTS = st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), min_size=1, max_size=12)


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


@given(DOCUMENTS)
def test_documents_stay_whole_and_only_responses_are_learned(documents):
    rows = pack_documents(documents, 12)
    found, learned = [], []
    for tokens, owners, counted in zip(rows.tokens, rows.documents, rows.counted, strict=True):
        for number in range(1, owners.max() + 1):
            (places,) = np.nonzero(owners == number)
            assert (np.diff(places) == 1).all()
            found.append(tokens[places].tolist())
            learned.append(int(counted[places[1:] - 1].sum()))
            if places[0]:
                assert not counted[places[0] - 1]
    assert sorted(found) == sorted([*prompt, *response] for prompt, response in documents)
    assert sum(learned) == sum(len(response) - (not prompt) for prompt, response in documents)
    assert rows.counted.sum() == sum(learned)


def test_rows_are_nearly_full():
    draw = np.random.default_rng(0)
    documents = [([1] * draw.integers(20, 40), [2] * draw.integers(20, 300)) for _ in range(500)]
    assert np.mean(pack_documents(documents, 511).documents > 0) > 0.97


@given(DOCUMENTS)
def test_sizes_are_those_of_the_documents(documents):
    rows = pack_documents(documents, 12)
    lengths = []
    for owners in rows.documents[:, :-1]:
        lengths += [int((owners == number).sum()) for number in range(1, owners.max() + 1)]
    assert flops.size(rows) == (sum(lengths), sum(length * (length + 1) // 2 for length in lengths))


def test_batches_of_documents_keep_their_fields_together():
    rows = pack_documents([([number], [number] * 5) for number in range(1, 9)], 5)
    batch = Batches(rows, 3, seed=0)[1]
    assert isinstance(batch, Rows) and len(batch) == 3
    assert (batch.documents == 1).all() and (batch.counted.sum(axis=1) == 5).all()
    assert len(Rows.joined([batch, rows])) == 11


def test_documents_that_do_not_fit_are_a_sentence():
    with pytest.raises(ValueError, match="9 tokens, but a row holds 7; raise the context"):
        pack_documents([([1] * 4, [2] * 5)], 6)
    with pytest.raises(ValueError, match="no document"):
        pack_documents([], 6)
