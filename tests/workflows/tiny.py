"""The default chain on tiny models: its inputs, the command that runs it, and what it leaves, wherever it ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.models.toy import toy
from tests.experiments import sentence_pair, words

ROOT = Path(__file__).resolve().parents[2]
# The stage that takes longest, smaller still: a proof runs the chain several times over.
SMALLER = {"ablation": {"config": {"scan": 1, "sources": 2, "curve": 1, "curve_cases": 1, "draws": 1, "random": 1}}}
STAGES = ("alignment", "steering", "verdicts", "probing", "ablation")


def write_toy(folder: Path, family: str, seed: int) -> Path:
    """A random model whose tokenizer knows the concepts' words, and some of the sentences', as single tokens."""
    known = list(dict.fromkeys([*sentence_pair.tokens(4), *words.tokens()]))
    tokenizer = sentence_pair.tokenizer(folder / "tokenizer", known[::-1] if seed else known)
    ji.save(toy(family, seed, tokenizer, vocab_size=len(known)), folder / "model")
    return folder / "model"


def write_inputs(folder: Path) -> Path:
    """Three models in `folder`, and the configuration that names them relative to it, over test.yaml."""
    made = {"smollm2": ("llama", 0), "gemma3": ("qwen3", 1), "minilm": ("llama", 2)}
    models = {name: write_toy(folder / "toys" / name, *kind) for name, kind in made.items()}
    path = folder / "models.yaml"
    named = {name: f"./{at.relative_to(folder)}" for name, at in models.items()}
    path.write_text(yaml.safe_dump({"models": named} | SMALLER))
    return path


def arguments(profile: str = "local", root: str | Path = ROOT, config: str | Path = "models.yaml") -> list[str]:
    """What follows `snakemake` to run the chain in the working directory, with a checkout's or an image's workflow."""
    workflows = Path(root) / "workflows"
    flags = ["--snakefile", Path(root) / "Snakefile", "--profile", workflows / "profiles" / profile]
    return [str(part) for part in [*flags, "--configfile", workflows / "config" / "test.yaml", config]]


def tables(folder: Path, stages: Sequence[str] = STAGES) -> dict[str, tuple[pl.DataFrame, dict[str, Any]]]:
    """Each stage's table and provenance."""
    return {stage: artefacts.read_table(folder / "results" / stage / "table.parquet") for stage in stages}


def logs(folder: Path) -> list[Path]:
    """The chain's own logs, not those of a cluster."""
    own = (folder / "logs").rglob("*.log")
    return sorted(log for log in own if not {"slurm", "distributed.log"} & set(log.relative_to(folder).parts))


def outsiders(folder: Path, image: str) -> list[str]:
    """The logs of jobs that did not say that they ran in this image."""
    return [str(log.relative_to(folder)) for log in logs(folder) if f"] in image {image} " not in log.read_text()]


def difference(a: pl.DataFrame, b: pl.DataFrame) -> float:
    """The largest difference of two tables' numbers, relative to 1 or to the number; all else must be the same."""
    assert a.schema == b.schema and a.height == b.height
    largest = 0.0
    for name, kind in a.schema.items():
        if not kind.is_float():
            assert a[name].equals(b[name], null_equal=True), f"column {name}"
            continue
        x, y = (frame[name].fill_null(np.nan).to_numpy() for frame in (a, b))
        assert np.array_equal(np.isnan(x), np.isnan(y)), f"column {name}"
        scaled = np.abs(x - y) / np.maximum(1.0, np.abs(y))
        largest = max(largest, float(np.max(scaled[~np.isnan(scaled)], initial=0.0)))
    return largest


def differences(one: Path, other: Path) -> dict[str, float]:
    """`difference` of each stage's tables in two folders."""
    tables_of_one, tables_of_other = tables(one), tables(other)
    return {stage: difference(tables_of_one[stage][0], tables_of_other[stage][0]) for stage in STAGES}
