"""Runs Snakemake against the stand-ins on loopback, with secrets planted where a user's would be."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.workflows.tiny import ROOT

SECRETS = {
    "HF_TOKEN": "hf_PLANTEDhubTOKEN0123456789",
    "AWS_SECRET_ACCESS_KEY": "PLANTEDawsSECRET0123456789",
    "GOOGLE_OAUTH_ACCESS_TOKEN": "ya29.PLANTEDgoogleTOKEN",
    "WANDB_API_KEY": "PLANTEDotherSECRET0123456789",
}
"""What a user may have in the environment; no job needs it."""
CREDENTIALS = {
    "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "PLANTEDbucketKEY",
    "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "PLANTEDbucketSECRET0123456789",
}
"""What the bucket is opened with; every job needs it."""
STORAGE = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://results/jaxinterp"]
SHARED = {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", ""),
}


def google(address: str) -> dict[str, str]:
    """What tells Google's client of a stand-in for its storage; it then asks for no credentials."""
    return {"STORAGE_EMULATOR_HOST": address, "SNAKEMAKE_STORAGE_GCS_PROJECT": "any"}


def checkout(folder: Path) -> Path:
    """A git checkout of the workflow in `folder`, as a user who submits from there has it."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copytree(ROOT / "workflows", folder / "workflows", ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def snakemake(profile: str, *words: str | Path, root: Path = ROOT) -> list[str]:
    """The command that runs some targets of a checkout's workflow, in the working directory, under a profile."""
    command = [sys.executable, "-m", "snakemake", "--profile", root / "workflows" / "profiles" / profile]
    return [str(word) for word in [*command, "--snakefile", root / "Snakefile", *words]]


def environment(endpoint: str = "", **variables: str) -> dict[str, str]:
    """The environment of a user with secrets, and with a bucket at an address if one is given."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plugins = os.pathsep.join([str(ROOT / "workflows" / "plugins"), str(ROOT)])
    bucket = CREDENTIALS | {"SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": endpoint} if endpoint else {}
    return os.environ | SHARED | SECRETS | bucket | {"PATH": path, "PYTHONPATH": plugins} | variables


def finish(command: list[str], variables: dict[str, str], folder: Path, seconds: int = 900) -> tuple[int, str]:
    """Runs a command to its end: its exit status, and what it printed."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=variables, check=False, timeout=seconds, **options)
    return done.returncode, done.stdout


def leaks(*places: Path | bytes | str) -> list[str]:
    """Where a planted secret appears, plainly or in base64: in the files of a folder, or in a text."""
    planted = {**SECRETS, **CREDENTIALS}
    forms = {name: (value.encode(), base64.b64encode(value.encode())) for name, value in planted.items()}
    texts = {}
    for place in places:
        if isinstance(place, Path):
            texts |= {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        else:
            texts[f"text {len(texts)}"] = place.encode() if isinstance(place, str) else place
    return [
        f"{name} in {where}" for where, text in texts.items() for name in forms if any(f in text for f in forms[name])
    ]
