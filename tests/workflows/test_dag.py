"""The whole chain on tiny models, as a user runs it: one command, twice; with a wrong key; after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

import jaxinterp as ji
from jaxinterp import artefacts
from tests.workflows.tiny import ROOT, STAGES, write_toy


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "smollm2": str(write_toy(folder / "a", "llama", 0)),
        "gemma3": str(write_toy(folder / "b", "qwen3", 1)),
        "minilm": str(write_toy(folder / "c", "llama", 2)),
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


def snakemake(directory, *configs, targets=(), **options):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", directory]
    command += ["--profile", ROOT / "workflows" / "profiles" / "local", "--cores", "2"]
    command += [*targets, "--configfile", ROOT / "workflows" / "config" / "test.yaml", *configs]
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pipes = {"env": os.environ | {"PATH": folders}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([str(part) for part in command], text=True, **pipes, **options)


def finish(process, seconds=900):
    text, _ = process.communicate(timeout=seconds)
    return process.returncode, text


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    directory = tmp_path_factory.mktemp("run")
    status, text = finish(snakemake(directory, settings))
    assert status == 0, text[-8000:]
    return directory


def test_every_stage_leaves_its_artefacts(finished):
    for stage in STAGES:
        folder = finished / "results" / stage
        table, provenance = artefacts.read_table(folder / "table.parquet")
        assert table.height > 0
        assert (folder / "table.csv").read_text().count("\n") >= table.height
        assert provenance["config"]["seed"] == 0
        assert provenance["models"]
        assert (folder / "figure.svg").read_text().rstrip().endswith("</svg>")
        claims = artefacts.read_json(folder / "check.json")
        assert claims
        for claim in claims:
            assert set(claim) == {"criterion", "paper", "ours", "low", "high", "n", "control", "met"}
    assert not (finished / "results" / "units").exists(), "not part of the chain"
    arrays, provenance = artefacts.read_arrays(finished / "results" / "alignment" / "maps.safetensors")
    assert arrays["source to target/least_squares"].ndim == 2
    assert provenance["axes"]["source to target/least_squares"] == ["from_embedding", "to_embedding"]
    _, provenance = artefacts.read_table(finished / "results" / "probing" / "table.parquet")
    assert provenance["models"] == {"model": "builtin:countdown-6m-grpo"}


def test_the_report_holds_everything(finished):
    page = (finished / "results" / "report.html").read_text()
    for stage in STAGES:
        assert f'<section id="{stage}">' in page
        for claim in artefacts.read_json(finished / "results" / stage / "check.json"):
            assert (
                claim["criterion"].replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
                in page
            )
    assert page.count('class="page"') == 4, "three models, and one of them edited"
    assert "data:image/svg+xml;base64," in page
    assert 'src="http' not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paper", "first", "count", "made"),
    [("self_verification", "verdicts", 11, "ablation"), ("embedding_geometry", "global_geometry", 7, "steering")],
)
def test_a_whole_paper_builds_on_the_chain(finished, settings, paper, first, count, made):
    status, text = finish(snakemake(finished, settings, targets=[paper]))
    assert status == 0, text[-8000:]
    assert f"measure_{made}" not in text, "what the chain has made is not made again"
    gathered = artefacts.read_json(finished / "results" / paper / "check.json")
    parts = list(dict.fromkeys(record["experiment"] for record in gathered))
    assert parts[0] == first and len(parts) == count
    page = (finished / "results" / paper / "report.html").read_text()
    for part in parts:
        assert f'<section id="{part}">' in page


def test_a_second_run_does_nothing(finished, settings):
    before = {path: path.stat().st_mtime_ns for path in (finished / "results").rglob("*") if path.is_file()}
    status, text = finish(snakemake(finished, settings))
    assert status == 0
    assert "Nothing to be done" in text
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "results").rglob("*") if path.is_file()}


def test_snakemakes_own_report_holds_the_captions(finished, settings):
    status, text = finish(snakemake(finished, settings, targets=["--report", "report.zip"]))
    assert status == 0, text[-4000:]
    with zipfile.ZipFile(finished / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
    for stage in STAGES:
        assert f"results/{stage}/figure.svg" in page
    assert "reinforcement learning represents" in page


def test_a_killed_run_goes_on_where_it_was(tmp_path, settings):
    process = snakemake(tmp_path, settings, targets=["models"], start_new_session=True)
    deadline = time.monotonic() + 300
    while not (drawn := list(tmp_path.glob("results/models/*/tree.html"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    record = tmp_path / "resources" / "models" / drawn[0].parent.name / "source.json"
    before = record.stat().st_mtime_ns
    status, text = finish(snakemake(tmp_path, settings, targets=["models"]))
    assert status == 0, text[-4000:]
    assert (tmp_path / "results" / "models" / "countdown" / "edited.html").is_file()
    assert record.stat().st_mtime_ns == before, "what was fetched is not fetched again"
    status, text = finish(snakemake(tmp_path, settings, targets=["models"]))
    assert "Nothing to be done" in text


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ({"probing": {"config": {"sed": 1}}}, "probing.config: unknown key 'sed' (did you mean 'seed'?)"),
        ({"probing": {"confg": {}}}, "probing: unknown key 'confg' (did you mean 'config'?)"),
        ({"probling": {}}, "config: unknown key 'probling' (did you mean 'probing'?)"),
        ({"edited": {"modell": "x"}}, "edited: unknown key 'modell' (did you mean 'model'?)"),
        ({"probing": {"models": {"model": "gpt9"}}}, "probing.models.model: there is no model 'gpt9'"),
        ({"probing": {"config": {"seed": "one"}}}, "'one' is not of type 'integer'"),
    ],
)
def test_a_wrong_setting_is_an_error_before_any_job(tmp_path, settings, overlay, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(overlay))
    status, text = finish(snakemake(tmp_path, settings, path, targets=["--dry-run"]))
    assert status != 0
    assert sentence in text
    assert not (tmp_path / "resources").exists()


@pytest.mark.slow
def test_a_backend_may_be_required_of_what_computes(tmp_path, settings):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"require_backend": "tpu"}))
    asked = ["--dry-run", "--printshellcmds", "probing", "train_countdown"]
    status, text = finish(snakemake(tmp_path, settings, path, targets=asked))
    assert status == 0, text[-4000:]
    assert "jaxinterp --require-backend tpu run probing" in text
    assert text.count("jaxinterp --require-backend tpu train ") == 2


def test_models_are_trained_and_practise(tmp_path):
    status, text = finish(snakemake(tmp_path, targets=("train_countdown",)))
    assert status == 0, text[-8000:]
    made = tmp_path / "results" / "train_countdown"
    texts, _ = artefacts.read_table(made / "supervised" / "training_log.parquet")
    practice, _ = artefacts.read_table(made / "grpo" / "training_log.parquet")
    assert texts["step"].to_list() == [2, 4] and practice["step"].to_list() == [1, 2]
    assert json.loads((made / "grpo" / "recipe.json").read_text())["start"].endswith("supervised")
    assert ji.load(made / "grpo").architecture.embedding == 16
    assert all((made / f"{stage}.svg").read_text().rstrip().endswith("</svg>") for stage in ("supervised", "grpo"))
