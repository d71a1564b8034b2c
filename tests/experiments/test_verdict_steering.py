import dataclasses
import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, verdict_steering, verdicts
from jaxinterp.experiments.self_verification import attempt_ends, cases, end_pushes, pushes
from jaxinterp.experiments.self_verification.pushes import Aim
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

SMALL = verdict_steering.Config(
    training=4, selection=4, evaluation=4, ends=4, scales=(0.5, 2.0), random=2, written=2, new_tokens=24, samples=1
)
AIM = Aim("accept", False, 5, (5, 6), (5, 6, 7))


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def table(model):
    asked = verdicts.Config(training=8, selection=8, evaluation=8, pairs=1, max_new_tokens=72, batch_size=8)
    table = verdicts.run(asked, {"model": model}).filter(pl.col("prefix").is_not_null())
    lengths = table["prefix"].map_elements(lambda text: len(model.require_tokenizer().encode(text)), pl.Int64)
    return table.filter(lengths.is_between(66, 114)).with_columns(chosen=True)  # all of one width


@pytest.fixture(scope="module")
def probes():
    drawn = np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    return {f"{place}/directions": np.stack([-drawn, drawn], axis=1) for place in ("verdict", "result")}


@pytest.fixture(scope="module")
def small(model, table, probes):
    return verdict_steering.run(SMALL, {"model": model}, {"verdicts": table, "probes": probes})


def table_of(steered=0.95, malformed=0.0, random=0.0, layers=(3, 4), ends=0.9):
    """Held-out rows as of a model of 8 layers in which vectors do so much."""
    rows = []
    for aim in ("accept", "reject"):
        common = {"part": "verdict", "stage": "evaluation", "aim": aim, "place": "verdict", "layers": "L5", "layer": 5}
        common |= {"scale": 1.0, "n": 300}
        for vector, draw, value in [("probe", None, steered), ("mean difference", None, steered)] + [
            ("random", draw, random) for draw in range(20)
        ]:
            row = common | {"vector": vector, "draw": draw, "best": draw is None, "control": draw is not None}
            rows += [row | {"measure": "reached", "value": value}, row | {"measure": "malformed", "value": malformed}]
    for aim in ("finish", "go on"):
        for layer in range(8):
            common = {"part": "end", "aim": aim, "layers": f"L{layer}", "layer": layer, "scale": 1.0, "n": 150}
            best = {"vector": end_pushes.VECTOR, "best": layer in layers}
            held = common | {"stage": "evaluation", "place": "end"}
            rows += [held | best | {"measure": "reached", "value": ends}]
            rows += [held | best | {"measure": "malformed", "value": malformed}]
            rows += [held | {"vector": "random", "draw": 0, "measure": "reached", "value": random}]
            text = common | {"stage": "written", "place": "from the end on", "measure": "excess bigram repetition"}
            rows += [text | best | {"value": 0.1 * layer}]
    empty = dict.fromkeys(verdict_steering._COLUMNS) | {"chosen": False, "best": False, "control": False}
    return pl.DataFrame([empty | row for row in rows], schema=verdict_steering._COLUMNS)


def met(**planted):
    return [claim.met for claim in verdict_steering.check(table_of(**planted))]


def test_planted_directions_meet_every_claim():
    assert met() == [True] * 8


def test_directions_that_do_nothing_meet_only_the_controls():
    assert met(steered=0.0, ends=0.0) == [False, False, True, False, False, True, False, False]


def test_flips_that_break_the_text_or_that_any_vector_makes_do_not_count():
    assert met(malformed=0.2) == [False, False, True, False, False, True, True, True]
    assert met(random=0.06) == [True, True, False, True, True, False, True, True]


def test_a_working_layer_without_a_neighbour_is_not_a_band():
    assert met(layers=(3,))[-2:] == [False, False]
    assert "at most +0.700 (layer 7)" in verdict_steering.check(table_of())[-1].control


