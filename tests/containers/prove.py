"""Shows that the tiny chain runs inside the image, and gives there what it gives outside.

    python -m tests.containers.prove [FOLDER] [--debian | --base IMAGE]

in a checkout: builds the CPU image unless containers/images holds one of this code, runs the tiny chain in three places
(each job in the image under Snakemake outside; Snakemake itself in the image; no image at all), and prints what holds.
Whatever does not hold is an error. FOLDER keeps what the runs leave.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxinterp import artefacts
from tests.workflows import tiny

CONTAINERS = tiny.ROOT / "containers"
SIF = CONTAINERS / "images" / "jaxinterp-cpu.sif"
NAME = "jaxinterp-cpu"
TOLERANCE = 1e-5


def missing() -> str | None:
    """What this machine lacks for the proof, as a sentence."""
    lacking = [program for program in ("podman", "mksquashfs") if shutil.which(program) is None]
    if not shutil.which("apptainer"):
        lacking += [program for program in ("apt-get", "patchelf") if shutil.which(program) is None]
    return f"the image cannot be made here: {', '.join(lacking)} missing" if lacking else None


def build(flags: Sequence[str]) -> dict[str, str]:
    """The image's marker; the image is built if there is none, or if it holds other code."""
    marker = SIF.with_suffix(".json")
    if not SIF.exists() or artefacts.read_json(marker)["code"] != artefacts.package_digest():
        subprocess.run([str(CONTAINERS / "build.sh"), "cpu", *flags], check=True)
    return artefacts.read_json(marker)


def shell(script: str, folder: Path) -> None:
    """Runs a command with the containers' settings, `jaxinterp` itself being one that fails: nothing may need it."""
    traps = folder / "traps"
    traps.mkdir(exist_ok=True)
    (traps / "jaxinterp").write_text("#!/bin/sh\necho 'this job ran outside of the image' >&2\nexit 1\n")
    (traps / "jaxinterp").chmod(0o755)
    start = f". {CONTAINERS}/common.sh; settle_podman; settle_apptainer; export PATH={traps}:$PATH\n"
    subprocess.run(["bash", "-euo", "pipefail", "-c", start + script], cwd=folder, check=True)


def bound() -> list[str]:
    """Lets jobs that run elsewhere than in the checkout see it: the captions lie there."""
    return ["--apptainer-args", f"--cleanenv --bind {tiny.ROOT}"]


def run_jobs_inside(folder: Path) -> None:
    """Snakemake here, every job in the image."""
    words = [
        sys.executable,
        "-m",
        "snakemake",
        *tiny.arguments(),
        "--software-deployment-method",
        "apptainer",
        *bound(),
    ]
    shell(shlex.join(words), folder)


def run_whole_inside(folder: Path, version: str) -> None:
    """Snakemake and its workflow in the image, without a network; only the folder is shared."""
    inside = shlex.join(tiny.arguments(root="/opt/jaxinterp"))
    user = f"--user {os.getuid()}:{os.getgid()}"
    flags = f"--rm --network none {user} --volume {folder}:/work"
    shell(f"podman run {flags} localhost/jaxinterp:{version}-cpu snakemake {inside}", folder)


def run_outside(folder: Path) -> None:
    """The same without any image."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", *tiny.arguments()]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def prepare(folder: Path, other: Path | None = None) -> Path:
    """A folder to run in, with the models and compiled programs of another; it stays as it is where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "models.yaml").exists():
        return folder
    if other is None:
        tiny.write_inputs(folder)
        return folder
    shutil.copytree(other / "toys", folder / "toys")
    if (other / ".cache").exists():
        shutil.copytree(other / ".cache", folder / ".cache", dirs_exist_ok=True)
    shutil.copy(other / "models.yaml", folder / "models.yaml")
    return folder


def check_inside(folder: Path, marker: dict[str, str], stages: Sequence[str] = tiny.STAGES) -> str:
    """That every job and every artefact of a run tells of this image."""
    outside = tiny.outsiders(folder, NAME)
    assert tiny.logs(folder) and not outside, f"these jobs did not run in the image: {', '.join(outside)}"
    for stage, (_, where) in tiny.tables(folder, stages).items():
        assert where["image"] == marker, f"{stage}: its provenance names {where['image']}"
        assert where["backend"] == "cpu" and where["devices"] >= 1, stage
        assert where["commit"] == marker["commit"], stage
    names = f"all {len(tiny.logs(folder))} jobs and the provenance of all {len(stages)} tables"
    return f"{names} name the image of commit {marker['commit'][:12]}"


def check_equal(inside: Path, outside: Path) -> str:
    """That two runs gave the same tables."""
    largest = tiny.differences(inside, outside)
    assert max(largest.values()) <= TOLERANCE, f"differences: {largest}"
    same = [stage for stage, difference in largest.items() if difference == 0]
    return f"tables are equal within {max(largest.values()):.1e}; to the bit: {', '.join(same) or 'none'}"


def say(sentence: str) -> None:
    """Prints at once, also into a file."""
    print(sentence, flush=True)


def main() -> None:
    """Builds, runs and prints what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--debian", action="store_const", const=["--debian"], dest="flags", default=[])
    parser.add_argument("--base", dest="flags", type=lambda image: ["--base", image])
    given = parser.parse_args()
    if sentence := missing():
        sys.exit(sentence)
    marker = build(given.flags)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        plain = prepare(folder / "outside")
        run_outside(plain)
        jobs = prepare(folder / "jobs", plain)
        run_jobs_inside(jobs)
        say(f"proved: Snakemake outside, jobs inside: {check_inside(jobs, marker)}")
        say(f"proved: against no image, {check_equal(jobs, plain)}")
        whole = prepare(folder / "whole", jobs)
        run_whole_inside(whole, marker["version"])
        say(f"proved: Snakemake inside, without a network: {check_inside(whole, marker)}")
        say(f"proved: against no image, {check_equal(whole, plain)}")


if __name__ == "__main__":
    main()
