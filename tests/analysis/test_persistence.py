import numpy as np
import pytest

from jaxinterp.analysis import geometry, persistence, transfer


def tables(noise, *, seed=0, tokens=400):
    """Two tables of other widths, the second a hidden rotation of the first plus noise, and the rotation."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(tokens, 12)) * np.linspace(2, 0.5, 12) + 0.4
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0][:12]
    second = first @ rotation + noise * rng.normal(size=(tokens, 20)) + 0.2
    return first.astype(np.float32), second.astype(np.float32), rotation.astype(np.float32)


def independent():
    rng = np.random.default_rng(9)
    return rng.normal(size=(400, 12)).astype(np.float32), rng.normal(size=(400, 20)).astype(np.float32)


def geometries(first, second, **options):
    settings = {"k": 10, "permutations": 40, "sample": 200, "seed": 0} | options
    groups = np.arange(len(first)) % 4
    rows = list(persistence.compare_geometries(first, second, groups, **settings))
    assert len({row["measure"] for row in rows}) == len(rows)
    return {row["measure"]: row for row in rows}


def test_a_rotation_is_found_by_both_measures():
    first, second, _ = tables(0.2)
    found = geometries(first, second)
    r, shared = found["r"], found["shared neighbours"]
    explicit = geometry.cosine_correlation_explicit(*(geometry.unit_rows(t, centred=True) for t in (first, second)))
    assert r["value"] == pytest.approx(explicit, abs=1e-4) and r["low"] < r["value"] < r["high"] and r["value"] > 0.9
    assert shared["low"] < shared["value"] < shared["high"] and shared["value"] > 0.5
    for name in ("relabelled", "relabelled within rank bins"):
        assert abs(found[f"r, {name}"]["value"]) < 0.02
        assert found[f"shared neighbours, {name}"]["value"] == pytest.approx(10 / 399, abs=0.01)
        assert found[f"p, r, {name}"]["value"] == found[f"p, shared neighbours, {name}"]["value"] == 1 / 41


def test_independent_tables_are_within_their_nulls():
    found = geometries(*independent())
    for measure in ("r", "shared neighbours"):
        assert found[f"p, {measure}, relabelled"]["value"] > 0.02
        null = found[f"{measure}, relabelled"]
        assert abs(found[measure]["value"] - null["value"]) < 3 * (null["high"] - null["low"])


def test_what_frequency_explains_stays_in_the_null_within_its_bins():
    rng = np.random.default_rng(0)
    shift = 3 * np.tile(rng.normal(size=(4, 1)), (100, 1))
    found = geometries(shift + rng.normal(size=(400, 6)), shift + rng.normal(size=(400, 9)))
    assert found["r, relabelled within rank bins"]["value"] > 5 * abs(found["r, relabelled"]["value"])
    assert found["r"]["value"] == pytest.approx(found["r, relabelled within rank bins"]["value"], abs=0.05)


def maps(first, second, right, wrong=(), shuffled=3):
    train, held = np.arange(300), np.arange(300, 400)
    rows, fitted = persistence.compare_maps(
        first, second, train, held, given={"embedding map": right}, wrong=wrong, shuffled=shuffled, seed=0
    )
    return {(row["method"], row["measure"]): row for row in rows}, fitted


def test_a_map_of_the_same_rotation_works_and_one_of_another_does_not():
    first, second, rotation = tables(0.1)
    other = np.linalg.qr(np.random.default_rng(5).normal(size=(20, 20)))[0][:12]
    same, fitted = maps(first, second, rotation, wrong=[other])
    assert same["embedding map", "top-1"]["value"] > 0.95 and same["refitted", "top-1"]["value"] > 0.95
    assert same["refitted", "R2"]["value"] > 0.9 and ("embedding map", "R2") not in same
    assert abs(same["embedding map", "top-1 gained by refitting"]["value"]) < 0.05
    np.testing.assert_allclose(fitted.matrix, transfer.fit_map(first[:300], second[:300]).matrix, atol=1e-5)
    for control in ("given, shuffled", "refitted, shuffled"):
        assert same[control, "top-1"]["control"] and same[control, "top-1"]["value"] < 0.1
        assert same[control, "top-1"]["n"] == 100
    elsewhere, _ = maps(first, second, other)
    assert elsewhere["embedding map", "top-1"]["value"] < 0.1
    gained = elsewhere["embedding map", "top-1 gained by refitting"]
    assert gained["low"] > 0.8 and gained["low"] <= gained["value"] <= gained["high"]


def test_between_independent_tables_no_map_finds_anything():
    first, second = independent()
    found, _ = maps(first, second, np.eye(12, 20, dtype=np.float32))
    for method in ("embedding map", "refitted", "refitted, shuffled"):
        assert found[method, "top-1"]["value"] <= 0.05 and abs(found[method, "cosine"]["value"]) < 0.12


def test_too_few_words_for_the_width_are_refused():
    first, second, rotation = tables(0.1)
    with pytest.raises(ValueError, match="least squares needs more than 12 pairs"):
        persistence.compare_maps(
            first, second, np.arange(8), np.arange(8, 20), given={"a": rotation}, wrong=(), shuffled=0, seed=0
        )
