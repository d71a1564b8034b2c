"""Profiles for Slurm: what they ask for, and the chain on a cluster of two nodes."""

import subprocess
import sys

import pytest
import yaml

from tests.slurm import prove
from tests.workflows import tiny

PROFILES = tiny.ROOT / "workflows" / "profiles"


def read(name):
    return yaml.safe_load((PROFILES / name / "profile.yaml").read_text())


@pytest.mark.parametrize("name", ["slurm", "slurm-tpu"])
def test_jobs_run_in_the_image_and_are_sent_again(name):
    profile = read(name)
    assert profile["executor"] == "slurm"
    assert profile["software-deployment-method"] == "apptainer" and "--cleanenv" in profile["apptainer-args"]
    assert profile["retries"] >= 2 and profile["rerun-incomplete"]


def test_what_measures_goes_to_the_chips():
    asked = read("slurm-tpu")["set-resources"]
    assert set(asked) == {f"measure_{stage}" for stage in tiny.STAGES}
    assert {(rule["slurm_partition"], rule["gres"]) for rule in asked.values()} == {("tpu", "tpu:4")}


@pytest.mark.slow
def test_the_chain_runs_on_two_nodes_with_a_job_killed(tmp_path):
    if sentence := prove.missing():
        pytest.skip(sentence)
    command = [sys.executable, "-m", "tests.slurm.prove", str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=tiny.ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    assert done.stdout.count("proved:") >= 3
