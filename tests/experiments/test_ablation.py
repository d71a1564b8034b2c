import json

import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.experiments import ablation, claims
from tests.experiments import verdict_table

SMALL = ablation.Config(scan=6, sources=4, curve=2, curve_cases=4, draws=2, random=4)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def small(model):
    return ablation.run(SMALL, {"model": model}, {"verdicts": verdict_table.write()})


def table_of(found, circuit, *, by_paper=(), kept=1.0, others=0.0):
    """A table of a model with 4 x 4 heads: `found` attend to the target, `circuit` flip verdicts when zeroed."""
    rows = []
    for layer in range(4):
        for head in range(4):
            row = {"stage": "selection", "heads": heads.label([(layer, head)]), "n_heads": 1, "n": 300}
            row |= {"layer": layer, "head": head}
            rows.append(row | {"measure": "flips", "value": float((layer, head) in circuit), "position": "all tokens"})
            for place, looking in (("verdict", found), ("result", by_paper)):
                rows.append(row | {"measure": f"attention from {place}", "value": 0.9 * ((layer, head) in looking)})
    for name, some in (("paper", by_paper), ("target", found), ("circuit", circuit)):
        for rank, (layer, head) in enumerate(some):
            row = {"stage": "selection", "measure": "rank", "condition": name, "value": float(rank)}
            rows.append(row | {"layer": layer, "head": head})
    sets = [("none", []), ("paper's definition", []), ("attends to target", found), ("circuit", circuit)]
    sets += [("largest effects", circuit[:count]) for count in (1, 2)]
    sets += [("most attention", found[:count]) for count in (1, 2)]
    effects = [(name, chosen, float(bool(set(chosen) & set(circuit))), None) for name, chosen in sets]
    for pool in ("all heads", "outside the set", "outside the circuit"):
        effects += [(f"random, {pool}", [(0, 0)], others, draw) for draw in range(20)]
    for name, chosen, flips, draw in effects:
        row = {"stage": "evaluation", "condition": name, "method": "zero", "position": "all tokens", "n": 300}
        row |= {"heads": heads.label(chosen), "n_heads": len(chosen), "draw": draw, "control": draw is not None}
        rows += [row | {"measure": "flips", "value": flips}, row | {"measure": "rejections kept", "value": kept}]
    return pl.DataFrame(rows, schema=ablation._COLUMNS)


def met(table):
    """Attention (from the verdict: some, much; from the result: the same), flips, kept, random (3), few heads (2)."""
    return [claim.met for claim in ablation.check(table)]


def test_a_planted_circuit_meets_every_claim_but_the_papers_position():
    held = met(table_of(found=[(2, 1), (2, 2)], circuit=[(2, 1)]))
    assert held == [True, True, False, False, True, True, True, True, True, True, True]


def test_a_model_as_the_paper_describes_it_meets_every_claim():
    assert all(met(table_of(found=[(2, 1)], circuit=[(2, 1)], by_paper=[(2, 1)])))


def test_a_model_without_a_circuit_meets_none_about_it():
    held = met(table_of(found=[], circuit=[]))
    assert held == [False, False, False, False, False, False, True, True, True, False, False]


def test_damage_that_any_head_does_fails_the_controls():
    held = met(table_of(found=[(2, 1)], circuit=[(2, 1)], kept=0.5, others=0.4))
    assert held[4:] == [True, False, False, False, False, True, True]


def test_heads_that_merely_look_are_not_enough():
    held = met(table_of(found=[(1, 1)], circuit=[]))
    assert held[0] and held[1] and not held[4] and not held[-1]


def test_the_found_heads_are_given_in_their_order():
    table = table_of(found=[(2, 2), (2, 1)], circuit=[(3, 0), (2, 1), (0, 3)])
    assert ablation.found(table) == {"paper": [], "target": [(2, 2), (2, 1)], "circuit": [(3, 0), (2, 1), (0, 3)]}


def test_the_table_of_a_real_model(small):
    selected = small.filter(pl.col("stage") == "selection")
    for measure, positions in (("flips", 3), ("margin change", 3), ("attention from verdict", 1)):
        assert selected.filter(pl.col("measure") == measure).height == positions * 64
    shares = small.filter(~pl.col("measure").is_in(["rank", "margin change", "margin change at rejections"]))
    assert shares["value"].is_between(0, 1 + 1e-6).all()
    clean = small.filter(pl.col("condition") == "none")
    expected = {"flips": 0, "rejections kept": 1, "margin change": 0, "margin change at rejections": 0}
    assert dict(clean.select("measure", "value").iter_rows()) == pytest.approx(expected, abs=1e-4)
    for pool in ("all heads", "outside the set", "outside the circuit"):
        drawn = small.filter((pl.col("condition") == f"random, {pool}") & (pl.col("measure") == "flips"))
        assert drawn["draw"].to_list() == [0, 1] and drawn["control"].all()
    assert small["value"].is_not_nan().all() and small["value"].is_not_null().all()


def test_the_heads_of_a_real_model_read_the_target_and_matter_where_the_verdict_opens(small):
    assert set(ablation.found(small)["target"][:2]) == {(4, 5), (4, 0)}
    assert (4, 5) in ablation.found(small)["circuit"] and (0, 0) not in ablation.found(small)["circuit"]
    chosen = small.filter((pl.col("condition") == "attends to target") & (pl.col("measure") == "flips"))
    effect = {(row["method"], row["position"]): row["value"] for row in chosen.iter_rows(named=True)}
    assert effect["zero", "all tokens"] == effect["zero", "verdict"] == 1.0
    assert effect["zero", "result"] == 0.0
    assert {method for method, _ in effect} == {"zero", "mean", "resample"}


def test_a_trace_is_kept_with_its_tokens(small, model):
    trace = small.filter((pl.col("stage") == "trace") & (pl.col("position") == "verdict"))
    one = trace.filter(pl.col("heads") == "L4.H5").sort("token")
    assert "".join(one["written"]).startswith("Using the numbers [") and one["written"][-1] == " ("
    assert "(not " in "".join(one["written"])
    assert one["value"].sum() == pytest.approx(1, abs=1e-3)


def test_the_records_can_be_written_as_json(small):
    records = claims.records(ablation.check(small))
    json.dumps(records, allow_nan=False)
    for record in records:
        assert isinstance(record["ours"], float) and isinstance(record["met"], bool) and isinstance(record["n"], int)


def test_the_figure_shows_effects_controls_and_a_trace(small):
    drawn = ablation.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes[:4]] == ["a", "b", "c", "d"]
    written = "".join(text.get_text() for text in drawn.axes[3].texts)
    assert "L4.H5" in written and "Using" in written
    assert len(drawn.legends) == 1


def test_a_table_without_cases_is_refused(model):
    table = verdict_table.write().filter(~pl.col("valid") | (pl.col("split") != "evaluation"))
    with pytest.raises(ValueError, match="no accepted attempts in its evaluation split"):
        ablation.run(SMALL, {"model": model}, {"verdicts": table})
