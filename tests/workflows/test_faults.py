"""What goes wrong on real machines: a full disk, a job that is killed, a node that is taken in the midst of a sweep."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import jaxinterp as ji
from jaxinterp.models.toy import toy
from tests.workflows.tiny import ROOT

PAGE = "results/models/countdown/tree.html"


def start(folder, *words, profile="tpu-vm"):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--profile", ROOT / "workflows" / "profiles" / profile, "--cores", "1", *words]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ | {"PATH": path}}
    return subprocess.Popen([str(word) for word in command], **options)


def finish(process):
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def workers(verb, folder):
    """The processes of this workflow that run a verb of jaxinterp."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, where = (place / "cmdline").read_bytes().split(b"\0"), (place / "cwd").resolve()
        except OSError:
            continue
        if where == folder and any(word.endswith(b"jaxinterp") for word in words[:2]) and verb.encode() in words:
            found.append(int(place.name))
    return found


def kill_when(condition, verb, folder, how):
    """Ends the process that runs a verb, once something holds; says which it was."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if condition() and (found := workers(verb, folder)):
            os.kill(found[0], how)
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no process ran {verb}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_killed_starts_again(tmp_path, how):
    running = start(tmp_path, PAGE)
    log = tmp_path / "logs" / "models" / "countdown.tree.log"
    kill_when(log.exists, "inspect", tmp_path, how)
    status, text = finish(running)
    assert status == 0, text[-4000:]
    assert "Trying to restart job" in text
    started = re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE)
    assert sorted(started) == ["draw_model", "draw_model", "fetch_model"]
    assert (tmp_path / PAGE).read_text().rstrip().endswith("</html>")


def test_a_sweep_that_loses_its_worker_loses_at_most_one_block(tmp_path):
    tokens, block = 9000, 2048
    ji.save(toy("llama", 0, vocab_size=tokens), tmp_path / "wide")
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {"gemma3": str(tmp_path / "wide")}}))
    folder = tmp_path / "results" / "whole_vocabulary" / "gemma3"
    running = start(tmp_path, "whole_vocabulary", "--configfile", tmp_path / "models.yaml")

    def blocks():
        try:
            return json.loads((folder / "manifest.json").read_text())["blocks"]
        except FileNotFoundError:
            return []

    kill_when(lambda: len(blocks()) >= 2, "neighbours", tmp_path, signal.SIGKILL)
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    kept = {entry["file"] for entry in blocks()}
    status, text = finish(running)
    assert status == 0, text[-4000:]
    assert "Trying to restart job" in text
    said = re.search(r"going on: (\d+) of (\d+) tokens are there, in (\d+) blocks", text)
    assert said and int(said[2]) == tokens and int(said[3]) == len(kept) >= 2
    assert len(set(written) - kept) <= 1, "at most one block was written and not yet in the manifest"
    assert all((folder / name).stat().st_mtime_ns == written[name] for name in kept), "none is measured twice"
    assert json.loads((folder / "manifest.json").read_text())["complete"]
    assert int(said[1]) >= 2 * block


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 9 MiB, and a function that gives it more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk of a given size can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_said_and_the_next_run_goes_on(small_disk):
    disk, enlarge = small_disk
    status, text = finish(start(disk, "--retries", "0", PAGE))
    assert status != 0
    assert "jaxinterp: [Errno 28] No space left on device" in text
    assert not (disk / "resources" / "models" / "countdown" / "model.safetensors").exists()
    enlarge("200m")
    status, text = finish(start(disk, PAGE))
    assert status == 0, text[-4000:]
    assert (disk / PAGE).is_file()
