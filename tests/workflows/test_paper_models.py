"""The configurations for the paper's own models: every setting exists, and means on them what the paper did."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxinterp import config, experiments
from jaxinterp.models.shape_model import load_shapes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows" / "config"
MODELS = ["qwen2.5-3b", "r1-distill-qwen-14b"]
NO_SECTIONS = ("pathvars", "models", "dtype", "memory")


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture
def sections(model):
    found = read(f"self_verification-{model}.yaml")
    return {name: section for name, section in found.items() if name not in NO_SECTIONS}


def test_sections_are_those_of_the_default(model, sections):
    default = read("self_verification.yaml")
    assert list(sections) == [name for name in default if name not in NO_SECTIONS]
    known = read("default.yaml")["models"] | read(f"self_verification-{model}.yaml")["models"]
    for name, section in sections.items():
        assert set(section) == {"models", "config"}
        assert set(section["models"]) == set(default[name]["models"]), name
        assert set(section["models"].values()) <= set(known), name
    assert {section["models"].get("model", model) for section in sections.values()} == {model}


def test_every_setting_exists_and_has_its_type(sections):
    for name, section in sections.items():
        settings = config.load_config(experiments.find(name).Config, section["config"], where=name)
        for key in section["config"]:
            assert getattr(settings, key) is not None


def test_settings_are_the_papers_on_these_architectures(model, sections):
    architecture = load_shapes(f"shape:{model}").architecture
    assert sections["verdicts"]["config"]["shots"] > 0
    units = sections["units"]["config"]
    assert math.ceil(units["share"] * architecture.neurons) == 50
    assert math.ceil(units["ranking"] * architecture.neurons * architecture.layers) == 200
    threshold = {"qwen2.5-3b": 0.1, "r1-distill-qwen-14b": 0.05}[model]
    assert sections["ablation"]["config"]["attention_threshold"] == threshold


def test_the_workflow_takes_them(model, tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    command += ["--dry-run", "--quiet", "all", "--cores", "1", "self_verification", "--configfile"]
    command += [FOLDER / f"self_verification-{model}.yaml"]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
