"""Sweeps: equal to one run a cell, whatever is edited, from the first token and block that it changes."""

import os
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.activations import reading, schedule, stages
from jaxinterp.activations.plan import Base, find_route, first_columns
from jaxinterp.activations.schedule import STARTS
from jaxinterp.activations.stages import Texts
from jaxinterp.activations.sweep import summarise
from jaxinterp.models.toy import toy

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
MODEL = toy("llama", **SIZES)
RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.integers(0, 101, length).tolist() for length in (16, 11)]
OTHERS = [RANDOM.integers(0, 101, length).tolist() for length in (16, 11)]
SITES = [ji.resid_pre(), ji.resid_post(), ji.k(), ji.v(), ji.pattern(), ji.ln_final(), ji.embed()]
METRIC = ji.logit_diff(7, 9)
VECTOR = RANDOM.normal(size=32).astype(np.float32)


def difference(model, texts=TEXTS):
    logits, _ = ji.run(model, texts, logits="last")
    return logits[:, 7] - logits[:, 9]


def check_against_runs(model, cells, table, texts=TEXTS, atol=5e-5):
    values = table["value"].to_numpy().reshape(len(cells), len(texts))
    for cell, found in zip(cells, values, strict=True):
        np.testing.assert_allclose(
            found, difference(cell.edit(model), texts), atol=atol, err_msg=str(dict(cell.labels))
        )


def mixed_cells(model, cache):
    vector = VECTOR[: model.architecture.embedding]
    kinds = {
        "streams": lambda lm: ji.patch(lm, ji.resid_pre(1), cache, positions=[(-3, -3)]),
        "last block": lambda lm: ji.patch(lm, ji.resid_post(2), cache, at=ji.last()),
        "keys": lambda lm: ji.patch(lm, ji.k(1), cache, positions=[(-6, -6)]),
        "values": lambda lm: ji.patch(lm, ji.v(1), cache, positions=[(-6, -6)]),
        "patterns": lambda lm: ji.patch(lm, ji.pattern(2), cache),
        "embedding": lambda lm: ji.patch(lm, ji.embed(), cache, positions=[(-7, -7)]),
        "readout": lambda lm: ji.patch(lm, ji.ln_final(), cache),
        "logits": lambda lm: ji.ablate(lm, ji.Site("logits", axis="vocabulary", indices=(7,))),
        "every block": lambda lm: ji.steer(lm, ji.mlp_out(), vector, at=ji.at(-4, -2)),
        "two places": lambda lm: ji.ablate(
            ji.steer(lm, ji.resid_pre(1), vector, at=ji.at(-3)), ji.head(0, 1), ji.head(2, 1), at=ji.at(-5)
        ),
        "nothing": lambda lm: lm,
    }
    return [ji.Cell({"kind": name}, edit) for name, edit in kinds.items()]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_all_kinds_of_cells_are_what_a_run_of_each_gives(family):
    model = toy(family) if family == "gpt2" else toy(family, num_hidden_layers=3)
    _, cache = ji.run(model, OTHERS, sites=SITES)
    cells = mixed_cells(model, cache)
    if family != "llama":
        cells = [cell for cell in cells if cell.labels["kind"] in ("streams", "values", "two places")]
    check_against_runs(model, cells, ji.sweep(model, TEXTS, cells, METRIC, progress=False))


def test_a_sweep_over_an_edited_model_keeps_its_edits_row_by_row():
    vectors = np.stack([VECTOR[:16], -VECTOR[:16]])
    edited = ji.ablate(ji.steer(MODEL, ji.resid_pre(1), vectors), ji.head(1, 2))
    _, cache = ji.run(MODEL, OTHERS, sites=[ji.resid_pre(), ji.z()])
    cells = ji.grid(
        lambda lm, layer, back: ji.patch(lm, ji.resid_pre(layer), cache, positions=[(-back, -back)]),
        layer=range(3),
        back=[1, 9],
    )
    cells += ji.grid(lambda lm, layer: ji.ablate(lm, ji.head(layer, 0)), layer=range(3))
    check_against_runs(edited, cells, ji.sweep(edited, TEXTS, cells, METRIC, progress=False))


