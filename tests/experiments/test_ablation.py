import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.analysis import heads
from jaxinterp.experiments import ablation, claims, countdown_traces, head_removal
from jaxinterp.models.toy import toy
from jaxinterp.tasks import countdown

SMALL = ablation.Config(selection=8, evaluation=8, scan=8, random=8, draws=2, curve=2, max_new_tokens=48, batch_size=16)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def small(model):
    return ablation.run(SMALL, {"model": model})


def table_of(found, circuit, kept=1.0, others=0.0):
    """A table of a model with 4 x 4 heads: `found` attend to the target, `circuit` flip verdicts when zeroed."""
    rows = []
    for layer in range(4):
        for head in range(4):
            row = {"stage": "selection", "heads": heads.label([(layer, head)]), "n_heads": 1, "n": 300}
            row |= {"layer": layer, "head": head}
            values = {"flips": float((layer, head) in circuit), "attention from result": 0.0}
            values |= {"attention from verdict": 0.9 * ((layer, head) in found)}
            rows += [row | {"measure": measure, "value": value} for measure, value in values.items()]
    sets = [("none", []), ("paper's definition", []), ("attends to target", found)]
    sets += [("largest effects", circuit[:count]) for count in (1, 2)]
    effects = [(name, chosen, float(bool(set(chosen) & set(circuit))), None) for name, chosen in sets]
    for name in ("random, outside the set", "random, outside the circuit"):
        effects += [(name, [(0, 0)], others, draw) for draw in range(20)]
    for name, chosen, flips, draw in effects:
        row = {"stage": "evaluation", "condition": name, "method": "zero", "position": "all tokens", "n": 300}
        row |= {"heads": heads.label(chosen), "n_heads": len(chosen), "draw": draw, "control": draw is not None}
        rows += [row | {"measure": "flips", "value": flips}, row | {"measure": "rejections kept", "value": kept}]
    return pl.DataFrame(rows, schema=ablation._COLUMNS)


def test_a_planted_circuit_meets_every_claim_but_the_papers_position():
    held = ablation.check(table_of(found=[(2, 1), (2, 2)], circuit=[(2, 1)]))
    assert [claim.met for claim in held] == [True, False, True, True, True, True, True]


def test_a_model_without_a_circuit_meets_none_about_it():
    held = ablation.check(table_of(found=[], circuit=[]))
    assert [claim.met for claim in held] == [False, False, False, False, True, True, False]


def test_damage_that_any_head_does_fails_the_controls():
    held = ablation.check(table_of(found=[(2, 1)], circuit=[(2, 1)], kept=0.5, others=0.4))
    assert [claim.met for claim in held] == [True, False, True, False, False, False, True]


def test_heads_that_merely_look_are_not_enough():
    held = ablation.check(table_of(found=[(1, 1)], circuit=[]))
    assert held[0].met and not held[2].met


def test_the_table_of_a_real_model(small):
    selected = small.filter(pl.col("stage") == "selection")
    assert selected.height == 3 * 64
    assert small["value"].drop_nans().is_between(0, 1 + 1e-6).all()
    clean = small.filter(pl.col("condition") == "none")
    assert dict(clean.select("measure", "value").iter_rows()) == {"flips": 0.0, "rejections kept": 1.0}
    for condition in ("random, outside the set", "random, outside the circuit"):
        drawn = small.filter((pl.col("condition") == condition) & (pl.col("measure") == "flips"))
        assert drawn["draw"].to_list() == [0, 1] and drawn["control"].all()


def test_the_heads_of_a_real_model_read_the_target_and_matter_where_the_verdict_opens(small):
    attention = small.filter(pl.col("measure") == "attention from verdict").sort("value", descending=True)
    assert set(attention["heads"][:2]) == {"L4.H5", "L4.H0"}
    single = small.filter((pl.col("stage") == "selection") & (pl.col("measure") == "flips"))
    assert single.filter(pl.col("heads") == "L4.H5")["value"].item() > 0.8
    assert single.filter(pl.col("heads") == "L0.H0")["value"].item() == 0.0
    chosen = small.filter((pl.col("condition") == "attends to target") & (pl.col("measure") == "flips"))
    effect = {(row["method"], row["position"]): row["value"] for row in chosen.iter_rows(named=True)}
    assert effect["zero", "all tokens"] == effect["zero", "verdict"] == 1.0
    assert effect["zero", "result"] == 0.0


