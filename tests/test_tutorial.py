"""The tutorial runs as it is printed."""

import re
import time
from pathlib import Path

import polars as pl
import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


@pytest.mark.slow
def test_the_tutorial_runs_in_five_minutes_and_shows_what_it_says():
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    begin, names = time.monotonic(), {}
    for block in blocks:
        exec(compile(block, str(TUTORIAL), "exec"), names)  # noqa: S102  # our own document
    assert time.monotonic() - begin < 300
    patching, tokens = names["patching"], names["tokens"]
    whole = patching.filter(pl.col("normalised") > 0.5)
    early, late = whole.filter(pl.col("layer") == 0), whole.filter(pl.col("layer") == 29)
    assert [tokens[position] for position in early["position"]] == [" Mary"]
    assert late["position"].to_list() == [len(tokens) - 1]
    assert names["ablation"].height == 270
    assert (names["ablation"]["low"] <= names["ablation"]["high"]).all()
    assert names["effects"].filter(pl.col("scale") == 0)["effect"].abs().max() < 1e-4
    assert names["effects"].filter(pl.col("scale") == 1)["effect"].min() > 0.1
    assert names["null"].height == 20