def test_memory_for_one_text_at_a_time_gives_the_same_values():
    _, cache = ji.run(MODEL, OTHERS, sites=[ji.resid_pre()])
    cells = ji.grid(
        lambda lm, layer, back: ji.patch(lm, ji.resid_pre(layer), cache, positions=[(-back, -back)]),
        layer=range(3),
        back=[1, 4, 9],
    )
    whole = ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False)
    parts = ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False, memory=120_000)
    np.testing.assert_allclose(parts["value"], whole["value"], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"needs 0\.109 MiB besides the model, and has 0\.00954 MiB; use shorter texts"
    ):
        ji.sweep(MODEL, TEXTS, cells, METRIC, progress=False, memory=10_000)


def test_only_the_blocks_and_columns_behind_an_edit_are_run(monkeypatch):
    _, cache = ji.run(MODEL, OTHERS, sites=[ji.resid_pre(), ji.resid_post()])
    texts = Texts(np.asarray([TEXTS[0]]), np.ones((1, 16), bool))
    base = Base.of(MODEL.body)
    one = ji.Cache({at: array[:1] for at, array in cache.arrays.items()}, cache.tokens[:1], cache.mask[:1])
    edits = {
        "in front of block 2": (lambda lm: ji.patch(lm, ji.resid_pre(2), one, positions=[(12, 12)]), 2, 12),
        "behind block 0": (lambda lm: ji.patch(lm, ji.resid_post(0), one, positions=[(5, 5)]), 1, 5),
        "in block 1": (lambda lm: ji.ablate(lm, ji.head(1, 0), at=ji.at(7, 9)), 1, 7),
        "behind the last": (lambda lm: ji.patch(lm, ji.resid_post(2), one, at=ji.last()), 3, 15),
        "everywhere": (lambda lm: ji.steer(lm, ji.resid_pre(), VECTOR[:16]), 0, 0),
    }
    routes = [find_route(base, edit(MODEL).body) for edit, _, _ in edits.values()]
    assert [route.stage for route in routes] == [stage for _, stage, _ in edits.values()]
    assert first_columns(routes, texts).tolist() == [column for _, _, column in edits.values()]
    taken = []
    advance = stages.advance_unedited

    def counted(buffer, cells, *rest, **options):
        taken.append(buffer.shape[2] * int((np.asarray(cells) < len(buffer)).sum()))
        return advance(buffer, cells, *rest, **options)

    monkeypatch.setattr(stages, "advance_unedited", counted)
    cells = ji.grid(
        lambda lm, layer, at: ji.patch(lm, ji.resid_pre(layer), one, positions=[(at, at)]),
        layer=range(3),
        at=[0, 5, 10, 15],
    )
    ji.sweep(MODEL, [TEXTS[0]], cells, METRIC, progress=False)
    columns = [16 - at // (16 // STARTS) * (16 // STARTS) for at in [0, 5, 10]] + [1]
    assert sum(taken) == sum((3 - layer) * column for layer in range(3) for column in columns)


def test_a_patch_from_a_text_that_is_the_same_up_to_there_is_not_run(monkeypatch):
    other = [*TEXTS[0][:9], 1 + TEXTS[0][9], *TEXTS[0][10:]]
    _, cache = ji.run(MODEL, [other], sites=[ji.resid_pre()])
    cells = ji.grid(
        lambda lm, layer, at: ji.patch(lm, ji.resid_pre(layer), cache, at=ji.at(at)),
        layer=range(3),
        at=range(len(other)),
    )
    whole = ji.Cell({"layer": -1, "at": -1}, lambda lm: ji.patch(lm, ji.resid_pre(2), cache))
    run = []

    def counted(clean, routes, seq, sizes):
        run.extend([seq] * len(routes))
        return measure(clean, routes, seq, sizes)

    measure = schedule.measure_buffer
    monkeypatch.setattr(schedule, "measure_buffer", counted)
    table = ji.sweep(MODEL, [TEXTS[0]], [*cells, whole], METRIC, progress=False)
    step = 16 // STARTS
    deeper = [at for at in range(9, 16) for _ in range(2)]
    embedding_and_whole, not_looked_at = [9, 9], [15]
    starts = deeper + embedding_and_whole + not_looked_at
    assert sorted(run) == sorted(16 - at // step * step if at < 15 else 1 for at in starts)
    effects = table["effect"].to_numpy()[:-1].reshape(3, -1)
    np.testing.assert_array_equal(effects[:, :9], 0)
    assert (effects[:, 9:].any(axis=1)).all()
    check_against_runs(MODEL, [*cells, whole], table, [TEXTS[0]])


def test_layers_heads_and_scales_share_programs():
    def programs():
        names = ("advance_unedited", "advance_edited", "enter", "measure_unedited")
        return reading.programs() + sum(getattr(stages, name)._cache_size() for name in names)

    deep = toy("llama", hidden_size=16, intermediate_size=24, num_hidden_layers=6)

    def heads(layers):
        cells = ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=layers, head=range(2))
        ji.sweep(deep, TEXTS, cells, METRIC, progress=False)

    heads([1, 3])
    before = programs()
    heads([2, 4])
    heads([0, 2])
    assert programs() == before


def test_a_planted_position_is_found():
    _, other = ji.run(MODEL, [[3, 1, 8, 1, 5], [6, 8, 3]], sites=[ji.resid_pre()])
    cells = ji.grid(
        lambda lm, layer, back: ji.patch(lm, ji.resid_pre(layer), other, positions=[(-back, -back)]),
        layer=[0],
        back=[1, 2, 3],
    )
    table = ji.sweep(MODEL, [[3, 1, 4, 1, 5], [6, 5, 3]], cells, METRIC, progress=False)
    effects = np.abs(table["effect"].to_numpy().reshape(3, 2))
    assert effects[0].max() < 1e-5, "the last token is the same in both texts"
    assert effects[2, 0] > 1e-3, "the third from the end differs in row 0"
    assert effects[1, 1] > 1e-3, "the second from the end differs in row 1"
    assert effects[1, 0] < 1e-5


def test_the_corrupted_text_scales_the_effect():
    _, cache = ji.run(MODEL, OTHERS, sites=[ji.resid_post()])
    whole = ji.Cell({}, lambda lm: ji.patch(lm, ji.resid_post(2), cache))
    table = ji.sweep(MODEL, TEXTS, [whole], METRIC, corrupted=OTHERS, progress=False)
    assert table.columns == ["prompt", "clean", "corrupted", "value", "effect", "normalised"]
    np.testing.assert_allclose(table["corrupted"], difference(MODEL, OTHERS), atol=1e-5)
    np.testing.assert_allclose(table["normalised"], 1, atol=1e-3)
    parts = ji.sweep(MODEL, TEXTS, [whole], METRIC, corrupted=OTHERS, memory=120_000, progress=False)
    np.testing.assert_allclose(parts["corrupted"], table["corrupted"], atol=1e-5)


@pytest.mark.parametrize("metric", ["log_prob", "kl", "own function"])
def test_metrics_of_the_whole_vocabulary(metric):
    clean, _ = ji.run(MODEL, TEXTS, logits="last")
    measures = {"log_prob": ji.log_prob(3), "kl": ji.kl(clean), "own function": lambda logits: logits.max(axis=1)}
    cells = ji.grid(lambda lm, scale: ji.steer(lm, ji.resid_post(1), VECTOR[:16], scale), scale=[0.0, 1.0, -1.0])
    table = ji.sweep(MODEL, TEXTS, cells, measures[metric], progress=False)
    np.testing.assert_allclose(table["effect"][:2], 0, atol=1e-5)
    assert np.abs(table["effect"][2:]).min() > 1e-4
    logits, _ = ji.run(cells[1].edit(MODEL), TEXTS, logits="last")
    logs, before = np.asarray(jax.nn.log_softmax(logits)), np.asarray(jax.nn.log_softmax(clean))
    wanted = {
        "log_prob": logs[:, 3],
        "kl": (np.exp(before) * (before - logs)).sum(1),
        "own function": logits.max(axis=1),
    }
    np.testing.assert_allclose(table["value"][2:4], wanted[metric], atol=1e-5)


def test_rounding_is_told_from_effects():
    _, cache = ji.run(MODEL, [[*text[:-1], 50] for text in TEXTS], sites=[ji.resid_pre()])
    cells = ji.grid(lambda lm, back: ji.patch(lm, ji.resid_pre(2), cache, positions=[(-back, -back)]), back=[1, 2, 3])
    table = ji.sweep(MODEL, TEXTS, cells, METRIC, noise=True, progress=False)
    assert table["noise"].n_unique() == 1
    assert 0 < table["noise"][0] < 1e-4
    assert table.filter(pl.col("back") == 1)["resolved"].all()
    assert not table.filter(pl.col("back") > 1)["resolved"].any(), "only the last token differs"


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    texts = TEXTS + OTHERS
    cells = ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(3), head=range(2))
    options = {"memory": 120_000, "folder": tmp_path / "sweep", "progress": False}
    began, begin = [], schedule.pass_blocks

    def dies(*arguments, **options):
        began.append(1)
        if len(began) > 3:
            raise KeyboardInterrupt
        return begin(*arguments, **options)

    with monkeypatch.context() as within:
        within.setattr(schedule, "pass_blocks", dies)
        with pytest.raises(KeyboardInterrupt):
            ji.sweep(MODEL, texts, cells, METRIC, **options)
    assert len(list((tmp_path / "sweep").glob("block-*"))) == 2, "the third was under way"
    began.clear()
    monkeypatch.setattr(schedule, "pass_blocks", lambda *a, **o: (began.append(1), begin(*a, **o))[1])
    resumed = ji.sweep(MODEL, texts, cells, METRIC, **options)
    assert len(began) == 2
    whole = ji.sweep(MODEL, texts, cells, METRIC, progress=False)
    np.testing.assert_allclose(resumed["value"], whole["value"], atol=1e-5)
    began.clear()
    again = ji.sweep(MODEL, texts, cells, METRIC, **options)
    np.testing.assert_array_equal(again["value"], resumed["value"])
    assert not began
    with pytest.raises(ValueError, match="holds blocks of another sweep"):
        ji.sweep(MODEL, texts, cells[:3], METRIC, **options)
    with pytest.raises(ValueError, match="cannot be recognised by a later process"):
        ji.sweep(MODEL, texts, cells, lambda logits: logits[:, 0], **options)


