import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, countdown_traces, probing
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

SMALL = probing.Config(train_problems=16, test_problems=16, permutations=20, max_new_tokens=48, batch_size=16)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def small(model):
    return probing.run(SMALL, {"model": model})


def table_of(accuracy, pairs):
    """A table as `run` would give it for probes of the given accuracy in nine layers, the embedding first."""
    rows = []
    for position in probing.POSITIONS:
        for layer, (right, matched) in enumerate(zip(accuracy, pairs, strict=True)):
            measured = {"balanced accuracy": right, "minimal pairs": matched, "shuffled labels": 0.5}
            measured |= {"cosine": -0.99, "shuffled cosine": -0.99}
            rows += [
                {
                    "measure": measure,
                    "position": position,
                    "layer": layer - 1,
                    "depth": layer / 8,
                    "value": value,
                    "low": value - 0.02,
                    "high": min(value + 0.02, 1.0),
                    "n": 600,
                    "n_train": 900,
                    "control": measure.startswith("shuffled"),
                }
                for measure, value in measured.items()
            ]
    return pl.DataFrame(rows)


def test_a_model_as_the_paper_describes_it_meets_every_claim():
    held = probing.check(table_of([0.5, 0.9, *[0.999] * 7], [0.5, 0.8, *[0.99] * 7]))
    assert all(claim.met for claim in held)


def test_probes_at_chance_meet_only_the_claims_about_controls():
    held = probing.check(table_of([0.5] * 9, [0.5] * 9))
    assert [claim.met for claim in held] == [False, False, False, True, True, True]


def test_surface_cues_fail_on_minimal_pairs():
    held = probing.check(table_of([0.5, *[1.0] * 8], [0.5] * 9))
    assert [claim.met for claim in held][:3] == [True, True, False]


def test_the_table_of_a_real_model(small):
    blocks = 8
    per_layer = small.filter(pl.col("measure") != "model on minimal pairs")
    assert per_layer.height == 5 * len(probing.POSITIONS) * (blocks + 1)
    assert small["value"].drop_nans().is_between(-1.0001, 1).all()
    ranged = small.filter(pl.col("low").is_not_null() & ~pl.col("control") & pl.col("value").is_not_nan())
    assert (ranged["low"] <= ranged["value"] + 1e-9).all() and (ranged["value"] <= ranged["high"] + 1e-9).all()
    assert set(small.filter(pl.col("control"))["measure"]) == {"shuffled labels", "shuffled cosine"}


def test_a_real_model_knows_the_verdict_late_and_only_where_it_opens(small):
    def value(measure, position, layer):
        at = (pl.col("measure") == measure) & (pl.col("position") == position) & (pl.col("layer") == layer)
        return small.filter(at)["value"].item()

    assert value("balanced accuracy", "verdict", 7) == value("minimal pairs", "verdict", 7) == 1.0
    assert abs(value("minimal pairs", "verdict", 1) - 0.5) < 0.2
    assert abs(value("minimal pairs", "result", 7) - 0.5) < 0.2
    assert value("balanced accuracy", "verdict", -1) == 0.5  # the same token everywhere
    assert small.filter(pl.col("measure") == "model on minimal pairs")["value"].item() == 1.0
    met = [claim.met for claim in probing.check(small)]
    assert met[:3] == [False, False, True]


def test_the_records_can_be_written_as_json(small):
    json.dumps(claims.records(probing.check(small)), allow_nan=False)
    for record in claims.records(probing.check(small)):
        assert isinstance(record["ours"], float) and isinstance(record["met"], bool) and isinstance(record["n"], int)


def test_the_figure_shows_both_positions(small):
    drawn = probing.figure(small)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["residual stream after block"] * 2
    assert len(drawn.legends) == 1 and len(drawn.legends[0].get_texts()) == 4


def test_features_are_read_at_the_tokens_asked_for(model):
    problem = countdown.Problem((31, 12, 71), 28)
    texts = [countdown.write(problem, ["31 + 12 - 71", "71 - 31 - 12"]), countdown.write(problem, ["71 - 31 - 12"])]
    written = [trace for text in texts if (trace := countdown_traces.cut_trace(model, text)) is not None]
    read = probing._read(model, written, [(0, 0), (0, 1), (1, 0)], batch_size=8)
    assert read.labels.tolist() == [False, True, True] and read.traces.tolist() == [0, 0, 1]
    assert read.accepted.tolist() == [False, True, True]
    for example, (trace, place) in enumerate([(0, 0), (0, 1), (1, 0)]):
        verdict = written[trace].verdicts[place]
        _, cache = ji.run(model, [list(written[trace].ids)], sites=[ji.resid_post(3)], logits=None)
        alone = cache["resid_post", 3][0]
        np.testing.assert_allclose(read.features["verdict"][4, example], alone[verdict.open], atol=1e-4)
        np.testing.assert_allclose(read.features["result"][4, example], alone[verdict.result], atol=1e-4)


def test_a_model_that_never_learned_the_task_is_refused(model):
    random = toy("qwen2", tokenizer=model.require_tokenizer(), vocab_size=76)
    with pytest.raises(ValueError, match="trained on this task"):
        probing.run(probing.Config(train_problems=2, test_problems=2, max_new_tokens=16), {"model": random})
