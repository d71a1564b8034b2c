import numpy as np

from jaxinterp.analysis import weight_changes
from jaxinterp.models.language_model import with_weights
from jaxinterp.models.toy import toy

MODEL = toy("qwen2", num_hidden_layers=2)


def test_one_changed_unit_and_one_changed_head_are_found():
    weights = {name: np.array(array) for name, array in MODEL.weights().items()}
    weights["blocks.1.W_gate"][3] *= 2
    weights["blocks.0.W_O"][:, 1] *= -1
    other = with_weights(MODEL, weights)
    for read, kind, place, expected, change in (
        (weight_changes.unit_vectors, "gate", (1, 3), 1.0, 1.0),
        (weight_changes.head_vectors, "O", (0, 1), -1.0, 0.0),
    ):
        before, after = read(MODEL), read(other)
        for name in before:
            cosine = weight_changes.cosine(before[name], after[name])
            assert cosine.shape == before[name].shape[:2]
            np.testing.assert_allclose(
                cosine[place] if name == kind else cosine, expected if name == kind else 1, atol=1e-6
            )
        moved = weight_changes.norm_change(before[kind], after[kind])
        assert moved[place] == np.float64(change)
        moved[place] = 0
        assert not moved.any()


def test_heads_of_a_group_share_keys_and_values():
    architecture = MODEL.architecture
    found = weight_changes.head_vectors(MODEL)
    group = architecture.heads // architecture.kv_heads
    assert all(array.shape[:2] == (architecture.layers, architecture.heads) for array in found.values())
    for name in "KV":
        np.testing.assert_array_equal(found[name][:, 0], found[name][:, group - 1])
    weights = MODEL.weights()
    np.testing.assert_array_equal(found["O"][1, 2], np.asarray(weights["blocks.1.W_O"])[:, 2].reshape(-1))
    np.testing.assert_array_equal(
        weight_changes.unit_vectors(MODEL)["out"][1, 5], np.asarray(weights["blocks.1.W_out"])[:, 5]
    )