def test_several_devices_give_what_one_does():
    script = """
import jax, numpy as np, jaxinterp as ji
from jaxinterp.models.toy import toy
assert jax.local_device_count() == 3
model = toy("llama", hidden_size=16, intermediate_size=24, num_hidden_layers=3)
cells = ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(3), head=range(4))
texts = [list(range(1, 13)), list(range(5, 17))]
table = ji.sweep(model, texts, cells, ji.logit_diff(7, 9), progress=False, memory=200_000)
for number in (0, 5, 11):
    logits, _ = ji.run(cells[number].edit(model), texts, logits="last")
    np.testing.assert_allclose(table["value"][2 * number : 2 * number + 2], logits[:, 7] - logits[:, 9], atol=1e-5)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | flags, timeout=300)


def test_a_summary_has_intervals_and_a_null():
    texts = RANDOM.integers(0, 101, (12, 8))
    vector = VECTOR[:16]
    cells = ji.grid(lambda lm, scale: ji.steer(lm, ji.resid_post(2), vector, scale), scale=[0.0, 4.0])
    weights = MODEL.weights()
    pushed = np.asarray(weights["W_U"]) @ (np.asarray(weights["ln_final.w"]) * vector)
    metric = ji.logit_diff(int(pushed.argmax()), int(pushed.argmin()))
    table = summarise(ji.sweep(MODEL, texts, cells, metric, progress=False), permutations=500, seed=0)
    nothing, much = table.to_dicts()
    assert nothing["n"] == much["n"] == 12
    assert nothing["low"] <= nothing["effect"] <= nothing["high"]
    assert nothing["p"] > 0.05
    assert much["low"] > 0
    assert much["p"] < 0.01
    assert "p" not in summarise(ji.sweep(MODEL, texts[:2], cells, metric, progress=False)).columns


def test_bad_input_is_refused_before_anything_compiles(monkeypatch):
    monkeypatch.setattr(schedule, "pass_blocks", None)
    cell = ji.Cell({}, lambda lm: ji.ablate(lm, ji.head(0, 0)))
    with pytest.raises(ValueError, match="make some with"):
        ji.sweep(MODEL, TEXTS, [], METRIC)
    with pytest.raises(ValueError, match="the grid selects nothing: head has no values"):
        ji.grid(lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=range(3), head=[])
    with pytest.raises(ValueError, match="right token id 101 lies outside the vocabulary of 101"):
        ji.sweep(MODEL, TEXTS, [cell], ji.logit_diff(101, 3))
    with pytest.raises(ValueError, match="3 answer tokens for 2 texts"):
        ji.sweep(MODEL, TEXTS, [cell], ji.log_prob([1, 2, 3]))
    with pytest.raises(ValueError, match="1 corrupted prompts for 2 prompts"):
        ji.sweep(MODEL, TEXTS, [cell], METRIC, corrupted=OTHERS[:1])
    cache = ji.Cache({("resid_pre", 0): np.zeros((3, 4, 16), np.float32)}, np.zeros((3, 4), int), np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="numbers for 3 texts, but there are 2"):
        ji.sweep(MODEL, TEXTS, [ji.Cell({}, lambda lm: ji.patch(lm, ji.resid_pre(0), cache))], METRIC)
