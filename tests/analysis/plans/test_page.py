"""The page of plans: what stands there is in its table, and its commands are those of the table."""

import re
from pathlib import Path

from jaxinterp import artefacts
from jaxinterp.analysis.plans import summary

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_shows_its_table_and_the_commands_that_made_it():
    table, origin = artefacts.read_table(DOCS / "tpu_plans.parquet")
    page = (DOCS / "tpu_plans.md").read_text()
    assert summary.markdown(table) in page
    commands = re.findall(r"^jaxinterp plan (\S+) --topology (\S+) --workload (\S+).* --output", page, re.MULTILINE)
    assert commands == table.select("model", "topology", "workload").rows()
    assert len(origin["config"]["plans"]) == table.height and origin["jax"]
    assert {"qwen2.5-3b", "llama-3-8b", "r1-distill-qwen-14b", "llama-3-70b"} == {
        model.removeprefix("shape:") for model in table["model"]
    }
    assert not table["fits"].all() and table["compiled in"].max() < 600
