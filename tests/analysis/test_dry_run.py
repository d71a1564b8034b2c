"""A model of any size measured without its weights: numbers that agree with real runs, and programs that are traced."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from penzai import pz

import jaxinterp as ji
from jaxinterp.activations import memory
from jaxinterp.activations.state import remember
from jaxinterp.analysis import dry_run
from jaxinterp.models.shape_model import load_shapes
from jaxinterp.models.toy import CONFIGS, toy

GIB = 2**30


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2", **CONFIGS["qwen2"]}))
    return path


def value(table, part, quantity, layout=None):
    (found,) = table.filter(
        (pl.col("part") == part) & (pl.col("quantity") == quantity) & pl.col("layout").eq_missing(pl.lit(layout))
    )["value"]
    return found


def test_the_large_model_is_measured_in_seconds_and_little_memory():
    before = sum(array.nbytes for array in jax.live_arrays())
    started = time.monotonic()
    table = dry_run.measure("shape:r1-distill-qwen-14b", "bfloat16", devices=1, memory=80.0, seq=1536)
    assert time.monotonic() - started < 30
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 2**20
    assert value(table, "model", "parameters") == 14_770_033_664
    held = value(table, "weights", "on each device", "whole")
    assert held == pytest.approx(14_770_033_664 * 2 / GIB)
    assert value(table, "rows", "nothing", "whole") >= 8
    assert table.filter(pl.col("part") == "program")["quantity"].to_list() == list(
        dry_run.edited_models(load_shapes("shape:qwen2.5-3b"))
    )
    left = table.filter(pl.col("part") == "program")["value"].to_numpy() * GIB
    np.testing.assert_allclose(left, 4 * 152064 + 48 * 1536 * 5120 * 2)
    text = dry_run.describe(table)
    assert text.startswith("shape:r1-distill-qwen-14b in bfloat16, texts of 1536 tokens, 1 device of 80 GiB\n")
    assert "14,770,033,664" in text and "27.51 GiB" in text and max(map(len, text.splitlines())) <= 100


def test_weights_on_several_devices():
    table = dry_run.measure("shape:qwen2.5-3b", "float32", devices=4, memory=16.0, seq=64)
    assert "texts, whole      texts, split\n" in dry_run.describe(table)
    whole, split = (value(table, "weights", "on each device", layout) for layout in ("whole", "split"))
    assert whole == pytest.approx(3_085_938_688 * 4 / GIB) and split == pytest.approx(whole / 4)
    assert value(table, "rows", "nothing", "split") > value(table, "rows", "nothing", "whole")
    architecture = toy("qwen2").architecture
    sizes = [tuple(sizes.values()) for sizes in architecture.weights().values()]
    by_hand = sum(math.prod(some) // (3 if any(size % 3 == 0 for size in some) else 1) for some in sizes)
    assert dry_run.split_bytes(architecture, 3, 2) == 2 * by_hand
    assert sum(map(math.prod, sizes)) / 3 < by_hand < sum(map(math.prod, sizes))


def test_what_does_not_fit_has_no_rows():
    table = dry_run.measure("shape:r1-distill-qwen-14b", "float32", devices=1, memory=40.0, seq=64)
    assert table.filter(pl.col("part") == "rows")["value"].to_list() == [0.0] * 6


def test_rows_are_those_of_the_memory_bound(config):
    model = toy("qwen2")
    table = dry_run.measure(config, "float32", memory=0.01, seq=40)
    weights = sum(array.nbytes for array in model.weights().values())
    for name, sites in dry_run.READS.items():
        taken = memory.bytes_per_row(model.architecture, sites, seq=48)
        assert value(table, "row", name) == pytest.approx(taken / GIB)
        fits = (int(0.01 * GIB) - weights) // 2 - memory.bytes_fixed(model.architecture)
        rows = value(table, "rows", name, "whole")
        assert rows * taken <= fits < 2 * rows * taken


def test_the_cache_of_generation_is_what_is_counted():
    a = toy("qwen2").architecture
    sizes = {"batch": 2, "seq": 24, "kv_head": a.kv_heads, "projection": a.projection}
    _, variables = pz.unbind_state_vars(remember(toy("qwen2").body, pz.nx.zeros(sizes, jnp.bfloat16), prompt=True))
    kept = sum(variable.value.data_array.nbytes for variable in variables)
    assert kept == 2 * memory.bytes_cached(a, 24, itemsize=2)


def test_a_trace_has_the_shapes_of_a_real_run(config):
    real, shapes = toy("qwen2"), load_shapes(config)
    sites = [ji.resid_post(...), ji.z(1), ji.pattern(2), ji.ln_final()]
    texts, clean = np.arange(16)[None], None
    for (name, ours), theirs in zip(
        dry_run.edited_models(shapes).items(), dry_run.edited_models(real).values(), strict=True
    ):
        logits, read = dry_run.trace(ours, 16, sites)
        values, cache = ji.run(theirs, texts, sites=sites, logits="last")
        assert (logits.shape, logits.dtype) == (values.shape, values.dtype), name
        assert {at: (array.shape, array.dtype) for at, array in read.items()} == {
            at: (array.shape, array.dtype) for at, array in cache.items()
        }
        clean = values if clean is None else clean
        edits = name not in ("no edit", "stream steered")  # steered by zero
        assert bool(np.abs(values - clean).max() > 1e-3) is edits, name


@pytest.mark.parametrize("settings", [{"devices": 0}, {"memory": 0.0}, {"seq": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="each must be positive"):
        dry_run.measure("shape:qwen2.5-3b", **settings)


def test_positions_beyond_a_learned_table_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", **CONFIGS["gpt2"]}))
    with pytest.raises(ValueError, match="has 64 learned positions"):
        dry_run.measure(path, seq=65)
    assert value(dry_run.measure(path, seq=64), "model", "layers") == 3
