import polars as pl

from jaxinterp.analysis import benchmark_summary
from jaxinterp.analysis.benchmark_table import SCHEMA


def row(peer, seconds, ratio, variant="default", **more):
    base = dict.fromkeys(SCHEMA) | {"workload": "W4", "task": "w4_heads", "title": "ablate", "start": "warm"}
    return (
        base
        | {"peer": peer, "variant": variant, "wall_median": seconds, "ratio_to_ours": ratio, "gate": "passed"}
        | more
    )


def test_each_peer_stands_with_its_fastest_way_and_each_target_with_its_outcome():
    rows = [
        row("jaxinterp", 2.0, 1.0),
        row("torch", 9.0, 4.5, "slow"),
        row("torch", 6.0, 3.0, "fast"),
        row("transformer_lens", 10.0, 5.0, target="at least 6 times our seconds", reached=False),
        row("nnsight", None, None, gate="failed"),
        row("jaxinterp", 3.0, 1.0, start="first"),
    ]
    lines = benchmark_summary.summarise(pl.DataFrame(rows, schema=SCHEMA)).splitlines()
    assert len(lines) == 3 and lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == (
        "| W4 | ablate | 2 s | 3.00x | 5.00x | differs | - | - | - | "
        "TransformerLens (default) at least 6 times, is 5.00: no |"
    )
