"""The check that jax computes where it should."""

import json
import os
import subprocess
import sys

import pytest

from jaxinterp import artefacts
from jaxinterp.cli import backends


def jaxinterp(*arguments, **environment):
    command = [sys.executable, "-m", "jaxinterp.cli", *arguments]
    variables = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=variables)


def test_another_backend_than_required_ends_the_run_with_a_sentence():
    done = jaxinterp("--require-backend", "tpu", "experiments")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(
        "jaxinterp: --require-backend tpu: jax computes on cpu. Install jax[cuda13] or jax[tpu]"
    )


def test_the_backend_that_is_required_is_fine_and_none_is_a_sentence():
    assert jaxinterp("--require-backend", "cpu", "experiments").returncode == 0
    done = jaxinterp("--traceback", "--require-backend", "cpu", "experiments")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("accelerator", "warned"), [("tpu", True), ("cuda13", True), ("cpu", False)])
def test_an_image_for_an_accelerator_says_that_it_computes_on_the_cpu(accelerator, warned, tmp_path, monkeypatch):
    marker = tmp_path / "image.json"
    marker.write_text(json.dumps({"name": f"jaxinterp-{accelerator}", "accelerator": accelerator}))
    monkeypatch.setattr(artefacts, "_MARKER", marker)
    said = []
    monkeypatch.setattr(backends, "say", said.append)
    backends.warn_of_fallback()
    assert bool(said) is warned
    assert not warned or f"this image is for {accelerator}, and jax finds none and computes on the CPU" in said[0]


def test_outside_an_image_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(artefacts, "_MARKER", tmp_path / "none.json")
    monkeypatch.setattr(backends, "say", pytest.fail)
    backends.warn_of_fallback()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again():
    program = """
import resource
import numpy as np
from jaxinterp.cli.backends import reuse_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(1 << 22, 1, np.int32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, kept, after = faults(), reuse_freed_memory(), (faults(), faults())[1]
print(before, kept, after)
"""
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True, env=variables
    )
    before, kept, after = done.stdout.split()
    assert kept == "True" and int(after) < int(before) / 100


def test_on_an_accelerator_freed_memory_goes_back(monkeypatch):
    monkeypatch.setattr(backends, "_found", lambda: "tpu")
    assert not backends.reuse_freed_memory()
