import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from jaxinterp import artefacts, cli, experiments
from jaxinterp.analysis.vocabulary_blocks import read_vocabulary
from jaxinterp.experiments import code_digest

MODEL = "builtin:countdown-6m-grpo"


@pytest.fixture
def jaxinterp(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxinterp", *map(str, arguments)])
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["JAX_COMPILATION_CACHE_DIR"])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_help_answers_without_importing_jax():
    code = """
import sys
from jaxinterp import cli
sys.argv = ["jaxinterp", "--help"]
try:
    cli.main()
except SystemExit:
    print(sorted({"jax", "penzai", "polars", "matplotlib", "orbax"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "inspect" in run.stdout
    assert "builtin:countdown-6m-grpo" in run.stdout


def test_inside_an_image_every_verb_says_so_first(jaxinterp, monkeypatch):
    marker = {"name": "jaxinterp-cpu", "version": "9", "accelerator": "cpu", "commit": "abc"}
    monkeypatch.setattr(artefacts, "image", lambda: marker)
    _, text, log = jaxinterp("experiments")
    assert log.splitlines()[0] == "[jaxinterp] in image jaxinterp-cpu 9 for cpu, commit abc"
    assert "in image" not in text


def test_every_verb_has_help(jaxinterp):
    _, text, _ = jaxinterp("--help")
    verbs = text.split("{", 1)[1].split("}", 1)[0].split(",")
    assert {"fetch", "inspect", "sites", "generate", "run", "figure", "check", "schema", "report"} <= set(verbs)
    for verb in verbs:
        status, text, _ = jaxinterp(verb, "--help")
        assert status == 0, verb
        assert f"jaxinterp {verb}" in text


def test_fetch_records_what_came(jaxinterp, tmp_path):
    status, _, _ = jaxinterp("fetch", MODEL, "--output", tmp_path / "m")
    assert status == 0
    record = artefacts.read_json(tmp_path / "m" / "source.json")
    assert record["source"] == MODEL
    assert record["licence"] == "Apache-2.0"
    assert len(record["sha256"]) == 64
    assert (tmp_path / "m" / record["path"] / "config.json").is_file()
    status, text, _ = jaxinterp("sites", tmp_path / "m" / "source.json")
    assert status == 0
    assert "resid_post (layers 0-7)" in text
    assert "head 8, projection 32" in text


def test_page_of_an_edited_model_marks_the_edit(jaxinterp, tmp_path):
    assert jaxinterp("inspect", MODEL, "--edit", "ablate(head(4, 5))", "--out", tmp_path / "edited.html")[0] == 0
    assert jaxinterp("inspect", MODEL, "--out", tmp_path / "plain.html")[0] == 0
    edited, plain = ((tmp_path / f"{name}.html").read_text() for name in ("edited", "plain"))
    assert "z (layer 4)" in edited
    assert "No edits." in plain
    for page in (edited, plain):
        assert "6,075,648 parameters" in page
        assert 'src="http' not in page


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        ("ablate(head(99, 5))", "no z"),
        ("ablate(head(4, 99))", "there is no 99"),
        ("ablate(", "not a Python expression"),
        ("__import__('os')", "write one call of ablate"),
        ("ablate(open('x'))", "unknown word"),
        ("ablate(head(4, 5), method='median')", "median"),
        ("ablate(head(4, 5), metod='zero')", "metod"),
        ("ablate(*[1])", r"\* and \*\* cannot"),
        ("ablate(().__class__)", "neither a literal nor a known call"),
    ],
)
def test_bad_edits_are_one_sentence(jaxinterp, tmp_path, edit, what):
    status, _, err = jaxinterp("inspect", MODEL, "--edit", edit, "--out", tmp_path / "page.html")
    assert status == 2
    assert re.search(what, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "page.html").exists()


def test_generate_continues(jaxinterp):
    status, text, _ = jaxinterp("generate", MODEL, "--prompt", "Using the numbers [3, 4], ", "--max-new-tokens", "4")
    assert status == 0
    assert text.startswith("Using the numbers [3, 4], ")
    assert len(text.strip()) > len("Using the numbers [3, 4],")


def test_toy_writes_a_model_that_loads(jaxinterp, tmp_path):
    assert jaxinterp("toy", "--family", "llama", "--output", tmp_path / "toy")[0] == 0
    status, text, _ = jaxinterp("sites", tmp_path / "toy")
    assert status == 0
    assert "resid_post" in text


def test_neighbours_of_a_vocabulary_are_found_block_by_block(jaxinterp, tmp_path):
    command = ("neighbours", MODEL, "--output", tmp_path / "n", "--count", 3, "--dimension-count", 4, "--block", 30)
    status, _, said = jaxinterp(*command, "--blocks", 1)
    assert status == 0 and "30 of" in said and "the same command goes on" in said
    status, _, said = jaxinterp(*command)
    found, manifest = read_vocabulary(tmp_path / "n")
    assert status == 0 and manifest["table"]["source"] == f"{MODEL}, W_E"
    assert found["neighbours"].shape == (len(found["tokens"]), 4) and found["weights"].shape[1] == 3
    status, _, said = jaxinterp("neighbours", MODEL, "--output", tmp_path / "m", "--count", 10**6)
    assert status == 2 and "1000000 neighbours are asked for, but each token has" in said


def test_figure_and_check_from_a_table(jaxinterp, tmp_path):
    (tmp_path / "empty.parquet").write_bytes(b"PAR1")
    for verb, name in (("figure", "f.svg"), ("check", "c.json")):
        status, _, err = jaxinterp(verb, "probing", "--table", tmp_path / "empty.parquet", "--output", tmp_path / name)
        assert status == 2
        assert "empty.parquet: not a whole Parquet file" in err
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("probling", "--output", "t.parquet"), "There is no experiment 'probling' (did you mean 'probing'?)"),
        (("probing", "--output", "t.parquet", "--config", '{"sed": 1}'), "unknown key 'sed' (did you mean 'seed'?)"),
        (("probing", "--output", "t.parquet", "--config", '{"seed": "1"}'), "key 'seed' is \"1\""),
        (("probing", "--output", "t.parquet", "--model", "builtin:x"), "write NAME=VALUE"),
        (("probing", "--output", "t.parquet", "--model", "model=nowhere"), "no file or folder 'nowhere'"),
    ],
)
def test_wrong_arguments_of_run_are_one_sentence(jaxinterp, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    status, _, err = jaxinterp("run", *arguments)
    assert status == 2
    assert sentence in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", experiments.names())
def test_schemas_in_the_workflow_are_up_to_date(name):
    from jaxinterp.config import schema

    stored = Path(__file__).parents[1] / "workflows" / "schemas" / f"{name}.schema.json"
    assert json.loads(stored.read_text()) == json.loads(json.dumps(schema(experiments.find(name).Config)))


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_has_its_parts_and_its_reference(name):
    module = experiments.find(name)
    references = (Path(experiments.__file__).parent / "references.bib").read_text()
    assert f"{{{module.PAPER}," in references


def test_code_digest_follows_imports_and_nothing_else(tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    files = {"a.py": "from p import b\nimport p.c\n", "b.py": "x = 1\n", "c.py": "", "d.py": "y = 1\n", "e.py": ""}
    files |= {"__init__.py": "", "__init__.pyi": "from .e import z as z\n"}
    for name, text in files.items():
        (package / name).write_text(text)
    digests = [code_digest("p.a", tmp_path)]
    (package / "d.py").write_text("y = 2\n")
    assert code_digest("p.a", tmp_path) == digests[0], "nothing imports d"
    for name in ("a", "b", "c", "e"):
        with (package / f"{name}.py").open("a") as file:
            file.write("w = 3\n")
        digests.append(code_digest("p.a", tmp_path))
    assert len(set(digests)) == 5


def test_report_gathers_what_there_is(jaxinterp, tmp_path):
    results, models = tmp_path / "results", tmp_path / "resources" / "models"
    table = pl.DataFrame({"layer": [0, 1], "value": [0.123456, None], "text": ["<b>", "ü"]})
    artefacts.write_table(table, results / "x" / "table.parquet", {"seed": 5})
    (results / "x" / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    claim = {"criterion": "a <= b", "paper": "1", "ours": 0.5, "low": None, "high": None, "n": 3, "control": "0"}
    artefacts.write_json(
        [claim | {"met": True}, claim | {"met": False, "low": 0.4, "high": 0.6}], results / "x" / "check.json"
    )
    artefacts.write_json(
        {"source": "toy:x", "licence": None, "sha256": None, "path": "."}, models / "m" / "source.json"
    )
    artefacts.write_text("<!doctype html></script><p>tree of m", results / "models" / "m" / "tree.html")
    for name, text in (("workflow", "All of it."), ("x", "The *claim* of x.")):
        artefacts.write_text(text, tmp_path / "captions" / f"{name}.rst")
    flags = ("--results", results, "--models", models / "m")
    flags += ("--introduction", tmp_path / "captions" / "workflow.rst")
    status, _, err = jaxinterp("report", "x", *flags, "--output", results / "report.html")
    assert status == 0, err
    page = (results / "report.html").read_text()
    for part in ("a &lt;= b", "0.4 to 0.6", "not met", "<em>claim</em>", "toy:x", "&lt;b&gt;", "0.1235", "not stated"):
        assert part in page, part
    assert "</script><p>tree" not in page
    assert "1 of 2" in page
    status, _, err = jaxinterp("claims", "x", "--results", results, "--output", results / "all.json")
    assert status == 0 and "1 of 2 claims met" in err
    assert [record["experiment"] for record in artefacts.read_json(results / "all.json")] == ["x", "x"]
    (results / "x" / "figure.svg").unlink()
    status, _, err = jaxinterp("report", "x", *flags, "--output", results / "again.html")
    assert status == 2
    assert "figure.svg: there is no such file" in err
