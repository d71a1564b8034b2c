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
import tokenizers
import yaml

import jaxinterp as ji
from jaxinterp import artefacts
from jaxinterp.models.toy import toy
from jaxinterp.tasks import concepts
from jaxinterp.tasks.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("alignment", "steering", "verdicts", "probing", "ablation")


def write_toy(folder, family, seed, extra):
    """A random model whose byte-level tokenizer knows the concepts' words as single tokens."""
    texts = list(extra)
    for concept in concepts.CONCEPTS.values():
        words = [*concept.words, *concept.opposites, *(word for pair in concept.pairs for word in pair)]
        texts += [f"the {word} of" for word in words] * 20
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    model = toy(family, seed, Tokenizer.from_folder(folder), vocab_size=tokenizer.get_vocab_size())
    ji.save(model, folder.with_name(folder.name + "-model"))
    return str(folder.with_name(folder.name + "-model"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "smollm2": write_toy(folder / "a", "llama", 0, ["one more text"] * 30),
        "gemma3": write_toy(folder / "b", "qwen3", 1, ["another kind of text"] * 30),
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
def test_the_whole_of_self_verification_builds_on_the_chain(finished, settings):
    status, text = finish(snakemake(finished, settings, targets=["self_verification"]))
    assert status == 0, text[-8000:]
    assert "measure_ablation" not in text, "what the chain has made is not made again"
    gathered = artefacts.read_json(finished / "results" / "self_verification" / "check.json")
    parts = list(dict.fromkeys(record["experiment"] for record in gathered))
    assert parts[:2] == ["verdicts", "probing"] and len(parts) == 11
    page = (finished / "results" / "self_verification" / "report.html").read_text()
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
