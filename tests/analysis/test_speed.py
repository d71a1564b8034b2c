"""The benchmark: every row is measured, and what is a count rather than a time is as promised."""

import polars as pl

from jaxinterp.analysis import speed


def test_the_benchmark_measures_every_promise():
    work = speed.Workload(batch=2, seq=16, prompt=4, new=4, repeats=2)
    table = speed.measure("builtin:countdown-6m-grpo", work)
    promised = table.filter(pl.col("limit").is_not_null())
    assert promised["measurement"].to_list() == [
        "peak memory while loading / float32 weights",
        "trace and compile of an edited model",
        "programs compiled when another head is ablated",
        "programs compiled when the steering scale changes",
        "reading every resid_post / plain forward",
        "plain forward / transformers forward",
        "steered generation / transformers generate, tokens per second",
    ]
    assert (table["value"] >= 0).all()
    counts = table.filter(pl.col("unit") == "count")
    assert counts["value"].to_list() == [0, 0]
    assert counts["kept"].all()
