import contextlib
import io
import json
import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import optax
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp import experiments
from jaxinterp.analysis import benchmark_summary
from jaxinterp.experiments import claims

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAPERS = "".join(path.read_text() for path in (ROOT / "workflows" / "experiments").glob("*.smk"))


def block(heading):
    """The first fenced block under a heading."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]


def test_the_python_example_runs_and_shows_what_it_says():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("Ten lines of Python"), "README.md", "exec"), {})  # noqa: S102
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("(8, 1, ")
    assert lines[1] == "['this works)'] ['not 28']", "the edited model rejects the right answer"


def test_the_low_rank_example_trains_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"^```python\n(.*?)^```", README.split("\n## Training\n")[1], re.DOTALL | re.MULTILINE)[0]
    found = {"ji": ji, "jax": jax, "np": np, "optax": optax}
    exec(compile(example, "README.md", "exec"), found)  # noqa: S102
    assert found["log"]["loss"][-1] < found["log"]["loss"][0]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_each_command_has_one_block_of_valid_shell():
    for heading in ("Run it", "Test it"):
        section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert section.count("```") == 2, heading
        subprocess.run(["bash", "-n"], input=block(heading), text=True, check=True)


def test_every_experiment_stands_in_the_table_and_the_workflow():
    for name in experiments.names():
        assert f"| `{name}` |" in README
        assert f'\n        "{name}": part(' in PAPERS, name
        assert (ROOT / "workflows" / "report" / f"{name}.rst").is_file()


def test_the_benchmark_in_the_readme_is_the_table_that_was_measured():
    table = pl.read_csv(ROOT / "docs" / "benchmarks.csv")
    assert benchmark_summary.summarise(table) in README


@pytest.mark.parametrize("paper", sorted(path.stem for path in (ROOT / "workflows" / "experiments").glob("*.smk")))
def test_the_claims_in_the_readme_are_those_that_were_measured(paper):
    assert claims.summarise(json.loads((ROOT / "docs" / f"{paper}.json").read_text())) in README
