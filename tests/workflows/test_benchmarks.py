"""`snakemake benchmarks` on a tiny model: what it makes, what it would make, and that nothing else asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.models.toy import toy

ROOT = Path(__file__).resolve().parents[2]


def snakemake(directory, *arguments):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    command += ["--profile", ROOT / "workflows" / "profiles" / "local", "--cores", "2", *arguments]
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"env": os.environ | {"PATH": folders}, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run([str(part) for part in command], check=False, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def overlay(tmp_path):
    ji.save(toy(num_hidden_layers=1), tmp_path / "toy")
    config = {"peers": ["jaxinterp"], "tasks": ["w8_weights"], "repeats": 1, "sizes": {"tokens": 40, "neighbours": 3}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"models": {"smollm2": str(tmp_path / "toy")}, "benchmarks": {"config": config}}))
    return path


def test_one_command_writes_the_table_and_the_figure(tmp_path, overlay):
    status, text = snakemake(tmp_path, "benchmarks", "--configfile", overlay)
    assert status == 0, text[-6000:]
    table, provenance = artefacts.read_table(tmp_path / "results" / "benchmarks" / "table.parquet")
    assert table["task"].unique().to_list() == ["w8_weights"]
    assert (table["wall_median"] > 0).all()
    assert provenance["config"]["threads"] == 2 and provenance["config"]["sizes"]["tokens"] == 40
    assert (tmp_path / "results" / "benchmarks" / "table.csv").read_text().startswith("workload,task,title,peer")
    assert (tmp_path / "results" / "benchmarks" / "figure.svg").read_text().rstrip().endswith("</svg>")
    status, text = snakemake(tmp_path, "benchmarks", "--configfile", overlay)
    assert status == 0 and "Nothing to be done" in text


def test_every_peer_gets_an_environment_of_its_own_and_all_does_not_ask_for_them(tmp_path):
    status, text = snakemake(tmp_path, "benchmarks", "--dry-run")
    assert status == 0, text[-4000:]
    for peer in ("torch", "transformer_lens", "nnsight", "pyvene", "scikit_learn", "faiss"):
        assert f"resources/benchmarks/{peer}/versions.txt" in text
    status, text = snakemake(tmp_path, "--dry-run")
    assert status == 0 and "results/benchmarks" not in text and "resources/benchmarks" not in text


def test_random_weights_are_made_and_not_fetched_and_their_table_stands_apart(tmp_path):
    overlay = ROOT / "workflows" / "config" / "benchmarks-h100-8b.yaml"
    status, text = snakemake(tmp_path, "benchmarks", "--dry-run", "--printshellcmds", "--configfile", overlay)
    assert status == 0, text[-4000:]
    assert "random-model --shape 8b --dtype bfloat16" in text and "fetch" not in text
    assert "results/h100-8b/benchmarks/table.csv" in text and "resources/benchmarks/nnsight" not in text
