"""Shows that the tiny chain runs on a Slurm cluster: jobs in the image, one killed and sent again, one over two nodes.

    python -m tests.slurm.prove [FOLDER] [--quick]

in a checkout, as root, on a machine with Debian's Slurm packages: starts a cluster of two nodes on the loopback address
(`cluster.sh`), runs the chain on it with workflows/profiles/slurm, kills one job, stops the cluster, and prints what
holds. Whatever does not hold is an error. FOLDER keeps what the run leaves; a second call goes on with it.
--quick runs one experiment of the chain alone, and the job over two nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from jaxinterp import artefacts
from tests.containers import prove as containers
from tests.workflows import tiny

CLUSTER = Path(__file__).with_name("cluster.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
PART = "verdicts"
VICTIM = f"measure_{PART}"
COORDINATOR = "127.0.0.1:18476"
# A cluster of this machine alone: it answers at once, has no accounting database, and is small.
HERE = (
    *("--jobs", "4", "--latency-wait", "15", "--default-resources", "mem_mb=500", "runtime=10"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"),
    *("--seconds-between-status-checks", "3"),
)


def missing() -> str | None:
    """What this machine lacks for the proof, as a sentence."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"no Slurm here: {', '.join(lacking)} missing"
    if os.getuid() != 0:
        return "no Slurm here: its daemons want root"
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine belongs to a Slurm cluster; no second one is started beside it"
    try:
        import snakemake_executor_plugin_slurm  # noqa: F401
    except ImportError:
        return "no Slurm here: pip install --require-hashes -r workflows/profiles/slurm/requirements.lock"
    return containers.missing()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A running cluster of two nodes."""
    try:
        subprocess.run([str(CLUSTER), "up", str(folder)], check=True)
        yield
    finally:
        subprocess.run([str(CLUSTER), "down", str(folder)], check=True)


def jobs(states: str) -> list[list[str]]:
    """Slurm's jobs in these states: number, state, what Snakemake calls the rule, and the nodes."""
    command = ["squeue", "--noheader", "--states", states, "--format", "%i|%T|%k|%N"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split("|") for line in lines]


def kill_one(process: subprocess.Popen[bytes]) -> None:
    """Waits for the first running job of the rule that is to suffer, and kills it, if there is one."""
    while process.poll() is None:
        for number, _, rule, _ in jobs("running"):
            if rule == f"rule_{VICTIM}":
                time.sleep(3)
                subprocess.run(["scancel", "--signal=KILL", "--full", number], check=True)
                return
        time.sleep(0.5)


def write_settings(folder: Path) -> str:
    """Two processes, one a node; node names mean nothing on a loopback address, so the first process is named."""
    settings = {"processes": 2, "memory": "2GB", "coordinator": COORDINATOR}
    artefacts.write_json({"distributed": settings}, folder / "distributed.json")
    return "distributed.json"


def check_joined(folder: Path, marker: dict[str, str]) -> str:
    """That one job computed on both nodes, in the image, what one process computes."""
    given = yaml.safe_load((tiny.ROOT / "workflows" / "config" / "default.yaml").read_text())["distributed"]
    made = folder / "results" / "distributed"
    table, where = artefacts.read_table(made / "table.parquet")
    assert where["image"] == marker and where["processes"] == 2 and where["devices"] >= 2, where
    command = [sys.executable, "-m", "jaxinterp.cli", "sweep", *shlex.split(given["sweep"])]
    command += ["--prompts", made / "prompts.txt", "--output", made / "alone.parquet"]
    subprocess.run([str(part) for part in command], check=True)
    alone, _ = artefacts.read_table(made / "alone.parquet")
    assert alone.columns == table.columns and alone.height == table.height
    largest = tiny.difference(table, alone)
    assert largest <= containers.TOLERANCE, largest
    text = f"jax.distributed joined {where['processes']} processes on two nodes, {where['devices']} devices; a sweep of"
    return f"{text} {table.height} rows differs from one process by at most {largest:.1e}"


def run(folder: Path, target: str) -> None:
    """Runs the chain, or a part, on the cluster, kills one job, and keeps a list of all jobs."""
    words = [sys.executable, "-m", "snakemake", target, "distributed", *tiny.arguments("slurm"), write_settings(folder)]
    words += [*HERE, *containers.bound()]
    start = f". {containers.CONTAINERS}/common.sh; settle_apptainer; exec "
    command = ["bash", "-euo", "pipefail", "-c", start + shlex.join(words)]
    loopback = os.environ | {"JAX_COORDINATOR_BIND_ADDRESS": COORDINATOR}
    process = subprocess.Popen(command, cwd=folder, env=loopback)
    try:
        kill_one(process)
        assert process.wait() == 0, "Snakemake did not finish; its log is above"
    finally:
        process.terminate()
        with (folder / "jobs.txt").open("a") as file:
            file.writelines(" ".join(job) + "\n" for job in jobs("all"))


def check_jobs(folder: Path) -> str:
    """That jobs ran on both nodes, and that the one that was killed ran again."""
    seen = [line.split(" ") for line in (folder / "jobs.txt").read_text().splitlines()]
    nodes = {job[3] for job in seen if job[1] == "COMPLETED"}
    assert nodes & {"n1", "n[1-2]"} and nodes & {"n2", "n[1-2]"}, nodes
    suffered = [job[1] for job in seen if job[2] == f"rule_{VICTIM}"]
    assert "COMPLETED" in suffered and {"FAILED", "CANCELLED"} & set(suffered), suffered
    done = sum(job[1] == "COMPLETED" for job in seen)
    return f"{done} jobs completed on nodes n1 and n2; {VICTIM} was killed and sent again: {', '.join(suffered)}"


def main() -> None:
    """Starts, runs, stops and prints what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if sentence := missing():
        sys.exit(sentence)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("ended from outside"))
    marker = containers.build(["--debian"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        work = containers.prepare(folder / "work")
        with cluster(folder / "cluster"):
            run(work, PART if given.quick else "all")
        stages = [PART] if given.quick else tiny.STAGES
        containers.say(f"proved: on Slurm, {containers.check_inside(work, marker, stages)}")
        containers.say(f"proved: {check_jobs(work)}")
        containers.say(f"proved: {check_joined(work, marker)}")


if __name__ == "__main__":
    main()
