import numpy as np
import pytest

from jaxinterp.analysis import transfer


def planted(noise=0.1, *, rows=600, source=12, target=16, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(source, target)) / np.sqrt(source)
    points = rng.normal(size=(rows, source)) + 3
    return (
        points.astype(np.float32),
        (points @ true + 5 + noise * rng.normal(size=(rows, target))).astype(np.float32),
        true,
    )


def test_least_squares_recovers_a_planted_map_and_its_offset():
    source, target, true = planted(0.0)
    found = transfer.fit_map(source, target)
    np.testing.assert_allclose(found.matrix, true, atol=1e-4)
    np.testing.assert_allclose(found.points(source), target, atol=1e-3)
    np.testing.assert_allclose(found.directions(source[:1] - source[1:2]), target[:1] - target[1:2], atol=1e-3)


@pytest.mark.parametrize(("source_width", "target_width"), [(12, 16), (16, 12), (12, 12)])
def test_procrustes_recovers_a_planted_rotation_and_its_scale(source_width, target_width):
    rng = np.random.default_rng(1)
    wide = max(source_width, target_width)
    rotation = np.linalg.qr(rng.normal(size=(wide, wide)))[0][:source_width, :target_width]
    if source_width > target_width:
        rotation = np.linalg.qr(rng.normal(size=(source_width, target_width)))[0]
    source = rng.normal(size=(500, source_width))
    source = np.linalg.qr(source - source.mean(axis=0))[0] + 1
    found = transfer.fit_map(source, 2.5 * source @ rotation + 1, "procrustes")
    np.testing.assert_allclose(found.matrix, 2.5 * rotation, atol=1e-4)
    values = np.linalg.svd(found.matrix)[1]
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


def test_ridge_shrinks_and_fits_with_fewer_pairs_than_dimensions():
    source, target, _ = planted(rows=8)
    with pytest.raises(ValueError, match="more than 12 pairs"):
        transfer.fit_map(source, target)
    small, large = (transfer.fit_map(source, target, "ridge", ridge=ridge) for ridge in (0.1, 100.0))
    assert np.isfinite(small.matrix).all()
    assert np.linalg.norm(large.matrix) < 0.1 * np.linalg.norm(small.matrix)


def test_a_good_map_finds_held_out_partners_and_a_shuffled_one_does_not():
    source, target, _ = planted(0.3)
    train, held = np.arange(400), np.arange(400, 600)
    good = transfer.map_quality(transfer.fit_map(source[train], target[train]), source[held], target, held, block=7)
    assert good.hits(1) > 190 and good.hits(10) == 200 and good.r2 > 0.8 and good.cosines.mean() > 0.9
    for wrong in transfer.fit_shuffled(source[train], target[train], count=3, seed=0):
        quality = transfer.map_quality(wrong, source[held], target, held)
        assert quality.hits(10) < 20 and abs(quality.cosines.mean()) < 0.15 and quality.r2 < 0.05


def test_unrelated_tables_give_nothing_on_held_out_rows():
    rng = np.random.default_rng(3)
    source, target = rng.normal(size=(600, 12)), rng.normal(size=(600, 16))
    quality = transfer.map_quality(
        transfer.fit_map(source[:400], target[:400]), source[400:], target, np.arange(400, 600)
    )
    assert quality.r2 < 0.02 and quality.hits(1) <= 5


def test_ranks_are_counted_by_centred_cosine():
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(50, 6))
    found = transfer.LinearMap(np.eye(6), np.zeros(6), candidates.mean(axis=0))
    rows = rng.normal(size=(20, 6))
    truth = rng.integers(0, 50, 20)
    quality = transfer.map_quality(found, rows, candidates, truth)
    centred = candidates - candidates.mean(axis=0)
    for row, own, rank, cosine in zip(rows, truth, quality.ranks, quality.cosines, strict=True):
        cosines = centred @ row / np.linalg.norm(centred, axis=1) / np.linalg.norm(row)
        assert rank == np.sum(cosines > cosines[own]) and cosine == pytest.approx(cosines[own])


def test_unpaired_rows_are_refused():
    with pytest.raises(ValueError, match="30 source rows stand against 29"):
        transfer.fit_map(np.ones((30, 2)), np.ones((29, 2)))
