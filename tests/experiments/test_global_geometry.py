import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxinterp.experiments import global_geometry
from jaxinterp.experiments.embedding_geometry import global_claims
from jaxinterp.models import language_model
from tests.experiments import words
from tests.experiments.encoder import related_encoder

CONFIG = global_geometry.Config(
    least_tokens=100,
    null_tokens=120,
    large_sample=150,
    permutations=1000,
    rank_bins=4,
    rank_permutations=50,
    random_tables=10,
    neighbours=5,
    neighbour_tokens=60,
    relabellings=20,
    resamples=200,
)


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    folder = tmp_path_factory.mktemp("related")
    models = words.related_pair(folder)
    models = {"one": models["source"], "two": models["target"]}
    return global_geometry.run(CONFIG, models | {"three": related_encoder(folder / "encoder", models["one"])})


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    return global_geometry.run(CONFIG, words.random_pair(tmp_path_factory.mktemp("random")))


def one(table, **where):
    return table.filter(*(pl.col(name) == value for name, value in where.items())).row(0, named=True)


def test_a_hidden_rotation_is_found_in_every_measure(related):
    pairs = related.filter(pl.col("part") == "tokens", pl.col("matrix") == "W_E", pl.col("pool") == "pair")
    assert set(pairs.select("first", "second").iter_rows()) == {("one", "two"), ("one", "three"), ("two", "three")}
    pair = {"matrix": "W_E", "pool": "pair", "first": "one", "second": "two"}
    for variant in global_geometry.VARIANTS:
        r = one(related, measure="r", method=variant, **pair)
        assert r["low"] < r["value"] < r["high"] and r["value"] > 0.9 and r["n"] == len(words.tokens())
        assert one(related, measure="p, relabelled", method=variant, **pair)["value"] == pytest.approx(1 / 1001)
        rank = one(related, measure="rank correlation", method=variant, **pair)
        assert rank["low"] < rank["value"] < rank["high"] and rank["value"] > 0.9 and rank["n"] == 120
        assert one(related, measure="r of a large sample", method=variant, **pair)["n"] == 150
    assert one(related, measure="debiased CKA", **pair)["value"] > 0.98
    assert one(related, measure="Procrustes distance", **pair)["value"] < 0.2
    shared = one(related, measure="shared neighbours", **pair)
    assert shared["low"] > 0.7 and shared["n"] == 60
    for measure in ("debiased CKA", "Procrustes distance", "shared neighbours"):
        null = one(related, measure=f"{measure}, relabelled", **pair)
        found = one(related, measure=measure, **pair)
        assert null["control"] and null["n"] == 20
        assert not null["low"] <= found["value"] <= null["high"]
    third = one(related, measure="r", method="centred", matrix="W_E", pool="pair", first="two", second="three")
    assert 0.5 < third["value"] < 0.99


def test_claims_are_met_on_related_models_and_not_on_random_ones(related, unrelated):
    claims = global_geometry.check(related)
    assert len(claims) == 6, "three pairs of embeddings, one of unembeddings, the closed form, the noise"
    assert all(claim.met for claim in claims), [claim.criterion for claim in claims if not claim.met]
    assert all(claim.control and claim.n for claim in claims)
    shared = [claim for claim in global_geometry.check(unrelated) if "r of all pairwise cosines" in claim.criterion]
    assert len(shared) == 2 and not any(claim.met for claim in shared)
    for variant in global_geometry.VARIANTS:
        assert abs(one(unrelated, measure="r", method=variant)["value"]) < 0.03


def test_pools_and_matrices_are_those_that_the_models_have(related, unrelated):
    decoders = related.filter(pl.col("matrix") == "W_U")
    assert set(decoders["first"].drop_nulls()) == {"one", "two"} and set(decoders["pool"].drop_nulls()) == {"pair"}
    common = related.filter(pl.col("pool") == "all", pl.col("measure") == "shared tokens")
    spaced = sum(token.startswith("Ġ") for token in words.tokens())
    assert common.height == 3 and common["value"].unique().to_list() == [spaced - ("Ġ" in words.tokens())]
    assert set(unrelated["pool"].drop_nulls()) == {"pair"}
    sources = related.filter(pl.col("part") == "model", pl.col("matrix") == "W_E")
    assert sources["text"].null_count() == 0 and sources["first"].to_list() == ["one", "two", "three"]


def test_untied_models_may_share_only_their_unembeddings(tmp_path):
    models = words.related_pair(tmp_path)
    rng = np.random.default_rng(8)
    for name, model in models.items():
        table = rng.normal(size=model.token_table("W_E").shape).astype(np.float32)
        models[name] = language_model.with_weights(model, dict(model.weights()) | {"W_E": table})
    table = global_geometry.run(dataclasses.replace(CONFIG, permutations=10, rank_permutations=5), models)
    below, above = (one(table, measure="r", method="centred", matrix=matrix)["value"] for matrix in ("W_E", "W_U"))
    assert abs(below) < 0.03 and above > 0.9


def test_numbers_known_for_these_models_are_claimed(related, monkeypatch):
    pair = {"matrix": "W_E", "pool": "pair", "first": "one", "second": "two", "measure": "r"}
    values = {variant: one(related, method=variant, **pair)["value"] for variant in global_geometry.VARIANTS}
    sources = [one(related, part="model", first=role)["text"] for role in ("two", "one")]
    known = global_claims.Expected(
        models=(sources[0], sources[1]), pool="pair", measure="r", tokens="all", values=values, tolerance=1e-6
    )
    off = dataclasses.replace(known, values=values | {"raw": values["raw"] - 0.02}, tolerance=0.01)
    monkeypatch.setattr(global_claims, "EXPECTED", (known, off))
    landed = [claim for claim in global_geometry.check(related) if "r within" in claim.criterion]
    assert [claim.met for claim in landed] == [True, False]


def test_the_figure_is_drawn_from_the_table(related, unrelated):
    assert len(global_geometry.figure(related).axes) == 9
    drawn = global_geometry.figure(unrelated.filter(pl.col("matrix") != "W_U"))
    assert len(drawn.axes) == 6 and all(axes.get_title(loc="left") for axes in drawn.axes)


def test_models_that_cannot_be_compared_are_refused(tmp_path):
    models = words.random_pair(tmp_path)
    with pytest.raises(ValueError, match="give two or more"):
        global_geometry.run(CONFIG, {"source": models["source"]})
    with pytest.raises(ValueError, match="take models that share more, or lower least_tokens"):
        global_geometry.run(dataclasses.replace(CONFIG, least_tokens=10_000), models)
    nameless = dataclasses.replace(models["target"], tokenizer=None)
    with pytest.raises(ValueError, match="no tokenizer"):
        global_geometry.run(CONFIG, models | {"target": nameless})
