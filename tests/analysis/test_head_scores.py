import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis.head_scores import SCORES, head_scores, repeated_tokens
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

SIZE = 32


def planted():
    """A GPT-2 with hand-set heads: previous-token L0.H1, duplicate L0.H2, and L1.H3, which reads what L0.H1 wrote.

    The residual stream has a one-hot token, a one-hot position, and room for the token before.
    """
    model = toy("gpt2", n_embd=4 * SIZE, n_head=4, n_layer=2, n_positions=SIZE, vocab_size=SIZE)
    weights = {name: np.zeros(array.shape, np.float32) for name, array in model.weights().items()}
    token, position, before = (slice(part * SIZE, (part + 1) * SIZE) for part in range(3))
    weights |= {name: np.ones_like(array) for name, array in weights.items() if name.endswith(".w")}
    weights["W_E"][:, token] = weights["W_pos"][:, position] = np.eye(SIZE)
    first, second = "blocks.0.", "blocks.1."
    weights[first + "W_Q"][1][:, position] = 2 * np.eye(SIZE, k=1)
    weights[first + "W_K"][1][:, position] = np.eye(SIZE)
    weights[first + "W_V"][1][:, token] = weights[first + "W_O"][before, 1] = np.eye(SIZE)
    weights[first + "W_Q"][2][:, token] = 2 * np.eye(SIZE)
    weights[first + "W_K"][2][:, token] = np.eye(SIZE)
    weights[second + "W_Q"][3][:, token] = 3 * np.eye(SIZE)
    weights[second + "W_K"][3][:, before] = np.eye(SIZE)
    return with_weights(model, {name: jnp.asarray(array) for name, array in weights.items()})


def test_hand_set_heads_are_found_and_only_they():
    model = planted()
    table = head_scores(model, tokens=12, rows=5, batch_size=2)
    assert table.height == 2 * 4 * 3 and set(table["rows"]) == {5}
    found = {name: table.filter(score=name).sort("value", descending=True) for name in SCORES}
    top = {name: (rows["layer"][0], rows["head"][0]) for name, rows in found.items()}
    assert top == {"previous": (0, 1), "duplicate": (0, 2), "induction": (1, 3)}
    assert found["previous"]["value"][0] > 0.99 and found["induction"]["value"][0] > 0.95
    # A duplicate head looks at its own token, too.
    assert found["duplicate"]["value"][0] == pytest.approx(0.5, abs=0.02)
    for name, rows in found.items():
        others = rows[1:]
        # All other heads are blind: their scores are those of even attention, on every row.
        silent = others.filter(~((pl.col("layer") == 0) & pl.col("head").is_in([1, 2])) & (pl.col("head") != 3))
        np.testing.assert_allclose(silent["value"], silent["uniform"], atol=1e-4, err_msg=name)
        assert others["value"].max() < 0.2
    assert (table["low"] <= table["value"] + 1e-9).all() and (table["value"] <= table["high"] + 1e-9).all()
    # The induction head lives on what the previous-token head writes.
    blind = head_scores(ji.ablate(model, ji.head(0, 1)), tokens=12, rows=5, batch_size=2)
    assert blind.filter(score="induction", layer=1, head=3)["value"][0] < 0.2


def test_a_random_model_has_no_such_heads_and_batches_do_not_matter():
    model = toy("qwen2", num_hidden_layers=2)
    table = head_scores(model, tokens=9, rows=3)
    assert table["value"].max() < 0.3
    np.testing.assert_allclose(head_scores(model, tokens=9, rows=3, batch_size=1)["value"], table["value"], atol=1e-5)
    ids = repeated_tokens(model, 9, 3, 0)
    _, acts = ji.run(model, ids, sites=[ji.pattern()])
    query = np.arange(10, 18)
    pattern = acts.stack("pattern")
    duplicate, induction = (pattern[..., query, query - shift].mean(axis=(1, 3)).reshape(-1) for shift in (9, 8))
    np.testing.assert_allclose(table.filter(score="duplicate")["value"], duplicate, atol=1e-5)
    np.testing.assert_allclose(table.filter(score="induction")["value"], induction, atol=1e-5)


def test_rows_repeat_themselves_after_a_start_token():
    model = toy("llama", bos_token_id=1, eos_token_id=2)
    ids = repeated_tokens(model, 30, 4, seed=3)
    assert ids.shape == (4, 61) and (ids[:, 0] == 1).all()
    np.testing.assert_array_equal(ids[:, 1:31], ids[:, 31:])
    assert not np.isin(ids[:, 1:], [1, 2]).any() and all(len(set(row[1:31])) == 30 for row in ids)
    assert (repeated_tokens(model, 30, 4, seed=3) == ids).all() and (repeated_tokens(model, 30, 4, 4) != ids).any()


def test_too_long_rows_are_one_sentence():
    with pytest.raises(ValueError, match="repeat at most 31 tokens"):
        head_scores(toy("gpt2"), tokens=40)
    with pytest.raises(ValueError, match="score nothing"):
        head_scores(toy("llama"), tokens=1)
