"""The recipe of the images, what keeps secrets and strangers' code out of them, and the chain inside the CPU image."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from jaxinterp import artefacts
from tests.containers import prove
from tests.workflows import tiny

FOLDER = tiny.ROOT / "containers"
SCRIPTS = [*sorted(FOLDER.glob("*.sh")), tiny.ROOT / "tests" / "slurm" / "cluster.sh"]
RECIPE = (FOLDER / "Containerfile").read_text()


def call(*words, **environment):
    options = {"capture_output": True, "text": True, "env": os.environ | environment}
    done = subprocess.run([str(word) for word in words], check=False, **options)
    return done.returncode, done.stdout + done.stderr


def test_the_base_is_pinned_and_no_registry_is_named():
    base = re.search(r"^ARG BASE=(\S+)$", RECIPE, re.MULTILINE)
    assert re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", base.group(1))
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and "images" not in path.parts:
            assert not re.search(r"\b(docker|ghcr|quay|gcr)\.io\b", path.read_text()), path


def test_every_accelerator_has_a_lock_with_hashes_and_no_pin_twice():
    pins = re.findall(r"^(\S+)==", (tiny.ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for accelerator, expected in {"cpu": None, "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}.items():
        text = (FOLDER / "locks" / f"{accelerator}.lock").read_text()
        more = re.findall(r"^(\S+)==", text, re.MULTILINE)
        assert (expected in more) if expected else not more
        assert text.count("==") <= text.count("--hash=sha256:") or not more
        assert not set(pins) & set(more)


def test_the_image_runs_as_nobody_in_particular_and_is_labelled():
    assert re.search(r"^USER 10001:10001$", RECIPE, re.MULTILINE)
    for label in ("version", "revision", "source", "base.name", "licenses"):
        assert f"org.opencontainers.image.{label}=" in RECIPE


def test_only_what_the_recipe_copies_can_enter_a_build():
    lines = [line for line in (tiny.ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*" and lines[-1] == "**/.*"
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", RECIPE, re.MULTILINE) for word in line.split()}
    assert {line[1:] for line in lines if line.startswith("!")} == copied


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    status, text = call("shellcheck", "--external-sources", "--source-path", tiny.ROOT, *SCRIPTS)
    assert status == 0, text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "say which image: build.sh cpu, build.sh cuda13 or build.sh tpu"),
        (["cpu", "--bse", "x"], "there is no option '--bse'"),
        (["cpu", "--mirror", "x"], "--mirror belongs to --debian"),
        (["cpu", "--builder", "kaniko9"], "'kaniko9' is missing"),
    ],
)
def test_building_says_what_is_wrong(words, sentence):
    status, text = call(FOLDER / "build.sh", *words)
    assert status == 1
    assert sentence in text


def test_an_image_of_other_code_is_refused_before_any_job(tmp_path):
    (tmp_path / "other.sif").touch()
    (tmp_path / "other.json").write_text(json.dumps({"code": "0", "accelerator": "cpu"}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", tiny.ROOT / "Snakefile", "--directory", tmp_path]
    command += ["--cores", "1", "--dry-run", "--quiet", "all", "--config", f"image={tmp_path / 'other.sif'}"]
    status, text = call(*command, "--software-deployment-method", "apptainer")
    assert status != 0 and "holds other code than this checkout; build it again with containers/build.sh cpu" in text


@pytest.fixture(scope="module")
def marker():
    if sentence := prove.missing():
        pytest.skip(sentence)
    return prove.build(["--debian"])


@pytest.mark.slow
def test_the_image_says_what_it_is_and_holds_no_secret(marker):
    image = f"localhost/jaxinterp:{marker['version']}-cpu"
    script = f". {FOLDER}/common.sh; settle_podman; podman"
    _, text = call("bash", "-c", f"{script} run --rm --network none {image} id --user")
    assert text.strip() == "10001"
    _, text = call("bash", "-c", f"{script} image inspect {image}")
    labels = json.loads(text)[0]["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == marker["commit"]
    assert labels["jaxinterp.accelerator"] == "cpu"
    assert not any(word.startswith(("PIP_", "SSL_")) for word in json.loads(text)[0]["Config"]["Env"])
    look = "test ! -s /etc/pip.conf && test ! -e /run/secrets/pip && test ! -e /run/secrets/certificates && echo clean"
    _, text = call("bash", "-c", f"{script} run --rm --network none {image} sh -c '{look}'")
    assert text.strip() == "clean"
    assert marker["code"] == artefacts.package_digest()


@pytest.mark.slow
def test_the_chain_runs_inside_and_gives_what_it_gives_outside(marker, tmp_path):
    plain = prove.prepare(tmp_path / "outside")
    prove.run_outside(plain)
    jobs = prove.prepare(tmp_path / "jobs", plain)
    prove.run_jobs_inside(jobs)
    prove.check_inside(jobs, marker)
    prove.check_equal(jobs, plain)
    whole = prove.prepare(tmp_path / "whole", jobs)
    prove.run_whole_inside(whole, marker["version"])
    prove.check_inside(whole, marker)
    prove.check_equal(whole, plain)
