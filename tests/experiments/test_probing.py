import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, probing
from jaxinterp.experiments.self_verification import cases
from jaxinterp.tasks import countdown
from tests.experiments import verdict_table

SMALL = probing.Config(permutations=20)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def made(model):
    table = verdict_table.write(training=24, evaluation=16, pairs=12)
    return probing.run(SMALL, {"model": model}, {"verdicts": table})


@pytest.fixture(scope="module")
def small(made):
    return made[0]


def table_of(accuracy, pairs):
    """A table as `run` would give it for probes of the given accuracy in nine layers, the embedding first."""
    rows = []
    for position in probing.POSITIONS:
        for layer, (right, matched) in enumerate(zip(accuracy, pairs, strict=True)):
            measured = {"balanced accuracy": right, "minimal pairs": matched, "shuffled labels": 0.5}
            measured |= {"scikit-learn": right, "cosine": -0.99, "shuffled cosine": -0.99}
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
    assert per_layer.height == 6 * len(probing.POSITIONS) * (blocks + 1)
    assert small["value"].is_not_nan().all()
    assert small["value"].drop_nulls().is_between(-1.0001, 1).all()
    ranged = small.filter(pl.col("low").is_not_null() & ~pl.col("control"))
    assert (ranged["low"] <= ranged["value"] + 1e-9).all() and (ranged["value"] <= ranged["high"] + 1e-9).all()
    assert set(small.filter(pl.col("control"))["measure"]) == {"shuffled labels", "shuffled cosine"}


def test_a_real_model_knows_the_verdict_late_and_only_where_it_opens(small):
    def value(measure, position, layer):
        at = (pl.col("measure") == measure) & (pl.col("position") == position) & (pl.col("layer") == layer)
        return small.filter(at)["value"].item()

    assert value("balanced accuracy", "verdict", 7) == value("minimal pairs", "verdict", 7) == 1.0
    assert value("scikit-learn", "verdict", 7) == 1.0
    for position in probing.POSITIONS[1:]:
        assert abs(value("minimal pairs", position, 7) - 0.5) < 0.2
    assert abs(value("minimal pairs", "verdict", 1) - 0.5) < 0.2
    assert value("balanced accuracy", "verdict", -1) == 0.5  # the same token everywhere
    assert small.filter(pl.col("measure") == "model on minimal pairs")["value"].item() == 1.0


def test_directions_point_to_acceptance_and_are_named_by_their_axes(model, made):
    found = made[1]
    assert set(found.values) == set(found.axes) == {"verdict/directions", "result/directions"}
    for name, array in found.values.items():
        assert array.shape == (9, 2, 256) and array.dtype == np.float32
        assert np.isfinite(array).all() and len(found.axes[name]) == 3
    last = found.values["verdict/directions"][8]
    some = cases.load(model, verdict_table.write(), "selection")
    scores = cases.read(model, some, [ji.resid_post(7)])["resid_post"][0] @ (last[1] - last[0])
    valid = np.array([case.valid for case in some])
    assert scores[valid].min() > scores[~valid].max()


def test_places_are_found_from_the_text(model):
    problem = countdown.Problem((31, 12, 71), 28)
    text = countdown.write(problem, ["31 + 12 - 71", "71 - 31 - 12"])
    case = cases.make(model, text[: text.rindex(" (") + 2], True)
    tokenizer = model.require_tokenizer()
    found = probing.places(model, case)
    assert list(found) == list(probing.POSITIONS)
    until = {name: tokenizer.decode(case.ids[: index + 1]) for name, index in found.items()}
    assert until["verdict"].endswith("40 - 12 = 28 (") and until["result"].endswith("40 - 12 = 28")
    assert until["first partial result"].endswith("- 71 - 31 - 12 = 40")
    assert until["end of the expression"].endswith("- 71 - 31 - 12")


def test_features_are_read_at_the_tokens_asked_for(model):
    some = cases.load(model, verdict_table.write(selection=2), "selection")
    read = probing._read(model, some)
    assert read.labels.tolist() == read.accepted.tolist() == [case.valid for case in some]
    assert read.problems.tolist() == [case.problem for case in some]
    for index, case in enumerate(some):
        _, cache = ji.run(model, [list(case.ids)], sites=[ji.resid_post(3)], logits=None)
        for position, token in probing.places(model, case).items():
            alone = cache["resid_post", 3][0, token]
            np.testing.assert_allclose(read.features[position][4, index], alone, atol=1e-4)


def test_intervals_draw_whole_problems():
    problems = np.repeat(np.arange(40), 5)
    right = np.repeat(np.arange(40) % 2, 5)
    clustered = probing._over_problems(problems, [right, np.ones(200)], probing._ratio, 0)
    alone = probing._over_problems(np.arange(200), [right, np.ones(200)], probing._ratio, 0)
    assert clustered["value"] == alone["value"] == 0.5 and clustered["n"] == 200
    assert clustered["high"] - clustered["low"] > 2 * (alone["high"] - alone["low"])


def test_the_records_can_be_written_as_json(small):
    records = claims.records(probing.check(small))
    json.dumps(records, allow_nan=False)
    for record in records:
        assert isinstance(record["ours"], float) and isinstance(record["met"], bool) and isinstance(record["n"], int)


def test_the_figure_shows_every_position(small):
    drawn = probing.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == ["a", "b", "c", "d"]
    assert len(drawn.legends) == 1 and len(drawn.legends[0].get_texts()) == 5


def test_a_probe_needs_verdicts_of_both_kinds(model):
    table = verdict_table.write().filter(pl.col("valid") | (pl.col("split") != "training"))
    with pytest.raises(ValueError, match="needs both kinds"):
        probing.run(SMALL, {"model": model}, {"verdicts": table})