def test_the_shortest_push_that_reaches_its_aim_is_chosen_unless_it_breaks_the_text():
    grid = pushes.grid("probe", np.eye(3, dtype=np.float32), np.ones(3), [(0,), (1,), (1, 2)], (0.5, 1.0))
    tokens = np.full((6, 10), 7)
    tokens[[1, 2, 3, 4]] = 5
    assert AIM.choose(grid, tokens, 0.1) == 2
    tokens[2, :2] = 9
    assert AIM.choose(grid, tokens, 0.1) == 4
    tokens[4, 0] = 9
    assert AIM.choose(grid, tokens, 0.1) == 1
    tokens[:, :5] = 9
    tokens[5, 4] = 7
    assert AIM.choose(grid, tokens, 0.1) == 5


def test_measures_tell_the_word_from_its_synonyms_and_from_noise():
    found = {row["measure"]: row["value"] for row in AIM.rows([pushes.nothing()], np.array([[5, 5, 6, 9]]))}
    assert found == {"reached": 0.5, "same meaning": 0.75, "malformed": 0.25}


def test_pushes_are_as_long_as_asked():
    directions = pushes.units(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32))
    norms = np.array([1.0, 2.0, 3.0, 4.0])
    grid = pushes.grid("probe", directions, norms, pushes.spans(4), (0.5, 2.0))
    assert [push.layers for push in grid[::2]] == [(0,), (1,), (2,), (3,), (2, 3)]
    np.testing.assert_allclose(np.linalg.norm(grid[-1].parts, axis=1), [6.0, 8.0], rtol=1e-6)
    assert grid[-1].labels()["layers"] == "L2 to L3" and grid[-1].labels()["layer"] is None
    random = pushes.random_grid(pushes.random_units(3, 8, 0), norms, [(2, 3)], [1.0])
    assert [push.draw for push in random] == [0, 1, 2]
    cosines = (random[0].parts[0] @ random[0].parts[1]) / 12
    assert cosines == pytest.approx(1)
    assert not pushes.units(np.zeros((2, 3), np.float32)).any()


def test_a_completed_case_ends_with_its_verdict(model):
    text = countdown.write(countdown.Problem((31, 12, 71), 28), ["31 + 12 - 71", "71 - 31 - 12"])
    tokenizer = model.require_tokenizer()
    for ending, valid in ((" (not 28)", False), (" (this works)", True)):
        end = text.index(ending)
        completed = attempt_ends.complete(model, cases.make(model, text[: end + 2], valid))
        assert tokenizer.decode(completed.ids) == text[: end + len(ending)]
        assert attempt_ends.show(model, completed, np.array([], int)).endswith(f"= {'-' * (not valid)}28{ending}|")


def test_a_loop_is_told_from_a_trace(model):
    tokenizer = model.require_tokenizer()
    loop = np.array(tokenizer.encode(" (this works)" * 12))
    plain = np.array(
        tokenizer.encode("\n- 71 - 31 - 12 = 40 - 12 = 28 (this works)\nSo the equation that equals 28 is")
    )
    found = attempt_ends.degeneration(tokenizer, loop, plain)
    assert found["bigram repetition"] > 0.9 and found["excess bigram repetition"] > 0.5
    assert found["excess compression ratio"] < -0.2 and found["new tokens"] == len(loop)
    same = attempt_ends.degeneration(tokenizer, plain, plain)
    assert same["excess bigram repetition"] == same["excess compression ratio"] == 0


def test_the_ways_on_part_behind_what_a_tokenizer_joins_to_the_verdict():
    class Joining:
        """Letters, but a bracket and the line end behind it are one token, as in general models."""

        def encode(self, text, add_special_tokens=True):
            return [ord(letter) for letter in text.replace(")\n", "\t")]

    assert attempt_ends.ways_on(Joining()) == (ord("S"), ord("-"))
    closing, _, _ = attempt_ends._close(Joining(), "not 28)")
    assert closing[-1] == ord("\t") and len(closing) == len("not 28)")


