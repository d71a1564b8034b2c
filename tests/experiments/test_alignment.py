import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxinterp.experiments import alignment
from tests.experiments import words

CONFIG = alignment.Config(
    held_out=60,
    pairs=(60, 150),
    permutations=200,
    null_tokens=150,
    rank_bins=4,
    rank_permutations=20,
    resamples=200,
    shuffled_maps=3,
)


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    return alignment.run(CONFIG, words.related_pair(tmp_path_factory.mktemp("related")))


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    return alignment.run(CONFIG, words.random_pair(tmp_path_factory.mktemp("random")))


def one(table, **where):
    return table.filter(*(pl.col(name) == value for name, value in where.items())).row(0, named=True)


def test_a_hidden_rotation_is_found(related):
    table, _ = related
    for variant in alignment.VARIANTS:
        r = one(table, measure="r", method=variant)
        assert r["low"] < r["value"] < r["high"] and r["value"] > 0.9
        assert one(table, measure="p, relabelled within rank bins", method=variant)["value"] == pytest.approx(1 / 21)
    for variant in ("raw", "centred"):
        assert one(table, measure="p, relabelled", method=variant)["value"] == pytest.approx(1 / 201)
    for direction in alignment.DIRECTIONS:
        for method in alignment.METHODS:
            most = table.filter(pl.col("direction") == direction, pl.col("method") == method)["pairs"].max()
            best = one(table, measure="top-1", direction=direction, method=method, pairs=most)
            assert best["value"] > 0.9 and best["n"] == 60 and best["low"] < best["value"]
        chance = one(table, measure="top-1", direction=direction, control=True)
        assert chance["value"] < 0.1 and chance["n"] == 60


def test_unrelated_models_show_nothing(unrelated):
    table, _ = unrelated
    for variant in alignment.VARIANTS:
        assert abs(one(table, measure="r", method=variant)["value"]) < 0.03
    found = table.filter(pl.col("measure") == "top-1")["value"]
    assert found.max() < 0.15
    assert not all(claim.met for claim in alignment.check(table))


def test_every_array_has_named_axes_and_the_maps_carry_one_space_to_the_other(related):
    table, maps = related
    assert {name: len(names) for name, names in maps.axes.items()} == {n: a.ndim for n, a in maps.values.items()}
    there = maps.values["source to target/least_squares"]
    back = maps.values["target to source/least_squares"]
    assert there.shape == (24, 32) and back.shape == (32, 24)
    np.testing.assert_allclose(there @ back, np.eye(24), atol=0.1)
    assert maps.values["source to target/shuffled"].shape == (3, 24, 32)
    assert one(table, measure="matched tokens")["value"] == len(words.tokens())


def test_results_do_not_depend_on_when_they_are_made(tmp_path):
    small = dataclasses.replace(CONFIG, pairs=(), permutations=5, resamples=10, shuffled_maps=1)
    first, again = (alignment.run(small, words.related_pair(tmp_path / str(number)))[0] for number in range(2))
    assert first.equals(again)


def test_the_figure_is_drawn_from_the_table_and_claims_state_their_controls(related):
    table, _ = related
    drawn = alignment.figure(table)
    assert len(drawn.axes) == 3 and all(axes.get_title(loc="left") for axes in drawn.axes)
    claims = alignment.check(table)
    assert len(claims) == 6
    by_criterion = {claim.criterion: claim for claim in claims}
    assert all(claim.control and claim.n for claim in claims)
    raw = next(claim for criterion, claim in by_criterion.items() if "(raw)" in criterion)
    assert not raw.met and raw.ours > 0.9


def test_too_few_shared_tokens_are_refused(tmp_path):
    config = dataclasses.replace(CONFIG, held_out=10_000)
    with pytest.raises(ValueError, match="lower held_out"):
        alignment.run(config, words.random_pair(tmp_path))
