import numpy as np
import polars as pl
import pytest

from jaxinterp.analysis.probe_comparison import compare_probes


def statements(seed=0, n=480, width=12, layers=3, planted=1):
    """Truth along one direction at one layer, in statements and reversed in their opposites; noise elsewhere."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.6
    sides = rng.normal(size=(2, layers, n, width))
    sign = np.where(labels, 2.5, -2.5)
    sides[0, planted, :, 4] += sign
    sides[1, planted, :, 4] -= sign
    return sides.astype(np.float32), labels


@pytest.fixture(scope="module")
def table():
    (features, opposites), labels = statements()
    return compare_probes(features, labels, opposites=opposites)


def test_every_probe_finds_the_planted_layer_and_only_it(table):
    probes = table.filter(pl.col("control") == "none")
    assert sorted(probes["probe"].unique()) == ["ccs", "logistic", "mass mean", "whitened mass mean"]
    found = probes.filter(pl.col("layer") == 1)
    assert found["accuracy"].min() > 0.93 and found["selected"].all()
    missed = probes.filter(pl.col("layer") != 1)
    assert missed["accuracy"].max() < 0.75 and not missed["selected"].any()
    assert (probes["low"] <= probes["accuracy"]).all() and (probes["accuracy"] <= probes["high"]).all()
    assert (probes["n"] == 120).all()


def test_controls_show_nothing(table):
    shuffled = table.filter(pl.col("control") == "shuffled labels")
    assert len(shuffled) == 9 and (shuffled["n"] == 20).all()
    assert shuffled["accuracy"].is_between(0.35, 0.65).all()
    assert not table.filter(pl.col("control") != "none")["selected"].any()
    majority = table.filter(pl.col("control") == "majority class")
    assert len(majority) == 3 and majority["accuracy"].is_between(0.5, 0.7).all()
    directions = table.filter(pl.col("control") == "random direction").sort("layer")
    assert directions["accuracy"][0] < 0.6 and 0.55 < directions["accuracy"][1] < 0.9
    assert len(table.filter(pl.col("control") == "swapped pairs")) == 3


def test_the_strength_is_chosen_on_validation_and_the_test_split_plays_no_part():
    (features, _), labels = statements(n=240)
    split = np.repeat(["train", "validation", "test"], 80)
    spoiled = features.copy()
    spoiled[:, split == "test"] = np.random.default_rng(1).normal(size=(3, 80, 12))
    first, second = (compare_probes(x, labels, split=split, permutations=2) for x in (features, spoiled))
    assert "ccs" not in first["probe"]
    choices = ["layer", "probe", "control", "C", "selected"]
    assert first.select(choices).equals(second.select(choices))
    kept = (pl.col("layer") == 1) & (pl.col("control") == "none")
    assert first.filter(kept)["accuracy"].min() > 0.9 and second.filter(kept)["accuracy"].max() < 0.75


def test_refuses_splits_that_cannot_be_measured():
    (features, opposites), labels = statements(n=40)
    with pytest.raises(ValueError, match="validation split has 0 examples"):
        compare_probes(features, labels, split=np.repeat(["train", "test"], 20))
    with pytest.raises(ValueError, match="one of train, validation, test"):
        compare_probes(features, labels, split=np.repeat(["train", "dev"], 20))
    with pytest.raises(ValueError, match="opposites have shape"):
        compare_probes(features, labels, opposites=opposites[:1])
    with pytest.raises(ValueError, match="permutations"):
        compare_probes(features, labels, permutations=0)