@pytest.mark.slow
def test_the_table_of_a_real_model(small):
    shares = small.filter(pl.col("measure").is_in(["reached", "same meaning", "malformed", "opens a verdict"]))
    assert shares["value"].is_between(0, 1).all() and not small["value"].is_nan().any()
    measured = small.filter(pl.col("measure").is_not_null())
    assert measured["value"].null_count() == 0 and measured["n"].null_count() == 0
    best = small.filter(pl.col("best"), pl.col("stage") == "evaluation", pl.col("part") == "verdict")
    keys = best.filter(pl.col("measure") == "reached").select("aim", "place", "vector")
    assert keys.height == keys.unique().height == 2 * 5
    chosen = small.filter(pl.col("chosen"), pl.col("measure") == "reached", pl.col("stage") == "selection")
    assert chosen.filter(pl.col("place") == "verdict").height == 2 * 2 * 2
    assert chosen.filter(pl.col("place") == "result").height == 2 * 3
    assert chosen.filter(pl.col("part") == "end").height == 2 * 8
    clean = small.filter(pl.col("place") == "result, at once", pl.col("vector") == "none")
    assert clean.filter(pl.col("measure") == "opens a verdict")["value"].to_list() == [1.0, 1.0]
    assert clean.filter(pl.col("measure") == "same meaning")["value"].to_list() == [0.0, 0.0]


@pytest.mark.slow
def test_the_mean_difference_of_a_real_model_works_and_a_random_probe_does_not(small):
    held = verdict_steering.check(small)
    accept = {claim.criterion.partition(",")[0]: claim for claim in held[:2]}
    assert accept["mean difference"].met and not accept["W[1] of the probe"].met
    assert held[2].n == held[5].n == 2
    json.dumps(claims.records(held), allow_nan=False)


@pytest.mark.slow
def test_texts_of_a_real_model_are_shown_before_and_after(small):
    texts = small.filter(pl.col("text").is_not_null())
    verdict = texts.filter(pl.col("part") == "verdict", pl.col("aim") == "reject")
    assert verdict["vector"].to_list() == ["none", "probe"] and "(|this works)" in verdict["text"][0]
    before = texts.filter(pl.col("part") == "end", pl.col("vector") == "none")
    assert [attempt_ends.way(text.partition("|")[2]) for text in before["text"]] == ["go on", "finish"]
    written = small.filter(pl.col("stage") == "written", pl.col("vector") == "none", pl.col("part") == "end")
    assert written.filter(pl.col("measure").str.starts_with("excess"))["value"].to_list() == [0.0] * 4


@pytest.mark.slow
def test_the_figure_has_six_panels(small):
    drawn = verdict_steering.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == list("abcdef")
    assert len(drawn.legends) == 1


def test_a_model_that_always_does_the_same_is_refused(model, table, probes):
    random = toy(
        "qwen2", tokenizer=model.require_tokenizer(), vocab_size=76, max_position_embeddings=512, hidden_size=256
    )
    wrong = {"verdicts": table, "probes": probes}
    with pytest.raises(ValueError, match=r"shape \(9, 2, 256\) and not \(4, 2, 256\)"):
        verdict_steering.run(SMALL, {"model": random}, wrong)
    streams = attempt_ends.Streams({"end": np.zeros((3, 4, 256))}, np.zeros(4, int))
    with pytest.raises(ValueError, match="stopped 0 times and tried again 0 times"):
        list(end_pushes.steer(SMALL, random, table, streams))


def test_an_empty_table_is_refused(model, table, probes):
    empty = table.filter(pl.col("split") != "selection")
    with pytest.raises(ValueError, match="no rejected attempts in its selection split"):
        verdict_steering.run(
            dataclasses.replace(SMALL, training=2), {"model": model}, {"verdicts": empty, "probes": probes}
        )