def test_selection_and_evaluation_share_no_problem(model):
    config = ablation.Config(selection=6, evaluation=6, batch_size=8)
    parts = ablation._write_splits(model, config, np.random.default_rng(0))
    asked = [{(trace.trace.problem.numbers, trace.trace.problem.target) for trace in part} for part in parts]
    assert len(asked[0]) == len(asked[1]) == 6
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert all(trace.verdicts[-1].valid for part in parts[:2] for trace in part)
    assert not any(verdict.valid for trace in parts[2] for verdict in trace.verdicts)


def test_rejected_attempts_come_from_unsolved_traces_where_solved_ones_do_not_last(model):
    problem = countdown.Problem((31, 12, 71), 28)
    texts = [["31 + 12 - 71", "71 - 31 - 12"], ["71 - 31 - 12"], ["31 + 71 - 12", "31 + 12 - 71"]]
    cut = [countdown_traces.cut_trace(model, countdown.write(problem, tries)) for tries in texts]
    first, second, third = (trace for trace in cut if trace is not None)
    verdicts = head_removal.both_kinds_of([first, second], [third], 8, np.random.default_rng(0))
    assert verdicts.valid.tolist() == [True, True, False, False]
    batches = [zip(batch.order, batch.verdicts, strict=True) for batch in verdicts.batches]
    found = {order: verdict.valid for batch in batches for order, verdict in batch}
    assert [found[order] for order in range(4)] == [True, True, False, False]
    alone = head_removal.both_kinds_of([first, second], [], 8, np.random.default_rng(0))
    assert alone.valid.tolist() == [True, True, False]


def test_attention_is_measured_to_the_digits_of_the_target(model):
    text = countdown.write(countdown.Problem((31, 12, 71), 28), ["31 + 12 - 71", "71 - 31 - 12"])
    trace = countdown_traces.cut_trace(model, text)
    assert trace is not None
    verdicts = head_removal.accepted_of([trace], 8)
    (batch,) = verdicts.batches
    targets = head_removal._targets(batch)
    slots = [np.flatnonzero(row) for row in targets["verdict"][0]]
    tokenizer = model.require_tokenizer()
    texts = [[tokenizer.decode([batch.ids[batch.rows[0], slot]]) for slot in some] for some in slots]
    assert texts == [["8"] * 3, ["2"] * 3, []]
    assert targets["result"][0].sum() == 2
    _, cache = ji.run(model, [list(trace.ids)], sites=[ji.pattern(4)], logits=None)
    tens = [mention[0] for mention in trace.verdicts[-1].mentions]
    alone = cache["pattern", 4][0, 5, -1, tens].sum()
    assert head_removal.attention_to_target(model, verdicts)["verdict"][4, 5] == pytest.approx(alone, abs=1e-5)
    assert alone > 0.9


def test_the_records_can_be_written_as_json(small):
    json.dumps(claims.records(ablation.check(small)), allow_nan=False)
    for record in claims.records(ablation.check(small)):
        assert isinstance(record["ours"], float) and isinstance(record["met"], bool) and isinstance(record["n"], int)


def test_the_figure_has_three_panels(small):
    drawn = ablation.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes[:3]] == ["a", "b", "c"]
    assert len(drawn.legends) == 1


def test_a_model_that_never_learned_the_task_is_refused(model):
    random = toy("qwen2", tokenizer=model.require_tokenizer(), vocab_size=76)
    config = ablation.Config(selection=1, evaluation=1, batch_size=8, max_new_tokens=16)
    with pytest.raises(ValueError, match="trained on this task"):
        ablation.run(config, {"model": random})
